"""Layer, RMS, instance and group normalisation: one scheme, statistics over some axes of a view of the input.

A group normalisation is a normalisation of the input viewed with its channels split in two axes; the rest is shared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import lcm, prod

from fusion.dtypes import DataType
from fusion.expression import compute_type
from fusion.ops import GroupNormalization, Normalization
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.codegen import storage_type
from tactics.cuda.epilogue import epilogue_argument, overwritable
from tactics.cuda.simple import (
    LONGEST_ROW,
    OUT,
    block_of,
    ceil_div,
    contiguous,
    defines,
    dims,
    divider,
    launch,
    out_pitch,
    refuse_large,
    row_configs,
    vector_width,
    wrap_code,
    x_pitch,
)  # fmt: skip
from tactics.tactic import (
    Argument,
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Plan,
    Refusal,
    Scalar,
    Struct,
    Tactic,
    Workload,
    config,
    every_tensor,
)


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
        return View(shape if op.heads is None else (*shape[:-2], op.heads[1], shape[-1]), op.axes, varies)
    assert isinstance(op, GroupNormalization)
    channel = len(shape) - 1 if op.channels_last else 1
    split = (op.groups, shape[channel] // op.groups)
    view = (*shape[:channel], *split, *shape[channel + 1 :])
    return View(view, tuple(axis for axis in range(1, len(view)) if axis != channel),
                (*varies[:channel], False, False, *varies[channel + 1 :]))  # fmt: skip


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
    if workload.inputs[0].pitch or workload.outputs[0].pitch:
        lengths.append(dims(workload.inputs[0])[-1])
    return vector_width(item, *(lengths or [1]))


def _kernel(workload: Workload, device: DeviceSpec, file: str, entry: str, **values: int) -> tuple[Kernel, Struct]:
    code = wrap_code(workload)
    assert not isinstance(code, Refusal)
    prelude, epilogue = code
    center = getattr(workload.op, "center", True)
    names = defines(device, IN_T=storage_type(workload.inputs[0].dtype), OUT_T=storage_type(workload.outputs[0].dtype),
                    CENTER=center, **values, **_most(workload), **_x_places(workload), **out_pitch(workload))  # fmt: skip
    return Kernel(f"normalization/{file}", entry, (*names, *epilogue.defines), prelude), epilogue_argument(epilogue)


def _heads(workload: Workload) -> tuple[int, int] | None:
    return workload.op.heads if isinstance(workload.op, Normalization) else None


def _x_places(workload: Workload) -> dict[str, int]:
    """The defines of ``include/pitch.cuh`` for x: some of its heads are columns of a wider tensor, too."""
    heads = _heads(workload)
    if heads is None:
        return x_pitch(workload)
    *_, every, size = dims(workload.inputs[0])
    return {"X_PITCH": every * size, "X_WIDTH": heads[1] * size, "HEADS": 1}


def _x(workload: Workload) -> Buffer:
    heads, x = _heads(workload), workload.inputs[0]
    return Buffer("input", 0, heads[0] * dims(x)[-1] * x.dtype.itemsize if heads is not None else 0)


def _most(workload: Workload) -> dict[str, float]:
    """The define of ``include/root.cuh``; finite, for it is multiplied by zeros."""
    floor = getattr(workload.op, "floor", 0.0)
    return {"MOST": min(1 / floor, 3e38)} if floor else {}


def _epsilon(workload: Workload) -> Scalar:
    return Scalar(workload.op.epsilon, "f32")  # type: ignore[attr-defined]


class _NormalizationTactic(Tactic):
    """What all of them ask of a workload."""

    device = "cuda"
    ops = (Normalization, GroupNormalization)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype = workload.inputs[0].dtype
        if compute_type(dtype) not in (DataType.FLOAT, DataType.DOUBLE):
            return Refusal(f"normalisation of {dtype.value}; it needs a floating-point type")
        code = wrap_code(workload)
        return code if isinstance(code, Refusal) else refuse_large(workload) or self.refuses(workload, view_of(workload), device)

    def refuses(self, workload: Workload, view: View, device: DeviceSpec) -> Refusal | None:
        """Why this kernel in particular does not serve the workload."""
        return None


class RowNormalization(_NormalizationTactic):
    """Trailing axes of a fixed size, in registers: one read, one write."""

    id = "cuda.normalization.row"

    def refuses(self, workload: Workload, view: View, device: DeviceSpec) -> Refusal | None:
        if not _trailing(view) or any(view.varies[axis] for axis in view.axes):
            return Refusal(f"axes {view.axes} of {view.shape} are not the last ones or vary: see cuda.normalization.long")
        if view.n > LONGEST_ROW:
            return Refusal(f"rows of {view.n} elements do not fit the registers of a block: see cuda.normalization.long")
        return None

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload) if _heads(workload) is None and dims(workload.outputs[0])[-1] == view_of(workload).n else ()

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        view = view_of(workload)
        return row_configs(view.n, _vectors(workload, view))

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, view = dict(config), view_of(workload)
        last = dims(workload.outputs[0])[-1]
        threads = block_of(chosen["group"])
        kernel, args = _kernel(workload, device, "rows.cu", "normalize_row", KIND=0, VEC=chosen["v"], GROUP=chosen["group"],
                               VECTORS=chosen["vectors"], THREADS=threads, ONE_ROW=last == view.n)  # fmt: skip
        arguments = (_x(workload), OUT, Scalar(view.rows), Scalar(view.n), Scalar(last), _epsilon(workload), args)
        return Plan((launch(kernel, ceil_div(view.rows, threads // chosen["group"]), threads, arguments),), in_place=overwritable(workload, 0))


@dataclass(frozen=True)
class Shares:
    """How blocks of a cluster share sets of statistics: see normalization/cluster.cu, whose names these are."""

    whole: bool  # a set is n neighbouring elements; otherwise ``segments`` runs of ``width``
    outer: int
    groups: int  # sets beside each other
    width: int
    segments: int  # of a set that is not whole
    n: int


def shares_of(view: View) -> Shares | None:
    """The view as ``ClusterNormalization`` takes it; None: it does not."""
    if any(view.varies[axis] for axis in range(1, len(view.shape))) or (view.varies[0] and 0 in view.axes):
        return None
    if _trailing(view):
        return Shares(True, view.rows, 1, 1, 1, view.n)
    *middle, last = view.axes
    group = last - 1
    if last != len(view.shape) - 1 or not middle or not contiguous(middle) or middle[-1] != group - 1:
        return None
    segments = prod(view.shape[axis] for axis in middle)
    return Shares(False, prod(view.shape[: middle[0]]), view.shape[group], view.shape[last], segments, view.n)


class ClusterNormalization(_NormalizationTactic):
    """Sets that a block, or the blocks of a cluster together, keep in registers: one read, one write."""

    id = "cuda.normalization.cluster"

    def refuses(self, workload: Workload, view: View, device: DeviceSpec) -> Refusal | None:
        if compute_type(workload.inputs[0].dtype) is not DataType.FLOAT:
            return Refusal(f"normalisation of {workload.inputs[0].dtype.value}; this kernel computes in float32")
        if _heads(workload) is not None:
            return Refusal("some heads of a projection")
        if shares_of(view) is None:
            return Refusal(f"axes {view.axes} of {view.shape} are not the last ones, nor a group of channels that come last, or vary")
        if view.n < 2048:
            return Refusal(f"{view.n} elements share their statistics: too few for a block")
        if not self.configs(workload, device):
            return Refusal(f"sets of {view.n} elements do not fit the registers of {_most_blocks(device)} block(s)")
        return None

    def pitched(self, workload: Workload) -> Collection[int]:
        shares = shares_of(view_of(workload))
        return every_tensor(workload) if shares is not None and not shares.whole else ()

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        shares, view = shares_of(view_of(workload)), view_of(workload)
        assert shares is not None
        item, v = workload.inputs[0].dtype.itemsize, _vectors(workload, view)
        found = []
        for target in (256, 512, 128):
            for cluster in (1, 2, 4, 8, 16):
                for bands in (1, 2, 4, 8, 16, 32):
                    if cluster > _most_blocks(device) or shares.groups % bands or shares.width % v and not shares.whole:
                        continue
                    tx = target if shares.whole else bands * shares.width // v
                    ty = target // lcm(tx, 32) * lcm(tx, 32) // tx
                    segments = ceil_div(shares.n, tx * v) if shares.whole else shares.segments
                    if not ty or cluster > segments:
                        continue
                    items = ceil_div(ceil_div(segments, cluster), ty)
                    registers = items * v * item // 4
                    if items > 32 or registers > 64 or (cluster > 1 and items < 2):
                        continue
                    blocks = shares.outer * shares.groups // bands * cluster
                    resident = max(1, min(2048 // (tx * ty), 65536 // (tx * ty * (registers + 40))))
                    # Runs under 64 bytes waste transfers; few bytes under way, few blocks, and large clusters wait.
                    run = 128 if shares.whole else bands * shares.width * item
                    cost = (max(1.0, 64 / run) * max(1.0, 48e3 / (resident * tx * ty * items * v * item)) * max(1.0, device.multiprocessors / blocks)
                            * (1 + cluster / 64) * (1 + 0.1 / resident))  # fmt: skip
                    found.append((cost, config(v=v, tx=tx, ty=ty, items=items, bands=bands, cluster=cluster)))
        return [one for _, one in sorted(found, key=lambda pair: pair[0])][:8]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        chosen, shares = dict(config), shares_of(view_of(workload))
        assert shares is not None
        v, tx, ty, bands, cluster = (chosen[name] for name in ("v", "tx", "ty", "bands", "cluster"))
        stride = tx * v if shares.whole else shares.groups * shares.width
        segments = ceil_div(shares.n, stride) if shares.whole else shares.segments
        share, chunks = ceil_div(segments, cluster), shares.groups // bands
        kernel, args = _kernel(workload, device, "cluster.cu", "normalize_cluster", VEC=v, TX=tx, TY=ty, ITEMS=chosen["items"], BANDS=bands,
                               CLUSTER=cluster, WHOLE=shares.whole, WIDTH=shares.width)  # fmt: skip
        numbers = [Scalar(number) for number in (shares.n, segments, stride, share, chunks, dims(workload.outputs[0])[-1])]
        arguments: tuple[Argument, ...] = (Buffer("input"), OUT, *numbers, _epsilon(workload), args)
        one = launch(kernel, shares.outer * chunks * cluster, tx * ty, arguments, 4 * (tx * ty + bands + 2 * cluster * bands))
        return Plan((replace(one, cluster=(cluster, 1, 1)),))


def _most_blocks(device: DeviceSpec) -> int:
    """Blocks of a cluster."""
    return 16 if device.capability in (90, 100) else 8 if device.capability > 90 else 1


class LongNormalization(_NormalizationTactic):
    """Trailing axes of any size, one block per row: three reads, two of them mostly from L2."""

    id = "cuda.normalization.long"

    def refuses(self, workload: Workload, view: View, device: DeviceSpec) -> Refusal | None:
        if _heads(workload) is not None:
            return Refusal("some heads of a projection")
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


class StridedNormalization(_NormalizationTactic):
    """Any axes, one block per set of statistics; the plainest of the family."""

    id = "cuda.normalization.strided"
    reference = True

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload) if _heads(workload) is None else ()

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
        arguments = (_x(workload), OUT, Scalar(view.n, "u32"), Scalar(last), _epsilon(workload), runs, args)
        return Plan((launch(kernel, view.rows, chosen["threads"], arguments),), in_place=overwritable(workload, 0))


class SplitNormalization(_NormalizationTactic):
    """Any axes, several blocks per set of statistics: partial sums, then the result. For few, large groups."""

    id = "cuda.normalization.split"

    def refuses(self, workload: Workload, view: View, device: DeviceSpec) -> Refusal | None:
        if view.n < 4096:
            return Refusal(f"{view.n} elements share their statistics: too few to split between blocks")
        return None

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload) if _heads(workload) is None else ()

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
            launch(first, (view.rows, splits), threads, (_x(workload), partial, n, part, runs)),
            launch(second, (view.rows, splits), threads,
                   (_x(workload), partial, OUT, n, part, Scalar(last), _epsilon(workload), runs, args)),
        ), 2 * size * view.rows * splits, overwritable(workload))  # fmt: skip


TACTICS = (RowNormalization(), ClusterNormalization(), LongNormalization(), SplitNormalization(), StridedNormalization())
