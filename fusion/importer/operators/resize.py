"""Resize and Upsample, from sizes, scales and regions that follow from shapes or are computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion.dims import Dim, Shape, Sym
from fusion.dtypes import DataType
from fusion.expression import Convert
from fusion.importer import ratio
from fusion.importer.builder import GUESS, X0, X1, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.ratio import Element, Ratio, as_float
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Reduce, Resize
from fusion.ops.resize import UNIT


@operator("Upsample", until=9)
def upsample(b: Builder, node: Node) -> Value:
    x = node.input(0)
    scales = node.attr("scales")
    given = b.constant(np.array(scales, np.float32), "scales") if scales is not None else node.input(1)
    return _resize(b, node, x, _scaled(b, x, given, tuple(range(x.rank))), "asymmetric", "floor")


@operator("Resize", until=10)
def resize_10(b: Builder, node: Node) -> Value:
    x = node.input(0)
    return _resize(b, node, x, _scaled(b, x, node.input(1), tuple(range(x.rank))), "asymmetric", "floor")


@operator("Resize", since=11)
def resize(b: Builder, node: Node) -> Value:
    x = node.input(0)
    coordinates = node.attr("coordinate_transformation_mode", "half_pixel")
    rounding = node.attr("nearest_mode", "round_prefer_floor")
    axes = tuple(node.axis(axis, x.rank) for axis in node.attr("axes", range(x.rank)))
    scales, sizes = node.optional(2), node.optional(3)
    roi = _region(b, node.input(1), axes, x.rank) if coordinates == "tf_crop_and_resize" else None
    if sizes is not None and sizes.shape != (0,):
        target = _from_sizes(b, x, sizes, axes, node.attr("keep_aspect_ratio_policy", "stretch"))
    elif scales is not None and scales.shape != (0,):
        target = _scaled(b, x, scales, axes)
    else:
        raise Unsupported("neither scales nor sizes are given")
    return _resize(b, node, x, target, coordinates, rounding, roi)


@dataclass(frozen=True)
class Target:
    """The output's shape, and the ratios to use for coordinates: known ones, and those that an inference tells (in UNIT)."""

    shape: Shape
    scales: tuple[float | None, ...]
    told: tuple[Dim | None, ...] = ()


@dataclass(frozen=True)
class Region:
    """Starts, then ends of the region of interest, of all axes: numbers, or (in UNIT) sizes that are read."""

    known: tuple[float, ...] = ()
    told: Shape = ()


def _resize(
    b: Builder, node: Node, x: Value, target: Target, coordinates: str, rounding: str, roi: Region | None = None
) -> Value:
    roi = roi or Region()
    identity = target.shape == x.shape and all(scale in (None, 1.0) for scale in target.scales) and not any(target.told)
    if identity and coordinates not in ("half_pixel_symmetric", "tf_crop_and_resize"):
        return x
    return b.layer(
        Resize(
            target.shape, target.scales, node.attr("mode", "nearest"), coordinates, rounding, node.attr("cubic_coeff_a", -0.75),
            bool(node.attr("exclude_outside", 0)), bool(node.attr("antialias", 0)), roi.known, node.attr("extrapolation_value", 0.0),
            target.told, roi.told,
        ),
        x,
    )  # fmt: skip


def _scaled(b: Builder, x: Value, scales: Value, axes: tuple[int, ...]) -> Target:
    """``floor(size * scale)`` per axis. (ONNX's text has the size of the region here; its shape inference, its reference and ONNX Runtime
    have that of the input.)"""
    items = b.items(scales, "scales")
    if len(items) != len(axes):
        raise Unsupported(f"{len(items)} scales for {len(axes)} axes")
    shape: list[Dim] = list(x.shape)
    ratios: list[float | None] = [1.0] * x.rank
    told: list[Dim | None] = [None] * x.rank
    if None in items:
        read_sizes, read_scales = _computed(b, x, scales, axes)
    for position, (axis, scale) in enumerate(zip(axes, items, strict=True)):
        if scale is None:
            shape[axis], told[axis], ratios[axis] = read_sizes[position], read_scales[position], None
        else:
            shape[axis], ratios[axis] = _multiplied(x.shape[axis], scale)
    return Target(tuple(shape), tuple(ratios), tuple(told) if any(one is not None for one in told) else ())


def _multiplied(dim: Dim, scale: Element) -> tuple[Dim, float | None]:
    size = ratio.floor(ratio.mul(dim, scale))
    assert isinstance(size, int | Sym)
    known = isinstance(scale, int) or (isinstance(scale, Ratio) and scale.is_number)
    return size, as_float(scale) if known else None


