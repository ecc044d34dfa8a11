"""Quantised models from the ONNX file to results, on both devices, against ONNX Runtime; and how much of them runs on 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.parser import parse_model

from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import Attention, Convolution, MatrixMultiply, Pointwise
from fusion.passes import FusionOptions, optimize
from runtime.devices import open_device
from runtime.engine import Engine
from tests.catalogue import Row, model
from tests.fusion.networks import assert_same
from tests.models import light, onnxruntime_outputs
from tests.quantized import SHAPES, fp8, last_scale, prepared, quantized, small
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Silent
from trtcli.report.layers import layer_objects

DEVICES = ["cpu", pytest.param("0", marks=pytest.mark.gpu)]
# Products of the small models, and how many of them run on 8 bits. Of the others, two multiply activations with zero points.
PRODUCTS = {
    ("residual", "int8"): (6, 6), ("residual", "uint8"): (6, 6), ("residual", "operators"): (6, 6), ("residual", "dynamic"): (6, 6),
    ("transformer", "partial"): (6, 6), ("transformer", "int8"): (8, 8), ("transformer", "uint8"): (8, 6), ("transformer", "operators"): (8, 6),
}  # fmt: skip


def products(network: Network) -> list[bool]:
    """For each product, whether its operands have 8 bits."""
    layers = [layer for layer in network.layers if isinstance(layer.op, Convolution | MatrixMultiply)]
    return [all(network.tensors[name].dtype.itemsize == 1 for name in layer.inputs[:2]) for layer in layers]


def compare(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], scale: float) -> None:
    """Within one step of the last quantisation; without one (dynamic quantisation) to the precision of single floats."""
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.ptp(array) > 0.5
        error = np.abs(found[name].astype(np.float64) - array).max()
        # A rounding edge before may push a value to the next step; dynamic scales hang on the same edges.
        assert error <= (1.01 * scale if scale else 0.05 * np.abs(array).max()), f"{name}: error {error:.3g}, scale {scale:.3g}"


@pytest.mark.parametrize("device_name", DEVICES)
@pytest.mark.parametrize(("name", "kind"), PRODUCTS)
def test_small_models(name: str, kind: str, device_name: str, tmp_path: Path) -> None:
    device = open_device(device_name)
    model = small(name, kind)
    config = BuildConfig(timing_cache_file=str(tmp_path / "timings.json"), optimization_level=1, tf32=False)
    build(model.SerializeToString(), config, device, log=Silent()).save(tmp_path / "model.engine")
    engine = Engine.load(tmp_path / "model.engine")
    expected = PRODUCTS[name, kind]
    if (name, kind) == ("transformer", "partial") and device_name != "cpu":  # queries, keys and values come of one product
        expected = (4, 4)
    assert (len(products(engine.network)), sum(products(engine.network))) == expected
    shown = [one["Precision"] for one in layer_objects(engine) if one["LayerType"] in ("Convolution", "MatrixMultiply")]
    assert sum(one in ("INT8", "UINT8") for one in shown) == expected[1]
    inputs = {"x": np.random.default_rng(5).standard_normal(SHAPES[name]).astype(np.float32)}
    found = engine.create_execution_context(device).execute(inputs)
    compare(found, onnxruntime_outputs(model, inputs), last_scale(model))


@pytest.mark.parametrize("device_name", DEVICES)
def test_8_bit_floats(device_name: str, tmp_path: Path) -> None:
    device = open_device(device_name)
    config = BuildConfig(timing_cache_file=str(tmp_path / "timings.json"), optimization_level=1, tf32=False)
    build(fp8().SerializeToString(), config, device, log=Silent()).save(tmp_path / "model.engine")
    engine = Engine.load(tmp_path / "model.engine")
    assert products(engine.network) == [True, True]
    assert [one["Precision"] for one in layer_objects(engine) if one["LayerType"] == "MatrixMultiply"] == ["FP8", "FP8"]
    inputs = {"x": np.random.default_rng(5).standard_normal((24, 32)).astype(np.float32)}
    found = engine.create_execution_context(device).execute(inputs)
    for name, wanted in onnxruntime_outputs(fp8(), inputs).items():
        # Sums in another order may fall to the next of the 8-bit numbers in between, 1/16 away.
        assert np.linalg.norm(found[name] - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.parametrize("device_name", DEVICES)
def test_averages_between_two_steps(device_name: str) -> None:
    """Means of four whole numbers lie half way between two steps so often that tactics never agree on all of them."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 8, 6, 6] x) => (float[2, 8, 3, 3] y)
        <float s = {0.03}, float t = {0.05}, int8 z = {0}> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        a = AveragePool<kernel_shape=[2, 2], strides=[2, 2]>(d)
        r = QuantizeLinear(a, t, z)
        y = DequantizeLinear(r, t, z)
    }"""
    model = parse_model(text)
    engine = build(model.SerializeToString(), BuildConfig(), open_device(device_name), log=Silent())
    x = np.random.default_rng(5).standard_normal((2, 8, 6, 6)).astype(np.float32)
    found = engine.create_execution_context(open_device(device_name)).execute({"x": x})["y"]
    assert np.abs(found - onnxruntime_outputs(model, {"x": x})["y"]).max() <= 0.05001


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_dequantised_tensor_is_left_between_quantised_layers(device: str) -> None:
    """Every tensor between layers of the residual network has 8 bits, but for the pooled one and the result."""
    network = optimize(import_onnx(small("residual", "int8")), FusionOptions(device=device)).network
    between = [name for layer in network.layers for name in layer.outputs if name not in network.outputs]
    assert sum(network.tensors[name].dtype.itemsize > 1 for name in between) <= 1


def test_quantised_projections_of_one_tensor_are_one_product() -> None:
    """Their scales and biases, which differ, become constants of the columns; what attention makes is quantised there."""
    network = import_onnx(small("transformer", "partial"))
    joined, apart = (optimize(network, FusionOptions(device="cuda", disabled=disabled)).network for disabled in ((), ("packed-attention",)))
    assert [sum(products(one)) for one in (joined, apart)] == [4, 6]
    (attention,) = (layer for layer in joined.layers if isinstance(layer.op, Attention))
    assert attention.op.parts and joined.tensors[attention.outputs[0]].dtype is DataType.INT8
    assert_same(apart, joined)


# Layers of real numbers in front of a quantisation to int8 with zero point 3: nodes that make t of x, and w and its shape.
REAL = {
    "matmul": ("t = MatMul(x, w)", (6, 16), (16, 12)), "weights": ("u = DequantizeLinear<axis=0, block_size=32>(q8, many)\nt = MatMul(x, u)", (4, 128), ()),
    "conv": ("c = Conv<pads=[1,1,1,1]>(x, w)\nt = Relu(c)", (1, 8, 6, 6), (8, 8, 3, 3)), "depthwise": ("t = Conv<group=8>(x, w)", (1, 8, 6, 6), (8, 1, 3, 3)),
    "deconvolution": ("t = ConvTranspose(x, w)", (1, 8, 6, 6), (8, 8, 3, 3)), "normalisation": ("t = LayerNormalization(x, w, w)", (6, 16), (16,)),
    "instances": ("t = InstanceNormalization(x, w, w)", (2, 8, 6, 6), (8,)), "softmax": ("t = Softmax(x)", (6, 16), ()),
    "pooling": ("t = AveragePool<kernel_shape=[2,2]>(x)", (2, 8, 6, 6), ()), "reduction": ("t = ReduceMean<keepdims=0>(x, one)", (2, 8, 6, 6), ()),
    "pointwise": ("a = Sin(x)\nt = Mul(a, w)", (6, 16), (16,)), "sum": ("a = Add(x, x)\nt = LayerNormalization(a, w, w)", (6, 16), (16,)),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["", "fp16"])
@pytest.mark.parametrize("device_name", DEVICES)
@pytest.mark.parametrize("name", REAL)
def test_real_layers_quantise_their_results(name: str, device_name: str, precision: str, tmp_path: Path) -> None:
    nodes, x, w = REAL[name]
    values = {**({"w": w} if w else {}), "s": 0.037, "i8": np.array(3, np.int8), "one": np.array([1]), "q8": np.arange(128 * 128).reshape(128, 128).astype(np.int8)}
    values |= {"many": np.linspace(0.001, 0.002, 512).reshape(4, 128), "fine": np.array(0.004, np.float32)}
    values = {key: value for key, value in values.items() if key in nodes + "s i8" or key == "s"}
    row = Row(name, f"{nodes}\ny = QuantizeLinear(t, s, i8)", "", inputs={"x": x}, values=values, opset=21)
    data = model(row)
    device = open_device(device_name)
    config = BuildConfig(timing_cache_file=str(tmp_path / "timings.json"), optimization_level=0, tf32=False, fp16=precision == "fp16")
    engine = build(data, config, device, log=Silent())
    makers = [layer for layer in engine.network.layers if any(engine.network.tensors[one].dtype.itemsize == 1 for one in layer.outputs)]
    assert not [layer.name for layer in makers if isinstance(layer.op, Pointwise) and name != "pointwise"]
    inputs = {"x": np.random.default_rng(5).standard_normal(x).astype(np.float32)}
    found = engine.create_execution_context(device).execute(inputs)["y"]
    wanted = onnxruntime_outputs(onnx.load_from_string(data), inputs)["y"]
    steps = np.abs(found.astype(int) - wanted.astype(int))
    assert found.dtype == wanted.dtype and len(np.unique(wanted)) > 3
    assert steps.max() <= 1 and np.count_nonzero(steps) <= (1 if not precision else 1 + steps.size // 10)


@pytest.mark.slow
@pytest.mark.parametrize("device_name", DEVICES)
def test_resnet50(device_name: str, tmp_path: Path) -> None:
    device = open_device(device_name)
    shape = (1, 3, 224, 224)
    model = quantized(prepared(light("resnet50")), shape, "int8")
    config = BuildConfig(timing_cache_file=str(tmp_path / "timings.json"), optimization_level=1, tf32=False)
    build(model.SerializeToString(), config, device, log=Silent()).save(tmp_path / "model.engine")
    engine = Engine.load(tmp_path / "model.engine")
    assert products(engine.network) == [True] * 54
    assert len(engine.network.layers) <= 59
    (name,) = engine.network.inputs
    inputs = {name: np.random.default_rng(5).standard_normal(shape).astype(np.float32)}
    found = engine.create_execution_context(device).execute(inputs)
    for key, wanted in onnxruntime_outputs(model, inputs).items():
        assert np.ptp(wanted) > 0
        error = np.linalg.norm(found[key] - wanted) / np.linalg.norm(wanted)
        assert error < 0.02, error
