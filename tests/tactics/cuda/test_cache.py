"""Appending to caches on the CPU harness against the operation's NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.network import ShapeError, TensorType
from fusion.ops import CacheAppend
from tactics.cuda.attention.cache import Append
from tactics.tactic import Workload
from tests.harness.fiber import H100, available, check, kernels


def workload(op: CacheAppend, *shapes: tuple[int, ...], dtype: DataType = DataType.HALF, varies: tuple = ()) -> Workload:
    types = tuple(TensorType(dtype if len(shape) > 1 else DataType.INT64, shape) for shape in shapes)
    return Workload(op, types, op.infer(types), varies=varies)


CASES = [
    (CacheAppend(((2, 4), (3, 6))), (2, 2, 7, 16), (2, 2, 7, 16), (2, 3, 6, 16), (2, 3, 8, 16)),
    (CacheAppend(((2, 0), (2, 3))), (2, 3, 5, 12), (2, 1, 0, 12), (2, 1, 4, 12)),
    (CacheAppend(((1, 1),)), (1, 2, 9, 5), (1, 4, 3, 5)),
    (CacheAppend(((2, 0), (2, 2)), 11), (3, 2, 7, 8), (3, 2, 7, 8), (3, 4, 4, 8), (3,)),
]


@pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
@pytest.mark.parametrize("number", range(len(CASES)))
def test_append(number: int) -> None:
    op, *shapes = CASES[number]
    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape).astype(np.float16) if len(shape) > 1 else np.array([5, 9, -2]) for shape in shapes]  # over the past, at the end, before it
    check(Append(), workload(op, *shapes), arrays, op.evaluate(arrays), configs=2 if not number else 1)


def test_lengths_that_vary() -> None:
    op, *shapes = CASES[0]
    plans = [Append().plan(workload(op, *((*s[:2], past, s[3]) if i < 2 else s for i, s in enumerate(shapes))), Append().configs(workload(op, *shapes), H100)[0], H100)
             for past in (7, 300)]  # fmt: skip
    assert len({kernels(plan) for plan in plans}) == 1


def test_rows_that_do_not_fit() -> None:
    for shapes in (((2, 2, 7, 16), (2, 3, 6, 8)), ((2, 2, 7, 16), (2, 3, 2, 16))):
        with pytest.raises(ShapeError):
            workload(CacheAppend(((1, 1),)), *shapes)
