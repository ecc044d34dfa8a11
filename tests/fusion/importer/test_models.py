"""Whole models: imported, run by the NumPy meaning of their layers, and compared with ONNX Runtime."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fusion.importer import import_onnx, import_with_report
from fusion.network import Network
from fusion.ops import Convolution, MatrixMultiply, Pointwise
from fusion.reference import run
from tests.models import WHEEL_MODELS, light, onnxruntime_outputs, random_inputs, wheel_model
from trtcli.zoo import LIGHT_MODELS, light_model, light_path

LARGE = ("bvlc_alexnet", "zfnet512")  # hundreds of megabytes of weights


def compare(network: Network, model: object, inputs: dict[str, np.ndarray], relative: float = 1e-5) -> None:
    wanted = onnxruntime_outputs(model, inputs)  # type: ignore[arg-type]
    found = run(network, inputs)
    assert list(found) == list(network.outputs)
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype
        assert np.isfinite(value).all()
        assert np.ptp(value) > 0, "a constant output proves nothing"
        error = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        assert error < relative, f"{name}: relative error {error:.2e}"


def check_complete(network: Network, nodes: int) -> None:
    """Every node has a fate, every layer an origin, every tensor a type, and names are unique."""
    assert len(network.fates) == nodes
    layers = {layer.name: layer for layer in network.layers}
    assert len(layers) == len(network.layers)
    made = set(network.inputs) | set(network.constants)
    for layer in network.layers:
        assert layer.origins, layer.name
        assert set(layer.origins) <= set(network.fates)
        assert set(layer.inputs) <= made, f"{layer.name} reads what is not made yet"
        assert not set(layer.outputs) & made, f"{layer.name} makes what is there already"
        made.update(layer.outputs)
    assert set(network.outputs) <= made
    assert set(network.tensors) == made
    for name, array in network.constants.items():
        assert array.shape == network.tensors[name].shape
        assert array.dtype == network.tensors[name].dtype.numpy
        assert array.flags.c_contiguous
    for node, fate in network.fates.items():
        assert fate.kind in ("layer", "folded", "no-op", "dead"), node
        assert (fate.kind == "layer") == (fate.layer in layers), node


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in LIGHT_MODELS if n != "vgg19"])
def test_light_model_equals_onnxruntime(name: str) -> None:
    """But VGG-19, 570 MB that have no node that AlexNet has not."""
    model = light(name) if name not in LARGE else light_model(name)
    network = import_onnx(model)
    check_complete(network, len(model.graph.node))
    compare(network, model, random_inputs(network), 2e-5)


def test_light_models_as_shipped() -> None:
    """With their constant weights made by ConstantOfShape, and initializers that are listed as inputs too."""
    for name in ("squeezenet", "shufflenet"):
        network, report = import_with_report(light_path(name))
        check_complete(network, report.nodes)
        assert len(network.inputs) == 1
        assert report.opsets == {"ai.onnx": 9}
        assert not any(type(layer.op).__name__ == "Fill" for layer in network.layers)


SIZES = {
    "text_detection": {},
    "text_recognition": {"p2o.DynamicDimension.0": 2, "p2o.DynamicDimension.1": 80, "x_2": 48},
    "text_orientation": {"x_0": 3, "x_2": 48, "x_3": 192},
    "page_orientation": {"DynamicDimension.0": 2},
    "file_type": {},
    "captcha": {"batch": 2},
}


@pytest.mark.parametrize("name", WHEEL_MODELS)
def test_trained_model_equals_onnxruntime(name: str) -> None:
    path = wheel_model(name)
    network = import_onnx(path)
    check_complete(network, len(onnx.load(path).graph.node))
    inputs = random_inputs(network, SIZES[name])
    if name == "text_detection":  # noise holds no text, and then all probabilities are zero
        inputs = {network.inputs[0]: letters()}
    compare(network, path, inputs, 1e-4)


def letters() -> np.ndarray:
    """A white image with dark strokes that look like letters to a detector, normalised as it wants it."""
    image = np.full((1, 3, 64, 160), 2.4, np.float32)
    for index, left in enumerate(range(16, 136, 12)):
        image[..., 20:44, left : left + 2] = -2.0
        image[..., 20:22, left : left + 8] = -2.0
        if index % 2:
            image[..., 42:44, left : left + 8] = -2.0
        if index % 3:
            image[..., 31:33, left : left + 8] = -2.0
    return image


def test_trained_models_fold_all_shape_arithmetic() -> None:
    network = import_onnx(wheel_model("text_detection"))
    kinds = Counter(type(layer.op).__name__ for layer in network.layers)
    assert kinds["ShapeValue"] == 0
    assert kinds["Gather"] == 0
    assert network.tensors[network.outputs[0]].shape[1] == 1


def test_resnet_structure() -> None:
    network = import_onnx(light("resnet50"))
    kinds = Counter(type(layer.op) for layer in network.layers)
    assert kinds[Convolution] == 53
    assert kinds[MatrixMultiply] == 1
    assert kinds[Pointwise] == 53 + 49 + 16  # batch normalisations, activations, sums
    name = light("resnet50").graph.node[0].name or "Conv_0"
    assert network.layers[0].name == name
    assert network.layers[0].origins == (name,)


def test_import_is_fast() -> None:
    model = light("resnet50")
    import_onnx(model)
    start = time.process_time()
    import_onnx(model)
    assert time.process_time() - start < 1.0


def test_long_chain_is_fast() -> None:
    """3,000 nodes, a third of them shape arithmetic with a dynamic batch."""
    nodes, current = [], "x"
    for index in range(600):
        nodes += [
            helper.make_node("Shape", [current], [f"shape{index}"]),
            helper.make_node("Gather", [f"shape{index}", "zero"], [f"batch{index}"]),
            helper.make_node("Concat", [f"batch{index}", "tail"], [f"target{index}"], axis=0),
            helper.make_node("Reshape", [current, f"target{index}"], [f"r{index}"]),
            helper.make_node("Mul" if index % 2 else "Add", [f"r{index}", "w"], [f"y{index}"]),
        ]
        current = f"y{index}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 8])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, None)],
        [
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
            helper.make_tensor("tail", TensorProto.INT64, [2], [8, 8]),
            helper.make_tensor("w", TensorProto.FLOAT, [8], [0.5] * 8),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    start = time.process_time()
    network = import_onnx(model)
    assert time.process_time() - start < 2.0
    assert len(network.layers) == 600
    assert Counter(fate.kind for fate in network.fates.values()) == {"layer": 600, "folded": 1800, "no-op": 600}
