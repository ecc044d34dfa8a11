"""Resize with sizes that vary, on the CPU harness against the operation's NumPy meaning; nearest and integers must be equal."""

from __future__ import annotations

from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.network import TensorType
from fusion.ops import Resize
from tactics.compiler import compile_cubin
from tactics.cuda.resize.axes import AxisResize
from tactics.cuda.resize.tables import COORDINATES, ROUNDINGS, resized_axes
from tactics.tactic import DeviceSpec, Refusal, Workload, config
from tests.harness.fiber import A100, H100, available, check, kernels

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
RESIZE = AxisResize()


def workload(op: Resize, shape: tuple[int, ...], dtype: DataType, vary: bool | tuple[bool, ...] = False) -> Workload:
    types = (TensorType(dtype, shape),)
    flags = (vary if isinstance(vary, tuple) else (vary,) * len(shape),) * 2
    return Workload(op, types, op.infer(types), varies=flags if vary else ())


def run(op: Resize, shape: tuple[int, ...], dtype: DataType = DataType.FLOAT, configs: int = 1, vary: bool = False) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=shape) if dtype.is_float else generator.integers(0, 100, shape)
    x = x.astype(dtype.numpy)
    check(RESIZE, workload(op, shape, dtype, vary), [x], op.evaluate([x]), configs=configs)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_twice_as_large_in_both_layouts(mode: str) -> None:
    run(Resize((2, 8, 12, 16), (1.0, 2.0, 2.0, 1.0), mode), (2, 4, 6, 16), DataType.HALF, configs=5)
    run(Resize((2, 3, 8, 16), (1.0, 1.0, 2.0, 2.0), mode), (2, 3, 4, 8), DataType.HALF, configs=5)


def test_an_axis_that_repeats_its_elements_moves_vectors() -> None:
    def repeat(out: int, size: int, v: int, coordinates: str = "asymmetric", rounding: str = "floor") -> str:
        op = Resize((2, out), (1.0, None), "nearest", coordinates, rounding)
        plan = RESIZE.plan(workload(op, (2, size), DataType.HALF), config(v=v, items=1), A100)
        return dict(kernels(plan)[0].defines)["REPEAT"]

    assert [repeat(16, 8, 8), repeat(32, 8, 8), repeat(24, 8, 8), repeat(16, 8, 1)] == ["2", "4", "1", "1"]
    assert [repeat(16, 8, 8, "half_pixel", "round_prefer_floor"), repeat(16, 8, 8, "asymmetric", "ceil"), repeat(16, 12, 8)] == ["2", "1", "1"]
    for times in (2, 4, 3):
        run(Resize((2, 3, 8 * times), (1.0, 1.0, float(times)), "nearest", "asymmetric", "floor"), (2, 3, 8), DataType.HALF, configs=5)


@pytest.mark.parametrize("vary", [False, True])
@pytest.mark.parametrize(
    ("coordinates", "rounding"), [*((one, "round_prefer_floor") for one in COORDINATES), *(("half_pixel", one) for one in ROUNDINGS)]
)
def test_nearest_picks_the_same_element(coordinates: str, rounding: str, vary: bool) -> None:
    x = np.arange(30, dtype=np.int32)
    roi = (0.13, 0.84) if coordinates == "tf_crop_and_resize" else ()
    for out, scale in ((17, None), (77, None), (66, 2.2), (1, None), (30, None), (9, 0.3)):
        op = Resize((out,), (scale,), "nearest", coordinates, rounding, roi=roi, extrapolation=-7.0)
        check(RESIZE, workload(op, (30,), DataType.INT32, vary), [x], op.evaluate([x]), configs=1)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_interpolation(coordinates: str, mode: str) -> None:
    roi = (0.0, 0.2, -0.1, 1.0, 0.7, 1.2) if coordinates == "tf_crop_and_resize" else ()
    op = Resize((2, 9, 5), (1.0, None, None), mode, coordinates, cubic_a=-0.5, roi=roi, extrapolation=3.5)
    run(op, (2, 5, 11), vary=True)


