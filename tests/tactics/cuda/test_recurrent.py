"""Recurrent kernels on the CPU harness against the operation's NumPy meaning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.network import TensorType
from fusion.ops import Recurrence
from runtime.cuda_launch import launch_config
from tactics.compiler import compile_cubin
from tactics.cuda.recurrent.persistent import (
    BLOCK,
    CLUSTER,
    GRID,
    LAUNCHES,
    MEMORY,
    REGISTERS,
    SHARED,
    Persistent,
    division_of,
)
from tactics.cuda.recurrent.rows import Rows
from tactics.tactic import Launch, Memset, Refusal, Workload, config
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, H100, available, check, close, kernels, run_plan
from tests.harness.spills import may_spill
from tests.tactics.recurrences import recurrence

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
ROWS, PERSISTENT = Rows(), Persistent()
ALL = {"initial": True, "peephole": True, "lengths": True, "clip": 0.8}
HALF = {"float16": 2e-3, "bfloat16": 1e-2}  # one more rounding at each step may go the other way


def workload_of(op: Recurrence, inputs: list[np.ndarray], tf32: bool = False) -> Workload:
    types = tuple(TensorType(DataType(array.dtype.name), array.shape) for array in inputs)
    return Workload(op, types, op.infer(types), tuple(index == 1 for index in range(len(types))), tf32=tf32)


@pytest.mark.parametrize(
    ("cell", "reset_after", "dtype"),
    [("rnn", False, ml_dtypes.bfloat16), ("gru", False, np.float32), ("gru", True, np.float16), ("lstm", False, np.float64)],
)  # fmt: skip
def test_rows(cell: str, reset_after: bool, dtype: Any) -> None:
    op, inputs = recurrence(cell, (False, True), 4, 3, 37, dtype, reset_after=reset_after, **ALL)  # type: ignore[arg-type]
    check(ROWS, workload_of(op, inputs), inputs, op.evaluate(inputs), configs=1, tolerance=HALF)


def test_rows_batch_first() -> None:
    op, inputs = recurrence("lstm", (True,), 3, 2, 5, batch_first=True, coupled=True)
    check(ROWS, workload_of(op, inputs), inputs, op.evaluate(inputs), configs=1, tolerance=HALF)


@pytest.mark.parametrize(
    ("cell", "scope", "hidden", "units", "chunk", "batch", "dtype", "place", "tagged"),
    [("lstm", BLOCK, 20, 20, 4, 5, np.float32, REGISTERS, 0), ("lstm", LAUNCHES, 40, 12, 2, 3, np.float16, SHARED, 0),
     ("gru", LAUNCHES, 33, 8, 4, 3, np.float32, MEMORY, 0), ("gru", CLUSTER, 30, 8, 2, 3, np.float32, REGISTERS, 0), ("gru", CLUSTER, 30, 8, 2, 3, np.float32, REGISTERS, 1),
     ("rnn", LAUNCHES, 24, 8, 2, 1, ml_dtypes.bfloat16, MEMORY, 0)],
)  # fmt: skip
def test_persistent(cell: str, scope: int, hidden: int, units: int, chunk: int, batch: int, dtype: Any, place: int, tagged: int) -> None:
    op, inputs = recurrence(cell, (False, True), 4, batch, hidden, dtype, **ALL)  # type: ignore[arg-type]
    one = workload_of(op, inputs)
    single = scope in (BLOCK, CLUSTER) or batch <= chunk
    chosen = config(units=units, threads=64, chunk=chunk, scope=scope, place=place, single=single, mma=0, tagged=tagged)
    plan = PERSISTENT.plan(one, chosen, A100)
    assert len(plan.steps) == (4 if scope == LAUNCHES else 1)
    results = run_plan(plan, inputs, one.outputs, PERSISTENT.prepare(one, chosen, {1: inputs[1]}))
    for index, (result, truth) in enumerate(zip(results, op.evaluate(inputs), strict=True)):
        close(result, truth, f"output {index}", HALF)


@pytest.mark.parametrize(
    ("cell", "scope", "hidden", "units", "threads", "chunk", "batch", "dtype", "place", "tagged"),
    [("lstm", BLOCK, 20, 20, 64, 4, 5, np.float16, REGISTERS, 0), ("lstm", LAUNCHES, 40, 12, 128, 16, 11, np.float16, SHARED, 1),
     ("lstm", CLUSTER, 40, 12, 64, 4, 6, np.float16, SHARED, 0), ("lstm", CLUSTER, 33, 20, 64, 8, 3, np.float16, REGISTERS, 1),
     ("lstm", CLUSTER, 40, 12, 64, 4, 6, np.float16, SHARED, 1),
     ("gru", LAUNCHES, 72, 16, 128, 8, 20, ml_dtypes.bfloat16, REGISTERS, 0), ("gru", LAUNCHES, 33, 8, 64, 1, 2, np.float32, MEMORY, 1)],
)  # fmt: skip
def test_persistent_on_tensor_cores(
    cell: str, scope: int, hidden: int, units: int, threads: int, chunk: int, batch: int, dtype: Any, place: int, tagged: int
) -> None:
    op, inputs = recurrence(cell, (False, True), 3, batch, hidden, dtype, **ALL)  # type: ignore[arg-type]
    one = workload_of(op, inputs)
    single = scope in (BLOCK, CLUSTER) or batch <= chunk
    chosen = config(units=units, threads=threads, chunk=chunk, scope=scope, place=place, single=single, mma=1, tagged=tagged)
    plan = emulated(PERSISTENT.plan(one, chosen, A100))
    results = run_plan(plan, inputs, one.outputs, PERSISTENT.prepare(one, chosen, {1: inputs[1]}))
    for index, (result, truth) in enumerate(zip(results, op.evaluate(inputs), strict=True)):
        close(result, truth, f"output {index}", HALF | {"float32": 2e-3})


@pytest.mark.parametrize(("dtype", "batch", "single", "tagged"), [(np.float32, 5, 0, 0), (np.float16, 4, 1, 1)])
def test_blocks_of_a_grid_that_wait_for_each_other(dtype: Any, batch: int, single: int, tagged: int) -> None:
    """The harness runs blocks of a cluster together, so the grid is given as one."""
    op, inputs = recurrence("lstm", (False, True), 6, batch, 24, dtype, initial=True, lengths=True)
    one = workload_of(op, inputs)
    chosen = config(units=8, threads=64, chunk=4, scope=GRID, place=SHARED, single=single, mma=0, tagged=tagged)
    plan = PERSISTENT.plan(one, chosen, replace(A100, multiprocessors=6))
    steps = tuple(replace(step, cluster=(step.grid[0], 1, 1)) if isinstance(step, Launch) else step for step in plan.steps)
    assert any(isinstance(step, Launch) and step.cooperative and step.grid == (3, 1, 2) for step in steps)
    results = run_plan(replace(plan, steps=steps), inputs, one.outputs, PERSISTENT.prepare(one, chosen, {1: inputs[1]}))
    for index, (result, truth) in enumerate(zip(results, op.evaluate(inputs), strict=True)):
        close(result, truth, f"output {index}", HALF)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_persistent_of_any_size(time: int, batch: int, initial: bool) -> None:
    """One kernel for all lengths and batches."""
    op, inputs = recurrence("lstm", (True,), time, batch, 20, initial=True)
    one = workload_of(op, inputs)
    for scope, single in ((BLOCK, True), (LAUNCHES, False)):
        chosen = config(units=20 if scope == BLOCK else 8, threads=64, chunk=4, scope=scope, place=REGISTERS, single=single, mma=0, tagged=0)
        results = run_plan(PERSISTENT.plan(one, chosen, A100), inputs, one.outputs, PERSISTENT.prepare(one, chosen, {1: inputs[1]}))
        for result, truth in zip(results, op.evaluate(inputs), strict=True):
            close(result, truth, f"scope {scope}")


def test_different_activations_per_direction() -> None:
    op, inputs = recurrence("lstm", (False, True), 3, 2, 12, functions=(("sigmoid", "tanh", "tanh"), ("sigmoid", "softsign", "relu")))
    check(ROWS, workload_of(op, inputs), inputs, op.evaluate(inputs), configs=1)
    check(PERSISTENT, workload_of(op, inputs), inputs, op.evaluate(inputs), configs=1)


@pytest.mark.parametrize(
    ("hidden", "batch", "dtype"), [(64, 1, np.float32), (128, 1, np.float16), (512, 32, np.float16), (1024, 8, np.float32), (1500, 64, np.float16)]
)
def test_configurations_fit_the_device(hidden: int, batch: int, dtype: Any) -> None:
    op, inputs = recurrence("lstm", (False, True), 2, batch, hidden, dtype)
    one = workload_of(op, inputs)
    found = PERSISTENT.configs(one, H100)
    assert found
    for chosen in found:
        plan = PERSISTENT.plan(one, chosen, H100)
        launches = [step for step in plan.steps if isinstance(step, Launch)]
        for step in launches:
            blocks = step.grid[0] * step.grid[1] * step.grid[2]
            scope = dict(chosen)["scope"]
            assert step.cooperative == (scope == GRID) and (scope != GRID or blocks <= H100.multiprocessors)
            assert step.cluster == ((step.grid[0], 1, 1) if scope == CLUSTER else (1, 1, 1)) and step.cluster[0] <= 16
            assert step.shared_memory <= H100.shared_memory
        assert any(isinstance(step, Memset) for step in plan.steps) == (dict(chosen)["scope"] == GRID)
    parts = division_of(one, found[0])
    assert PERSISTENT.prepare(one, found[0], {1: inputs[1]})[0].nbytes == 2 * parts.blocks * parts.weight_bytes


def test_cooperative_launches_say_so_to_the_driver() -> None:
    op, inputs = recurrence("lstm", (False,), 200, 4, 512, np.float16)
    one = workload_of(op, inputs)
    chosen = next(c for c in PERSISTENT._of_scope(one, H100, GRID))
    step = next(s for s in PERSISTENT.plan(one, chosen, H100).steps if isinstance(s, Launch))
    described, attributes = launch_config(step)
    assert described.attribute_count == 1 and attributes[0].id == 2 and attributes[0].value[0] == 1  # type: ignore[index]


def test_refusals_say_which_tactic_serves() -> None:
    op, inputs = recurrence("gru", (False,), 2, 1, 8, reset_after=False)
    assert "cuda.recurrence.rows" in PERSISTENT.supports(workload_of(op, inputs), H100).reason  # type: ignore[union-attr]
    op, inputs = recurrence("lstm", (False,), 2, 1, 8)
    one = workload_of(op, inputs)
    unknown = Workload(op, one.inputs, one.outputs, (False,) * len(inputs))
    assert isinstance(PERSISTENT.supports(unknown, H100), Refusal)


@pytest.mark.parametrize("scope", [BLOCK, CLUSTER, GRID, LAUNCHES])
def test_compiles(scope: int) -> None:
    for cell, hidden, batch, dtype in (("lstm", 512, 4, np.float16), ("gru", 128, 1, np.float32)):
        op, inputs = recurrence(cell, (False, True), 10, batch, hidden, dtype)
        one = workload_of(op, inputs)
        for chosen in sorted(PERSISTENT._of_scope(one, H100, scope), key=lambda c: PERSISTENT.estimate(one, c, H100))[:1]:
            for kernel in kernels(PERSISTENT.plan(one, chosen, H100)):
                assert compile_cubin(kernel.source(), kernel.defines, "sm_90a").resources.spill_stores <= may_spill(kernel.entry, "sm_90a"), chosen


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("cell", "directions", "time", "batch", "hidden", "dtype"),
    [("lstm", 1, 7, 1, 64, np.float32), ("lstm", 2, 50, 3, 256, np.float16), ("gru", 1, 60, 33, 512, np.float32), ("rnn", 2, 9, 5, 100, ml_dtypes.bfloat16)],
)  # fmt: skip
def test_every_configuration_on_the_gpu(cell: str, directions: int, time: int, batch: int, hidden: int, dtype: Any) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    spec = open_device("0").spec
    op, inputs = recurrence(cell, (False, True)[:directions], time, batch, hidden, dtype, initial=True, lengths=batch > 3)
    tf32 = cell == "gru"
    one, truths = workload_of(op, inputs, tf32), op.evaluate(inputs)
    seen = set()
    for tactic in (ROWS, PERSISTENT):
        for chosen in tactic.configs(one, spec):
            seen.add(dict(chosen).get("scope"))
            results = run_on_gpu(tactic.plan(one, chosen, spec), inputs, one.outputs, tactic.prepare(one, chosen, {1: inputs[1]}))
            for index, (result, truth) in enumerate(zip(results, truths, strict=True)):
                close(result, truth, f"{tactic.id} {dict(chosen)} output {index}", HALF | {"float32": 2e-3 if tf32 else 2e-5})
    assert GRID in seen
