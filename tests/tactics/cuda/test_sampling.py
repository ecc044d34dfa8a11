"""Kernels that read at computed positions, and other rare ones, on the CPU harness against the NumPy meaning of their operations."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.network import Op, TensorType
from fusion.ops import (
    DeformableColumns,
    Determinant,
    Fold,
    GridSample,
    Inverse,
    LinearAttention,
    PoolingIndices,
    RoiAlign,
    RoiPool,
)
from tactics.cuda.attention.linear_attention import LinearAttentionSteps
from tactics.cuda.determinant.determinant import Elimination, Inversion
from tactics.cuda.sampling.sampling import DeformableGather, GridSampling, Regions
from tactics.cuda.windows.windows import FoldGather, PoolingArgmax
from tactics.tactic import Tactic, Workload
from tests.harness.fiber import A100, available, check, run_plan

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
F16, F32, F64, I64 = DataType.HALF, DataType.FLOAT, DataType.DOUBLE, DataType.INT64


def run(tactic: Tactic, op: Op, *inputs: np.ndarray, configs: int = 2) -> None:
    types = tuple(TensorType(DataType(array.dtype.name), array.shape) for array in inputs)
    workload = Workload(op, types, op.infer(types))
    check(tactic, workload, list(inputs), op.evaluate(inputs), configs=configs)


def normal(*shape: int, dtype: DataType = F32, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype.numpy)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        (GridSample("linear", "zeros"), F32),
        (GridSample("nearest", "border", True), F16),
        (GridSample("cubic", "reflection"), F32),
        (GridSample("linear", "reflection", True), F64),
        (GridSample("cubic", "border", True), F16),
    ],
)
def test_grid_sample(op: GridSample, dtype: DataType) -> None:
    grid = normal(2, 3, 5, 2, seed=1, scale=0.9)
    grid[0, 0] = [[np.nan, 0.1], [1e9, -1e9], [-1, 1], [1, -1], [0, 0]]
    run(GridSampling(), op, normal(2, 5, 4, 6, dtype=dtype), grid)


def test_grid_sample_in_space() -> None:
    run(GridSampling(), GridSample("linear", "zeros"), normal(2, 3, 3, 4, 5), normal(2, 2, 3, 2, 3, seed=1, scale=0.8))


def test_nearest_of_integers() -> None:
    x = np.random.default_rng(0).integers(-100, 100, (1, 3, 4, 4))
    run(GridSampling(), GridSample("nearest", "zeros"), x, normal(1, 3, 3, 2, seed=1))


@pytest.mark.parametrize("masked", [False, True])
def test_deformable_columns(masked: bool) -> None:
    op = DeformableColumns((2, 3), (2, 1), (1, 1), (1, 2), 2, masked)
    out = (4, 3)
    inputs = [normal(2, 6, 6, 5), normal(2, 24, *out, seed=1, scale=2.0), normal(2, 12, *out, seed=2)]
    run(DeformableGather(), op, *inputs[: 3 if masked else 2])


REGIONS = np.float32([[0, 0, 9, 9], [2.5, 1.25, 7, 12], [-3, -4, 2, 3], [5, 5, 5, 5], [3, 2, 30, 40]])


@pytest.mark.parametrize("op", [RoiAlign((3, 2), 2, 0.5), RoiAlign((2, 3), 0, 1.0, True, False)])
def test_roi_align(op: RoiAlign) -> None:
    run(Regions(), op, normal(2, 3, 8, 7), REGIONS, np.array([0, 1, 1, 0, 5]))


def test_roi_pool() -> None:
    boxes = np.concatenate([np.float32([[0], [1], [1], [0], [1]]), REGIONS], 1)
    run(Regions(), RoiPool((3, 2), 0.5), normal(2, 3, 8, 7, dtype=F16), boxes)


def test_fold() -> None:
    op = Fold((5, 7), (2, 3), (2, 1), (1, 0), (0, 1), (1, 2))
    positions = int(np.prod([int(count) for count in op.counts()]))
    run(FoldGather(), op, normal(2, 18, positions))


@pytest.mark.parametrize("column_major", [False, True])
def test_pooling_indices(column_major: bool) -> None:
    x = np.round(normal(2, 3, 7, 6))  # ties: the first maximum counts
    x[0, 0, :4, :4] = -np.inf
    x[1, 1, 2, 2] = np.nan
    run(PoolingArgmax(), PoolingIndices((3, 2), (2, 2), (1, 0), (1, 1), (1, 2), True, column_major), x)


def test_determinant() -> None:
    x = normal(2, 3, 5, 5)
    x[0, 0, 0, 0] = 0  # needs a pivot
    x[1, 1, 2] = x[1, 1, 3]  # singular
    types = (TensorType(F32, x.shape),)
    wanted = np.linalg.det(x.astype(np.float64))
    check(Elimination(), Workload(Determinant(), types, Determinant().infer(types)), [x], [wanted.astype(np.float32)])


def test_inverse() -> None:
    x = normal(2, 3, 5, 5)
    x[0, 0, 0, 0] = 0  # needs a pivot
    types = (TensorType(F32, x.shape),)
    check(Inversion(), Workload(Inverse(), types, types), [x], [np.linalg.inv(x.astype(np.float64)).astype(np.float32)])
    x[1, 1, 2] = x[1, 1, 3]
    one = Workload(Inverse(), types, types)
    (found,) = run_plan(Inversion().plan(one, (), A100), [x], types)
    assert not np.isfinite(found[1, 1]).all() or np.abs(found[1, 1]).max() > 1e5  # singular


@pytest.mark.parametrize(
    ("op", "rest"),
    [
        (LinearAttention(4, 2), ()),
        (LinearAttention(2, 2, gated=True, delta=True, has_past=True), ((2, 2, 4, 3), (2, 5, 8), (2, 5, 1))),
        (LinearAttention(4, 2, gated=True, scale=0.5), ((2, 5, 2),)),
    ],
)
def test_linear_attention(op: LinearAttention, rest: tuple[tuple[int, ...], ...]) -> None:
    inputs = [normal(2, 5, 4 * op.query_heads), normal(2, 5, 8, seed=1), normal(2, 5, 6, seed=2)]
    run(LinearAttentionSteps(), op, *inputs, *(normal(*shape, seed=3 + index, scale=0.3) for index, shape in enumerate(rest)))
