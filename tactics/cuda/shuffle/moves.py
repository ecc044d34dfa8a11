"""Slices, expansions, tilings, concatenations and paddings: copies with steps, and paddings with an index rule."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import gcd, prod

import numpy as np

from fusion.ops import Concatenation, Expand, Padding, Slice, Tile
from tactics.cuda.shuffle.strides import ANY, Axis, axes_of, copy_choices, copy_launch, row_major, widest_vector
from tactics.cuda.simple import (
    OUT,
    ceil_div,
    count,
    defines,
    dims,
    divider,
    known,
    launch,
    raw_type,
    refuse_large,
    x_pitch,
)
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Struct,
    Tactic,
    Workload,
    config,
    every_tensor,
)

PARTS = 16  # inputs of one concatenation launch


def _varies(workload: Workload, tensor: int, rank: int) -> tuple[bool, ...]:
    return tuple(workload.axis_varies(tensor, axis) for axis in range(rank))


def movement(workload: Workload) -> tuple[tuple[Axis, ...], int]:
    """The copy that a Slice, Expand or Tile is: its axes, and the input's first element."""
    op, merge = workload.op, workload.is_static
    x, out = dims(workload.inputs[0]), dims(workload.outputs[0])
    in_varies, out_varies = _varies(workload, 0, len(x)), _varies(workload, 1, len(out))
    steps, out_pitch = row_major(x, in_varies, workload.inputs[0].pitch), workload.outputs[0].pitch
    if isinstance(op, Slice):
        starts = [int(start) for start in op.starts]  # type: ignore[arg-type]
        base = sum(start * step for start, (step, _) in zip(starts, steps, strict=True))
        moved = [(step * by, sure * abs(by)) for (step, sure), by in zip(steps, op.steps, strict=True)]
        return axes_of(out, out_varies, moved, row_major(out, out_varies, out_pitch), merge=merge), base
    if isinstance(op, Expand):
        missing = len(out) - len(x)
        moved = [(0, ANY)] * missing
        for axis, (step, sure) in enumerate(steps):
            fixed_one = x[axis] == 1 and not in_varies[axis]
            moved.append((0, ANY) if fixed_one else (0 if x[axis] == 1 else step, sure))
        return axes_of(out, out_varies, moved, row_major(out, out_varies, out_pitch), merge=merge), 0
    assert isinstance(op, Tile)
    sizes: list[int] = []
    varies: list[bool] = []
    moved = []
    for axis, repeats in enumerate(op.repeats):
        sizes += [int(repeats), x[axis]]  # type: ignore[arg-type]
        varies += [out_varies[axis] and not in_varies[axis], in_varies[axis]]
        moved += [(0, ANY), steps[axis]]
    return axes_of(sizes, varies, moved, row_major(sizes, varies), merge=merge), 0


def _sure_base(workload: Workload) -> int:
    """What surely divides the input's first element: where a size of the axis varies, the start may be any number."""
    op = workload.op
    if not isinstance(op, Slice):
        return ANY
    x, out = dims(workload.inputs[0]), dims(workload.outputs[0])
    in_varies, out_varies = _varies(workload, 0, len(x)), _varies(workload, 1, len(out))
    steps = row_major(x, in_varies, workload.inputs[0].pitch)
    open_ = [before or after for before, after in zip(in_varies, out_varies, strict=True)]
    parts = [sure if free else int(start) * sure for start, (_, sure), free in zip(op.starts, steps, open_, strict=True)]  # type: ignore[arg-type]
    return gcd(*parts) or ANY


