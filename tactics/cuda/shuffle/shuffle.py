"""Transposes and reshapes: a plain copy, a transpose through shared memory, or a strided copy in the widest vectors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import gcd, prod

from fusion.ops import Shuffle
from tactics.cuda.shuffle.strides import (
    PLAIN,
    Axis,
    Conversion,
    axes_argument,
    axes_of,
    copy_choices,
    copy_launch,
    row_major,
    widest_vector,
)
from tactics.cuda.simple import OUT, ceil_div, count, defines, dims, launch, raw_type, refuse_large
from tactics.tactic import (
    Buffer,
    Config,
    Copy,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Tactic,
    Workload,
    config,
    tensor_bytes,
)  # fmt: skip

Permuted = tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]  # shape, which axes vary, permutation


def _trivial(order: tuple[int, ...] | None) -> bool:
    return order is None or order == tuple(range(len(order)))


def is_reshape(workload: Workload) -> bool:
    """Whether no element moves, at any size."""
    op: Shuffle = workload.op  # type: ignore[assignment]
    return _trivial(op.first) and _trivial(op.second)


def passes(workload: Workload) -> list[tuple[Axis, ...]]:
    """The axes of each copy that makes the output: one, or two when the reshape between two transposes needs the data in order."""
    op: Shuffle = workload.op  # type: ignore[assignment]
    shape, fixed = dims(workload.inputs[0]), workload.is_static
    varies = tuple(workload.axis_varies(0, axis) for axis in range(len(shape)))
    before = (shape, varies, op.first or tuple(range(len(shape))))
    out = dims(workload.outputs[0])
    out_varies = tuple(workload.axis_varies(1, axis) for axis in range(len(out)))
    second = op.second or tuple(range(len(out)))
    middle, middle_varies = [0] * len(out), [False] * len(out)
    for position, axis in enumerate(second):
        middle[axis], middle_varies[axis] = out[position], out_varies[position]
    after = (tuple(middle), tuple(middle_varies), second)
    pitches = (workload.inputs[0].pitch, workload.outputs[0].pitch)  # see takes_columns
    if op.reshape is None and (any(pitches) or (op.first is not None and op.second is not None)):
        first = op.first or tuple(range(len(shape)))
        return [_axes((shape, varies, tuple(first[axis] for axis in second)), fixed, *pitches)]
    if _trivial(op.second):
        return [_axes(before, fixed, *pitches)]
    if _trivial(op.first):
        return [_axes(after, fixed, pitches[0], width=shape[-1])]
    if fixed:
        joined = _joined(before, after, pitches[0])
        if joined is not None:
            return [joined]
    return [_axes(before, fixed, pitches[0]), _axes(after, fixed)]


def takes_columns(workload: Workload) -> tuple[int, ...]:
    """The tensors that may be columns of wider ones: the output where nothing is reshaped, the input unless its rows are cut across before they
    are moved."""
    op: Shuffle = workload.op  # type: ignore[assignment]
    if op.reshape is None:
        return 0, 1
    return (0,) if _trivial(op.second) or not _trivial(op.first) or _splits_rows(workload) else ()


def _splits_rows(workload: Workload) -> bool:
    """Whether rows of the input are some of the last axes of what the reshape makes, at every size."""
    op: Shuffle = workload.op  # type: ignore[assignment]
    out, width, total = dims(workload.outputs[0]), dims(workload.inputs[0])[-1], 1
    order = op.second or tuple(range(len(out)))
    for axis in reversed(range(len(out))):
        position = order.index(axis)
        if total == width or workload.axis_varies(1, position):
            break
        total *= out[position]
    return total == width and not workload.axis_varies(0, -1)


def _axes(permuted: Permuted, merge: bool, in_pitch: int = 0, out_pitch: int = 0, width: int = 0) -> tuple[Axis, ...]:
    shape, varies, order = permuted
    steps = row_major(shape, varies, in_pitch, width)
    sizes, moved = [shape[axis] for axis in order], [varies[axis] for axis in order]
    return axes_of(sizes, moved, [steps[axis] for axis in order], row_major(sizes, moved, out_pitch), merge=merge)


def _joined(before: Permuted, after: Permuted, in_pitch: int) -> tuple[Axis, ...] | None:
    """A transpose, a reshape and a transpose of fixed sizes as one, when the reshape only splits and joins whole axes."""
    shape, _, first = before
    target, _, second = after
    steps = row_major(shape, [False] * len(shape), in_pitch)
    sources = [(shape[axis], steps[axis][0]) for axis in first if shape[axis] != 1]
    merged: list[tuple[int, int]] = []
    for size, step in sources:
        if merged and merged[-1][1] == step * size:
            merged[-1] = (merged[-1][0] * size, step)
        else:
            merged.append((size, step))
    parts: list[list[tuple[int, int]]] = [[] for _ in target]
    left = list(merged)
    for axis in reversed(range(len(target))):
        need = target[axis]
        while need > 1:
            size, step = left.pop()
            if size % need == 0:
                parts[axis].insert(0, (need, step))
                if size > need:
                    left.append((size // need, step * need))
                need = 1
            elif need % size == 0:
                parts[axis].insert(0, (size, step))
                need //= size
            else:
                return None
    flat = [part for axis in second for part in parts[axis]]
    sizes = [size for size, _ in flat]
    fixed = [False] * len(flat)
    in_steps = [(step, step) for _, step in flat]
    return axes_of(sizes, fixed, in_steps, row_major(sizes, fixed), merge=True)


def _buffers(total: int) -> list[tuple[Buffer, Buffer]]:
    """Source and target of each pass."""
    if total == 1:
        return [(Buffer("input"), OUT)]
    return [(Buffer("input"), Buffer("workspace")), (Buffer("workspace"), OUT)]


class CopyShuffle(Tactic):
    """A reshape: no element moves."""

    id = "cuda.shuffle.copy"
    device = "cuda"
    ops = (Shuffle,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if is_reshape(workload):
            return None
        if workload.is_static and all(len(axes) == 1 and axes[0].in_step == 1 for axes in passes(workload)):
            return None
        return Refusal("a transpose moves elements")

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return Plan((Copy(Buffer("input"), OUT, tensor_bytes(workload.outputs[0])),))


class StridedShuffle(Tactic):
    """Any transpose, in vectors when the last axis stays last; the plainest of the family."""

    id = "cuda.shuffle.strided"
    device = "cuda"
    ops = (Shuffle,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refuse_large(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return takes_columns(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        item = workload.inputs[0].dtype.itemsize
        widest = min(widest_vector(axes, item) for axes in passes(workload))
        return [config(v=v, items=items) for v, items in copy_choices(widest, count(workload.inputs[0]), device)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, item = dict(config), workload.inputs[0].dtype.itemsize
        found = passes(workload)
        steps = tuple(
            copy_launch(axes, item, chosen["v"], chosen["items"], device, source=source, target=target)
            for axes, (source, target) in zip(found, _buffers(len(found)), strict=True)
        )
        return Plan(steps, tensor_bytes(workload.inputs[0]) if len(found) > 1 else 0)


class TiledShuffle(Tactic):
    """A transpose that moves the last axis, through shared memory: both sides in neighbouring elements."""

    id = "cuda.shuffle.tiled"
    device = "cuda"
    ops = (Shuffle,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if is_reshape(workload):
            return Refusal("a reshape moves no element")
        found = passes(workload)
        if len(found) > 1:
            return Refusal("the reshape between two transposes needs two passes: see cuda.shuffle.strided")
        if plane_axis(found[0]) is None:
            return Refusal("the last axis stays last: see cuda.shuffle.strided")
        if any(batch > 65535 * 65535 for batch in (prod(axis.size for axis in found[0]),)):
            return Refusal("too many planes for one grid")
        return refuse_large(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return takes_columns(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        axes, item = passes(workload)[0], workload.inputs[0].dtype.itemsize
        read, write = tiled_widths(axes, (max(1, 4 // item),) * 2)
        small = workload.inputs[0].dtype.itemsize <= 2
        shapes = [(64, 8), (32, 8), (64, 16)] if small else [(32, 8), (32, 16), (64, 16)]
        narrow = [(tile, rows, 1, 1) for tile, rows in shapes[:2]]
        wide = [(tile, rows, read, write) for tile, rows in shapes]
        return [config(tile=tile, rows=rows, read=r, write=w) for tile, rows, r, w in dict.fromkeys((*wide, *narrow))]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen = dict(config)
        axes = passes(workload)[0]
        position = plane_axis(axes)
        assert position is not None
        return Plan((tiled_launch(axes, position, workload.inputs[0].dtype.itemsize, chosen, device),))


def tiled_widths(axes: Sequence[Axis], most: tuple[int, int]) -> tuple[int, int]:
    """Elements per read and per write of :func:`tiled_launch`, at most ``most``: what every size and step allows."""
    position = plane_axis(axes)
    assert position is not None
    a, b = axes[position], axes[0]
    ins = [axis.sure[1] for axis in axes if axis is not a]
    outs = [axis.sure[2] for axis in axes if axis is not b]
    return gcd(most[0], a.sure[0], *ins), gcd(most[1], b.sure[0], *outs)


def plane_axis(axes: Sequence[Axis]) -> int | None:
    """Which axis is the input's last one: it has step 1 at every size. None when it is the output's last one, too."""
    for position, axis in enumerate(axes):
        if axis.in_step == 1 and axis.sure[1] == 1 and position > 0:
            # Of two axes with step 1, the inner one has one element (at this size).
            if all(other.in_step != 1 for other in axes[:position]):
                return position
    return None


def tiled_launch(
    axes: Sequence[Axis], position: int, itemsize: int, chosen: Mapping[str, int], device: DeviceSpec, conversion: Conversion | None = None
) -> Launch:
    """The transpose of axes 0 and ``position``; the rest is a batch."""
    tile, rows = chosen["tile"], chosen["rows"]
    b, a = axes[0], axes[position]
    rest = tuple(axis for index, axis in enumerate(axes) if index not in (0, position)) or (Axis(1, 0, 0, (1, 0, 0)),)
    batches = prod(axis.size for axis in rest)
    grid_y = min(batches, 65535)
    moved = {"MOVE_T": raw_type(itemsize)} if conversion is None else conversion.defines
    names = defines(device, RANK=len(rest), TILE=tile, ROWS=rows, READ=chosen["read"], WRITE=chosen["write"], **moved)
    kernel = Kernel("shuffle/tiled.cu", "transpose_tiled", names, PLAIN if conversion is None else conversion.prelude)
    arguments = (Buffer("input"), OUT, Scalar(a.size), Scalar(b.size), Scalar(b.in_step, "i64"), Scalar(a.out_step, "i64"),
                 Scalar(batches, "u32"), axes_argument(rest))  # fmt: skip
    grid = (ceil_div(a.size, tile) * ceil_div(b.size, tile), grid_y, ceil_div(batches, grid_y))
    return launch(kernel, grid, (32, rows), arguments)


TACTICS = (CopyShuffle(), TiledShuffle(), StridedShuffle())
