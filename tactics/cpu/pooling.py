"""Pooling: along one axis after the other over blocks of channels, or whole images as a matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fusion.expression import type_of
from fusion.network import TensorType
from fusion.ops import Pooling
from fusion.ops.epilogue import IDENTITY
from fusion.ops.pooling import least
from tactics.cpu.convolution import Geometry, wide
from tactics.cpu.epilogue import make_epilogue
from tactics.cpu.rows import row_reader
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config

_CACHE = 1 << 17  # elements of a channel block's planes: half a mebibyte of float32


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
        if op.operands:
            return Refusal("the prologue reads further tensors")
        if op.kind == "lp":
            return Refusal("p-norm pooling is computed by cpu.reference.numpy")
        pooled = _pooled(workload).dtype
        if op.kind == "average" and not pooled.is_float:
            return Refusal(f"an average of {pooled.label} is computed by cpu.reference.numpy")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        shape, threads = pool_geometry(workload), threads_of(device)
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
        op, values, shape = workload.op, dict(config), pool_geometry(workload)
        assert isinstance(op, Pooling)
        source, pooled = workload.inputs[0].dtype.numpy, _pooled(workload)
        total = wide(pooled) if pooled.dtype.is_float else pooled.dtype.numpy
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
                row_reader(op.prologue, source, total, channels * math.prod(sizes[0]), scratch),
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
            for (low, high), (reader, middle, temp) in zip(spans(len(cuts), threads), spaces, strict=False):
                job: list[Action] = []
                for n, c0, c1 in cuts[low:high]:
                    rows = slice(n * shape.groups + c0, n * shape.groups + c1)
                    target = out[rows]
                    read, here = reader.actions(image[rows], workspace)
                    job += read
                    for axis in range(rank):
                        last = axis == rank - 1 and epilogue.in_place
                        result = target if last else first_of(middle[axis].view(workspace), (c1 - c0, *sizes[axis + 1]))
                        job += pool_along(op.kind, here, result, shape, axis)
                        here = result
                    if scale is not None:
                        job.append(partial(np.multiply, here, scale, out=here))
                    picked = [extra[n, c0:c1] for extra in extras]
                    job += epilogue.actions(here, picked, target, temp.view(workspace))
                jobs.append(job)
            return parallel(jobs, threads)

        return one_step(bind, self.id, scratch.size)


def pool_geometry(workload: Workload) -> Geometry:
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


def _pooled(workload: Workload) -> TensorType:
    """What is pooled: the input after the prologue."""
    op, x = workload.op, workload.inputs[0]
    assert isinstance(op, Pooling)
    return replace(x, dtype=type_of(op.prologue, [x.dtype]))


def first_of(memory: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return memory[: math.prod(shape)].reshape(shape)


def pool_along(kind: str, here: np.ndarray, result: np.ndarray, shape: Geometry, axis: int) -> list[Action]:
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
        op, shape = workload.op, pool_geometry(workload)
        assert isinstance(op, Pooling)
        if op.channels_last or op.kind != "average" or workload.inputs[0].dtype.numpy != wide(workload.inputs[0]):
            return Refusal("only averages of float32 and float64 images in [N, C, spatial] are a matrix product")
        if op.prologue != IDENTITY:
            return Refusal("a function of each element stands before the average")
        if shape.window != shape.spatial or any(shape.pad) or set(shape.out) != {1} or set(shape.dilation) != {1}:
            return Refusal(f"window {shape.window} of an image {shape.spatial}: only a window that is the whole image")
        return None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, shape = workload.op, pool_geometry(workload)
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


TACTICS: tuple[Tactic, ...] = (PoolSeparable(), PoolWhole())
