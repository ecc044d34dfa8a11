"""Axes, steps, scales and the like that the model computes: the host reads them in the middle of an inference; against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.cpu import CpuDevice
from runtime.device import Device
from tests.control_flow.networks import QUICK, check, made, parse
from tests.models import onnxruntime_outputs

X = np.random.default_rng(0).standard_normal((2, 3, 6, 4)).astype(np.float32)
LINEAR = 'mode = "linear", coordinate_transformation_mode = "half_pixel"'


def case(inputs: str, body: str, *values: dict[str, np.ndarray], constants: str = "", shape: str = "2, 3, 6, 4", output: str = "a, b, c, d"):
    return f"g (float[{shape}] x, {inputs}) => (float[{output}] y) <{constants}> {{ {body} }}", values


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES = {
    "scales": case(
        "float[4] s", f"y = Resize(x, , s) <{LINEAR}>",
        {"s": np.float32([1, 1, 2, 1.5])}, {"s": np.float32([1, 1, 0.7, 0.5])}, {"s": np.float32([1, 2, 0.3333, 1])},
    ),
    "two scales": case(
        "float[2] s", f"t = Concat <axis = 0> (one, s) y = Resize(x, , t) <{LINEAR}>",
        {"s": np.float32([2, 1.5])}, {"s": np.float32([0.9, 0.4])}, constants="float[2] one = {1.0, 1.0}", output="2, 3, c, d",
    ),
    "nearest": case(
        "float[4] s", 'y = Resize(x, , s) <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">',
        {"s": np.float32([1, 1, 1.7, 2.2])}, {"s": np.float32([2, 1, 0.7, 0.5])},
    ),
    "sizes": case("int64[4] s", f"y = Resize(x, , , s) <{LINEAR}>", {"s": ints(2, 3, 9, 5)}, {"s": ints(2, 3, 2, 4)}),
    "roi": case(
        "float[8] r, int64[4] s", 'y = Resize(x, r, , s) <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 7.0>',
        {"r": np.float32([0, 0, 0.25, 0.5, 1, 1, 0.75, 1.25]), "s": ints(2, 3, 5, 8)}, {"r": np.float32([0] * 4 + [1] * 4), "s": ints(2, 3, 3, 3)},
    ),
    "roi and scales": case(
        "float[8] r, float[4] s", 'y = Resize(x, r, s) <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize">',
        {"r": np.float32([0, 0, 0.25, 0, 1, 1, 0.75, 0.5]), "s": np.float32([1, 1, 2, 3])},
    ),
    "not larger": case(
        "int64[2] s", f'y = Resize(x, , , s) <{LINEAR}, axes = [2, 3], keep_aspect_ratio_policy = "not_larger">', {"s": ints(12, 20)}, {"s": ints(9, 3)},
    ),
    "reduced axis": case("int64[1] a", "y = ReduceSum <keepdims = 0> (x, a)", {"a": ints(1)}, {"a": ints(-1)}, {"a": ints(0)}, output="a, b, c"),
    "two axes": case("int64[2] a", "y = ReduceLogSumExp(x, a)", {"a": ints(1, -1)}, {"a": ints(3, 0)}, {"a": ints(2, 1)}),
    "running sum": case("int64 a", "y = CumSum <reverse = 1> (x, a)", {"a": np.array(2)}, {"a": np.array(-4)}),
    "squeezed": case("int64[1] a", "z = ReduceMax(x, a) y = Squeeze(z, a)", {"a": ints(1)}, {"a": ints(-1)}, output="a, b, c"),
    "unsqueezed": case("int64[2] a", "y = Unsqueeze(x, a)", {"a": ints(0, -1)}, {"a": ints(3, 1)}, output="a, b, c, d, e, f"),
    "sliced axes": case(
        "int64[2] a", "y = Slice(x, s, e, a)", {"a": ints(2, -1)}, {"a": ints(1, 2)},
        constants="int64[2] s = {1, 0}, int64[2] e = {9, 3}",
    ),
    "steps": case(
        "int64[2] a, int64[2] s", "y = Slice(x, a, e, i, s)", {"a": ints(1, 9), "s": ints(2, -3)}, {"a": ints(-9, -2), "s": ints(1, -1)},
        {"a": ints(5, 0), "s": ints(-2, 2)}, constants="int64[2] e = {-1, -9}, int64[2] i = {2, 3}",
    ),
    "padded axes": case("int64[1] a", "y = Pad(x, p, , a)", {"a": ints(1)}, {"a": ints(-1)}, constants="int64[2] p = {1, 2}"),
    "pad value": case("float v", "y = Pad(x, p, v)", {"v": np.array(3, np.float32)}, constants="int64[8] p = {0, 1, 2, 0, 1, 0, -1, 3}"),
    "diagonal": case("int64 k", "y = Trilu(x, k)", {"k": np.array(1)}, {"k": np.array(-2)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_on_the_cpu(name: str, tmp_path: Path) -> None:
    text, values = CASES[name]
    check(parse(text), CpuDevice(), tmp_path, *({"x": X, **one} for one in values))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name: str, tmp_path: Path) -> None:
    from runtime.devices import open_device

    text, values = CASES[name]
    device: Device = open_device("0")
    context = made(parse(text), device, tmp_path, QUICK).create_execution_context(device)
    for one in values:
        inputs = {"x": X, **one}
        found = context.execute(inputs)
        for output, array in onnxruntime_outputs(parse(text), inputs).items():
            np.testing.assert_allclose(found[output], array, 1e-4, 1e-5)
