"""Reduction kernels on the CPU harness against the operation's NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import Reduce
from tactics.cuda.reduce.reduce import ColumnReduce, RowReduce, StridedReduce
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, H100, available, check

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
X = Operand(0)
KINDS = ["sum", "mean", "max", "min", "prod", "logsumexp"]


def run(tactic, op: Reduce, shape: tuple[int, ...], dtype: DataType, extras: tuple[tuple[int, ...], ...] = (), configs: int = 6) -> None:
    generator = np.random.default_rng(1)
    types = tuple(TensorType(dtype, one) for one in (shape, *extras))
    if dtype.is_float:
        arrays = [(generator.normal(size=one) * 0.1 + 1).astype(dtype.numpy) for one in (shape, *extras)]
    elif dtype is DataType.BOOL:
        arrays = [generator.random(one) < 0.5 for one in (shape, *extras)]
    else:
        arrays = [generator.integers(-9 if dtype.is_signed else 0, 100, one).astype(dtype.numpy) for one in (shape, *extras)]
    truth = op.evaluate([array.astype(np.float64) if dtype is DataType.FLOAT else array for array in arrays])
    check(tactic, Workload(op, types, op.infer(types)), arrays, truth, configs=configs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str) -> None:
    run(RowReduce(), Reduce(kind, (1,), False), (7, 300), DataType.FLOAT, configs=1)
    run(ColumnReduce(), Reduce(kind, (1,), True), (3, 50, 17), DataType.FLOAT, configs=1)
    run(StridedReduce(), Reduce(kind, (0, 2), False), (5, 6, 7), DataType.FLOAT, configs=1)


@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min", "prod"])
@pytest.mark.parametrize("dtype", [DataType.INT64, DataType.INT32, DataType.UINT8, DataType.INT8], ids=lambda d: d.value)
def test_integers(kind: str, dtype: DataType) -> None:
    run(RowReduce(), Reduce(kind, (1,), False), (3, 40), dtype, configs=1)


def test_bool() -> None:
    for kind in ("max", "min"):
        run(StridedReduce(), Reduce(kind, (1,), False), (9, 3), DataType.BOOL, configs=1)


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF, DataType.BF16])
def test_rows_all_configurations(dtype: DataType) -> None:
    run(RowReduce(), Reduce("mean", (1, 2), False), (6, 8, 96), dtype)


@pytest.mark.parametrize("kind", ["mean", "logsumexp"])
def test_long_rows_in_two_stages(kind: str) -> None:
    op = Reduce(kind, (1,), False)
    types = (TensorType(DataType.FLOAT, (2, 40_000)),)
    chosen = RowReduce().configs(Workload(op, types, op.infer(types)), A100)
    assert dict(chosen[0])["splits"] > 1
    run(RowReduce(), op, (2, 40_000), DataType.FLOAT, configs=1)


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF])
def test_columns_all_configurations(dtype: DataType) -> None:
    run(ColumnReduce(), Reduce("mean", (1, 2), False), (3, 7, 7, 136), dtype)


def test_few_columns_in_two_stages() -> None:
    op = Reduce("sum", (0,), True)
    types = (TensorType(DataType.FLOAT, (3000, 24)),)
    assert dict(ColumnReduce().configs(Workload(op, types, op.infer(types)), A100)[0])["splits"] > 1
    run(ColumnReduce(), op, (3000, 24), DataType.FLOAT, configs=2)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 9), min_size=1, max_size=5), keep=st.booleans())
def test_any_axes(data: st.DataObject, shape: list[int], keep: bool) -> None:
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1)))))
    run(StridedReduce(), Reduce("sum", axes, keep), tuple(shape), DataType.FLOAT, configs=1)


@settings(max_examples=15, deadline=None)
@given(outer=st.integers(1, 4), n=st.integers(1, 200), inner=st.integers(1, 70))
def test_odd_sizes(outer: int, n: int, inner: int) -> None:
    inner = 2 * inner + 1
    for tactic, op in ((ColumnReduce(), Reduce("sum", (1,), False)), (RowReduce(), Reduce("max", (1, 2), False))):
        types = (TensorType(DataType.FLOAT, (outer, n, inner)),)
        if tactic.supports(Workload(op, types, op.infer(types)), A100) is None:
            run(tactic, op, (outer, n, inner), DataType.FLOAT, configs=1)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_empty_tensors_are_planned(axes: tuple[int, ...]) -> None:
    op, types = Reduce("sum", axes, True), (TensorType(DataType.FLOAT, (2, 0, 4)),)
    workload = Workload(op, types, op.infer(types))
    takes = [one for one in (RowReduce(), ColumnReduce(), StridedReduce()) if one.supports(workload, A100) is None]
    for tactic in takes:
        assert all(tactic.plan(workload, one, A100).steps for one in tactic.configs(workload, A100))
    assert takes


def test_prologue_and_epilogue() -> None:
    norm = Reduce("sum", (2,), True, apply("square", X), apply("sqrt", apply("add", X, Operand(1))))
    for tactic in (RowReduce(), StridedReduce()):
        run(tactic, norm, (3, 5, 64), DataType.HALF, ((5, 1),), configs=2)
    scaled = Reduce("mean", (1,), False, X, apply("mul", X, apply("add", Operand(1), Literal(1.0, DataType.FLOAT))))
    for tactic in (ColumnReduce(), StridedReduce()):
        run(tactic, scaled, (3, 20, 64), DataType.FLOAT, ((64,),), configs=2)


def test_logsumexp_of_infinities() -> None:
    x = np.array([[-np.inf] * 4, [np.inf, 1, 2, 3], [1e4, 0, -1e4, -np.inf], [np.nan, 1, 2, 3]], np.float32)
    types = (TensorType(DataType.FLOAT, x.shape),)
    op = Reduce("logsumexp", (1,), False)
    for tactic in (RowReduce(), StridedReduce()):
        check(tactic, Workload(op, types, op.infer(types)), [x], op.evaluate([x]), configs=1)


def test_sizes_that_vary() -> None:
    def at(batch: int) -> Workload:
        op = Reduce("mean", (1, 2), False)
        types = (TensorType(DataType.HALF, (batch, 7, 7, 512)),)
        return Workload(op, types, op.infer(types), varies=((True, False, False, False), (True, False)))
    tactic = ColumnReduce()
    chosen = tactic.configs(at(8), H100)[0]
    assert len({tuple(step.kernel for step in tactic.plan(at(batch), chosen, H100).steps) for batch in (1, 8, 64)}) == 1  # type: ignore[union-attr]


def test_refusals() -> None:
    op = Reduce("sum", (0, 2), False)
    types = (TensorType(DataType.FLOAT, (3, 4, 5)),)
    for tactic in (RowReduce(), ColumnReduce()):
        assert isinstance(tactic.supports(Workload(op, types, op.infer(types)), A100), Refusal)
