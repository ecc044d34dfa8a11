"""Convolution and pooling in one layer: the rows that a band of pooled rows needs are convolved, and pooled while they are in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fusion.ops import ConvolutionPooling
from fusion.ops.epilogue import IDENTITY
from tactics.cpu.convolution import (
    Geometry,
    Tiles,
    float_only,
    geometry,
    pack,
    padded_elements,
    product_epilogue,
    summed,
    wide,
)
from tactics.cpu.epilogue import make_epilogue
from tactics.cpu.pooling import first_of, pool_along, pool_geometry
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, spans, threads_of
from tactics.cpu.threads import Action, parallel
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config

_ROOM = 1 << 20  # elements of gathered columns that a thread may hold: 4 MiB of float32


class ConvolvedBands(Tactic):
    """Bands of pooled rows, spread over the threads."""

    id = "cpu.conv.pool"
    device = "cpu"
    ops = (ConvolutionPooling,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, ConvolutionPooling)
        if op.convolution.channels_last or op.convolution.reads_channels_last or op.pooling.channels_last:
            return Refusal("channels-last tensors: the CPU runs convolutions and pooling in [N, C, spatial]")
        if op.pooling.kind not in ("max", "average"):
            return Refusal(f"{op.pooling.kind} pooling: this tactic has max and average")
        if op.pooling.epilogue != IDENTITY:
            return Refusal("the pooling has an epilogue of its own")
        if not workload.is_constant(1):
            return Refusal("the weights are not constant")
        return float_only((*workload.inputs[:2], *op.convolution.infer(workload.inputs)))

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        convolution, pooling, _ = _parts(workload)
        shape, threads = geometry(convolution), threads_of(device)
        rows = pool_geometry(pooling).out[0]
        step = int(workload.op.pooling.stride[0]) * max(shape.row, 1)  # type: ignore[attr-defined]
        room = _ROOM // max(1, shape.groups * shape.depth)
        bands = [max(1, min(rows, min(columns, room) // step)) for columns in (1024, 2048, 4096, 512)]
        return tuple(dict.fromkeys([*(config(band=band, threads=threads) for band in bands), config(band=bands[1], threads=1)]))

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        convolution, _, _ = _parts(workload)
        return (pack(constants[1], geometry(convolution).groups, summed(convolution)),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        values = dict(config)
        convolution, pooling, op = _parts(workload)
        shape, pooled = geometry(convolution), pool_geometry(pooling)
        products = product_epilogue(convolution)
        total = summed(convolution)
        middle, channels = convolution.outputs[0], shape.groups * shape.o
        pool_total = wide(middle)
        after = make_epilogue(IDENTITY, pool_total, (), workload.outputs[0])
        counts = op.pooling.window_counts(shape.out, pooled.out)
        scale = None if op.pooling.kind == "max" or (counts == 1).all() else (1.0 / counts).astype(pool_total)
        bands = [
            (n, low, min(low + values["band"], pooled.out[0]))
            for n in range(shape.n)
            for low in range(0, pooled.out[0], values["band"])
        ]
        needs = [_rows(pooled, low, high) for _, low, high in bands]
        rows, high = max((b - a for a, b in needs), default=0), min(values["band"], pooled.out[0])
        scratch, spaces = Scratch(), []
        for _ in range(values["threads"]):
            spaces.append((
                scratch.take((len(shape.taps) * shape.groups * shape.c * rows * shape.row,), total),
                scratch.take((0 if products.in_place else channels * rows * shape.row,), total),
                scratch.take((channels * rows * shape.row,), middle.dtype.numpy),
                scratch.take((products.scratch_bytes,), np.uint8),
                scratch.take((padded_elements(shape, rows),), total),
                scratch.take((0 if middle.dtype.numpy == pool_total else channels * rows * shape.row,), pool_total),
                scratch.take((channels * high * shape.row,), pool_total),
                scratch.take((0 if after.in_place else channels * high * pooled.out[1],), pool_total),
                scratch.take((after.scratch_bytes,), np.uint8),
            ))  # fmt: skip

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            whole = (shape.n, channels, *shape.out)
            extras = [np.broadcast_to(extra, whole) for extra in inputs[2:]]
            jobs: list[list[Action]] = []
            for (start, end), slots in zip(spans(len(bands), values["threads"]), spaces, strict=False):
                columns, result, held, temp, padded, copy, half, last, finish = (slot.view(workspace) for slot in slots)
                job: list[Action] = []
                for (n, low, high), (first, stop) in zip(bands[start:end], needs[start:end], strict=True):
                    # The band's rows as a convolution of its own, whose padding says where they start.
                    part = replace(
                        shape, n=1, out=(stop - first, *shape.out[1:]), pad=(shape.pad[0] - first * shape.stride[0], *shape.pad[1:])
                    )
                    here = first_of(held, (channels, *part.out))
                    given = [inputs[0][n : n + 1], inputs[1], *(extra[n : n + 1, :, first:stop] for extra in extras)]
                    if stop > first:
                        tiles = Tiles(part, False, packed[0], products, given, here[None], [temp], [padded])
                        job += tiles.alone((0, 0, stop - first), columns, result, 0)
                    if middle.dtype.numpy != pool_total:
                        converted = first_of(copy, here.shape)
                        job.append(partial(np.copyto, converted, here))
                        here = converted
                    window = replace(
                        pooled, spatial=part.out, out=(high - low, pooled.out[1]),
                        pad=(pooled.pad[0] + first - low * pooled.stride[0], pooled.pad[1]),
                    )  # fmt: skip
                    target = outputs[0][n, :, low:high]
                    rows = first_of(half, (channels, high - low, shape.out[1]))
                    final = target if after.in_place else first_of(last, target.shape)
                    job += pool_along(op.pooling.kind, here, rows, window, 0)
                    job += pool_along(op.pooling.kind, rows, final, window, 1)
                    if scale is not None:
                        job.append(partial(np.multiply, final, scale if len(scale) == 1 else scale[low:high], out=final))
                    job += after.actions(final, (), target, finish)
                jobs.append(job)
            return parallel(jobs, values["threads"])

        return one_step(bind, self.id, scratch.size, (1,))


def _parts(workload: Workload) -> tuple[Workload, Workload, ConvolutionPooling]:
    """The two layers' workloads, and the operation."""
    op = workload.op
    assert isinstance(op, ConvolutionPooling)
    middle = op.convolution.infer(workload.inputs)
    return replace(workload, op=op.convolution, outputs=middle), replace(workload, op=op.pooling, inputs=middle), op


def _rows(pooled: Geometry, low: int, high: int) -> tuple[int, int]:
    """The convolved rows that pooled rows ``low .. high`` read, as (start, end)."""
    extent = pooled.dilation[0] * (pooled.window[0] - 1) + 1
    first = min(max(0, low * pooled.stride[0] - pooled.pad[0]), pooled.spatial[0])
    return first, max(first, min(pooled.spatial[0], (high - 1) * pooled.stride[0] - pooled.pad[0] + extent))


TACTICS: tuple[Tactic, ...] = (ConvolvedBands(),)
