"""Depthwise convolution: one window position at a time over blocks of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from fusion.ops import Convolution
from tactics.cpu.convolution import Geometry, geometry, multiplied_types, product_epilogue, summed
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, spans, threads_of
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
        return multiplied_types(workload.inputs[:2])

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
        total = summed(workload)
        return (np.ascontiguousarray(constants[1].reshape(len(constants[1]), -1), total),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, values, shape = workload.op, dict(config), geometry(workload)
        assert isinstance(op, Convolution)
        total = summed(workload)
        epilogue = product_epilogue(workload)
        known = workload.is_constant(1)
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

        return one_step(bind, self.id, scratch.size, (1,) if known else ())


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


TACTICS: tuple[Tactic, ...] = (Depthwise(),)
