"""Resize on the CPU harness against the operation's NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.network import Op, TensorType
from fusion.ops import Resize
from tactics.cuda.resize.resize import TableResize
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, available, check

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")


def run(tactic, op: Op, shape: tuple[int, ...], dtype: DataType = DataType.FLOAT, configs: int = 4) -> None:
    types = (TensorType(dtype, shape),)
    x = (np.random.default_rng(1).normal(size=shape) * 20).astype(dtype.numpy)
    check(tactic, Workload(op, types, op.infer(types)), [x], op.evaluate([x]), configs=configs)


COORDINATES = ["half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric"]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_modes(mode: str, coordinates: str) -> None:
    run(TableResize(), Resize((1, 2, 9, 4), (None, None, None, None), mode, coordinates), (1, 2, 5, 7), configs=1)
    run(TableResize(), Resize((2, 7, 8, 16), (1.0, 1.4, 2.0, 1.0), mode, coordinates), (2, 5, 4, 16), configs=1)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_roundings(rounding: str) -> None:
    run(TableResize(), Resize((1, 3, 8, 5), (None, None, None, None), "nearest", "asymmetric", rounding), (1, 3, 5, 9), configs=1)


@pytest.mark.parametrize("dtype", [DataType.HALF, DataType.BF16, DataType.INT8, DataType.UINT8, DataType.DOUBLE], ids=lambda d: d.value)
def test_data_types_in_vectors(dtype: DataType) -> None:
    for mode in ("nearest", "linear"):
        if mode == "linear" and dtype is DataType.UINT8:
            continue
        run(TableResize(), Resize((1, 6, 8, 32), (1.0, 2.0, 2.0, 1.0), mode), (1, 3, 4, 32), dtype if mode == "nearest" or dtype.is_float else DataType.HALF, configs=2)


def test_antialias_exclude_outside_and_crop() -> None:
    for mode in ("linear", "cubic"):
        run(TableResize(), Resize((1, 2, 3, 4), (None,) * 4, mode, antialias=True), (1, 2, 11, 9), configs=1)
        run(TableResize(), Resize((1, 2, 13, 4), (None,) * 4, mode, exclude_outside=True), (1, 2, 6, 9), configs=1)
    roi = (0.0, 0.0, -0.2, 0.1, 1.0, 1.0, 0.9, 1.3)
    for mode in ("nearest", "linear"):
        run(TableResize(), Resize((1, 2, 6, 7), (None,) * 4, mode, "tf_crop_and_resize", roi=roi, extrapolation=7.5), (1, 2, 5, 9), configs=1)


def test_a_resized_axis_must_be_fixed_but_the_batch_may_vary() -> None:
    def at(batch: int, varies: tuple[bool, ...]) -> Workload:
        op = Resize((batch, 3, 8, 8), (1.0, 1.0, 2.0, 2.0), "linear")
        types = (TensorType(DataType.FLOAT, (batch, 3, 4, 4)),)
        return Workload(op, types, op.infer(types), varies=(varies, varies))
    tactic = TableResize()
    free = (True, False, False, False)
    chosen = tactic.configs(at(4, free), A100)[0]
    assert len({tactic.plan(at(batch, free), chosen, A100).steps[0].kernel for batch in (1, 4, 9)}) == 1  # type: ignore[union-attr]
    refusal = tactic.supports(at(4, (False, False, True, False)), A100)
    assert isinstance(refusal, Refusal) and "varies" in refusal.reason
