"""Pointwise kernels on the CPU harness against NumPy: broadcasts, tails, data types, sizes that vary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply, evaluate
from fusion.network import TensorType
from fusion.ops import Pointwise
from tactics.cuda.pointwise.pointwise import BroadcastPointwise, FlatPointwise
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, H100, available, check

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")

X, Y = Operand(0), Operand(1)
ADD_RELU = apply("relu", apply("add", X, Y))


def workload(expression: Expression, inputs: list[TensorType], varies: tuple = ()) -> Workload:
    op = Pointwise(expression)
    return Workload(op, tuple(inputs), op.infer(inputs), varies=varies)


def random(tensor: TensorType, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if tensor.dtype is DataType.BOOL:
        return generator.random(tensor.shape) < 0.5
    if tensor.dtype.is_float:
        return generator.normal(size=tensor.shape).astype(tensor.dtype.numpy)
    return generator.integers(0, 50, tensor.shape).astype(tensor.dtype.numpy)


def verify(tactic, expression: Expression, types: list[TensorType], configs: int = 8) -> None:
    arrays = [random(tensor, seed) for seed, tensor in enumerate(types)]
    one = workload(expression, types)
    check(tactic, one, arrays, [evaluate(expression, arrays)], configs=configs)


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.DOUBLE, DataType.INT64])
def test_flat_all_configurations(dtype: DataType) -> None:
    verify(FlatPointwise(), ADD_RELU, [TensorType(dtype, (7, 311)), TensorType(dtype, (7, 311))])


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 5000))
def test_flat_any_count(count: int) -> None:
    verify(FlatPointwise(), ADD_RELU, [TensorType(DataType.HALF, (count,)), TensorType(DataType.HALF, ())], configs=1)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), rank=st.integers(0, 4))
def test_any_broadcast(data: st.DataObject, rank: int) -> None:
    shape = data.draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank))
    def part() -> tuple[int, ...]:
        kept = [size if data.draw(st.booleans()) else 1 for size in shape]
        return tuple(kept[data.draw(st.integers(0, rank)):])
    types = [TensorType(DataType.FLOAT, part()), TensorType(DataType.FLOAT, part())]
    one = workload(ADD_RELU, types)
    arrays = [random(tensor, seed) for seed, tensor in enumerate(types)]
    check(BroadcastPointwise(), one, arrays, [evaluate(ADD_RELU, arrays)], configs=1)


@pytest.mark.parametrize(
    ("shape", "other"),
    [((4, 6, 8, 64), (64,)), ((4, 6, 8, 64), (6, 1, 1)), ((3, 16, 7, 7), (1, 16, 1, 1)), ((5, 1, 40), (1, 9, 40)), ((2, 3, 33), (2, 3, 1))],
)
@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF])
def test_broadcast_all_configurations(shape: tuple[int, ...], other: tuple[int, ...], dtype: DataType) -> None:
    verify(BroadcastPointwise(), ADD_RELU, [TensorType(dtype, shape), TensorType(dtype, other)])


def test_mixed_types_and_bool() -> None:
    mask = apply("greater", X, Convert(DataType.FLOAT, Y))
    types = [TensorType(DataType.FLOAT, (3, 50)), TensorType(DataType.INT32, (50,))]
    verify(BroadcastPointwise(), mask, types)
    verify(BroadcastPointwise(), apply("where", mask, X, Literal(0.5, DataType.FLOAT)), types)
    verify(FlatPointwise(), Convert(DataType.INT8, apply("mul", X, Literal(9.0, DataType.HALF))), [TensorType(DataType.HALF, (1001,))])


def test_constant_expression_needs_no_operand() -> None:
    one = Workload(Pointwise(Literal(2.5, DataType.FLOAT)), (), (TensorType(DataType.FLOAT, ()),))
    check(FlatPointwise(), one, [], [np.float32(2.5).reshape(())])


def test_varying_sizes_keep_the_kernel() -> None:
    tactic = BroadcastPointwise()
    def at(batch: int) -> Workload:
        types = [TensorType(DataType.HALF, (batch, 8, 64)), TensorType(DataType.HALF, (64,)), ]
        return workload(ADD_RELU, types, varies=((True, False, False), (False,), (True, False, False)))
    chosen = tactic.configs(at(4), H100)[0]
    kernels = {tactic.plan(at(batch), chosen, H100).steps[0].kernel for batch in (1, 3, 64)}  # type: ignore[union-attr]
    assert len(kernels) == 1
    assert dict(chosen)["v"] == 8
    for batch in (1, 3):
        arrays = [random(tensor) for tensor in at(batch).inputs]
        check(tactic, at(batch), arrays, [evaluate(ADD_RELU, arrays)], configs=1)


def test_a_varying_last_axis_is_not_read_in_vectors_by_broadcasts() -> None:
    types = [TensorType(DataType.HALF, (8, 64)), TensorType(DataType.HALF, (64,))]
    one = workload(ADD_RELU, types, varies=((False, True), (True,), (False, True)))
    assert all(dict(config)["v"] == 1 for config in BroadcastPointwise().configs(one, A100))


def test_refusals_say_why() -> None:
    wide = workload(ADD_RELU, [TensorType(DataType.FLOAT, (4, 8)), TensorType(DataType.FLOAT, (8,))])
    refusal = FlatPointwise().supports(wide, A100)
    assert isinstance(refusal, Refusal) and "broadcast" in refusal.reason