@pytest.mark.parametrize("vary", [False, True])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_exclude_outside(mode: str, vary: bool) -> None:
    run(Resize((2, 9, 5), (1.0, None, None), mode, exclude_outside=True), (2, 5, 11), vary=vary)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 9), min_size=2, max_size=2), mode=st.sampled_from(["nearest", "linear"]))
def test_any_scale(data: st.DataObject, shape: list[int], mode: str) -> None:
    scales = [data.draw(st.floats(0.3, 4)) for _ in shape]
    out = tuple(max(1, floor(size * scale)) for size, scale in zip(shape, scales, strict=True))
    run(Resize(out, tuple(scales) if data.draw(st.booleans()) else (None, None), mode), tuple(shape), vary=True)


def test_uint8_images_are_truncated_like_numpy() -> None:
    run(Resize((1, 37, 29, 4), (1.0, None, None, 1.0), "linear"), (1, 16, 16, 4), DataType.UINT8)
    run(Resize((1, 5, 7, 3), (1.0, None, None, 1.0), "linear", "align_corners"), (1, 16, 16, 3), DataType.UINT8)


def test_other_types_and_ranks() -> None:
    run(Resize((3, 4, 6, 5), (1.0, None, None, None), "linear"), (3, 2, 9, 5), DataType.DOUBLE)
    run(Resize((2, 3, 4, 5, 6), (1.0, 1.0, None, None, None), "linear", "align_corners"), (2, 3, 2, 3, 4))
    run(Resize((7,), (None,)), (4,), DataType.BOOL)
    run(Resize((1, 8, 8, 32), (1.0, None, None, 1.0), "cubic"), (1, 4, 4, 32), DataType.BF16)


def test_antialias_of_fixed_sizes() -> None:
    op = Resize((2, 3, 5, 4), (1.0, 1.0, None, None), "cubic", antialias=True)
    run(op, (2, 3, 16, 11))
    found = RESIZE.supports(workload(op, (2, 3, 16, 11), DataType.FLOAT, True), A100)
    assert isinstance(found, Refusal) and "antialias" in found.reason


def test_varying_sizes_keep_the_kernels() -> None:
    def at(batch: int, height: int, width: int) -> Workload:
        op = Resize((batch, 16, 2 * height, 2 * width), (1.0, 1.0, 2.0, 2.0), "linear")
        return workload(op, (batch, 16, height, width), DataType.HALF, (True, False, True, True))

    assert resized_axes(at(2, 8, 8)) == (2, 3)
    chosen = RESIZE.configs(at(2, 8, 8), H100)[0]
    assert len({kernels(RESIZE.plan(at(*sizes), chosen, H100)) for sizes in ((2, 8, 8), (1, 1, 1), (3, 5, 7))}) == 1


def test_sizes_that_are_equal_by_chance() -> None:
    op = Resize((2, 3), (None, None), "linear")
    x = np.array([[1, np.inf, 3], [4, 5, np.nan]], np.float32)
    check(RESIZE, workload(op, (2, 3), DataType.FLOAT, True), [x], op.evaluate([x]), configs=1)


@pytest.mark.parametrize(("arch", "device"), [("sm_75", A100), ("sm_90a", H100)])
def test_compiles(arch: str, device: DeviceSpec) -> None:
    for mode, vary in (("nearest", False), ("cubic", True)):
        op = Resize((1, 64, 64, 64), (1.0, 2.0, 2.0, 1.0), mode)
        one = workload(op, (1, 32, 32, 64), DataType.HALF, vary)
        for kernel in kernels(RESIZE.plan(one, RESIZE.configs(one, device)[0], device)):
            assert compile_cubin(kernel.source(), kernel.defines, arch).resources.spill_stores == 0
