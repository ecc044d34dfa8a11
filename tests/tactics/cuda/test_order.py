"""TopK, ArgReduce and Cumulative kernels on the CPU harness against the operations' NumPy meaning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.network import Op, TensorType
from fusion.ops import ArgReduce, Cumulative, TopK
from tactics.compiler import compile_cubin
from tactics.cuda.order.argreduce import ColumnArgReduce, RowArgReduce
from tactics.cuda.order.cumulative import Scan
from tactics.cuda.order.topk import SelectTopK, SortTopK
from tactics.tactic import Refusal, Tactic, Workload
from tests.harness.fiber import A100, H100, available, check, close, kernels, run_plan

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
ROWS, COLUMNS, SCAN, SORT, SELECT = RowArgReduce(), ColumnArgReduce(), Scan(), SortTopK(), SelectTopK()
TYPES = [DataType.HALF, DataType.FLOAT, DataType.DOUBLE, DataType.INT8, DataType.INT64, DataType.UINT8]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, np.nan, -2.5, 1.0], np.float32)


def workload(op: Op, shape: tuple[int, ...], dtype: DataType = DataType.FLOAT, varies: tuple = ()) -> Workload:
    types = (TensorType(dtype, shape),)
    return Workload(op, types, op.infer(types), varies=varies)


def data(shape: tuple[int, ...], dtype: DataType, seed: int = 0, few: bool = True) -> np.ndarray:
    """Numbers with many equal ones (``few``), or hardly any."""
    generator = np.random.default_rng(seed)
    if dtype.is_float:
        x = generator.integers(-4, 5, shape) / 2 if few else generator.normal(size=shape)
        return x.astype(dtype.numpy)
    return generator.integers(-9 if dtype.is_signed else 0, 10, shape).astype(dtype.numpy)


def run(tactic: Tactic, op: Op, x: np.ndarray, configs: int = 1, varies: tuple = ()) -> None:
    one = workload(op, x.shape, DataType(x.dtype.name), varies)
    check(tactic, one, [x], op.evaluate([x]), configs=configs)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.value)
def test_arg_of_every_type(dtype: DataType) -> None:
    largest = dtype.itemsize != 4
    for last in (False, True):
        run(ROWS, ArgReduce(1, False, largest, last), data((5, 136), dtype))
    run(COLUMNS, ArgReduce(1, True, largest), data((2, 37, 19), dtype))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("largest", [False, True])
def test_arg_of_special_numbers(largest: bool, last: bool) -> None:
    rows = np.stack([np.roll(SPECIAL, shift) for shift in range(4)] + [SPECIAL[3:7].repeat(3)[:10], np.full(10, -np.inf, np.float32)])
    run(ROWS, ArgReduce(1, False, largest, last), rows)
    run(COLUMNS, ArgReduce(0, False, largest, last), np.ascontiguousarray(rows.T))


def test_arg_all_configurations() -> None:
    run(ROWS, ArgReduce(1, False), data((3, 1024), DataType.HALF), configs=4)
    run(COLUMNS, ArgReduce(0, False), data((40, 50), DataType.FLOAT), configs=3)


@settings(max_examples=25, deadline=None)
@given(outer=st.integers(1, 5), n=st.integers(1, 80), inner=st.integers(1, 40))
def test_arg_of_any_size(outer: int, n: int, inner: int) -> None:
    run(COLUMNS, ArgReduce(1, False), data((outer, n, inner), DataType.FLOAT, n), varies=((True, True, True), (True, True)))
    assert isinstance(ROWS.supports(workload(ArgReduce(0, False), (3, 4)), A100), Refusal)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.value)
def test_topk_of_every_type(dtype: DataType) -> None:
    for tactic in (SORT, SELECT):
        run(tactic, TopK(7, 1, True), data((3, 50), dtype))
    run(SELECT, TopK(7, 1, True), data((2, 50, 3), dtype))


@pytest.mark.parametrize("largest", [False, True])
def test_topk_of_special_numbers(largest: bool) -> None:
    x = np.stack([np.roll(SPECIAL, shift) for shift in range(4)])
    for k in (3, 10):
        for tactic in (SORT, SELECT):
            run(tactic, TopK(k, 1, largest), x)


@pytest.mark.parametrize(("softmax", "dtype"), [("softmax", DataType.HALF), ("log", DataType.FLOAT)])
def test_topk_of_a_softmax(softmax: str, dtype: DataType) -> None:
    op = TopK(5, 1, True, softmax)
    for tactic in (SORT, SELECT):
        run(tactic, op, data((3, 70), dtype, few=False))
    run(SELECT, op, data((2, 40, 3), dtype))
    special = np.array([[np.inf, 1, 2, 3, 4, 5], [-np.inf, 1, 2, -3, 4, 5], [np.nan, 1, 2, 3, 4, 5], [-np.inf] * 6], dtype.numpy)
    run(SORT, op, special)


def test_topk_of_the_softmax_of_long_lines_in_parts() -> None:
    run(SELECT, TopK(20, 1, True, "softmax"), data((1, 30_000), DataType.FLOAT, few=False))


@settings(max_examples=40, deadline=None)
@given(outer=st.integers(1, 3), n=st.integers(1, 200), inner=st.integers(1, 4), fraction=st.floats(0, 1), few=st.booleans())
def test_topk_of_any_size(outer: int, n: int, inner: int, fraction: float, few: bool) -> None:
    k = max(1, round(fraction * n))
    x = data((outer, n, inner), DataType.FLOAT, n, few)
    op = TopK(k, 1, True)
    one = workload(op, x.shape)
    # The same kernels for all sizes.
    for tactic, chosen in ((SORT, (("threads", 64),)), (SELECT, (("shared", 1), ("splits", 1), ("threads", 64))),
                           (SELECT, (("shared", 0), ("splits", 3), ("threads", 64)))):  # fmt: skip
        results = run_plan(tactic.plan(one, chosen, A100), [x], one.outputs)
        for result, truth in zip(results, op.evaluate([x]), strict=True):
            close(result, truth, tactic.id)


def test_topk_of_long_lines_in_parts() -> None:
    x = data((2, 60_000), DataType.FLOAT, few=False)
    op = TopK(100, 1, True)
    assert dict(SELECT.configs(workload(op, x.shape), A100)[0])["splits"] > 1
    run(SELECT, op, x)


def test_topk_that_does_not_fit_into_shared_memory() -> None:
    small = replace(A100, shared_memory=48 * 1024)
    x = data((1, 9000), DataType.FLOAT)
    op = TopK(9000, 1, False)
    one = workload(op, x.shape)
    found = SORT.supports(one, small)
    assert isinstance(found, Refusal) and "131072" in found.reason
    assert dict(SELECT.configs(one, small)[0])["shared"] == 0
    check(SELECT, one, [x], op.evaluate([x]), device=small, configs=1)


def test_topk_of_sizes_that_vary() -> None:
    def at(batch: int, n: int) -> Workload:
        return workload(TopK(min(n, 300), 1), (batch, n), DataType.HALF, ((True, True), (True, True), (True, True)))
    assert isinstance(SORT.supports(at(1, 8400), H100), Refusal)
    chosen = SELECT.configs(at(1, 8400), H100)[0]
    assert dict(chosen)["shared"] == 0
    assert len({kernels(SELECT.plan(at(*sizes), chosen, H100)) for sizes in ((1, 8400), (4, 100), (2, 1))}) == 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_running_sums(exclusive: bool, reverse: bool) -> None:
    op = Cumulative(1, "sum", exclusive, reverse)
    run(SCAN, op, data((3, 700), DataType.INT32), configs=5)
    run(SCAN, Cumulative(0, "sum", exclusive, reverse), data((33, 40), DataType.INT32))


@pytest.mark.parametrize("dtype", [*TYPES, DataType.BOOL], ids=lambda d: d.value)
def test_running_sums_of_every_type(dtype: DataType) -> None:
    run(SCAN, Cumulative(1, "sum"), data((3, 300, 2), dtype))
    x = data((3, 20), dtype) if not dtype.is_float else (1 + data((3, 20), dtype, few=False) / 8).astype(dtype.numpy)
    run(SCAN, Cumulative(1, "prod", True), x)


@settings(max_examples=30, deadline=None)
@given(outer=st.integers(1, 4), n=st.integers(1, 150), inner=st.integers(1, 5))
def test_running_sums_of_any_size(outer: int, n: int, inner: int) -> None:
    x = data((outer, n, inner), DataType.INT64, n)
    op = Cumulative(1, "sum", False, True)
    one = workload(op, x.shape, DataType.INT64)
    for group, items in ((0, 1), (8, 1), (32, 4), (64, 1)):
        plan = SCAN.plan(one, (("group", group), ("items", items)), A100)
        close(run_plan(plan, [x], one.outputs)[0], op.evaluate([x])[0], f"group {group}")


@pytest.mark.parametrize(("arch", "device"), [("sm_75", A100), ("sm_90a", H100)])
def test_compiles(arch: str, device) -> None:  # noqa: ANN001
    for tactic, op, dtype in ((ROWS, ArgReduce(1, False, False), DataType.BF16), (COLUMNS, ArgReduce(1, False), DataType.DOUBLE),
                              (SORT, TopK(5, 1), DataType.HALF), (SORT, TopK(5, 1, True, "softmax"), DataType.HALF), (SELECT, TopK(5, 1), DataType.INT64), (SELECT, TopK(5, 1), DataType.FLOAT),
                              (SCAN, Cumulative(1), DataType.BOOL), (SCAN, Cumulative(1), DataType.HALF)):  # fmt: skip
        one = workload(op, (4, 60_000 if tactic is SELECT else 600), dtype)
        for kernel in kernels(tactic.plan(one, tactic.configs(one, device)[0], device)):
            assert compile_cubin(kernel.source(), kernel.defines, arch).resources.spill_stores == 0
