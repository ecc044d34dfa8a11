"""Deconvolution as a matrix product whose columns are added into the image (the transpose of im2col)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from fusion.ops import Deconvolution
from tactics.cpu.convolution import Geometry, multiplied_types, product_epilogue, summed
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel, stages
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config


class Col2im(Tactic):
    """Output channels in runs of ``channels``: product, then one addition for each window position."""

    id = "cpu.deconv.col2im"
    device = "cpu"
    ops = (Deconvolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if workload.op.channels_last:  # type: ignore[attr-defined]
            return Refusal("channels-last input: the CPU runs deconvolutions in [N, C, spatial]")
        return multiplied_types(workload.inputs[:2])

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        shape, threads = _mirror(workload), threads_of(device)
        columns = math.prod(shape.window) * math.prod(shape.out)
        cached = max(1, min(shape.c, (1 << 18) // max(columns, 1)))
        found = [config(channels=max(1, min(cached, -(-shape.c // threads))), threads=threads)]
        if columns * shape.c < 1 << 24:
            found.append(config(channels=-(-shape.c // threads), threads=threads))
        found.append(config(channels=cached, threads=1))
        return tuple(dict.fromkeys(found))

    def prepare(
        self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        if 1 not in constants:
            return ()
        return (np.ascontiguousarray(_arranged(constants[1], workload.op.groups), summed(workload)),)  # type: ignore[attr-defined]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, values, shape = workload.op, dict(config), _mirror(workload)
        assert isinstance(op, Deconvolution)
        total = summed(workload)
        known = workload.is_constant(1)
        epilogue = product_epilogue(workload)
        threads, channels = values["threads"], min(values["channels"], shape.c)
        # In the mirrored convolution, c counts this layer's outputs, o its inputs, out is its input's size.
        taps, places = len(shape.taps), math.prod(shape.out)
        scratch = Scratch()
        weights = None if known else scratch.take((shape.groups, shape.c * taps, shape.o), total)
        convert = workload.inputs[0].dtype.numpy != total
        image = scratch.take((shape.n, shape.groups, shape.o, places) if convert else (0,), total)
        spaces = [
            (
                scratch.take((channels * taps * places,), total),
                scratch.take((0,) if epilogue.in_place else (channels, *shape.spatial), total),
                scratch.take((epilogue.scratch_bytes,), np.uint8),
            )
            for _ in range(threads)
        ]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            calls: list[Call] = []
            matrix = packed[0] if known else weights.view(workspace)  # type: ignore[union-attr]
            if not known:
                source = _arranged(inputs[1], shape.groups)
                calls.append(parallel([[partial(np.copyto, matrix, source, casting="unsafe")]], 1))
            x = inputs[0].reshape(shape.n, shape.groups, shape.o, places)
            if convert:
                held = image.view(workspace)
                calls.append(parallel([[partial(np.copyto, held, x, casting="unsafe")]], 1))
                x = held
            out = outputs[0].reshape(shape.n, shape.groups, shape.c, *shape.spatial)
            extras = [np.broadcast_to(extra, outputs[0].shape) for extra in inputs[2:]]
            units = [
                (n, g, c, min(c + channels, shape.c))
                for n in range(shape.n)
                for g in range(shape.groups)
                for c in range(0, shape.c, channels)
            ]
            jobs = []
            for (low, high), slots in zip(spans(len(units), threads), spaces, strict=False):
                columns, result, temp = (slot.view(workspace) for slot in slots)
                job: list[Action] = []
                for n, g, c0, c1 in units[low:high]:
                    product = columns[: (c1 - c0) * taps * places].reshape((c1 - c0) * taps, places)
                    target = out[n, g, c0:c1]
                    sums = target if epilogue.in_place else result[: c1 - c0]
                    job.append(partial(np.matmul, matrix[g, c0 * taps : c1 * taps], x[n, g], out=product))
                    job.append(partial(sums.fill, 0))
                    job += _additions(product.reshape(c1 - c0, taps, *shape.out), sums, shape)
                    rows = slice(g * shape.c + c0, g * shape.c + c1)
                    job += epilogue.actions(sums, [extra[n, rows] for extra in extras], target, temp)
                jobs.append(job)
            return stages(*calls, parallel(jobs, threads))

        return one_step(bind, self.id, scratch.size, (1,) if known else ())


def _arranged(weights: np.ndarray, groups: int) -> np.ndarray:
    """``[C, O / groups, *window]`` as ``[groups, O / groups * window, C / groups]`` (a view where it can be)."""
    channels, outputs = weights.shape[:2]
    flat = weights.reshape(groups, channels // groups, outputs * math.prod(weights.shape[2:]))
    return flat.transpose(0, 2, 1)


def _mirror(workload: Workload) -> Geometry:
    """The convolution of which this deconvolution is the transpose: from this layer's output to its input."""
    op = workload.op
    assert isinstance(op, Deconvolution)
    n, channels, *spatial = shape_of(workload.inputs[0])
    outputs, *window = shape_of(workload.inputs[1])[1:]
    return Geometry(
        n, op.groups, outputs, channels // op.groups,
        shape_of(workload.outputs[0])[2:], tuple(spatial),
        tuple(window), op.stride, tuple(int(pad) for pad in op.pre_padding), op.dilation,  # type: ignore[arg-type]
    )  # fmt: skip


def _additions(columns: np.ndarray, sums: np.ndarray, shape: Geometry) -> list[Action]:
    """Add ``columns`` ``[c, taps, *places]`` where each window position of each place falls inside ``sums`` ``[c, *spatial]``."""
    found: list[Action] = []
    for number, tap in enumerate(shape.taps):
        source: list[slice] = [slice(None)]
        target: list[slice] = [slice(None)]
        for axis, count in enumerate(shape.out):
            first, last = shape.reach(tap, axis, 0, count)
            source.append(slice(first, last))
            target.append(shape.source(tap, axis, first, last))
        part = sums[tuple(target)]
        if part.size:
            found.append(partial(np.add, part, columns[:, number][tuple(source)], out=part))
    return found


TACTICS: tuple[Tactic, ...] = (Col2im(),)
