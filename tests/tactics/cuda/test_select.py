"""NonZero and NonMaxSuppression kernels on the CPU harness against the operations' NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType, data_type
from fusion.network import Op, TensorType
from fusion.ops import NonMaxSuppression, NonZero
from tactics.cuda.select.nms import Greedy
from tactics.cuda.select.nonzero import Compaction
from tactics.tactic import Tactic, Workload
from tests.harness.fiber import A100, available, kernels, run_plan

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


def test_nms_of_nothing() -> None:
    assert check(Greedy(), NonMaxSuppression(5), boxes(1, 0, 0, False), np.zeros((1, 2, 0), np.float32), *numbers(5, 0.5, 0.1)) == 0
    assert check(Greedy(), NonMaxSuppression(5), boxes(1, 9, 0, False), np.zeros((1, 2, 9), np.float32), *numbers(5, 0.5, 0.1)) == 0


def test_sizes_change_no_kernel() -> None:
    for op, shapes in ((NonZero(), ((2, 3), (900, 70))),):
        found = set()
        for shape in shapes:
            types = (TensorType(DataType.FLOAT, shape),)
            found.add(kernels(Compaction().plan(Workload(op, types, op.infer(types)), (), A100)))
        assert len(found) == 1
