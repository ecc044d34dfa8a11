"""Reductions: along neighbouring elements, across rows, or over any axes; in two stages where few outputs reduce many."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Expression, compute_type, type_of
from fusion.ops import Reduce
from tactics.cuda.codegen import literal, storage_type
from tactics.cuda.epilogue import epilogue_argument
from tactics.cuda.simple import (
    OUT,
    block_of,
    ceil_div,
    defines,
    dims,
    divider,
    launch,
    out_pitch,
    refuse_large,
    vector_width,
    wrap_code,
    x_pitch,
)
from tactics.tactic import (
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

FILE = "reduce/reduce.cu"
KINDS = {"sum": 0, "mean": 1, "prod": 2, "max": 3, "min": 4, "logsumexp": 5}


@dataclass(frozen=True)
class Reduction:
    """A reduction of the input viewed as ``shape`` over ``axes``; neighbouring axes of one kind are merged.

    Attributes:
        shape: merged sizes, outermost first.
        reduced: per merged axis, whether it is reduced; they alternate.
        divisors: what surely divides each size.
        kind, prologue: as in :class:`fusion.ops.Reduce`.
        last: the size of the output's last axis, and ``last_divisor`` what surely divides it.
    """

    shape: tuple[int, ...]
    reduced: tuple[bool, ...]
    divisors: tuple[int, ...]
    kind: str
    prologue: Expression
    last: int
    last_divisor: int

    @property
    def n(self) -> int:
        """Elements reduced into each output."""
        return prod(size for size, reduced in zip(self.shape, self.reduced, strict=True) if reduced)

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return prod(size for size, reduced in zip(self.shape, self.reduced, strict=True) if not reduced)


def reduction(workload: Workload, axes: Sequence[int], kind: str, prologue: Expression) -> Reduction:
    """The merged view of input 0 reduced over ``axes`` (axes that always have one element are dropped)."""
    shape: list[int] = []
    reduced: list[bool] = []
    divisors: list[int] = []
    for axis, size in enumerate(dims(workload.inputs[0])):
        varies = workload.axis_varies(0, axis)
        if size == 1 and not varies:
            continue
        kept, sure = axis not in axes, 1 if varies else size
        if reduced and reduced[-1] != kept:
            shape[-1] *= size
            divisors[-1] *= sure
        else:
            shape.append(size)
            reduced.append(not kept)
            divisors.append(sure)
    if not any(reduced):
        shape, reduced, divisors = [*shape, 1], [*reduced, True], [*divisors, 1]
    out = dims(workload.outputs[0])
    last = out[-1] if out else 1
    sure_last = 1 if out and workload.axis_varies(len(workload.inputs), -1) else last
    return Reduction(tuple(shape), tuple(reduced), tuple(divisors), kind, prologue, last, sure_last)


def of(workload: Workload) -> Reduction:
    """The reduction that a Reduce layer is."""
    op: Reduce = workload.op  # type: ignore[assignment]
    return reduction(workload, op.axes, op.kind, op.prologue)


def refusal_of(workload: Workload, found: Reduction) -> Refusal | None:
    """Why no kernel here can serve it."""
    work = compute_type(type_of(found.prologue, [workload.inputs[0].dtype]))
    if found.kind == "logsumexp" and not work.is_float:
        return Refusal(f"logsumexp of {work.value}; it needs a floating-point type")
    code = wrap_code(workload, found.prologue)
    return code if isinstance(code, Refusal) else refuse_large(workload)


def _neutral(kind: str, work: DataType) -> str:
    if kind in ("sum", "mean"):
        return literal(0, work)
    if kind == "prod":
        return literal(1, work)
    if work is DataType.BOOL:
        return "false" if kind == "max" else "true"
    if work.is_float:
        return literal(float("inf") if kind == "min" else float("-inf"), work)
    limits = np.iinfo(work.numpy)
    return literal(int(limits.max if kind == "min" else limits.min), work)


def _kernel(workload: Workload, found: Reduction, device: DeviceSpec, entry: str, **values: int) -> tuple[Kernel, Struct]:
    code = wrap_code(workload, found.prologue)
    assert not isinstance(code, Refusal)
    prelude, epilogue = code
    work = compute_type(type_of(found.prologue, [workload.inputs[0].dtype]))
    accumulated = DataType.INT64 if found.kind == "mean" and not work.is_float else work
    prelude += f"using ACC = {storage_type(accumulated)};\n#define LOWEST ({_neutral(found.kind, accumulated)})\n"
    names = defines(device, IN_T=storage_type(workload.inputs[0].dtype), OUT_T=storage_type(workload.outputs[0].dtype),
                    KIND=KINDS[found.kind], **{"SPLIT": 0, **values}, **x_pitch(workload), **out_pitch(workload))  # fmt: skip
    return Kernel(FILE, entry, (*names, *epilogue.defines), prelude), epilogue_argument(epilogue)


def _acc_bytes(workload: Workload, found: Reduction) -> int:
    work = compute_type(type_of(found.prologue, [workload.inputs[0].dtype]))
    return 8 if found.kind == "mean" and not work.is_float else work.itemsize * (2 if found.kind == "logsumexp" else 1)


def _final(workload: Workload, found: Reduction, device: DeviceSpec, splits: int) -> Kernel | object:
    kernel, args = _kernel(workload, found, device, "reduce_final", STAGE=3, THREADS=128)
    arguments = (Buffer("workspace"), OUT, Scalar(found.outputs, "u32"), Scalar(splits, "u32"), Scalar(found.n, "u32"),
                 Scalar(found.last), args)  # fmt: skip
    return launch(kernel, ceil_div(found.outputs, 4), 128, arguments)


def _plan(workload: Workload, found: Reduction, device: DeviceSpec, first: object, two_stages: bool, splits: int) -> Plan:
    if not two_stages:
        return Plan((first,))  # type: ignore[arg-type]
    last = _final(workload, found, device, splits)
    return Plan((first, last), splits * found.outputs * _acc_bytes(workload, found))  # type: ignore[arg-type]


def rows_configs(workload: Workload, found: Reduction, device: DeviceSpec) -> list[Config]:
    """Configurations of the row kernel: threads per row, and splits of a row between blocks."""
    v = vector_width(workload.inputs[0].dtype.itemsize, found.divisors[-1])
    rows, n = found.outputs, found.n
    per_thread = [group for group in (1, 4, 8, 16, 32, 64, 128, 256, 512) if group * v <= max(n, v)]
    fitting = [group for group in per_thread if n >= group * v * 2] or per_thread[:1]
    room = device.multiprocessors * 2048
    best = max((group for group in fitting if rows * group <= room), default=fitting[0])
    groups = [best, *(group for group in (best * 2, best // 2, best * 4, best // 4) if group in per_thread)]
    found_configs = [config(v=v, group=group, splits=1) for group in groups]
    if rows < device.multiprocessors and n >= 256 * v * 16:
        wanted = (ceil_div(device.multiprocessors * waves, rows) for waves in (2, 4, 1))
        splits = [config(v=v, group=256, splits=min(one, 512, n // (256 * v * 4))) for one in wanted]
        found_configs = [one for one in splits if dict(one)["splits"] > 1] + found_configs[:2]
    return list(dict.fromkeys(found_configs))[:5]


def rows_plan(workload: Workload, found: Reduction, config: Config, device: DeviceSpec) -> Plan:
    """The row kernel, and a second stage when it is split."""
    chosen = dict(config)
    v, group, splits = chosen["v"], chosen["group"], chosen["splits"]
    threads = block_of(group)
    kernel, args = _kernel(workload, found, device, "reduce_rows", STAGE=0, VEC=v, GROUP=group, THREADS=threads,
                           UNROLL=max(1, min(4, 16 // v)), SPLIT=splits > 1)  # fmt: skip
    share = max(v, ceil_div(ceil_div(found.n, splits), v) * v)
    parts = max(1, ceil_div(found.n, share))
    arguments = (Buffer("input"), OUT, Buffer("workspace"), Scalar(found.outputs, "u32"), Scalar(found.n, "u32"),
                 Scalar(share, "u32"), Scalar(found.last), args)  # fmt: skip
    first = launch(kernel, (ceil_div(found.outputs, threads // group), parts), threads, arguments)
    return _plan(workload, found, device, first, splits > 1, parts)


def columns_configs(workload: Workload, found: Reduction, device: DeviceSpec) -> list[Config]:
    """Configurations of the column kernel: its block's shape, and splits of n between blocks."""
    item = workload.inputs[0].dtype.itemsize
    widest = vector_width(item, found.divisors[-1])
    inner, n = max(1, found.shape[-1]), found.n  # a tensor may be empty: then nothing is launched
    outer = max(1, found.outputs // inner)
    choices = []
    for v in dict.fromkeys((widest, max(1, widest // 2), max(1, widest // 4))):
        for tx, ty in ((32, 8), (16, 16), (8, 32), (32, 16)):
            blocks = outer * ceil_div(inner, tx * v)
            waste = ceil_div(inner, tx * v) * tx * v / inner
            splits = 1
            if blocks < device.multiprocessors and n >= ty * 32:
                splits = min(ceil_div(device.multiprocessors * 2, blocks), n // (ty * 8), 256)
            busy = min(1.0, blocks * splits / device.multiprocessors)
            choices.append((waste / busy * (1.1 if splits > 1 else 1.0) * (1 + 0.1 * (v < widest)), v, tx, ty, splits))
    best = sorted(choices, key=lambda one: one[0])[:5]
    return [config(v=v, tx=tx, ty=ty, splits=splits) for _, v, tx, ty, splits in best]


def columns_plan(workload: Workload, found: Reduction, config: Config, device: DeviceSpec) -> Plan:
    """The column kernel, and a second stage when it is split."""
    chosen = dict(config)
    v, tx, ty, splits = chosen["v"], chosen["tx"], chosen["ty"], chosen["splits"]
    inner = max(1, found.shape[-1])
    outer = found.outputs // inner
    kernel, args = _kernel(workload, found, device, "reduce_columns", STAGE=1, VEC=v, TX=tx, TY=ty,
                           UNROLL=max(1, min(4, 16 // v)), SPLIT=splits > 1)  # fmt: skip
    share = max(1, ceil_div(found.n, splits))
    parts = max(1, ceil_div(found.n, share))
    arguments = (Buffer("input"), OUT, Buffer("workspace"), Scalar(outer, "u32"), Scalar(found.n, "u32"), Scalar(inner, "u32"),
                 Scalar(share, "u32"), Scalar(found.last), args)  # fmt: skip
    first = launch(kernel, (outer * ceil_div(inner, tx * v), parts), (tx, ty), arguments)
    return _plan(workload, found, device, first, splits > 1, parts)


def is_rows(found: Reduction) -> bool:
    """Whether exactly the innermost elements are reduced."""
    return found.reduced in ((True,), (False, True))


def is_columns(found: Reduction) -> bool:
    """Whether one run of axes is reduced and the innermost is kept."""
    return found.reduced in ((True, False), (False, True, False))


def columns_pitched(workload: Workload, found: Reduction) -> Collection[int]:
    """The tensors that may be columns of wider ones: all but the input, and the input where its rows are those that the column kernel adds."""
    rows = is_columns(found) and found.shape[-1] == dims(workload.inputs[0])[-1]
    return [number for number in every_tensor(workload) if number or rows]


class RowReduce(Tactic):
    """Over trailing axes: neighbouring elements into one; long rows also by several blocks and a second stage."""

    id = "cuda.reduce.rows"
    device = "cuda"
    ops = (Reduce,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        found = of(workload)
        if not is_rows(found):
            return Refusal(f"axes {workload.op.axes} of {dims(workload.inputs[0])} are not the last ones")  # type: ignore[attr-defined]
        return refusal_of(workload, found)

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload)[1:]

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return rows_configs(workload, of(workload), device)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return rows_plan(workload, of(workload), config, device)


class ColumnReduce(Tactic):
    """Over leading or middle axes: rows into one row, coalesced along the innermost axis."""

    id = "cuda.reduce.columns"
    device = "cuda"
    ops = (Reduce,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        found = of(workload)
        if not is_columns(found):
            return Refusal(f"axes {workload.op.axes} of {dims(workload.inputs[0])} are not one run before the last axis")  # type: ignore[attr-defined]
        return refusal_of(workload, found)

    def pitched(self, workload: Workload) -> Collection[int]:
        return columns_pitched(workload, of(workload))

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return columns_configs(workload, of(workload), device)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return columns_plan(workload, of(workload), config, device)


class StridedReduce(Tactic):
    """Any axes; the plainest of the family."""

    id = "cuda.reduce.strided"
    device = "cuda"
    ops = (Reduce,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refusal_of(workload, of(workload))

    def pitched(self, workload: Workload) -> Collection[int]:
        return every_tensor(workload)[1:]

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [config(group=group) for group in ((32, 256, 1) if of(workload).n >= 32 else (1, 32))]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return strided_plan(workload, of(workload), dict(config)["group"], device)


def strided_plan(workload: Workload, found: Reduction, group: int, device: DeviceSpec) -> Plan:
    """The kernel for any axes."""
    kept: list[tuple[int, int]] = []
    reduced: list[tuple[int, int]] = []
    stride = 1
    for size, is_reduced in zip(reversed(found.shape), reversed(found.reduced), strict=True):
        (reduced if is_reduced else kept).append((size, stride))
        stride *= size
    fields: list[Buffer | Scalar] = []
    for runs in (kept or [(1, 0)], reduced):
        for size, _ in runs:
            fields += divider(size)
        fields += [Scalar(step, "u32") for _, step in runs]
    threads = block_of(group)
    kernel, args = _kernel(workload, found, device, "reduce_strided", STAGE=2, GROUP=group, THREADS=threads,
                           KEPT=max(1, len(kept)), REDUCED=len(reduced))  # fmt: skip
    arguments = (Buffer("input"), OUT, Scalar(found.outputs, "u32"), Scalar(found.n, "u32"), Scalar(found.last),
                 Struct(tuple(fields)), args)  # fmt: skip
    return Plan((launch(kernel, ceil_div(found.outputs, threads // group), threads, arguments),))


TACTICS = (RowReduce(), ColumnReduce(), StridedReduce())
