"""Softmax kernels on the CPU harness against the operation's NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import Softmax
from tactics.cuda.softmax.softmax import ClusterSoftmax, ColumnSoftmax, LongSoftmax, RowSoftmax, StridedSoftmax
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, H100, available, check

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
X = Operand(0)


def run(tactic, op: Softmax, shape: tuple[int, ...], dtype: DataType, extras: tuple[tuple[int, ...], ...] = (), configs: int = 6,
        spread: float = 4.0, device=A100) -> None:  # fmt: skip
    generator = np.random.default_rng(1)
    types = tuple(TensorType(dtype, one) for one in (shape, *extras))
    arrays = [(generator.normal(size=one) * spread).astype(dtype.numpy) for one in (shape, *extras)]
    check(tactic, Workload(op, types, op.infer(types)), arrays, op.evaluate(arrays), configs=configs, device=device)


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF, DataType.BF16])
@pytest.mark.parametrize("n", [1000, 64, 49])
def test_rows_in_registers(n: int, dtype: DataType) -> None:
    run(RowSoftmax(), Softmax(1), (5, n), dtype, configs=6 if dtype is DataType.FLOAT else 2)  # other types are loaded and stored in another way


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 40), n=st.sampled_from([1, 20, 21, 24]), log=st.booleans())
def test_row_lengths(rows: int, n: int, log: bool) -> None:
    run(RowSoftmax(), Softmax(1, log), (rows, 2 * n - 1), DataType.FLOAT, configs=1)


@pytest.mark.parametrize("log", [False, True])
def test_long_rows(log: bool) -> None:
    run(LongSoftmax(), Softmax(2, log), (1, 3, 5003), DataType.FLOAT)
    run(LongSoftmax(), Softmax(1, log), (2, 4096), DataType.HALF)


@pytest.mark.parametrize(("n", "dtype", "log"), [(5003, DataType.FLOAT, False), (9000, DataType.HALF, True)])
def test_rows_in_clusters(n: int, dtype: DataType, log: bool) -> None:
    run(ClusterSoftmax(), Softmax(1, log, epilogue=apply("mul", X, Operand(1))), (2, n), dtype, ((n,),), configs=2, device=H100)


@pytest.mark.parametrize(("shape", "axis", "dtype", "log"), [((2, 70, 40), 1, DataType.HALF, False), ((3, 5, 17, 8), 0, DataType.FLOAT, True),
                                                            ((2, 21, 9, 7), 1, DataType.FLOAT, False)])  # fmt: skip
def test_columns_in_registers(shape: tuple[int, ...], axis: int, dtype: DataType, log: bool) -> None:
    run(ColumnSoftmax(), Softmax(axis, log, epilogue=apply("add", X, Operand(1))), shape, dtype, (shape[-1:],), configs=4)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_any_axis(axis: int) -> None:
    run(StridedSoftmax(), Softmax(axis), (3, 5, 17, 8), DataType.FLOAT)
    run(StridedSoftmax(), Softmax(axis, True), (3, 5, 17, 8), DataType.HALF, configs=1)


def test_prologue_and_epilogue() -> None:
    op = Softmax(2, prologue=apply("mul", X, Literal(0.125, DataType.FLOAT)), epilogue=apply("mul", X, apply("add", Operand(1), Operand(2))))
    for tactic in (RowSoftmax(), LongSoftmax(), StridedSoftmax()):
        run(tactic, op, (3, 4, 40), DataType.FLOAT, ((40,), (3, 1, 40)), configs=2)


def test_large_values_do_not_overflow_and_infinities_count_as_zero() -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4, -np.inf, 3.0]], np.float32).repeat(3, 0)
    types = (TensorType(DataType.FLOAT, x.T.shape),)
    check(ColumnSoftmax(), Workload(Softmax(0), types, types), [x.T.copy()], Softmax(0).evaluate([x.T.copy()]), configs=2)
    op = Softmax(1)
    types = (TensorType(DataType.FLOAT, x.shape),)
    for tactic in (RowSoftmax(), LongSoftmax(), StridedSoftmax()):
        check(tactic, Workload(op, types, types), [x], op.evaluate([x]))


def test_double() -> None:
    run(RowSoftmax(), Softmax(1), (3, 100), DataType.DOUBLE, configs=1)


def test_varying_rows_keep_the_kernel_and_varying_length_is_refused_by_registers() -> None:
    def at(batch: int, n: int, varies: tuple[bool, bool]) -> Workload:
        types = (TensorType(DataType.HALF, (batch, n)),)
        return Workload(Softmax(1), types, types, varies=(varies, varies))
    row = RowSoftmax()
    chosen = row.configs(at(8, 1000, (True, False)), H100)[0]
    assert len({row.plan(at(batch, 1000, (True, False)), chosen, H100).steps[0].kernel for batch in (1, 8, 100)}) == 1
    assert isinstance(row.supports(at(8, 1000, (False, True)), H100), Refusal)
    assert LongSoftmax().supports(at(8, 1000, (False, True)), H100) is None
    assert dict(LongSoftmax().configs(at(8, 1000, (False, True)), A100)[0])["v"] == 1


def test_integers_are_refused() -> None:
    types = (TensorType(DataType.INT32, (4, 8)),)
    refusal = RowSoftmax().supports(Workload(Softmax(1), types, types), A100)
    assert isinstance(refusal, Refusal) and "int32" in refusal.reason
