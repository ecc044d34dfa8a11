"""Layers that look at whole rows: reductions, softmax, normalisations. Rows are handled in blocks that fit the cache, so
that the several passes over a row read memory once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Expression
from fusion.network import TensorType
from fusion.ops import GroupNormalization, LocalResponseNormalization, Normalization, Softmax
from fusion.ops.epilogue import IDENTITY
from tactics.cpu.epilogue import Epilogue, make_epilogue
from tactics.cpu.expressions import Program, compile_expression
from tactics.cpu.steps import (
    Arrays,
    Call,
    Scratch,
    Slot,
    blocks,
    elements,
    one_step,
    shape_of,
    size_of,
    spans,
    threads_of,
)
from tactics.cpu.threads import Action, parallel
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config


def row_configs(workload: Workload, device: DeviceSpec) -> tuple[Config, ...]:
    """Block sizes and thread counts worth trying."""
    threads = threads_of(device)
    size = size_of(workload.inputs[0])
    if threads == 1 or size < 1 << 15:
        return (config(block=1 << 15, threads=1),)
    return (
        config(block=1 << 15, threads=threads),
        config(block=1 << 17, threads=threads),
        config(block=1 << 15, threads=1),
    )


def held_type(tensor: TensorType) -> np.dtype:
    """The type in which a layer's floating-point values are held inside."""
    return np.dtype(np.float64 if tensor.dtype is DataType.DOUBLE else np.float32)


@dataclass(frozen=True)
class _Read:
    """How a block of the input becomes values of the type held inside: as it is, or through a program into memory."""

    program: Program | None
    memory: Slot
    scratch: Slot

    def actions(
        self, x: np.ndarray, workspace: np.ndarray, into: np.ndarray | None = None
    ) -> tuple[list[Action], np.ndarray]:
        if self.program is None:
            return [], x
        target = self.memory.view(workspace)[: x.size].reshape(x.shape) if into is None else into
        return self.program.bind([x], target, self.scratch.view(workspace)), target


def row_reader(prologue: Expression, source: np.dtype, held: np.dtype, largest: int, scratch: Scratch) -> _Read:
    if prologue == IDENTITY and source == held:
        return _Read(None, scratch.take((0,), held), scratch.take((0,), np.uint8))
    program = compile_expression(prologue, [source], held)
    return _Read(program, scratch.take((largest,), held), scratch.take((program.scratch_bytes(largest),), np.uint8))


def run_blocks(
    cuts: Sequence[tuple[slice, ...]], threads: int, make: Callable[[int, tuple[slice, ...]], list[Action]]
) -> Call:
    shares = spans(len(cuts), threads)
    jobs = [[action for cut in cuts[a:b] for action in make(thread, cut)] for thread, (a, b) in enumerate(shares)]
    return parallel(jobs, threads)