def _computed(b: Builder, x: Value, scales: Value, axes: tuple[int, ...]) -> tuple[Shape, Shape]:
    """The sizes that computed scales give, in float32 as ONNX Runtime has it, and the scales (in UNIT): read by the host."""
    lengths = b.lengths([x.shape[axis] for axis in axes])
    product = call("mul", Convert(DataType.FLOAT, X0), Convert(DataType.FLOAT, X1))
    sizes = b.pointwise(Convert(DataType.INT64, call("floor", product)), lengths, b.data(scales), suffix="sizes")
    guesses = [2 * dim if isinstance(dim := x.shape[axis], int) else 2 * GUESS for axis in axes]
    return b.dims(sizes, "size", guesses=guesses), _in_units(b, scales, "scale", [2 * UNIT] * len(axes))


def _in_units(b: Builder, value: Value, what: str, guesses: Sequence[int]) -> Shape:
    """The elements of a floating-point tensor as sizes, in UNIT."""
    units = call("mul", Convert(DataType.DOUBLE, X0), literal(float(UNIT), DataType.DOUBLE))
    return b.dims(b.pointwise(Convert(DataType.INT64, call("round", units)), b.data(value), suffix=f"{what}_units"), what, guesses=guesses)


def _region(b: Builder, roi: Value, axes: tuple[int, ...], rank: int) -> Region:
    count = len(axes)
    if roi.shape != (2 * count,):
        raise Unsupported(f"a region of interest of shape {roi.shape} for {count} axes")
    starts: list[float | Dim] = [0] * rank
    ends: list[float | Dim] = [UNIT] * rank
    if roi.is_constant:
        ends = [1] * rank
        given: Sequence[float | Dim] = [float(item) for item in roi.array]
    else:
        given = _in_units(b, roi, "roi", [0] * count + [UNIT] * count)
    for position, axis in enumerate(axes):
        starts[axis], ends[axis] = given[position], given[position + count]
    if roi.is_constant:
        return Region(tuple(map(float, (*starts, *ends))), ())  # type: ignore[arg-type]
    return Region((), (*starts, *ends))  # type: ignore[arg-type]


def _from_sizes(b: Builder, x: Value, sizes: Value, axes: tuple[int, ...], policy: str) -> Target:
    """The wanted sizes; or with a policy the size of the same aspect ratio that fits inside (outside) them."""
    shape = list(x.shape)
    scales: list[float | None] = [None] * x.rank
    if policy == "stretch":
        found = b.dims(sizes, "sizes")
        if len(found) != len(axes):
            raise Unsupported(f"{len(found)} sizes for {len(axes)} axes")
        for axis, size in zip(axes, found, strict=True):
            shape[axis] = size
        return Target(tuple(shape), tuple(scales))
    items = b.items(sizes, "sizes")
    if len(items) != len(axes):
        raise Unsupported(f"{len(items)} sizes for {len(axes)} axes")
    if not all(isinstance(item, int) for item in (*items, *(x.shape[axis] for axis in axes))):
        return _fitted(b, x, sizes, axes, policy)
    ratios = [size / x.shape[axis] for axis, size in zip(axes, items, strict=True)]  # type: ignore[operator]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    for axis in axes:
        shape[axis] = math.floor(x.shape[axis] * scale + 0.5)  # type: ignore[operator]
        scales[axis] = scale
    return Target(tuple(shape), tuple(scales))


def _fitted(b: Builder, x: Value, sizes: Value, axes: tuple[int, ...], policy: str) -> Target:
    """As :func:`_from_sizes` with a policy, for sizes that are not known: the host reads the least (greatest) ratio and the sizes that it gives."""
    lengths, wide = b.lengths([x.shape[axis] for axis in axes]), DataType.DOUBLE
    each = b.pointwise(call("div", Convert(wide, X0), Convert(wide, X1)), b.data(sizes), lengths, suffix="ratios")
    scale = b.layer(Reduce("min" if policy == "not_larger" else "max", (0,), True), each, suffix="ratio")
    rounded = call("floor", call("add", call("mul", Convert(wide, X0), X1), literal(0.5, wide)))
    guesses = [item if isinstance(item, int) else GUESS for item in b.items(sizes, "sizes")]
    found = b.dims(b.pointwise(Convert(DataType.INT64, rounded), lengths, scale, suffix="fitted"), "size", guesses=guesses)
    (told,) = _in_units(b, scale, "scale", [UNIT])
    shape, told_scales = list(x.shape), [None] * x.rank
    for axis, size in zip(axes, found, strict=True):
        shape[axis], told_scales[axis] = size, told  # type: ignore[call-overload]
    return Target(tuple(shape), tuple(1.0 if one is None else None for one in told_scales), tuple(told_scales))
