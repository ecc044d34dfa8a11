"""Recurrent networks from the ONNX file through an engine file to results, on both devices, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.ops import Recurrence
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from runtime.devices import open_device
from runtime.engine import Engine
from tests.models import onnxruntime_outputs
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Silent

DEVICES = ["cpu", pytest.param("0", marks=pytest.mark.gpu)]


def speech_model() -> bytes:
    """A bidirectional LSTM and a GRU over features with dynamic batch and time, as PyTorch exports them with ``batch_first``."""
    random = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> object:
        return numpy_helper.from_array((0.2 * random.standard_normal(shape)).astype(np.float32), name)

    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "w1", "r1", "b1"], ["y1"], "lstm", hidden_size=48, direction="bidirectional"),
        helper.make_node("Transpose", ["y1"], ["y1t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["y1t", "merge"], ["y1m"]),
        helper.make_node("GRU", ["y1m", "w2", "r2", "b2"], ["y2", "h2"], "gru", hidden_size=40, linear_before_reset=1),
        helper.make_node("Squeeze", ["y2", "one"], ["y2s"]),
        helper.make_node("Transpose", ["y2s"], ["y2t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["y2t", "out"], ["y"], "head"),
    ]
    weights = [
        weight("w1", 2, 192, 20), weight("r1", 2, 192, 48), weight("b1", 2, 384), weight("w2", 1, 120, 96), weight("r2", 1, 120, 40),
        weight("b2", 1, 240), weight("out", 40, 5), numpy_helper.from_array(np.array([0, 0, 96]), "merge"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]  # fmt: skip
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "h2")]
    graph = helper.make_graph(nodes, "speech", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 20])], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("device_name", DEVICES)
def test_speech_model(device_name: str, tmp_path: Path) -> None:
    import onnx

    model, device = speech_model(), open_device(device_name)
    config = BuildConfig(
        tf32=False, optimization_level=1, min_shapes={"x": (1, 1, 20)}, opt_shapes={"x": (2, 30, 20)}, max_shapes={"x": (8, 100, 20)}
    )
    build(model, config, device, log=Silent()).save(tmp_path / "speech.engine")
    engine = Engine.load(tmp_path / "speech.engine")
    context = engine.create_execution_context(device)
    for shape in ((2, 30, 20), (3, 7, 20), (1, 1, 20), (8, 100, 20)):
        inputs = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        context.set_input_shape("x", shape)
        found = context.execute(inputs)
        for name, wanted in onnxruntime_outputs(onnx.load_from_string(model), inputs).items():
            assert found[name].shape == wanted.shape
            np.testing.assert_allclose(found[name], wanted, 1e-4, 1e-5)


@pytest.mark.parametrize(("dtype", "limit"), [(DataType.HALF, 2e-3), (DataType.BF16, 1e-2)])
def test_speech_model_in_narrow_types(dtype: DataType, limit: float) -> None:
    """Weights, gates and states become narrow; activations and sums stay float32."""
    network = import_onnx(speech_model())
    inputs = {"x": np.random.default_rng(0).standard_normal((3, 20, 20)).astype(np.float32)}
    narrow = optimize(network, FusionOptions(device="cuda", precision=dtype)).network
    assert all(
        narrow.tensors[name].dtype is dtype for layer in narrow.layers if isinstance(layer.op, Recurrence) for name in (*layer.inputs, *layer.outputs)
    )
    wanted, found = run(network, inputs), run(narrow, inputs)
    for name, value in wanted.items():
        assert np.linalg.norm(found[name] - value) <= limit * np.linalg.norm(value)
