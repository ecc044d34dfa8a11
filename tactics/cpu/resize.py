"""Resize, one axis after the other; what to read with which weight is known at planning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from fusion.ops import Resize
from tactics.cpu.reference import reference_plan
from tactics.cpu.rows import held_type
from tactics.cpu.steps import Arrays, Call, Scratch, blocks, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel, stages
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config


def _shape(workload: Workload, number: int) -> tuple[int, ...]:
    return shape_of((*workload.inputs, *workload.outputs)[number])


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


TACTICS: tuple[Tactic, ...] = (ResizeAxes(),)
