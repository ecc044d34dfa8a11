"""Recurrences: one product and a handful of in-place NumPy calls per step, rows of the batch on different threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from fusion.dtypes import data_type
from fusion.expression import Expression, Literal, Operand, apply, substitute
from fusion.ops import Recurrence
from fusion.ops.recurrent import compute_operand
from tactics.cpu.convolution import wide
from tactics.cpu.expressions import compile_expression
from tactics.cpu.steps import Arrays, Call, Scratch, Slot, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config


class Steps(Tactic):
    """The recurrence with all its memory laid out before it runs."""

    id = "cpu.recurrence.steps"
    device = "cpu"
    ops = (Recurrence,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Recurrence)
        for name in ("peephole", "coupled", "lengths"):
            if getattr(op, name):
                return Refusal(f"the recurrence has {name}: see cpu.reference.numpy")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        op, threads = workload.op, threads_of(device)
        assert isinstance(op, Recurrence)
        jobs = len(op.reverse) * shape_of(workload.inputs[0])[op.input_order.index("b")]
        most = min(threads, jobs)
        return (config(threads=most), config(threads=1)) if most > 1 else (config(threads=1),)

    def prepare(
        self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        """The recurrent weights ``[D, H, G * H]``, as the product reads them."""
        if 1 not in constants:
            return ()
        return (np.ascontiguousarray(constants[1].astype(wide(*workload.inputs[:1])).swapaxes(1, 2)),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, threads = workload.op, dict(config)["threads"]
        assert isinstance(op, Recurrence)
        dtype, hidden, gates = wide(*workload.inputs[:1]), op.hidden, op.gates
        batch = shape_of(workload.inputs[0])[op.input_order.index("b")]
        packed = workload.is_constant(1)
        scratch = Scratch()
        weights = scratch.take((0 if packed else len(op.reverse), hidden, gates * hidden), dtype)
        rows = spans(batch, -(-threads // len(op.reverse)))
        parts = [(direction, low, high) for direction in range(len(op.reverse)) for low, high in rows]
        memory = [_Memory(op, scratch, high - low, dtype, direction) for direction, low, high in parts]

        def bind(inputs: Arrays, outputs: Arrays, given: Arrays, workspace: np.ndarray) -> Call:
            r = given[0] if packed else weights.view(workspace)
            transpose = [] if packed else [partial(np.copyto, r, inputs[1].swapaxes(1, 2), casting="unsafe")]
            jobs = [
                [_steps(op, one, inputs, outputs, r[direction], direction, low, high, workspace)]
                for (direction, low, high), one in zip(parts, memory, strict=True)
            ]
            run = parallel(jobs, threads)
            if not transpose:
                return run

            def first() -> None:
                transpose[0]()
                run()

            return first

        return one_step(bind, self.id, scratch.size)


class _Memory:
    """Where one thread keeps its state, gates and temporaries."""

    def __init__(self, op: Recurrence, scratch: Scratch, rows: int, dtype: np.dtype, direction: int) -> None:
        self.h = scratch.take((rows, op.hidden), dtype)
        self.c = scratch.take((rows, op.hidden), dtype)
        self.gates = scratch.take((rows, op.gates * op.hidden), dtype)
        self.x = scratch.take((rows, op.gates * op.hidden), dtype)
        self.temp = scratch.take((rows, op.hidden), dtype)
        self.programs = [
            compile_expression(_bounded(function, op.clip, dtype), [dtype], dtype, True) for function in op.activations[direction]
        ]
        most = max(program.scratch_bytes(rows * op.gates * op.hidden) for program in self.programs)
        self.programs_memory: Slot = scratch.take((most,), np.uint8)


def _bounded(function: Expression, clip: float, dtype: np.dtype) -> Expression:
    if not clip:
        return function
    kind = compute_operand(data_type(dtype))
    return substitute(function, {0: apply("clip", Operand(0), Literal(-clip, kind), Literal(clip, kind))})


def _steps(
    op: Recurrence, memory: _Memory, inputs: Arrays, outputs: Arrays, weights: np.ndarray, direction: int, low: int, high: int,
    workspace: np.ndarray,
) -> Action:  # fmt: skip
    """One call that runs all steps of rows ``low`` to ``high`` in one direction."""
    hidden, cut = op.hidden, slice(low, high)
    h, c, gates, wide_x, temp, scratch = (
        slot.view(workspace) for slot in (memory.h, memory.c, memory.gates, memory.x, memory.temp, memory.programs_memory)
    )

    def state(array: np.ndarray) -> np.ndarray:
        return array.transpose([op.state_order.index(axis) for axis in "dbh"])[direction, cut]

    x = inputs[0] if op.input_order == "tb" else inputs[0].swapaxes(0, 1)
    x = x[:, cut, direction * op.gates * hidden : (direction + 1) * op.gates * hidden]
    every = outputs[0].transpose([op.output_order.index(axis) for axis in "tdbh"])[:, direction, cut]
    order = range(len(x))[::-1] if op.reverse[direction] else range(len(x))
    pairs = [(x[step], every[step]) for step in order]
    starts = [
        partial(np.copyto, target, 0 if number is None else state(inputs[number]), casting="unsafe")
        for target, number in ((h, op.place("initial_h")), (c, op.place("initial_c")))
    ]
    ends = [partial(np.copyto, state(outputs[1]), h, casting="unsafe")]
    if op.cell == "lstm":
        ends.append(partial(np.copyto, state(outputs[2]), c, casting="unsafe"))

    def act(number: int, value: np.ndarray) -> list[Action]:
        return memory.programs[number].bind([value], value, scratch)

    g = [gates[:, number * hidden : (number + 1) * hidden] for number in range(op.gates)]
    after = _cell(op, act, g, gates, wide_x, h, c, temp, weights, inputs, direction)
    narrow = x.dtype != h.dtype
    whole = weights if op.cell != "gru" or op.reset_after else weights[:, : 2 * hidden]
    product = gates[:, : whole.shape[1]]

    def run() -> None:
        for start in starts:
            start()
        for source, target in pairs:
            np.matmul(h, whole, out=product)
            np.copyto(wide_x, source, casting="unsafe")
            for action in after:
                action()
            np.copyto(target, h, casting="unsafe")
            if narrow:
                np.copyto(h, target, casting="unsafe")
        for end in ends:
            end()

    return run


def _cell(
    op: Recurrence, act: Callable[[int, np.ndarray], list[Action]], g: list[np.ndarray], gates: np.ndarray, x: np.ndarray,
    h: np.ndarray, c: np.ndarray, temp: np.ndarray, weights: np.ndarray, inputs: Arrays, direction: int,
) -> list[Action]:  # fmt: skip
    """What a step does when the product of h and the weights stands in ``gates``, and the input's part in ``x``."""
    hidden = op.hidden

    def add(a: np.ndarray, b: np.ndarray) -> Action:
        return partial(np.add, a, b, out=a)

    if op.cell == "rnn":
        return [add(gates, x), *act(0, gates), partial(np.copyto, h, gates)]
    if op.cell == "lstm":
        enter, out, forget, new = g
        return [
            add(gates, x), *act(0, gates[:, : 3 * hidden]), *act(1, new),
            partial(np.multiply, c, forget, out=c), partial(np.multiply, enter, new, out=temp), add(c, temp),
            partial(np.copyto, h, c), *act(2, h), partial(np.multiply, h, out, out=h),
        ]  # fmt: skip
    z, reset, new = g
    actions: list[Action] = [partial(np.add, gates[:, : 2 * hidden], x[:, : 2 * hidden], out=gates[:, : 2 * hidden]), *act(0, gates[:, : 2 * hidden])]
    place = op.place("recurrent_bias")
    if op.reset_after:
        if place is not None:
            actions.append(partial(np.add, new, inputs[place][direction], out=new, casting="unsafe"))
        actions.append(partial(np.multiply, new, reset, out=new))
    else:
        actions += [partial(np.multiply, reset, h, out=temp), partial(np.matmul, temp, weights[:, 2 * hidden :], out=new)]
    # h = (1 - z) new + z h = new + z (h - new)
    actions += [
        add(new, x[:, 2 * hidden :]), *act(1, new), partial(np.subtract, h, new, out=h),
        partial(np.multiply, h, z, out=h), add(h, new),
    ]  # fmt: skip
    return actions


TACTICS: tuple[Tactic, ...] = (Steps(),)
