"""Resize and Upsample, from sizes or scales that may come from shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusion.dims import Dim, Shape, Sym
from fusion.importer import ratio
from fusion.importer.builder import Builder
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.ratio import Element, Ratio, as_float
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Resize


@operator("Upsample", until=9)
def upsample(b: Builder, node: Node) -> Value:
    x = node.input(0)
    scales = node.attr("scales")
    items = tuple(map(ratio.from_float, scales)) if scales is not None else b.items(node.input(1), "scales")
    return _resize(b, node, x, _scaled(x.shape, items), "asymmetric", "floor")


@operator("Resize", until=10)
def resize_10(b: Builder, node: Node) -> Value:
    x = node.input(0)
    return _resize(b, node, x, _scaled(x.shape, b.items(node.input(1), "scales")), "asymmetric", "floor")


@operator("Resize", since=11)
def resize(b: Builder, node: Node) -> Value:
    x = node.input(0)
    coordinates = node.attr("coordinate_transformation_mode", "half_pixel")
    rounding = node.attr("nearest_mode", "round_prefer_floor")
    axes = tuple(node.axis(axis, x.rank) for axis in node.attr("axes", range(x.rank)))
    scales, sizes = node.optional(2), node.optional(3)
    if sizes is not None and sizes.shape != (0,):
        target = _from_sizes(x, b.dims(sizes, "sizes"), axes, node.attr("keep_aspect_ratio_policy", "stretch"), node)
    elif scales is not None and scales.shape != (0,):
        given = b.items(scales, "scales")
        if len(given) != len(axes):
            raise Unsupported(f"{len(given)} scales for {len(axes)} axes")
        full: list[Element] = [1] * x.rank
        for axis, item in zip(axes, given, strict=True):
            full[axis] = item
        target = _scaled(x.shape, full)
    else:
        raise Unsupported("neither scales nor sizes are given")
    roi: tuple[float, ...] = ()
    if coordinates == "tf_crop_and_resize":
        given_roi = [float(item) for item in b.array(node.input(1), "roi").reshape(-1)]
        starts, ends = [0.0] * x.rank, [1.0] * x.rank
        for position, axis in enumerate(axes):
            starts[axis], ends[axis] = given_roi[position], given_roi[position + len(axes)]
        roi = (*starts, *ends)
        target = (_cropped(x, target, starts, ends), target[1])
    return _resize(b, node, x, target, coordinates, rounding, roi)


Target = tuple[Shape, tuple["float | None", ...]]  # the output's shape; the ratios to use for coordinates


def _resize(
    b: Builder, node: Node, x: Value, target: Target, coordinates: str, rounding: str, roi: tuple[float, ...] = ()
) -> Value:
    shape, scales = target
    identity = shape == x.shape and all(scale in (None, 1.0) for scale in scales) and not roi
    if identity and coordinates != "half_pixel_symmetric":
        return x
    return b.layer(
        Resize(
            shape, scales, node.attr("mode", "nearest"), coordinates, rounding, node.attr("cubic_coeff_a", -0.75),
            bool(node.attr("exclude_outside", 0)), bool(node.attr("antialias", 0)), roi, node.attr("extrapolation_value", 0.0),
        ),
        x,
    )  # fmt: skip


def _scaled(shape: Shape, scales: Sequence[Element]) -> Target:
    """``floor(size * scale)`` per axis."""
    if len(scales) != len(shape):
        raise Unsupported(f"{len(scales)} scales for {len(shape)} dimensions")
    result: list[Dim] = []
    ratios: list[float | None] = []
    for dim, scale in zip(shape, scales, strict=True):
        if scale is None:
            raise Unsupported("its scales depend on data; trtcli needs them to follow from shapes and constants")
        size = ratio.floor(ratio.mul(dim, scale))
        assert isinstance(size, int | Sym)
        result.append(size)
        known = isinstance(scale, int) or (isinstance(scale, Ratio) and scale.is_number)
        ratios.append(as_float(scale) if known else None)
    return tuple(result), tuple(ratios)


def _from_sizes(x: Value, sizes: Shape, axes: tuple[int, ...], policy: str, node: Node) -> Target:
    """The wanted sizes; or with a policy the size of the same aspect ratio that fits inside (outside) them."""
    if len(sizes) != len(axes):
        raise Unsupported(f"{len(sizes)} sizes for {len(axes)} axes")
    shape = list(x.shape)
    scales: list[float | None] = [None] * x.rank
    if policy == "stretch":
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = size
        return tuple(shape), tuple(scales)
    if not all(isinstance(item, int) for item in (*sizes, *(x.shape[axis] for axis in axes))):
        raise Unsupported(f"keep_aspect_ratio_policy {policy!r} with dynamic sizes")
    ratios = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]  # type: ignore[operator]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    for axis in axes:
        shape[axis] = math.floor(x.shape[axis] * scale + 0.5)  # type: ignore[operator]
        scales[axis] = scale
    return tuple(shape), tuple(scales)


def _cropped(x: Value, target: Target, starts: Sequence[float], ends: Sequence[float]) -> Shape:
    """With a region of interest, scales apply to the region's size."""
    shape, scales = target
    result = list(shape)
    for axis, scale in enumerate(scales):
        size = x.shape[axis]
        if scale is not None and isinstance(size, int):
            result[axis] = math.floor(size * (ends[axis] - starts[axis]) * scale)
    return tuple(result)
