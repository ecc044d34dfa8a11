"""Models that need no download: the nine light ones inside the onnx package, with weights that behave.

The package ships real architectures whose weights are all the same number, so every output is the same too. Here each
weight is drawn anew from a seed, scaled for what reads it (He initialisation), so that activations stay finite and
outputs depend on the input. Good for benchmarks, demonstrations and tests; they classify nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import ModelProto, NodeProto

LIGHT_MODELS = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19", "zfnet512",
)  # fmt: skip

RESIDUAL_GAIN = 0.4  # of branches that are summed: else activations double at every block and the softmax saturates
PASSING = ("AveragePool", "Concat", "Dropout", "GlobalAveragePool", "LRN", "MaxPool", "Reshape", "Transpose")
IR_VERSION = 8  # old enough for every runtime, new enough that weights need not be inputs


def light_path(name: str) -> Path:
    """Where the onnx package keeps this light model.

    Raises:
        ValueError: there is no such model.
    """
    import onnx

    if name not in LIGHT_MODELS:
        raise ValueError(f"no light model {name!r}; there are {', '.join(LIGHT_MODELS)}")
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"


def light_model(name: str, seed: int = 0) -> ModelProto:
    """A light model of the onnx package with its weights drawn from ``seed``.

    Raises:
        ValueError: there is no such model.
    """
    import onnx

    return refill_weights(onnx.load(light_path(name)), seed)


def refill_weights(model: ModelProto, seed: int = 0) -> ModelProto:
    """A copy of ``model`` whose floating-point weights (initializers, or filled by ConstantOfShape) are seeded random numbers.

    Weights that ConstantOfShape made become initializers; inputs that only repeat an initializer are dropped.
    """
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    filled = ModelProto()
    filled.CopyFrom(model)
    graph = filled.graph
    given = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph.node)
    producers = {name: node for node in graph.node for name in node.output}
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in given and _makes_floats(node):
            shapes[node.output[0]] = tuple(int(dim) for dim in numpy_helper.to_array(given[node.input[0]]))
    kept = [node for node in graph.node if node.output[0] not in shapes]
    read = {name for node in kept for name in node.input}
    weights = {name: tensor for name, tensor in given.items() if name in read}
    shapes.update({name: tuple(item.dims) for name, item in weights.items() if item.data_type == TensorProto.FLOAT and item.dims})
    del graph.node[:]
    graph.node.extend(kept)
    del graph.initializer[:]
    for name, shape in shapes.items():
        reader, index = _role(name, readers)
        rectified = reader is not None and _is_rectified(reader.input[0], producers)
        array = _draw(shape, reader, index, rectified, rng)
        if index == 1 and reader is not None and reader.op_type == "BatchNormalization" and _is_summed(reader, readers):
            array = array * np.float32(RESIDUAL_GAIN)
        graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, shape, array.tobytes(), raw=True))
    graph.initializer.extend(tensor for name, tensor in weights.items() if name not in shapes)
    inputs = [entry for entry in graph.input if entry.name not in given]
    del graph.input[:]
    graph.input.extend(inputs)
    filled.ir_version = max(IR_VERSION, min(model.ir_version, 10))
    return filled


def _makes_floats(node: NodeProto) -> bool:
    return all(attribute.t.data_type == 1 for attribute in node.attribute if attribute.name == "value")


def _readers(nodes: object) -> dict[str, list[tuple[NodeProto, int]]]:
    found: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in nodes:  # type: ignore[attr-defined]
        for index, name in enumerate(node.input):
            found.setdefault(name, []).append((node, index))
    return found


def _role(name: str, readers: dict[str, list[tuple[NodeProto, int]]]) -> tuple[NodeProto | None, int]:
    """The node (and its input number) that reads a weight, seen through Unsqueeze and Reshape."""
    for node, index in readers.get(name, ()):
        if node.op_type in ("Unsqueeze", "Reshape", "Identity") and index == 0:
            return _role(node.output[0], readers)
        return node, index
    return None, 0


def _is_summed(node: NodeProto, readers: dict[str, list[tuple[NodeProto, int]]]) -> bool:
    return any(reader.op_type in ("Sum", "Add") for reader, _ in readers.get(node.output[0], ()))


def _is_rectified(name: str, producers: dict[str, NodeProto]) -> bool:
    """Whether a tensor comes out of a Relu, seen through operators that keep its scale."""
    node = producers.get(name)
    while node is not None and node.op_type in PASSING:
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "Relu"


def _draw(
    shape: tuple[int, ...], reader: NodeProto | None, index: int, rectified: bool, rng: np.random.Generator
) -> np.ndarray:
    op = reader.op_type if reader is not None else ""
    near_one: Callable[[], np.ndarray] = lambda: rng.uniform(0.8, 1.2, shape).astype(np.float32)  # noqa: E731
    if (op == "BatchNormalization" and index in (1, 4)) or op == "Mul":
        return near_one()
    if len(shape) < 2 or op in ("BatchNormalization", "Add"):
        return (0.05 * rng.standard_normal(shape, np.float32)).astype(np.float32)
    transposed = op == "MatMul" or (op == "Gemm" and not any(a.name == "transB" and a.i for a in reader.attribute))  # type: ignore[union-attr]
    fan_in = shape[0] if transposed else math.prod(shape[1:])
    scale = np.float32(math.sqrt((2.0 if rectified else 1.0) / max(fan_in, 1)))  # a Relu halves the mean square
    return rng.standard_normal(shape, np.float32) * scale
