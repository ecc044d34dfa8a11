"""Operators as older opsets have them (7 is the oldest that ONNX Runtime reads), against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.fusion.importer.test_operators import check, floats

X = floats(2, 3, 4, 5)
IMAGE = floats(1, 4, 6, 6)
BOXES = np.float32([[0, 0, 4, 4], [1, 1, 5, 3]])
LINES = floats(3, 2, 4)
W = {"w": floats(1, 20, 4, seed=1), "r": floats(1, 20, 5, seed=2)}


def quarter(count: int) -> dict[str, np.ndarray]:
    return {name: floats(count, seed=seed) for seed, name in enumerate(("scale", "bias", "mean"), 1)} | {"var": np.abs(floats(count, seed=4)) + 0.5}


# operator, opset, inputs, constants, attributes (outputs among them)
OLD: list[tuple[str, int, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]] = [
    ("Softmax", 7, {"x": X}, {}, {"axis": 2}),
    ("LogSoftmax", 11, {"x": X}, {}, {"axis": 1}),
    ("Hardmax", 11, {"x": X}, {}, {"axis": 2}),
    ("Clip", 7, {"x": X}, {}, {"min": -0.5, "max": 0.25}),
    ("Slice", 7, {"x": X}, {}, {"starts": [1, -2], "ends": [99, 4], "axes": [1, 3]}),
    ("Pad", 7, {"x": X}, {}, {"pads": [0, 1, 0, 2, 0, 0, 1, 0], "value": 2.0}),
    ("TopK", 7, {"x": X}, {}, {"k": 2, "axis": 2, "outputs": 2}),
    ("TopK", 10, {"x": X}, {"k": np.array([3])}, {"axis": -1, "outputs": 2}),
    ("Dropout", 7, {"x": X}, {}, {"ratio": 0.3}),
    ("Dropout", 10, {"x": X}, {}, {"ratio": 0.3}),
    ("BatchNormalization", 7, {"x": X}, quarter(3), {"epsilon": 0.01}),
    ("BatchNormalization", 9, {"x": X}, quarter(3), {}),
    ("Split", 7, {"x": X}, {}, {"axis": 2, "split": [1, 3], "outputs": 2}),
    ("Squeeze", 7, {"x": floats(2, 1, 3, 1)}, {}, {"axes": [1, 3]}),
    ("Unsqueeze", 7, {"x": X}, {}, {"axes": [0, 5]}),
    ("ReduceSum", 7, {"x": X}, {}, {"axes": [1, 2], "keepdims": 0}),
    ("ReduceMean", 7, {"x": X}, {}, {}),
    ("ReduceLogSum", 13, {"x": np.abs(X)}, {}, {"axes": [-1]}),
    ("ArgMax", 7, {"x": X}, {}, {"axis": 1, "keepdims": 0}),
    ("Upsample", 7, {"x": X}, {}, {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "nearest"}),
    ("Upsample", 9, {"x": X}, {"s": np.float32([1, 1, 2, 2])}, {"mode": "linear"}),
    ("Resize", 10, {"x": X}, {"s": np.float32([1, 1, 2, 2])}, {"mode": "linear"}),
    ("Scatter", 9, {"x": floats(3, 4)}, {"i": np.array([[0, 2], [1, 0]]), "u": floats(2, 2, seed=1)}, {"axis": 1}),
    ("Gemm", 7, {"a": floats(3, 4)}, {"b": floats(4, 5, seed=1), "c": floats(5, seed=2)}, {"alpha": 0.5, "beta": 2.0}),
    ("MaxPool", 7, {"x": IMAGE}, {}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0]}),
    ("MaxPool", 8, {"x": IMAGE}, {}, {"kernel_shape": [2, 2], "strides": [2, 2], "outputs": 2}),
    ("AveragePool", 7, {"x": IMAGE}, {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", 10, {"x": IMAGE}, {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("LpPool", 11, {"x": IMAGE}, {}, {"kernel_shape": [2, 2], "p": 2}),
    ("RoiAlign", 10, {"x": IMAGE, "b": BOXES}, {"n": np.array([0, 0])}, {"output_height": 2, "output_width": 2, "sampling_ratio": 2}),
    ("RoiAlign", 16, {"x": IMAGE, "b": BOXES}, {"n": np.array([0, 0])}, {"output_height": 2, "output_width": 2, "sampling_ratio": 2}),
    ("GridSample", 16, {"x": IMAGE, "g": floats(1, 3, 3, 2, seed=1)}, {}, {"mode": "bilinear"}),
    ("OneHot", 9, {"i": np.array([1, -1, 3])}, {"d": np.array([4]), "v": np.float32([0, 5])}, {}),
    ("CumSum", 11, {"x": X}, {"a": np.array(1)}, {"reverse": 1}),
    ("ConstantOfShape", 9, {}, {"s": np.array([2, 3])}, {}),
    ("EyeLike", 9, {"x": floats(3, 4)}, {}, {"k": 1}),
    ("Tile", 7, {"x": floats(2, 3)}, {"r": np.array([2, 1])}, {}),
    ("Expand", 8, {"x": floats(2, 1)}, {"s": np.array([2, 4])}, {}),
    ("Flatten", 7, {"x": X}, {}, {"axis": 2}),
    ("DepthToSpace", 7, {"x": IMAGE}, {}, {"blocksize": 2}),
    ("InstanceNormalization", 7, {"x": X}, {"s": floats(3, seed=1), "b": floats(3, seed=2)}, {}),
    ("LRN", 7, {"x": X}, {}, {"size": 3}),
    ("PRelu", 7, {"x": X}, {"s": floats(3, 1, 1)}, {}),
    ("Sum", 7, {"a": X, "b": -X, "c": X * X}, {}, {}),
    ("Mean", 7, {"a": X, "b": X * X}, {}, {}),
    ("Max", 8, {"a": X, "b": floats(5), "c": floats(1)}, {}, {}),
    ("Pow", 7, {"a": np.abs(X)}, {"b": np.float32([2.5])}, {}),
    ("QuantizeLinear", 10, {"x": X}, {"s": np.float32(0.1), "z": np.uint8(7)}, {}),
    ("DequantizeLinear", 13, {"x": np.arange(-6, 6, dtype=np.int8).reshape(3, 4)}, {"s": np.float32([0.1, 0.2, 0.3]), "z": np.int8([1, 0, 2])}, {"axis": 0}),
    ("RNN", 7, {"x": LINES}, {"w": floats(1, 5, 4, seed=1), "r": floats(1, 5, 5, seed=2)}, {"hidden_size": 5, "outputs": 2}),
    ("GRU", 7, {"x": LINES}, {"w": floats(1, 15, 4, seed=1), "r": floats(1, 15, 5, seed=2)}, {"hidden_size": 5, "outputs": 2, "linear_before_reset": 1}),
    ("LSTM", 7, {"x": LINES}, W, {"hidden_size": 5, "outputs": 3}),
    ("NonMaxSuppression", 10, {"b": BOXES[None], "s": np.float32([[[0.9, 0.8]]])}, {"m": np.array([2]), "o": np.float32([0.2])}, {}),
    ("GroupNormalization", 18, {"x": IMAGE}, {"s": floats(2, seed=1), "b": floats(2, seed=2)}, {"num_groups": 2}),
    ("GroupNormalization", 21, {"x": IMAGE}, {"s": floats(4, seed=1), "b": floats(4, seed=2)}, {"num_groups": 2}),
    ("Reshape", 7, {"x": X}, {"s": np.array([0, -1, 2])}, {}),
    ("Cast", 7, {"x": X}, {}, {"to": 6}),
    ("Gelu", 20, {"x": X}, {}, {}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(OLD)), ids=[f"{op}-{opset}" for op, opset, *_ in OLD])
def test_old_forms(number: int) -> None:
    op, opset, inputs, constants, attributes = OLD[number]
    check(op, inputs, constants, opset=opset, tolerance=1e-4, dynamic=False, **attributes)
