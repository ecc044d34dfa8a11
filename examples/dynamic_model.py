"""Write a small network with a dynamic batch, to try commands on: ``python -m examples.dynamic_model FILE``.

Input ``images`` (N x 3 x 32 x 32), a stem, a block of four branches (1x1, 3x3, 5x5, pooling), global pooling, ten classes: ``scores``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def dynamic_model() -> onnx.ModelProto:
    """The network, with random weights from seed 0."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def convolution(x: str, name: str, inputs: int, outputs: int, size: int, stride: int = 1) -> str:
        kernel = weight(f"{name}.w", outputs, inputs, size, size)
        pads, strides = [size // 2] * 4, [stride, stride]
        nodes.append(helper.make_node("Conv", [x, kernel], [f"{name}.c"], name, pads=pads, strides=strides))
        nodes.append(helper.make_node("Relu", [f"{name}.c"], [f"{name}.r"], f"{name}.relu"))
        return f"{name}.r"

    x, channels = convolution("images", "stem", 3, 32, 3, 2), 80
    branches = [
        convolution(x, "one", 32, 16, 1),
        convolution(convolution(x, "three_reduce", 32, 16, 1), "three", 16, 32, 3),
        convolution(convolution(x, "five_reduce", 32, 8, 1), "five", 8, 16, 5),
    ]
    nodes.append(helper.make_node("MaxPool", [x], ["pooled"], "pool", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]))
    branches.append(convolution("pooled", "project", 32, 16, 1))
    nodes.append(helper.make_node("Concat", branches, ["joined"], "join", axis=1))
    nodes.append(helper.make_node("GlobalAveragePool", ["joined"], ["mean"], "mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], "flat"))
    nodes.append(helper.make_node("MatMul", ["flat", weight("classes.w", channels, 10)], ["logits"], "classes"))
    nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], "softmax"))
    graph = helper.make_graph(
        nodes, "dynamic",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m examples.dynamic_model FILE", file=sys.stderr)
        return 1
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(dynamic_model(), path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
