"""Regions of interest, pooled to one size: RoiAlign and RoiPool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import widen


@dataclass(frozen=True)
class RoiAlign(Op):
    """Inputs: x ``[N, C, H, W]``, regions ``[R, 4]`` (x1, y1, x2, y2), images ``[R]`` (integers). Output ``[R, C, *size]``.

    Each cell is the mean (or, with ``maximum``, the largest weighted neighbour) of samples interpolated inside it: ``samples`` along
    each axis, or as many as the cell has elements (0).
    """

    size: tuple[int, int]
    samples: int = 0
    scale: float = 1.0
    maximum: bool = False
    half_pixel: bool = True

    layer_type: ClassVar[str] = "RoiAlign"
    arity: ClassVar[int] = 3

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, regions, images = inputs
        if len(x.shape) != 4 or len(regions.shape) != 2 or regions.shape[1] != 4 or len(images.shape) != 1:
            raise ShapeError(f"x {x.shape}, regions {regions.shape}, images {images.shape}; it takes [N, C, H, W], [R, 4], [R]")
        return (TensorType(x.dtype, (images.shape[0], x.shape[1], *self.size)),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, regions, images = widen(inputs[0]), widen(inputs[1]), inputs[2]
        one = regions.dtype.type
        result = np.zeros((len(images), x.shape[1], *self.size), x.dtype)
        for number, image in enumerate(images):
            start = regions[number, [1, 0]] * one(self.scale) - one(0.5 * self.half_pixel)
            extent = regions[number, [3, 2]] * one(self.scale) - one(0.5 * self.half_pixel) - start
            extent = extent if self.half_pixel else np.maximum(extent, one(1))
            cell = extent / np.array(self.size, one)
            counts = [self.samples or max(0, math.ceil(step)) for step in cell]
            if 0 in counts:
                continue
            taps = [_region_taps(start[a], cell[a], self.size[a], counts[a], x.shape[2 + a]) for a in (0, 1)]
            picked = x[min(max(int(image), 0), len(x) - 1)]
            values = [
                picked[:, rows[:, None], columns[None, :]] * (down[:, None] * across[None, :]).astype(x.dtype, copy=False)
                for rows, down in taps[0]
                for columns, across in taps[1]
            ]
            shape = (x.shape[1], self.size[0], counts[0], self.size[1], counts[1])
            if self.maximum:
                result[number] = np.maximum.reduce(values).reshape(shape).max((2, 4))
            else:
                result[number] = sum(values).reshape(shape).sum((2, 4)) / x.dtype.type(counts[0] * counts[1])
        return (result.astype(inputs[0].dtype, copy=False),)


def _region_taps(start: np.floating, cell: np.floating, cells: int, count: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two (index, weight) pairs of every sample along an axis of ``size``; weight 0 beyond one element outside."""
    one = type(start)
    number, sample = np.divmod(np.arange(cells * count), count)
    place = start + number.astype(one) * cell + (sample.astype(one) + one(0.5)) * cell / one(count)
    outside = ~((place >= -1) & (place <= size))
    place = np.clip(np.where(outside, 0, place), 0, size - 1)
    low = np.minimum(place.astype(np.int64), size - 1)
    part = np.where(low >= size - 1, 0, place - low).astype(one)
    return [(low, np.where(outside, 0, 1 - part).astype(one)), (np.minimum(low + 1, size - 1), np.where(outside, 0, part).astype(one))]


@dataclass(frozen=True)
class RoiPool(Op):
    """Inputs: x ``[N, C, H, W]``, regions ``[R, 5]`` (image, x1, y1, x2, y2). Output ``[R, C, *size]``: the maximum of each cell, whose
    borders are rounded to whole elements; 0 for an empty one (Fast R-CNN's pooling, ONNX MaxRoiPool)."""

    size: tuple[int, int]
    scale: float = 1.0

    layer_type: ClassVar[str] = "RoiPool"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, regions = inputs
        if len(x.shape) != 4 or len(regions.shape) != 2 or regions.shape[1] != 5:
            raise ShapeError(f"x {x.shape}, regions {regions.shape}; it takes [N, C, H, W] and [R, 5]")
        return (TensorType(x.dtype, (regions.shape[0], x.shape[1], *self.size)),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, regions = widen(inputs[0]), widen(inputs[1])
        one = regions.dtype.type
        result = np.zeros((len(regions), x.shape[1], *self.size), x.dtype)
        for number, region in enumerate(regions):
            image = min(max(int(region[0]), 0), len(x) - 1)
            spans = []
            for axis, (low, high) in enumerate(((2, 4), (1, 3))):
                first, last = (int(_away(region[place] * one(self.scale))) for place in (low, high))
                cell = one(max(last - first + 1, 1)) / one(self.size[axis])
                steps = np.arange(self.size[axis]).astype(one)
                begin = np.clip(np.floor(steps * cell).astype(int) + first, 0, x.shape[2 + axis])
                end = np.clip(np.ceil((steps + one(1)) * cell).astype(int) + first, 0, x.shape[2 + axis])
                spans.append((begin, end))
            for i, j in np.ndindex(*self.size):
                part = x[image, :, spans[0][0][i] : spans[0][1][i], spans[1][0][j] : spans[1][1][j]]
                if part.size:
                    result[number, :, i, j] = part.max((1, 2))
        return (result.astype(inputs[0].dtype, copy=False),)


def _away(value: np.floating) -> float:
    """C's ``round``: halves away from zero."""
    return math.copysign(math.floor(abs(float(value)) + 0.5), float(value))
