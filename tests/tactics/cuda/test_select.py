"""NonZero, NonMaxSuppression and Unique kernels on the CPU harness against the operations' NumPy meaning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType, data_type
from fusion.network import Op, TensorType
from fusion.ops import NonMaxSuppression, NonZero, Unique
from tactics.cuda.select.nms import Greedy
from tactics.cuda.select.nonzero import Compaction
from tactics.cuda.select.unique import SortUnique
from tactics.tactic import Tactic, Workload
from tests.harness.fiber import A100, H100, available, kernels, run_plan

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")


def check(tactic: Tactic, op: Op, *inputs: np.ndarray) -> int:
    """The counts are equal, and so are the rows that count; returns how many."""
    types = tuple(TensorType(data_type(array.dtype), array.shape) for array in inputs)
    workload = Workload(op, types, op.infer(types))
    assert tactic.supports(workload, A100) is None
    rows, count = run_plan(tactic.plan(workload, (), A100), inputs, workload.outputs)
    table, expected = op.evaluate(inputs)
    assert count == expected
    np.testing.assert_array_equal(rows[: int(count[0])], table[: int(count[0])])
    return int(count[0])


@pytest.mark.parametrize("dtype", [DataType.BOOL, DataType.FLOAT, DataType.INT64], ids=lambda d: d.value)
def test_non_zero_of_every_type(dtype: DataType) -> None:
    x = np.random.default_rng(0).integers(0, 3, (3, 50, 41)) // 2
    assert check(Compaction(), NonZero(), x.astype(dtype.numpy))


def test_non_zero_of_special_numbers() -> None:
    assert check(Compaction(), NonZero(), np.array([0.0, -0.0, np.nan, np.inf, 1e-40], np.float32)) == 3
    assert check(Compaction(), NonZero(), np.zeros((0, 4), np.float32)) == 0
    assert check(Compaction(), NonZero(), np.zeros((5, 4), np.float32)) == 0


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 9000), st.floats(0, 1))
def test_non_zero_of_any_size(size: int, share: float) -> None:
    check(Compaction(), NonZero(), np.random.default_rng(size).random(size) < share)


def boxes(batch: int, n: int, seed: int, center: bool) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner, size = random.random((batch, n, 2)), random.random((batch, n, 2)) * 0.4
    found = np.concatenate([corner, size if center else corner + size], -1).astype(np.float32)
    return found if center else np.where(random.random((batch, n, 1)) < 0.5, found, found[..., [2, 3, 0, 1]])


def numbers(most: int, overlap: float, least: float) -> tuple[np.ndarray, ...]:
    return np.array([most]), np.float32([overlap]), np.float32([least])


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 150), st.integers(1, 2), st.booleans(), st.booleans(), st.integers(0, 500), st.floats(0, 1), st.booleans())
def test_nms_of_any_size(n: int, classes: int, center: bool, limited: bool, most: int, overlap: float, ties: bool) -> None:
    scores = np.random.default_rng(n).random((2, classes, n)).astype(np.float32)
    scores = np.round(scores * 8) / 8 if ties else scores
    op = NonMaxSuppression(500, center, limited)  # one op for all: the same kernels
    check(Greedy(), op, boxes(2, n, n, center), scores, *numbers(most, overlap, 0.3))


def test_nms_of_many_boxes() -> None:
    """Runs of sorted candidates are merged, and more boxes are taken than shared memory keeps."""
    scores = np.round(np.random.default_rng(1).random((1, 1, 1400)), 2).astype(np.float32)
    scores[0, 0, 7] = np.nan
    assert check(Greedy(), NonMaxSuppression(1300, False, False), boxes(1, 1400, 1, False), scores, *numbers(1300, 1.0, 0.0)) == 1300


@pytest.mark.gpu
def test_on_the_gpu() -> None:
    from tests.harness.gpu import run_on_gpu

    random = np.random.default_rng(2)
    scores = random.random((2, 3, 5000)).astype(np.float32)
    cases: list[tuple[Tactic, Op, tuple[np.ndarray, ...]]] = [
        (Greedy(), NonMaxSuppression(5000), (boxes(2, 5000, 4, True), scores, *numbers(700, 0.4, 0.2))),
        (Greedy(), NonMaxSuppression(5000, True), (boxes(2, 5000, 4, False), np.round(scores, 2), *numbers(5000, 0.7, 0.1))),
        (Compaction(), NonZero(), (random.random((700, 900)) < 0.3,)),
    ]
    for tactic, op, inputs in cases:
        types = tuple(TensorType(data_type(array.dtype), array.shape) for array in inputs)
        workload = Workload(op, types, op.infer(types))
        rows, count = run_on_gpu(tactic.plan(workload, (), H100), inputs, workload.outputs)
        table, expected = op.evaluate(inputs)
        assert count == expected
        np.testing.assert_array_equal(rows[: int(count[0])], table[: int(count[0])])
    check_unique(Unique(None, False), random.integers(0, 40_000, 100_000), run_on_gpu)
    check_unique(Unique(1, True), random.integers(0, 4, (2, 30_000, 3)).astype(np.float16), run_on_gpu)


def test_nms_of_nothing() -> None:
    assert check(Greedy(), NonMaxSuppression(5), boxes(1, 0, 0, False), np.zeros((1, 2, 0), np.float32), *numbers(5, 0.5, 0.1)) == 0
    assert check(Greedy(), NonMaxSuppression(5), boxes(1, 9, 0, False), np.zeros((1, 2, 9), np.float32), *numbers(5, 0.5, 0.1)) == 0


def check_unique(op: Unique, x: np.ndarray, runner: Callable[..., tuple[np.ndarray, ...]] = run_plan) -> int:
    types = (TensorType(data_type(x.dtype), x.shape),)
    one = Workload(op, types, op.infer(types))
    assert SortUnique().supports(one, A100) is None
    first, inverse, counts, found = runner(SortUnique().plan(one, (), A100), (x,), one.outputs)
    wanted = op.evaluate((x,))
    count = int(wanted[3][0])
    assert found == wanted[3]
    np.testing.assert_array_equal(inverse, wanted[1])
    for mine, theirs in ((first, wanted[0]), (counts, wanted[2])):
        np.testing.assert_array_equal(mine[:count], theirs[:count])
    return count


@pytest.mark.parametrize("dtype", [DataType.BOOL, DataType.BF16, DataType.INT64], ids=lambda d: d.value)
def test_unique_of_types(dtype: DataType) -> None:
    check_unique(Unique(None, True), np.random.default_rng(0).integers(-3, 4, 300).astype(dtype.numpy))


@pytest.mark.parametrize("ordered", [True, False])
def test_unique_of_special_numbers(ordered: bool) -> None:
    special = np.array([0.0, np.nan, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1.0, 0.0], np.float32)
    assert check_unique(Unique(None, ordered), special) == 6
    assert check_unique(Unique(0, ordered), np.stack([special, special[::-1]], 1)) == 8
    assert check_unique(Unique(1, ordered), np.float32([[1, np.nan, 1, np.nan]])) == 2
    assert check_unique(Unique(0, ordered), np.zeros((0, 3), np.float32)) == 0


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 3000), st.booleans())
def test_unique_of_any_size(size: int, values: int, ordered: bool) -> None:
    check_unique(Unique(None, ordered), np.random.default_rng(size).integers(0, values, size).astype(np.int32))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2), st.integers(1, 40), st.booleans())
def test_unique_along_any_axis(axis: int, n: int, ordered: bool) -> None:
    shape = [2, 3, 2]
    shape[axis] = n
    check_unique(Unique(axis, ordered), np.random.default_rng(n).integers(0, 2, shape).astype(np.float32))


def test_long_lines_of_slices_are_merged() -> None:
    check_unique(Unique(1, False), np.random.default_rng(3).integers(0, 9, (2, 2500, 2)).astype(np.float32))


def test_sizes_change_no_kernel() -> None:
    for tactic, op, shapes in ((Compaction(), NonZero(), ((2, 3), (900, 70))), (SortUnique(), Unique(None, False), ((2, 3), (900, 70)))):
        found = set()
        for shape in shapes:
            types = (TensorType(DataType.FLOAT, shape),)
            workload = Workload(op, types, op.infer(types), varies=((True, True), *[(True,)] * 4))
            found.add(frozenset(kernels(tactic.plan(workload, (), A100))))
        assert len(found) == 1
