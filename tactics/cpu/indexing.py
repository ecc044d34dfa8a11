"""Gather, scatter, resize, order and fill: index arithmetic done at planning where it does not depend on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fusion.ops import (
    ArgReduce,
    Cumulative,
    Fill,
    Gather,
    GatherElements,
    GatherND,
    Range,
    Resize,
    ScatterElements,
    ScatterND,
    ShapeValue,
    TopK,
)
from tactics.cpu.reference import reference_plan
from tactics.cpu.rows import held_type
from tactics.cpu.steps import Arrays, Call, Scratch, blocks, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel, sequence, stages
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config


def _shape(workload: Workload, number: int) -> tuple[int, ...]:
    return shape_of((*workload.inputs, *workload.outputs)[number])


def _wrapped(indices: np.ndarray, size: int, target: np.ndarray, spare: np.ndarray) -> list[Action]:
    """``indices`` as intp in ``target``: negative ones from the end, the rest clamped into ``size`` elements."""
    last = max(size - 1, 0)
    return [
        partial(np.copyto, target, indices, casting="unsafe"),
        partial(np.less, target, 0, out=spare),
        partial(np.add, target, size, out=target, where=spare),
        partial(np.maximum, target, 0, out=target),
        partial(np.minimum, target, last, out=target),
    ]


class _Indexed(Tactic):
    """Takes of the input at flat places; the places are computed into scratch memory in each call."""

    device = "cpu"

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if 0 in _shape(workload, 0):
            return Refusal("an empty input has nothing to gather")
        return None


class GatherTake(_Indexed):
    """``np.take`` along one axis, into the output."""

    id = "cpu.gather.take"
    ops = (Gather,)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, Gather)
        if self.supports(workload, device) is not None:
            return reference_plan(workload)
        size, shape = _shape(workload, 0)[op.axis], _shape(workload, 1)
        scratch = Scratch()
        places, spare = scratch.take(shape, np.intp), scratch.take(shape, bool)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            index = places.view(workspace)
            # mode="clip" writes straight into the output; the places are inside anyway.
            take = partial(np.take, inputs[0], index, op.axis, out=outputs[0], mode="clip")
            return sequence([*_wrapped(inputs[1], size, index, spare.view(workspace)), take])

        return one_step(bind, self.id, scratch.size)


class GatherFlat(_Indexed):
    """GatherElements and GatherND: flat places, one take."""

    id = "cpu.gather.flat"
    ops = (GatherElements, GatherND)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, shape, index_shape = workload.op, _shape(workload, 0), _shape(workload, 1)
        if self.supports(workload, device) is not None:
            return reference_plan(workload)
        scratch = Scratch()
        axes: tuple[int, ...]
        if isinstance(op, GatherElements):
            axes, outer = (op.axis,), index_shape
            # The other axes' part of the flat place does not depend on the indices.
            grid = np.indices(index_shape, np.intp, sparse=True)
            base = sum(
                (grid[a] * math.prod(shape[a + 1 :]) for a in range(len(shape)) if a != op.axis), np.zeros((), np.intp)
            )
            width = 1
        else:
            assert isinstance(op, GatherND)
            depth = index_shape[-1]
            axes = tuple(range(op.batch_dims, op.batch_dims + depth))
            outer, lead = index_shape[:-1], index_shape[: op.batch_dims]
            width = math.prod(shape[op.batch_dims + depth :])
            base = np.zeros((), np.intp)
            for axis, many in enumerate(lead):
                step = math.prod(shape[axis + 1 : op.batch_dims + depth])
                base = base + (np.arange(many, dtype=np.intp) * step).reshape(-1, *(1,) * (len(outer) - axis - 1))
        end = axes[-1] + 1 if isinstance(op, GatherND) and axes else len(shape)
        total, part, spare = (scratch.take(outer, kind) for kind in (np.intp, np.intp, bool))

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            place, one = total.view(workspace), part.view(workspace)
            actions: list[Action] = [partial(np.copyto, place, base)]
            for number, axis in enumerate(axes):
                indices = inputs[1] if isinstance(op, GatherElements) else inputs[1][..., number]
                step = math.prod(shape[axis + 1 : end])
                actions += _wrapped(indices, shape[axis], one, spare.view(workspace))
                actions += [partial(np.multiply, one, step, out=one), partial(np.add, place, one, out=place)]
            source = inputs[0].reshape(-1) if width == 1 else inputs[0].reshape(-1, width)
            out = outputs[0].reshape(outer) if width == 1 else outputs[0].reshape(*outer, width)
            actions.append(partial(np.take, source, place, 0, out=out, mode="clip"))
            return sequence(actions)

        return one_step(bind, self.id, scratch.size)


class ScatterPlaces(Tactic):
    """A copy of the input, then assignment or ``ufunc.at`` at the places. It allocates the index arrays."""

    id = "cpu.scatter.places"
    device = "cpu"
    ops = (ScatterElements, ScatterND)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        if op.reduction != "none":  # type: ignore[attr-defined]
            kind = workload.inputs[0].dtype
            if kind.itemsize < 4:
                return Refusal(f"{op.reduction} of {kind.label}: only 32 and 64 bits are reduced in place")  # type: ignore[attr-defined]
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, ScatterElements | ScatterND)
        shape, index_shape = _shape(workload, 0), _shape(workload, 1)
        depth = index_shape[-1] if isinstance(op, ScatterND) and index_shape else 1
        count = depth if isinstance(op, ScatterND) else 1
        outer = index_shape[:-1] if isinstance(op, ScatterND) else index_shape
        scratch = Scratch()
        places = [scratch.take(outer, np.intp) for _ in range(count)]
        spare = scratch.take(outer, bool)
        at = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}.get(op.reduction)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            out, indices, updates = outputs[0], inputs[1], inputs[2]
            views = [slot.view(workspace) for slot in places]
            actions: list[Action] = [partial(np.copyto, out, inputs[0])]
            if isinstance(op, ScatterElements):
                actions += _wrapped(indices, shape[op.axis], views[0], spare.view(workspace))
                grid = list(np.indices(outer, np.intp, sparse=True))
                grid[op.axis] = views[0]
                index = tuple(grid)
            else:
                for number, view in enumerate(views):
                    actions += _wrapped(indices[..., number], shape[number], view, spare.view(workspace))
                index = tuple(views)
            if at is None:
                actions.append(partial(out.__setitem__, index, updates))
            else:
                actions.append(partial(at.at, out, index, updates))
            return sequence(actions)

        return one_step(bind, self.id, scratch.size)


class ResizeAxes(Tactic):
    """One axis after the other, the one that shrinks the data most first: taps gathered and weighted."""

    id = "cpu.resize.axes"
    device = "cpu"
    ops = (Resize,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Resize)
        taps = op.taps(_shape(workload, 0))
        if op.mode != "nearest" and not workload.inputs[0].dtype.is_float:
            return Refusal(
                f"{op.mode} interpolation of {workload.inputs[0].dtype.label} is computed by cpu.reference.numpy"
            )
        if any(tap is not None and tap.outside is not None for tap in taps):
            return Refusal("coordinates outside the input (tf_crop_and_resize) are computed by cpu.reference.numpy")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        threads = threads_of(device)
        one, many = config(threads=1), config(threads=threads)
        return (one,) if threads == 1 else (many, one)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, threads = workload.op, dict(config)["threads"]
        assert isinstance(op, Resize)
        if self.supports(workload, device) is not None:
            return reference_plan(workload)
        source = workload.inputs[0].dtype.numpy
        exact = op.mode == "nearest"
        held = source if exact else held_type(workload.inputs[0])
        start, end = _shape(workload, 0), _shape(workload, 1)
        taps = op.taps(start)
        axes = [axis for axis, tap in enumerate(taps) if tap is not None]
        axes.sort(key=lambda axis: (end[axis] / start[axis], -axis))
        sizes = [start]
        for axis in axes:
            sizes.append((*sizes[-1][:axis], end[axis], *sizes[-1][axis + 1 :]))
        scratch = Scratch()
        first = scratch.take(start if source != held else (0,), held)
        middle = [scratch.take(size, held) for size in sizes[1:-1]]
        last = scratch.take(end if source != held else (0,), held)
        terms = [scratch.take(size if not exact else (0,), held) for size in sizes[1:]]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            x, out = inputs[0], outputs[0]
            calls: list[Call] = []
            if source != held:
                target = first.view(workspace)
                calls.append(_spread_copy(target, x, threads))
                x = target
            for number, axis in enumerate(axes):
                tap = taps[axis]
                assert tap is not None
                final = number == len(axes) - 1
                if not final:
                    target = middle[number].view(workspace)
                else:
                    target = out if source == held else last.view(workspace)
                weights = None if exact else tap.weights.astype(held)
                term = terms[number].view(workspace)
                calls.append(_interpolate(x, target, term, axis, tap.indices, weights, threads))
                x = target
            if source != held or not axes:
                calls.append(_spread_copy(out, x, threads))
            return stages(*calls)

        return one_step(bind, self.id, scratch.size)


def _spread_copy(target: np.ndarray, source: np.ndarray, threads: int) -> Call:
    cuts = list(blocks(target.shape, 1 << 16))
    jobs = [
        [partial(np.copyto, target[cut], source[cut], casting="unsafe") for cut in cuts[a:b]]
        for a, b in spans(len(cuts), threads)
    ]
    return parallel(jobs, threads)


def _interpolate(
    x: np.ndarray,
    out: np.ndarray,
    term: np.ndarray,
    axis: int,
    indices: np.ndarray,
    weights: np.ndarray | None,
    threads: int,
) -> Call:
    """``out[.., i, ..] = sum_k weights[i, k] * x[.., indices[i, k], ..]`` along ``axis``, spread over the axes before it
    (over the result's places when there are none)."""
    lead, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    source = x.reshape(lead, x.shape[axis], inner)
    target, spare = out.reshape(lead, out.shape[axis], inner), term
    if weights is not None:
        spare = term.reshape(target.shape)
    by_place = lead < threads
    jobs: list[list[Action]] = []
    for low, high in spans(out.shape[axis] if by_place else lead, threads):
        if by_place:
            part, places, here, extra = slice(low, high), source, target[:, low:high], slice(low, high)
        else:
            part, places, here, extra = slice(None), source[low:high], target[low:high], slice(None)
        job: list[Action] = []
        if weights is None:
            job.append(partial(_take, places, indices[part, 0], here))
        else:
            buffer = spare[:, low:high] if by_place else spare[low:high]
            for k in range(indices.shape[1]):
                column = weights[extra, k][:, None]
                if k == 0:
                    job += [
                        partial(_take, places, indices[part, k], here),
                        partial(np.multiply, here, column, out=here),
                    ]
                else:
                    job += [
                        partial(_take, places, indices[part, k], buffer),
                        partial(np.multiply, buffer, column, out=buffer),
                        partial(np.add, here, buffer, out=here),
                    ]
        jobs.append(job)
    return parallel(jobs, threads)


def _take(source: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    if out.flags.c_contiguous:
        np.take(source, places, 1, out=out, mode="clip")
    else:  # np.take would make a copy of its own
        out[...] = source[:, places]


class TopKPartition(Tactic):
    """Sort along the axis in scratch memory order, best first; equal elements by index."""

    id = "cpu.topk.sort"
    device = "cpu"
    ops = (TopK,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        threads = threads_of(device)
        op, shape = workload.op, _shape(workload, 0)
        assert isinstance(op, TopK)
        rows = math.prod(shape) // max(1, shape[op.axis])
        one, many = config(threads=1), config(threads=threads)
        return (many, one) if threads > 1 and rows >= threads and math.prod(shape) > 1 << 14 else (one,)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, threads = workload.op, dict(config)["threads"]
        assert isinstance(op, TopK) and isinstance(op.k, int)
        shape = _shape(workload, 0)
        cuts = list(blocks(shape, max(1, math.prod(shape) // (4 * threads)), whole=(op.axis,)))

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            def make(cut: tuple[slice, ...]) -> Action:
                return partial(_topk, op, inputs[0][cut], outputs[0][cut], outputs[1][cut])

            jobs = [[make(cut) for cut in cuts[a:b]] for a, b in spans(len(cuts), threads)]
            return parallel(jobs, threads)

        return one_step(bind, self.id)


def _topk(op: TopK, x: np.ndarray, values: np.ndarray, indices: np.ndarray) -> None:
    best, order = op.evaluate([x])
    np.copyto(values, best)
    np.copyto(indices, order)


class CumulativeAccumulate(Tactic):
    """``ufunc.accumulate`` into the output (or float32 scratch memory)."""

    id = "cpu.cumulative.accumulate"
    device = "cpu"
    ops = (Cumulative,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, Cumulative)
        kind, shape = workload.inputs[0].dtype, _shape(workload, 0)
        held = held_type(workload.inputs[0]) if kind.is_float else kind.numpy
        scratch = Scratch()
        converted = held != kind.numpy
        slots = [scratch.take(shape if converted else (0,), held) for _ in range(2)]
        ufunc = {"sum": np.add, "prod": np.multiply}[op.kind]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            x, out = inputs[0], outputs[0]
            actions: list[Action] = []
            if converted:
                x, out = (slot.view(workspace) for slot in slots)
                actions.append(partial(np.copyto, x, inputs[0], casting="unsafe"))
            source, target = np.moveaxis(x, op.axis, 0), np.moveaxis(out, op.axis, 0)
            if op.reverse:
                source, target = source[::-1], target[::-1]
            if op.exclusive:
                actions.append(partial(target[:1].fill, 0 if op.kind == "sum" else 1))
                source, target = source[:-1], target[1:]
            if len(target):
                actions.append(partial(ufunc.accumulate, source, 0, held, target))
            if converted:
                actions.append(partial(np.copyto, outputs[0], out, casting="unsafe"))
            return sequence(actions)

        return one_step(bind, self.id, scratch.size)


class ArgReduceCall(Tactic):
    """``np.argmax`` or ``np.argmin`` into the output."""

    id = "cpu.argreduce.call"
    device = "cpu"
    ops = (ArgReduce,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        kind = workload.inputs[0].dtype
        if kind.is_float and kind.itemsize < 4:
            return Refusal(f"{kind.label} is compared by cpu.reference.numpy")
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, shape = workload.op, _shape(workload, 0)
        assert isinstance(op, ArgReduce)
        choose: Callable[..., np.ndarray] = np.argmax if op.largest else np.argmin

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            x = np.flip(inputs[0], op.axis) if op.select_last else inputs[0]
            out = outputs[0].reshape([size for axis, size in enumerate(shape) if axis != op.axis])
            actions: list[Action] = [partial(choose, x, op.axis, out=out)]
            if op.select_last:
                actions.append(partial(np.subtract, shape[op.axis] - 1, out, out=out))
            return sequence(actions)

        return one_step(bind, self.id)


class FillCopy(Tactic):
    """Values known at planning, copied into the output."""

    id = "cpu.fill.copy"
    device = "cpu"
    ops = (Fill, Range, ShapeValue)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        if isinstance(op, Fill):
            value = np.asarray(op.value).astype(op.dtype.numpy)
        else:
            (value,) = op.evaluate([])

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            return sequence([partial(np.copyto, outputs[0], value)])

        return one_step(bind, self.id)


TACTICS: tuple[Tactic, ...] = (
    GatherTake(), GatherFlat(), ScatterPlaces(), ResizeAxes(), TopKPartition(), CumulativeAccumulate(), ArgReduceCall(),
    FillCopy(),
)  # fmt: skip
