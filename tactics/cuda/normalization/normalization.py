"""Layer, RMS, instance and group normalisation: one scheme, statistics over some axes of a view of the input.

A group normalisation is a normalisation of the input viewed with its channels split in two axes; the rest is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from fusion.dtypes import DataType
from fusion.expression import compute_type
from fusion.ops import GroupNormalization, Normalization
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.codegen import storage_type
from tactics.cuda.epilogue import epilogue_argument, overwritable
from tactics.cuda.simple import (
    OUT,
    block_of,
    ceil_div,
    contiguous,
    defines,
    dims,
    divider,
    launch,
    refuse_large,
    vector_width,
    wrap_code,
)  # fmt: skip
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Struct, Tactic, Workload, config

REGISTER_ELEMENTS = 64


@dataclass(frozen=True)
class View:
    """The input as ``shape``, normalised over ``axes``; ``varies`` per axis of the view."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    varies: tuple[bool, ...]

    @property
    def rows(self) -> int:
        """How many sets of statistics there are."""
        return prod(size for axis, size in enumerate(self.shape) if axis not in self.axes)

    @property
    def n(self) -> int:
        """Elements that share statistics."""
        return prod(self.shape[axis] for axis in self.axes)


def view_of(workload: Workload) -> View:
    """The view that the operation normalises."""
    op, shape = workload.op, dims(workload.inputs[0])
    varies = tuple(workload.axis_varies(0, axis) for axis in range(len(shape)))
    if isinstance(op, Normalization):
        return View(shape, op.axes, varies)
    assert isinstance(op, GroupNormalization)
    channel = len(shape) - 1 if op.channels_last else 1
    split = (op.groups, shape[channel] // op.groups)
    view = (*shape[:channel], *split, *shape[channel + 1 :])
    return View(view, tuple(axis for axis in range(1, len(view)) if axis != channel),
                (*varies[:channel], False, False, *varies[channel + 1 :]))  # fmt: skip


def _refusal(workload: Workload) -> Refusal | None:
    dtype = workload.inputs[0].dtype
    if compute_type(dtype) not in (DataType.FLOAT, DataType.DOUBLE):
        return Refusal(f"normalisation of {dtype.value}; it needs a floating-point type")
    code = wrap_code(workload)
    if isinstance(code, Refusal):
        return code
    return refuse_large(workload)


def _trailing(view: View) -> bool:
    return contiguous(view.axes) and view.axes[-1] == len(view.shape) - 1


def _vectors(workload: Workload, view: View) -> int:
    """The widest vectors along the view's last axis (or run of trailing axes) that also stay in the output's last axis."""
    item = min(workload.inputs[0].dtype.itemsize, workload.outputs[0].dtype.itemsize)
    run = prod(view.shape[axis] for axis in view.axes if not view.varies[axis]) if _trailing(view) else 0
    lengths = [] if not run else [run]
    if not run and not view.varies[-1]:
        lengths = [view.shape[-1]]
    rank = len(workload.inputs[0].shape)
    if getattr(workload.op, "epilogue", IDENTITY) != IDENTITY:
        lengths.append(1 if workload.axis_varies(0, rank - 1) else dims(workload.inputs[0])[-1])
    return vector_width(item, *(lengths or [1]))


def _kernel(workload: Workload, device: DeviceSpec, file: str, entry: str, **values: int) -> tuple[Kernel, Struct]:
    code = wrap_code(workload)
    assert not isinstance(code, Refusal)
    prelude, epilogue = code
    center = getattr(workload.op, "center", True)
    names = defines(device, IN_T=storage_type(workload.inputs[0].dtype), OUT_T=storage_type(workload.outputs[0].dtype),
                    CENTER=center, **values)  # fmt: skip
    return Kernel(f"normalization/{file}", entry, (*names, *epilogue.defines), prelude), epilogue_argument(epilogue)


def _epsilon(workload: Workload) -> Scalar:
    return Scalar(workload.op.epsilon, "f32")  # type: ignore[attr-defined]


class RowNormalization(Tactic):
    """Trailing axes of a fixed size, in registers: one read, one write."""

    id = "cuda.normalization.row"
    device = "cuda"
    ops = (Normalization, GroupNormalization)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := _refusal(workload):
            return refusal
        view = view_of(workload)
        if not _trailing(view) or any(view.varies[axis] for axis in view.axes):
            return Refusal(f"axes {view.axes} of {view.shape} are not the last ones or vary: see cuda.normalization.long")
        if view.n > 1024 * 16:
            return Refusal(f"rows of {view.n} elements do not fit the registers of a block: see cuda.normalization.long")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        view = view_of(workload)
        widest = _vectors(workload, view)
        found = []
        for v in dict.fromkeys((widest, max(1, widest // 2))):
            for group in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
                vectors = ceil_div(view.n, group * v)
                if vectors * v > (REGISTER_ELEMENTS if group < 1024 else 16):
                    continue
                if vectors == 1 and group > 4 and ceil_div(view.n, group // 2 * v) == 1:
                    continue
                found.append((abs(vectors * v - (8 if v < 8 else 16)), -v, group, vectors))
        return [config(v=-v, group=group, vectors=vectors) for _, v, group, vectors in sorted(found)][:5]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, view = dict(config), view_of(workload)
        last = dims(workload.outputs[0])[-1]
        threads = block_of(chosen["group"])
        kernel, args = _kernel(workload, device, "rows.cu", "normalize_row", KIND=0, VEC=chosen["v"], GROUP=chosen["group"],
                               VECTORS=chosen["vectors"], THREADS=threads, ONE_ROW=last == view.n)  # fmt: skip
        arguments = (Buffer("input"), OUT, Scalar(view.rows), Scalar(view.n), Scalar(last), _epsilon(workload), args)
        return Plan((launch(kernel, ceil_div(view.rows, threads // chosen["group"]), threads, arguments),), in_place=overwritable(workload, 0))


class LongNormalization(Tactic):
    """Trailing axes of any size, one block per row: three reads, two of them mostly from L2."""

    id = "cuda.normalization.long"
    device = "cuda"
    ops = (Normalization, GroupNormalization)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := _refusal(workload):
            return refusal
        view = view_of(workload)
        return None if _trailing(view) else Refusal(f"axes {view.axes} of {view.shape} are not the last ones")

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        view = view_of(workload)
        v = _vectors(workload, view)
        return [config(v=v, threads=threads) for threads in (256, 512, 1024, 128) if threads * v <= max(view.n, 128 * v)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, view = dict(config), view_of(workload)
        kernel, args = _kernel(workload, device, "rows.cu", "normalize_long", KIND=1, VEC=chosen["v"], THREADS=chosen["threads"])
        last = dims(workload.outputs[0])[-1]
        arguments = (Buffer("input"), OUT, Scalar(view.rows), Scalar(view.n), Scalar(last), _epsilon(workload), args)
        return Plan((launch(kernel, view.rows, chosen["threads"], arguments),), in_place=overwritable(workload, 0))


def _runs(view: View, v: int) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """(kept, reduced) runs of axes, innermost first, as (size, stride in elements); neighbours of one kind are merged."""
    kept: list[tuple[int, int]] = []
    reduced: list[tuple[int, int]] = []
    stride, previous = 1, None
    for axis in reversed(range(len(view.shape))):
        target = reduced if axis in view.axes else kept
        if previous is target:
            target[-1] = (target[-1][0] * view.shape[axis], target[-1][1])
        else:
            target.append((view.shape[axis], stride))
        previous = target
        stride *= view.shape[axis]
    return tuple(kept) or ((1, 0),), tuple(reduced)


def _runs_argument(view: View, v: int) -> tuple[Struct, int, int]:
    kept, reduced = _runs(view, v)
    fields: list[Buffer | Scalar] = []
    for runs in (kept, reduced):
        for size, _ in runs:
            fields += divider(size)
        fields += [Scalar(stride, "u32") for _, stride in runs]
    return Struct(tuple(fields)), len(kept), len(reduced)


class StridedNormalization(Tactic):
    """Any axes, one block per set of statistics; the plainest of the family."""

    id = "cuda.normalization.strided"
    device = "cuda"
    ops = (Normalization, GroupNormalization)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return _refusal(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        view = view_of(workload)
        v = _vectors(workload, view) if view.axes[-1] == len(view.shape) - 1 else 1
        return [config(v=one, threads=threads) for one, threads in dict.fromkeys(((v, 256), (v, 1024), (1, 256)))]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, view = dict(config), view_of(workload)
        runs, kept, reduced = _runs_argument(view, chosen["v"])
        kernel, args = _kernel(workload, device, "strided.cu", "normalize_strided", KIND=0, VEC=chosen["v"],
                               THREADS=chosen["threads"], KEPT=kept, REDUCED=reduced)  # fmt: skip
        last = dims(workload.outputs[0])[-1]
        arguments = (Buffer("input"), OUT, Scalar(view.n, "u32"), Scalar(last), _epsilon(workload), runs, args)
        return Plan((launch(kernel, view.rows, chosen["threads"], arguments),), in_place=overwritable(workload, 0))


class SplitNormalization(Tactic):
    """Any axes, several blocks per set of statistics: partial sums, then the result. For few, large groups."""

    id = "cuda.normalization.split"
    device = "cuda"
    ops = (Normalization, GroupNormalization)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := _refusal(workload):
            return refusal
        view = view_of(workload)
        if view.n < 4096:
            return Refusal(f"{view.n} elements share their statistics: too few to split between blocks")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        view = view_of(workload)
        v = _vectors(workload, view) if view.axes[-1] == len(view.shape) - 1 else 1
        most = max(1, view.n // (256 * v * 2))
        wanted = (ceil_div(waves * device.multiprocessors * 4, view.rows) for waves in (1, 2, 4))
        return [config(v=v, threads=256, splits=splits) for splits in dict.fromkeys(max(1, min(most, 1024, one)) for one in wanted)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, view = dict(config), view_of(workload)
        v, splits, threads = chosen["v"], chosen["splits"], chosen["threads"]
        runs, kept, reduced = _runs_argument(view, v)
        share = ceil_div(ceil_div(view.n, splits), v) * v
        splits = ceil_div(view.n, share)
        same = {"VEC": v, "THREADS": threads, "KEPT": kept, "REDUCED": reduced}
        first, _ = _kernel(workload, device, "strided.cu", "normalize_partial", KIND=1, **same)
        second, args = _kernel(workload, device, "strided.cu", "normalize_apply", KIND=2, **same)
        n, part, partial = Scalar(view.n, "u32"), Scalar(share, "u32"), Buffer("workspace")
        last = dims(workload.outputs[0])[-1]
        size = compute_type(workload.inputs[0].dtype).itemsize
        # Never over x: every block of a position reads the position's first element.
        return Plan((
            launch(first, (view.rows, splits), threads, (Buffer("input"), partial, n, part, runs)),
            launch(second, (view.rows, splits), threads,
                   (Buffer("input"), partial, OUT, n, part, Scalar(last), _epsilon(workload), runs, args)),
        ), 2 * size * view.rows * splits, overwritable(workload))  # fmt: skip


TACTICS = (RowNormalization(), LongNormalization(), SplitNormalization(), StridedNormalization())
