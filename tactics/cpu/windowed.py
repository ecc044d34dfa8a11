"""Windowed sums without products: depthwise convolution and pooling, one window position at a time over blocks of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fusion.ops import Convolution, Pooling
from fusion.ops.pooling import least
from tactics.cpu.convolution import Geometry, float_only, geometry, wide
from tactics.cpu.epilogue import make_epilogue
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config

_CACHE = 1 << 17  # elements of a channel block's planes: half a mebibyte of float32


class Depthwise(Tactic):
    """One filter a channel. Each block of channels is copied into zero-padded planes, one for each remainder of the
    position by the stride, so that a window position is one contiguous run of each plane."""

    id = "cpu.conv.depthwise"
    device = "cpu"
    ops = (Convolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Convolution)
        if op.channels_last:
            return Refusal("channels-last input: the CPU runs convolutions in [N, C, spatial]")
        shape = geometry(workload)
        if shape.c != 1 or shape.o != 1:
            return Refusal(f"{shape.c} input and {shape.o} output channels a group: only one and one are depthwise")
        return float_only(workload.inputs[:2])

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        shape, threads = geometry(workload), threads_of(device)
        plane = math.prod(_padded(shape)) * math.prod(shape.stride)
        cached = max(1, min(shape.groups, _CACHE // max(plane, 1)))
        found = [config(channels=max(1, min(cached, -(-shape.groups // threads))), threads=threads)]
        found.append(config(channels=max(1, cached // 4), threads=threads))
        found.append(config(channels=cached, threads=1))
        return tuple(dict.fromkeys(found))

    def prepare(
        self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        if 1 not in constants:
            return ()
        total = wide(*workload.inputs[:2])
        return (np.ascontiguousarray(constants[1].reshape(len(constants[1]), -1), total),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, values, shape = workload.op, dict(config), geometry(workload)
        assert isinstance(op, Convolution)
        total = wide(*workload.inputs[:2])
        epilogue = make_epilogue(op.epilogue, total, workload.inputs[2:], workload.outputs[0])
        known = bool(workload.constant) and workload.constant[1]
        channels, threads = values["channels"], values["threads"]
        padded = _padded(shape)
        plane = math.prod(padded)
        # A run ends where the last output's last window position ends; the rest of the plane is never read.
        run = sum((count - 1) * math.prod(padded[axis + 1 :]) for axis, count in enumerate(shape.out)) + 1
        scratch = Scratch()
        weights = None if known else scratch.take((shape.groups, math.prod(shape.window)), total)
        spaces = [
            (
                scratch.take((channels, math.prod(shape.stride), plane), total),
                scratch.take((2, channels, plane), total),
                scratch.take((epilogue.scratch_bytes,), np.uint8),
            )
            for _ in range(threads)
        ]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            matrix = packed[0] if known else weights.view(workspace)  # type: ignore[union-attr]
            first: list[Action] = []
            if not known:
                first.append(partial(np.copyto, matrix, inputs[1].reshape(matrix.shape), casting="unsafe"))
            out = outputs[0]
            extras = [np.broadcast_to(extra, out.shape) for extra in inputs[2:]]
            blocks = [
                (n, c, min(c + channels, shape.groups))
                for n in range(shape.n)
                for c in range(0, shape.groups, channels)
            ]
            jobs: list[list[Action]] = []
            for (low, high), slots in zip(spans(len(blocks), threads), spaces, strict=False):
                planes, sums, temp = (slot.view(workspace) for slot in slots)
                job: list[Action] = [partial(planes.fill, 0)]  # the padding; what lies inside is written by every block
                for n, c0, c1 in blocks[low:high]:
                    cut = (n, slice(c0, c1))
                    part = planes[: c1 - c0]
                    job += _deal(inputs[0][cut], part.reshape(c1 - c0, *shape.stride, *padded), shape)
                    acc, product = sums[0, : c1 - c0], sums[1, : c1 - c0]
                    for number, (phase, offset) in enumerate(_taps(shape, padded)):
                        source = part[:, phase, offset : offset + run]
                        target = acc if number == 0 else product
                        job.append(
                            partial(np.multiply, source, matrix[c0:c1, number : number + 1], out=target[:, :run])
                        )
                        if number:
                            job.append(partial(np.add, acc[:, :run], product[:, :run], out=acc[:, :run]))
                    inner = tuple(slice(0, count) for count in shape.out)
                    held = acc.reshape(c1 - c0, *padded)[(slice(None), *inner)]
                    if epilogue.program is None:
                        job.append(partial(np.copyto, out[cut], held))
                        continue
                    if epilogue.in_place:
                        job.append(partial(np.copyto, out[cut], held))
                        held = out[cut]
                    job += epilogue.actions(held, [extra[cut] for extra in extras], out[cut], temp)
                jobs.append(job)
            if first:
                jobs[0][:0] = first
                return parallel([[action for job in jobs for action in job]], 1)
            return parallel(jobs, threads)

        return one_step(bind, self.id, scratch.size)


def _padded(shape: Geometry) -> tuple[int, ...]:
    """The size of each plane: room for every output, and the reach of the window."""
    return tuple(
        count + (k - 1) * gap // step
        for count, k, gap, step in zip(shape.out, shape.window, shape.dilation, shape.stride, strict=True)
    )


def _deal(image: np.ndarray, planes: np.ndarray, shape: Geometry) -> list[Action]:
    """Copy ``image`` ``[c, *spatial]`` into the planes ``[c, *stride, *padded]``, each with its remainder of positions."""
    found: list[Action] = []
    for phase in np.ndindex(*shape.stride):
        source: list[slice] = [slice(None)]
        target: list[slice] = [slice(None)]
        for axis, part in enumerate(phase):
            step, pad, size = shape.stride[axis], shape.pad[axis], shape.spatial[axis]
            room = planes.shape[1 + len(phase) + axis]
            # plane element i is image element i * step + part - pad
            low = max(0, -((part - pad) // step))
            high = min(room, (size - 1 + pad - part) // step + 1)
            target.append(slice(low, max(low, high)))
            start = low * step + part - pad
            source.append(slice(start, start + (high - low - 1) * step + 1, step) if high > low else slice(0, 0))
        part_ = planes[(slice(None), *phase)][tuple(target)]
        if part_.size:
            found.append(partial(np.copyto, part_, image[tuple(source)], casting="unsafe"))
    return found


def _taps(shape: Geometry, padded: Sequence[int]) -> list[tuple[int, int]]:
    """Per window position (plane number, offset of its first element in the plane)."""
    found = []
    for tap in shape.taps:
        places = [k * gap for k, gap in zip(tap, shape.dilation, strict=True)]
        phase = offset = 0
        for axis, place in enumerate(places):
            phase = phase * shape.stride[axis] + place % shape.stride[axis]
            offset = offset * padded[axis] + place // shape.stride[axis]
        found.append((phase, offset))
    return found


class PoolSeparable(Tactic):
    """Maximum and average pooling: along one axis after the other, over blocks of channels."""

    id = "cpu.pool.separable"
    device = "cpu"
    ops = (Pooling,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Pooling)
        if op.channels_last:
            return Refusal("channels-last input: the CPU pools in [N, C, spatial]")
        if op.kind == "lp":
            return Refusal("p-norm pooling is computed by cpu.reference.numpy")
        if op.kind == "average" and not workload.inputs[0].dtype.is_float:
            return Refusal(f"an average of {workload.inputs[0].dtype.label} is computed by cpu.reference.numpy")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        shape, threads = _pool_geometry(workload), threads_of(device)
        planes = shape.n * shape.groups
        size = math.prod(shape.spatial)
        cached = max(1, min(planes, _CACHE // max(size, 1)))
        if planes * size < 1 << 15:
            return (config(channels=cached, threads=1),)
        found = [config(channels=max(1, min(cached, -(-planes // threads))), threads=threads)]
        found.append(config(channels=max(1, cached // 4), threads=threads))
        found.append(config(channels=cached, threads=1))
        return tuple(dict.fromkeys(found))

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, values, shape = workload.op, dict(config), _pool_geometry(workload)
        assert isinstance(op, Pooling)
        source = workload.inputs[0].dtype
        total = wide(workload.inputs[0]) if source.is_float else source.numpy
        epilogue = make_epilogue(op.epilogue, total, workload.inputs[1:], workload.outputs[0])
        channels, threads = values["channels"], values["threads"]
        rank = len(shape.window)
        counts = op.window_counts(shape.spatial, shape.out)
        scale = None if op.kind == "max" or (counts == 1).all() else (1.0 / counts).astype(total)
        # Sizes after each axis is done; the last stands in the output, or in scratch memory before its epilogue.
        sizes = [(*shape.out[:axis], *shape.spatial[axis:]) for axis in range(rank + 1)]
        scratch = Scratch()
        spaces = [
            (
                scratch.take((channels * math.prod(sizes[0]) if source.numpy != total else 0,), total),
                [scratch.take((channels * math.prod(size),), total) for size in sizes[1:]],
                scratch.take((epilogue.scratch_bytes,), np.uint8),
            )
            for _ in range(threads)
        ]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            planes = shape.n * shape.groups
            image = inputs[0].reshape(planes, *shape.spatial)
            out = outputs[0].reshape(planes, *shape.out)
            # Each channel of each image keeps its own row of operands: a view, whatever they broadcast over.
            extras = [np.broadcast_to(extra, outputs[0].shape) for extra in inputs[1:]]
            cuts = (
                [
                    (n, c, min(c + channels, shape.groups))
                    for n in range(shape.n)
                    for c in range(0, shape.groups, channels)
                ]
                if extras
                else [(0, p, min(p + channels, planes)) for p in range(0, planes, channels)]
            )
            jobs: list[list[Action]] = []
            for (low, high), (copy, middle, temp) in zip(spans(len(cuts), threads), spaces, strict=False):
                job: list[Action] = []
                for n, c0, c1 in cuts[low:high]:
                    rows = slice(n * shape.groups + c0, n * shape.groups + c1)
                    here, target = image[rows], out[rows]
                    if source.numpy != total:
                        converted = _first(copy.view(workspace), here.shape)
                        job.append(partial(np.copyto, converted, here, casting="unsafe"))
                        here = converted
                    for axis in range(rank):
                        last = axis == rank - 1 and epilogue.in_place
                        result = target if last else _first(middle[axis].view(workspace), (c1 - c0, *sizes[axis + 1]))
                        job += _along(op.kind, here, result, shape, axis)
                        here = result
                    if scale is not None:
                        job.append(partial(np.multiply, here, scale, out=here))
                    picked = [extra[n, c0:c1] for extra in extras]
                    job += epilogue.actions(here, picked, target, temp.view(workspace))
                jobs.append(job)
            return parallel(jobs, threads)

        return one_step(bind, self.id, scratch.size)


def _pool_geometry(workload: Workload) -> Geometry:
    """Pooling as a depthwise window."""
    op = workload.op
    assert isinstance(op, Pooling)
    n, channels, *spatial = shape_of(workload.inputs[0])
    whole: list[tuple[int, ...]] = [
        tuple(int(dim) for dim in values)  # type: ignore[arg-type]
        for values in (workload.outputs[0].shape[2:], op.window, op.stride, op.pre_padding)
    ]
    out, window, stride, pad = whole
    return Geometry(n, channels, 1, 1, tuple(spatial), out, window, stride, pad, op.dilation)


def _first(memory: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return memory[: math.prod(shape)].reshape(shape)


def _along(kind: str, here: np.ndarray, result: np.ndarray, shape: Geometry, axis: int) -> list[Action]:
    """Pool ``here`` along spatial ``axis`` into ``result``: combine what each window position reads inside the image."""
    combine: np.ufunc = np.maximum if kind == "max" else np.add
    size, count = shape.spatial[axis], shape.out[axis]
    if count == 1 and shape.pad[axis] == 0 and shape.window[axis] == size and shape.dilation[axis] == 1:
        return [partial(combine.reduce, here, axis=1 + axis, out=result, keepdims=True)]
    lead = (slice(None),) * (1 + axis)
    reads = []
    one = replace(shape, window=(1,) * axis + (shape.window[axis],) + (1,) * (len(shape.window) - axis - 1))
    for k in range(shape.window[axis]):
        tap = (0,) * axis + (k,)
        first, last = one.reach(tap, axis, 0, count)
        if last > first:
            reads.append((first, last, here[(*lead, one.source(tap, axis, first, last))]))
    # A position that every output reads starts the sum without a fill.
    whole = [i for i, (first, last, _) in enumerate(reads) if (first, last) == (0, count)]
    found: list[Action] = []
    if not whole:
        found.append(partial(result.fill, least(result.dtype) if kind == "max" else 0))
    elif len(reads) == 1:
        return [partial(np.copyto, result, reads[0][2])]
    else:
        start = reads.pop(whole[0])[2]
        if len(whole) > 1:
            found.append(partial(combine, start, reads.pop(whole[1] - 1)[2], out=result))
        else:
            found.append(partial(np.copyto, result, start))
    for first, last, source in reads:
        target = result[(*lead, slice(first, last))]
        found.append(partial(combine, target, source, out=target))
    return found


class PoolWhole(Tactic):
    """The average of whole images: a matrix times a vector."""

    id = "cpu.pool.whole"
    device = "cpu"
    ops = (Pooling,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op, shape = workload.op, _pool_geometry(workload)
        assert isinstance(op, Pooling)
        if op.channels_last or op.kind != "average" or workload.inputs[0].dtype.numpy != wide(workload.inputs[0]):
            return Refusal("only averages of float32 and float64 images in [N, C, spatial] are a matrix product")
        if shape.window != shape.spatial or any(shape.pad) or set(shape.out) != {1} or set(shape.dilation) != {1}:
            return Refusal(f"window {shape.window} of an image {shape.spatial}: only a window that is the whole image")
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, shape = workload.op, _pool_geometry(workload)
        assert isinstance(op, Pooling)
        total = wide(workload.inputs[0])
        epilogue = make_epilogue(op.epilogue, total, workload.inputs[1:], workload.outputs[0])
        size = math.prod(shape.spatial)
        weights = np.full((size, 1), 1 / int(op.window_counts(shape.spatial, shape.out).item()), total)
        scratch = Scratch()
        held = scratch.take((0,) if epilogue.in_place else (shape.n * shape.groups, 1), total)
        temp = scratch.take((epilogue.scratch_bytes,), np.uint8)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            out = outputs[0]
            result = out.reshape(-1, 1) if epilogue.in_place else held.view(workspace)
            extras = [np.broadcast_to(extra, out.shape) for extra in inputs[1:]]
            finish = epilogue.actions(result.reshape(out.shape), extras, out, temp.view(workspace))
            return parallel([[partial(np.matmul, inputs[0].reshape(-1, size), weights, out=result), *finish]], 1)

        return one_step(bind, self.id, scratch.size)


TACTICS: tuple[Tactic, ...] = (Depthwise(), PoolSeparable(), PoolWhole())