class Movement(Tactic):
    """Slice, Expand and Tile as one strided copy."""

    id = "cuda.shuffle.movement"
    device = "cuda"
    ops = (Slice, Expand, Tile)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refuse_large(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return (0, 1) if not isinstance(workload.op, Tile) else (0,)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        axes, _ = movement(workload)
        widest = widest_vector(axes, workload.inputs[0].dtype.itemsize, _sure_base(workload))
        return [config(v=v, items=items) for v, items in copy_choices(widest, count(workload.outputs[0]), device)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        if not count(workload.outputs[0]) and workload.is_static:
            return Plan(())  # where sizes vary, the kernel is wanted for the next inference
        axes, base = movement(workload)
        chosen = dict(config)
        return Plan((copy_launch(axes, workload.inputs[0].dtype.itemsize, chosen["v"], chosen["items"], device, in_base=base),))


class Concatenate(Tactic):
    """All inputs side by side, 16 in one launch, in vectors that fit every input's share of a row."""

    id = "cuda.shuffle.concatenate"
    device = "cuda"
    ops = (Concatenation,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refuse_large(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        last = workload.op.axis == len(workload.outputs[0].shape) - 1  # type: ignore[attr-defined]
        return every_tensor(workload) if last else ()

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        widest = self._widest(workload)
        return [config(v=v, items=items) for v, items in copy_choices(widest, count(workload.outputs[0]), device)]

    @staticmethod
    def _widest(workload: Workload) -> int:
        axis = workload.op.axis  # type: ignore[attr-defined]
        rank = len(workload.outputs[0].shape)
        lengths = [known(workload, index, range(axis, rank)) for index in range(len(workload.inputs))]
        return gcd(max(1, 16 // workload.outputs[0].dtype.itemsize), *lengths)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        v, items = chosen["v"], chosen["items"]
        axis = workload.op.axis  # type: ignore[attr-defined]
        out = dims(workload.outputs[0])
        outer, total = prod(out[:axis]), (workload.outputs[0].pitch or prod(out[axis:])) // v
        lengths = [prod(dims(tensor)[axis:]) // v for tensor in workload.inputs]
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        steps: list[Launch] = []
        for first in range(0, len(lengths), PARTS):
            part = range(first, min(first + PARTS, len(lengths)))
            apart = any(workload.inputs[index].pitch for index in part)
            names = defines(device, MOVE_T=raw_type(workload.outputs[0].dtype.itemsize * v), PARTS=len(part), THREADS=256, ITEMS=items,
                            **({"X_PITCHES": 1} if apart else {}))  # fmt: skip
            kernel = Kernel("shuffle/concat.cu", "concatenate", names, '#include "vector.cuh"\n')
            fields: list[Buffer | Scalar] = [Buffer("input", index) for index in part]
            if apart:
                fields += [Scalar((workload.inputs[index].pitch // v) or lengths[index], "u32") for index in part]
            for index in part:
                # A part of length 0 divides by 1 and copies nothing: its count is outer * 1 only when it has elements.
                fields += divider(lengths[index]) if lengths[index] else (Scalar(0, "u32"), Scalar(0, "u32"), Scalar(0, "u32"))
            fields += [Scalar(starts[index], "u32") for index in part]
            longest = max(lengths[index] for index in part)
            grid = (ceil_div(outer * longest, 256 * items), len(part))
            steps.append(launch(kernel, grid, 256, (OUT, Scalar(outer, "u32"), Scalar(total, "i64"), Struct(tuple(fields)))))
        return Plan(tuple(steps))


MODES = {"constant": 0, "reflect": 1, "edge": 2, "wrap": 3}


class Pad(Tactic):
    """Padding in every mode; vectors when trailing axes are not padded."""

    id = "cuda.shuffle.padding"
    device = "cuda"
    ops = (Padding,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op: Padding = workload.op  # type: ignore[assignment]
        if op.mode not in MODES:
            return Refusal(f"padding mode {op.mode!r}; this kernel has {', '.join(MODES)}")
        return refuse_large(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        x, out = dims(workload.inputs[0]), dims(workload.outputs[0])
        widest = 1
        if x and x[-1] == out[-1] and not workload.axis_varies(0, -1) and not workload.axis_varies(1, -1) and not _pads(workload)[-1][0]:
            widest = gcd(max(1, 16 // workload.inputs[0].dtype.itemsize), x[-1])
        return [config(v=v) for v in dict.fromkeys((widest, max(1, widest // 2), 1))]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op: Padding = workload.op  # type: ignore[assignment]
        v, dtype = dict(config)["v"], workload.inputs[0].dtype
        x, out = dims(workload.inputs[0]), dims(workload.outputs[0])
        pads = _pads(workload)
        base, stride = 0, 1
        axes: list[tuple[int, int, int, int]] = []  # out size, in size, pre, step; innermost first
        for size, total, (pre, post) in reversed(list(zip(x, out, pads, strict=True))):
            base += max(-pre, 0) * stride
            axes.append((total, size + min(pre, 0) + min(post, 0), max(pre, 0), stride))
            stride *= size
        axes = axes or [(1, 1, 0, 1)]
        axes[0] = (axes[0][0] // v, axes[0][1] // v, axes[0][2], 1)
        axes[1:] = [(total, size, pre, step // v) for total, size, pre, step in axes[1:]]
        elements = prod(axis[0] for axis in axes)
        names = defines(device, MOVE_T=raw_type(dtype.itemsize * v), ELEMENT=raw_type(dtype.itemsize), RANK=len(axes), THREADS=256,
                        MODE=MODES[op.mode])  # fmt: skip
        kernel = Kernel("shuffle/padding.cu", "pad", names, '#include "vector.cuh"\n')
        fields: list[Buffer | Scalar] = []
        for axis in axes:
            fields += divider(axis[0])
        for column in (1, 2):
            fields += [Scalar(axis[column]) for axis in axes]
        fields += [Scalar(axis[3], "i64") for axis in axes]
        arguments = (Buffer("input"), OUT, Scalar(elements, "u32"), Scalar(base // v, "i64"), _bits(workload), Struct(tuple(fields)))
        return Plan((launch(kernel, ceil_div(elements, 256), 256, arguments),))


class PadRows(Tactic):
    """A constant behind each row of an aligned output: channels that are padded in memory."""

    id = "cuda.shuffle.pad_rows"
    device = "cuda"
    ops = (Padding,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op: Padding = workload.op  # type: ignore[assignment]
        *others, (pre, post) = _pads(workload) or [(0, 0)]
        if op.mode != "constant" or any(map(any, others)) or pre or post <= 0:
            return Refusal("it pads more than the ends of rows by a constant: see cuda.shuffle.padding")
        if workload.axis_varies(0, -1) or workload.axis_varies(1, -1):
            return Refusal("the length of rows may vary; it is compiled into this kernel")
        if self._widest(workload) == 1:
            return Refusal(f"rows of {dims(workload.outputs[0])[-1]} elements are no whole vectors")
        return refuse_large(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return (0,)

    @staticmethod
    def _widest(workload: Workload) -> int:
        return gcd(max(1, 16 // workload.inputs[0].dtype.itemsize), dims(workload.outputs[0])[-1])

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        widest = self._widest(workload)
        return [config(v=v) for v in dict.fromkeys((widest, max(2, widest // 2), max(2, widest // 4)))]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        v, held = dict(config)["v"], dims(workload.outputs[0])[-1]
        vectors = count(workload.outputs[0]) // v
        names = defines(device, ELEMENT=raw_type(workload.inputs[0].dtype.itemsize), VEC=v, WIDTH=dims(workload.inputs[0])[-1], HELD=held, THREADS=256,
                        **x_pitch(workload))  # fmt: skip
        kernel = Kernel("shuffle/pad_rows.cu", "pad_rows", names, '#include "vector.cuh"\n')
        return Plan((launch(kernel, ceil_div(vectors, 256), 256, (Buffer("input"), OUT, Scalar(vectors, "u32"), _bits(workload))),))


def _bits(workload: Workload) -> Scalar:
    """The value of a constant padding as the raw element that it is."""
    op: Padding = workload.op  # type: ignore[assignment]
    return Scalar(int.from_bytes(np.array(op.value, workload.inputs[0].dtype.numpy).tobytes(), "little"), "u64")


def _pads(workload: Workload) -> list[tuple[int, int]]:
    op: Padding = workload.op  # type: ignore[assignment]
    return [(int(pre), int(post)) for pre, post in zip(op.pre, op.post, strict=True)]  # type: ignore[arg-type]


TACTICS = (Movement(), Concatenate(), PadRows(), Pad())
