"""TopK, ArgReduce and Cumulative kernels on the CPU harness against the operations' NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.network import Op, TensorType
from fusion.ops import ArgReduce, Cumulative, TopK
from tactics.cuda.order.order import ArgumentOfExtreme, RankTopK, RoundsTopK, RunningSum, SortTopK
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, available, check

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
RANDOM = np.random.default_rng(0)


def run(tactic, op: Op, x: np.ndarray, configs: int = 3) -> None:
    types = (TensorType(DataType(x.dtype.name), x.shape),)
    check(tactic, Workload(op, types, op.infer(types)), [x], op.evaluate([x]), configs=configs)


def ties(*shape: int, dtype: str = "float32") -> np.ndarray:
    """Few different values, so that equal ones are common."""
    return RANDOM.integers(-9, 9, shape).astype(dtype)


@pytest.mark.parametrize("tactic", [RankTopK(), RoundsTopK(), SortTopK()], ids=lambda t: t.id)
@pytest.mark.parametrize("largest", [True, False])
def test_topk(tactic, largest: bool) -> None:
    for k in (1, 7, 33):
        run(tactic, TopK(k, 1, largest), ties(3, 33))
    run(tactic, TopK(5, 0, largest), ties(40, 3, 2), configs=1)
    run(tactic, TopK(5, 1, largest), RANDOM.normal(size=(2, 600)).astype(np.float16), configs=2)
    run(tactic, TopK(4, 1, largest), ties(2, 50, dtype="int32"), configs=1)


@pytest.mark.parametrize("tactic", [RankTopK(), RoundsTopK(), SortTopK()], ids=lambda t: t.id)
def test_topk_of_special_values(tactic) -> None:
    x = np.array([[0.0, -0.0, np.nan, -np.inf, np.inf, -np.nan, 1.0, -1.0]], np.float32)
    for largest in (True, False):
        run(tactic, TopK(8, 1, largest), x, configs=1)


def test_topk_of_wide_types_is_ranked() -> None:
    run(RankTopK(), TopK(3, 1), RANDOM.integers(-(2**60), 2**60, (3, 20)))
    types = (TensorType(DataType.INT64, (3, 20)),)
    op = TopK(3, 1)
    assert isinstance(SortTopK().supports(Workload(op, types, op.infer(types)), A100), Refusal)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_arg_reduce(largest: bool, last: bool) -> None:
    for axis in range(3):
        run(ArgumentOfExtreme(), ArgReduce(axis, axis == 1, largest, last), ties(5, 37, 6), configs=2)
    run(ArgumentOfExtreme(), ArgReduce(1, False, largest, last), ties(3, 300, dtype="int64"))
    run(ArgumentOfExtreme(), ArgReduce(1, False, largest, last), np.array([[1, np.nan, 3, np.nan], [np.inf, 2, -np.inf, 2]], np.float32))


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_cumulative(exclusive: bool, reverse: bool) -> None:
    x = RANDOM.normal(size=(3, 1500)).astype(np.float32)
    run(RunningSum(), Cumulative(1, "sum", exclusive, reverse), x)
    run(RunningSum(), Cumulative(0, "sum", exclusive, reverse), x, configs=1)
    run(RunningSum(), Cumulative(1, "sum", exclusive, reverse), ties(2, 700, dtype="int64"), configs=1)
    run(RunningSum(), Cumulative(1, "prod", exclusive, reverse), (1 + RANDOM.normal(size=(4, 40)) / 9).astype(np.float32), configs=1)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 70), k=st.integers(1, 70))
def test_topk_sizes(n: int, k: int) -> None:
    run(RankTopK(), TopK(min(k, n), 1), ties(2, n))