class _RowTactic(Tactic):
    """A layer whose output has its input's shape and needs whole ``axes`` at a time."""

    device = "cpu"

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if not workload.inputs[0].dtype.is_float:
            return Refusal(f"{workload.inputs[0].dtype.label} input: only floating-point rows are handled in blocks")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return row_configs(workload, device)

    def view_shape(self, workload: Workload) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape under which rows are handled, and the axes that are never cut."""
        raise NotImplementedError

    def row_actions(
        self, workload: Workload, value: np.ndarray, result: np.ndarray, spare: np.ndarray, small: np.ndarray
    ) -> list[Action]:
        """From ``value`` (may be the input: not to be changed) to ``result``; ``spare`` has their shape, ``small`` the rows'."""
        raise NotImplementedError

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        values = dict(config)
        held = held_type(workload.inputs[0])
        shape, axes = self.view_shape(workload)
        cuts = list(blocks(shape, values["block"], whole=axes))
        largest = max((elements(cut, shape) for cut in cuts), default=0)
        prologue = getattr(workload.op, "prologue", IDENTITY)
        expression = getattr(workload.op, "epilogue", IDENTITY)
        # A view that groups channels leaves the epilogue's operands in the output's own shape.
        epilogue: Epilogue = make_epilogue(expression, held, workload.inputs[1:], workload.outputs[0])
        outer = shape_of(workload.outputs[0])
        threads, scratch = values["threads"], Scratch()
        source = workload.inputs[0].dtype.numpy
        readers = [row_reader(prologue, source, held, largest, scratch) for _ in range(threads)]
        results = [scratch.take((0 if epilogue.in_place else largest,), held) for _ in range(threads)]
        spares = [scratch.take((largest,), held) for _ in range(threads)]
        smalls = [scratch.take((2, largest // max(1, math.prod(shape[a] for a in axes))), held) for _ in range(threads)]
        temps = [scratch.take((epilogue.scratch_bytes,), np.uint8) for _ in range(threads)]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            x, out = inputs[0].reshape(shape), outputs[0]
            extras = [np.broadcast_to(extra, outer) for extra in inputs[1:]]

            def make(thread: int, cut: tuple[slice, ...]) -> list[Action]:
                found, value = readers[thread].actions(x[cut], workspace)
                target = out.reshape(shape)[cut]
                result = target
                if not epilogue.in_place:
                    result = results[thread].view(workspace)[: value.size].reshape(value.shape)
                spare = spares[thread].view(workspace)[: value.size].reshape(value.shape)
                rows = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
                small = smalls[thread].view(workspace)[:, : math.prod(rows)].reshape(2, *rows)
                found += self.row_actions(workload, value, result, spare, small)
                place = _outer_cut(cut, shape, outer)
                shown = result.reshape(out[place].shape) if not epilogue.in_place else out[place]
                found += epilogue.actions(
                    shown, [extra[place] for extra in extras], out[place], temps[thread].view(workspace)
                )
                return found

            return run_blocks(cuts, threads, make)

        return one_step(bind, self.id, scratch.size)


def _outer_cut(cut: tuple[slice, ...], shape: tuple[int, ...], outer: tuple[int, ...]) -> tuple[slice, ...]:
    """The cut in the output's shape: the same, or (channel groups) groups as runs of channels."""
    if shape == outer:
        return cut
    channels = outer[1] // shape[1]
    low, high, _ = cut[1].indices(shape[1])
    return (cut[0], slice(low * channels, high * channels), *(slice(None),) * (len(outer) - 2))


class SoftmaxRows(_RowTactic):
    """Maximum, difference, exponential, sum, quotient of each block of rows."""

    id = "cpu.softmax.rows"
    ops = (Softmax,)

    def view_shape(self, workload: Workload) -> tuple[tuple[int, ...], tuple[int, ...]]:
        assert isinstance(workload.op, Softmax)
        return shape_of(workload.inputs[0]), (workload.op.axis,)

    def row_actions(
        self, workload: Workload, value: np.ndarray, result: np.ndarray, spare: np.ndarray, small: np.ndarray
    ) -> list[Action]:
        op = workload.op
        assert isinstance(op, Softmax)
        peak, total = small
        powers = spare if op.log else result
        return [
            partial(np.maximum.reduce, value, axis=op.axis, out=peak, keepdims=True),
            partial(np.subtract, value, peak, out=result),
            partial(np.exp, result, out=powers),
            _row_sums(powers, (op.axis,), total),
            *((partial(np.log, total, out=total),) if op.log else ()),
            partial(np.subtract if op.log else np.divide, result, total, out=result),
        ]


def _row_sums(value: np.ndarray, axes: tuple[int, ...], out: np.ndarray) -> Action:
    """Sums of ``value`` over ``axes``: of rows that lie densely, as a product with ones, which is three times as fast."""
    if axes == tuple(range(value.ndim - len(axes), value.ndim)) and value.flags.c_contiguous and out.flags.c_contiguous:
        size = math.prod(value.shape[axis] for axis in axes)
        return partial(np.matmul, value.reshape(-1, size), np.ones(size, value.dtype), out=out.reshape(-1))
    return partial(np.add.reduce, value, axis=axes, out=out, keepdims=True)


def _normalize(
    value: np.ndarray, result: np.ndarray, spare: np.ndarray, small: np.ndarray, axes: tuple[int, ...], epsilon: float,
    center: bool, floor: float = 0.0,
) -> list[Action]:  # fmt: skip
    held = value.dtype.type
    count = held(math.prod(value.shape[axis] for axis in axes))
    mean, spread = small
    found: list[Action] = []
    if center:
        found += [
            _row_sums(value, axes, mean),
            partial(np.divide, mean, count, out=mean),
            partial(np.subtract, value, mean, out=result),
        ]
        value = result
    return [
        *found,
        partial(np.square, value, out=spare),
        _row_sums(spare, axes, spread),
        partial(np.divide, spread, count, out=spread),
        partial(np.add, spread, held(epsilon), out=spread),
        partial(np.sqrt, spread, out=spread),
        *((partial(np.maximum, spread, held(floor), out=spread),) if floor else ()),
        partial(np.divide, value, spread, out=result),
    ]


class NormalizationRows(_RowTactic):
    """Mean, difference, mean square, quotient of each block of rows."""

    id = "cpu.normalization.rows"
    ops = (Normalization,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if workload.op.heads is not None:  # type: ignore[attr-defined]
            return Refusal("some heads of a projection: on the CPU nothing is joined")
        return super().supports(workload, device)

    def view_shape(self, workload: Workload) -> tuple[tuple[int, ...], tuple[int, ...]]:
        assert isinstance(workload.op, Normalization)
        return shape_of(workload.inputs[0]), workload.op.axes

    def row_actions(
        self, workload: Workload, value: np.ndarray, result: np.ndarray, spare: np.ndarray, small: np.ndarray
    ) -> list[Action]:
        op = workload.op
        assert isinstance(op, Normalization)
        return _normalize(value, result, spare, small, op.axes, op.epsilon, op.center, op.floor)


class GroupNormalizationRows(_RowTactic):
    """The same over groups of channels."""

    id = "cpu.normalization.groups"
    ops = (GroupNormalization,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if workload.op.channels_last:  # type: ignore[attr-defined]
            return Refusal("channels-last input: the CPU normalises groups in [N, C, spatial]")
        return super().supports(workload, device)

    def view_shape(self, workload: Workload) -> tuple[tuple[int, ...], tuple[int, ...]]:
        n, channels, *spatial = shape_of(workload.inputs[0])
        groups: int = workload.op.groups  # type: ignore[attr-defined]
        return (n, groups, channels // groups * math.prod(spatial)), (2,)

    def row_actions(
        self, workload: Workload, value: np.ndarray, result: np.ndarray, spare: np.ndarray, small: np.ndarray
    ) -> list[Action]:
        op = workload.op
        assert isinstance(op, GroupNormalization)
        return _normalize(value, result, spare, small, (2,), op.epsilon, True)


class LocalResponseRows(_RowTactic):
    """Squares, their sums over neighbouring channels, power, quotient."""

    id = "cpu.lrn.rows"
    ops = (LocalResponseNormalization,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if workload.op.channels_last:  # type: ignore[attr-defined]
            return Refusal("channels-last input: the CPU normalises channels in [N, C, spatial]")
        return super().supports(workload, device)

    def view_shape(self, workload: Workload) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return shape_of(workload.inputs[0]), (1,)

    def row_actions(
        self, workload: Workload, value: np.ndarray, result: np.ndarray, spare: np.ndarray, small: np.ndarray
    ) -> list[Action]:
        op = workload.op
        assert isinstance(op, LocalResponseNormalization)
        held = value.dtype.type
        channels, before = value.shape[1], (op.size - 1) // 2
        found: list[Action] = [partial(np.square, value, out=spare), partial(np.copyto, result, spare)]
        for offset in range(max(-before, 1 - channels), min(op.size - before, channels)):
            if offset:
                low, high = max(0, -offset), channels - max(0, offset)
                target = result[:, low:high]
                found.append(partial(np.add, target, spare[:, low + offset : high + offset], out=target))
        return [
            *found,
            partial(np.multiply, result, held(op.alpha / op.size), out=result),
            partial(np.add, result, held(op.bias), out=result),
            partial(np.power, result, held(op.beta), out=result),
            partial(np.divide, value, result, out=result),
        ]


TACTICS: tuple[Tactic, ...] = (
    SoftmaxRows(), NormalizationRows(), GroupNormalizationRows(), LocalResponseRows(),
)  # fmt: skip
