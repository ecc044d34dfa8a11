"""Axes with steps: what every layer that only moves data comes down to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

from tactics.cuda.simple import OUT, Defines, ceil_div, defines, divider, launch, raw_type
from tactics.tactic import Buffer, DeviceSpec, Kernel, Launch, Scalar, Struct

PLAIN = '#include "vector.cuh"\n'  # the prelude of kernels that move raw elements
ANY = 0  # divisible by everything: the divisor of the number 0


@dataclass(frozen=True)
class Axis:
    """One axis of a copy: ``size`` elements, ``in_step`` and ``out_step`` elements apart.

    ``sure`` holds what surely divides size, in_step and out_step at every inference (0: it is always 0).
    """

    size: int
    in_step: int
    out_step: int
    sure: tuple[int, int, int]


@dataclass(frozen=True)
class Conversion:
    """What becomes of each element that a copy moves (include/convert.cuh): the types on both sides, and the code between them."""

    prelude: str
    source: str
    target: str

    @property
    def defines(self) -> dict[str, object]:
        """The defines that say so."""
        return {"CONVERT": 1, "MOVE_T": self.source, "OUT_T": self.target}


def row_major(sizes: Sequence[int], varies: Sequence[bool], pitch: int = 0, width: int = 0) -> list[tuple[int, int]]:
    """Per axis the step of a tensor, dense or with rows ``pitch`` apart, and what surely divides it. Rows are the last axis, or the last axes that
    make ``width`` elements."""
    steps: list[tuple[int, int]] = []
    step = sure = 1
    width = width or (sizes[-1] if sizes else 0)
    for size, vary in zip(reversed(sizes), reversed(varies), strict=True):
        steps.insert(0, (step, sure))
        step *= size
        sure *= 1 if vary else size
        if pitch and step == width:
            step = sure = pitch
            pitch = 0
    return steps


def axes_of(
    sizes: Sequence[int], varies: Sequence[bool], in_steps: Sequence[tuple[int, int]], out_steps: Sequence[tuple[int, int]], *,
    merge: bool,
) -> tuple[Axis, ...]:  # fmt: skip
    """Axes, innermost first; those that always have one element are left out.

    ``merge``: join neighbours where the steps allow it. Only for workloads whose sizes are all fixed, because the number of axes
    is part of the kernel.
    """
    found: list[Axis] = []
    for size, vary, (in_step, in_sure), (out_step, out_sure) in reversed(list(zip(sizes, varies, in_steps, out_steps, strict=True))):
        if size == 1 and not vary:
            continue
        if found and merge:
            inner = found[-1]
            if in_step == inner.in_step * inner.size and out_step == inner.out_step * inner.size:
                merged = inner.size * size
                found[-1] = Axis(merged, inner.in_step, inner.out_step, (merged, inner.sure[1], inner.sure[2]))
                continue
        found.append(Axis(size, in_step, out_step, (1 if vary else size, in_sure, out_sure)))
    return tuple(found) or (Axis(1, 1, 1, (1, 1, 1)),)


def widest_vector(axes: Sequence[Axis], itemsize: int, *bases: int) -> int:
    """The most elements (of at most 16 bytes) that one access may move: neighbours on both sides, aligned everywhere."""
    inner = axes[0]
    if inner.in_step != 1 or inner.out_step != 1:
        return 1
    others = [sure for axis in axes[1:] for sure in axis.sure[1:]]
    return gcd(max(1, 16 // itemsize), inner.sure[0], *others, *bases)


def vectors(axes: Sequence[Axis], v: int) -> tuple[Axis, ...]:
    """The axes counted in vectors of ``v`` elements."""
    inner = axes[0]
    return (
        Axis(inner.size // v, inner.in_step, inner.out_step, inner.sure) if v > 1 else inner,
        *(Axis(axis.size, axis.in_step // v, axis.out_step // v, axis.sure) for axis in axes[1:]),
    )


def axes_argument(axes: Sequence[Axis]) -> Struct:
    """The C struct ``Axes<RANK>``."""
    fields: list[Buffer | Scalar] = []
    for axis in axes:
        fields += divider(axis.size)
    fields += [Scalar(axis.in_step, "i64") for axis in axes]
    fields += [Scalar(axis.out_step, "i64") for axis in axes]
    return Struct(tuple(fields))


def copy_launch(
    axes: Sequence[Axis], itemsize: int, v: int, items: int, device: DeviceSpec, *,
    source: Buffer | None = None, target: Buffer = OUT, in_base: int = 0, out_base: int = 0, conversion: Conversion | None = None,
) -> Launch:  # fmt: skip
    """The strided copy as one launch; bases in elements. With a ``conversion``, ``itemsize`` does not matter.

    Raises:
        ValueError: a base is not a multiple of the vector, which can only come of a start that varies.
    """
    if in_base % v or out_base % v:
        raise ValueError(f"a copy in vectors of {v} elements cannot start at {in_base} and {out_base}; build for this size")
    counted = vectors(axes, v)
    total = prod(axis.size for axis in counted)
    threads = 256
    moved = {"MOVE_T": raw_type(itemsize * v)} if conversion is None else {**conversion.defines, "VEC": v}
    names: Defines = defines(device, RANK=len(axes), THREADS=threads, ITEMS=items, **moved)
    kernel = Kernel("shuffle/strided.cu", "strided_copy", names, PLAIN if conversion is None else conversion.prelude)
    arguments = (source or Buffer("input"), target, Scalar(total, "u32"), Scalar(in_base // v, "i64"), Scalar(out_base // v, "i64"),
                 axes_argument(counted))  # fmt: skip
    return launch(kernel, ceil_div(total, threads * items), threads, arguments)


def copy_choices(widest: int, total: int, device: DeviceSpec) -> list[tuple[int, int]]:
    """(vector, items) for the strided copy, best first."""
    many = total // widest > device.multiprocessors * 2048
    order = [(widest, 4), (widest, 2), (widest, 1)] if many else [(widest, 1), (widest, 2), (max(1, widest // 2), 1)]
    return list(dict.fromkeys([*order, (1, 1)]))
