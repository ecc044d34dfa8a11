"""Reads at computed positions of a grid: GridSample, and the columns of a deformable convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from fusion.dims import Dim
from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import widen
from fusion.ops.interpolation import keys_kernel

CUBIC = -0.75  # the coefficient of ONNX's (and PyTorch's) cubic convolution


@dataclass(frozen=True)
class GridSample(Op):
    """Inputs: x ``[N, C, *spatial]``, grid ``[N, *out, r]`` (last axis innermost first, -1 to 1). Output ``[N, C, *out]``.

    ``mode`` is ``nearest``, ``linear`` or ``cubic``; ``padding`` is ``zeros``, ``border`` or ``reflection``.
    """

    mode: str = "linear"
    padding: str = "zeros"
    align_corners: bool = False

    layer_type: ClassVar[str] = "GridSample"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, grid = inputs
        rank = len(x.shape) - 2
        if len(grid.shape) != rank + 2 or grid.shape[-1] != rank:
            raise ShapeError(f"a grid of shape {grid.shape} for an input of shape {x.shape}")
        if self.mode not in ("nearest", "linear", "cubic") or self.padding not in ("zeros", "border", "reflection"):
            raise ShapeError(f"mode {self.mode!r} with padding {self.padding!r}")
        if self.mode != "nearest" and not x.dtype.is_float:
            raise ShapeError(f"mode {self.mode!r} of {x.dtype.value}; only real numbers can be interpolated")
        return (TensorType(x.dtype, (*x.shape[:2], *grid.shape[1:-1])),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, grid = inputs
        spatial = x.shape[2:]
        places = [
            self.positions(widen(grid)[..., len(spatial) - 1 - axis], size) for axis, size in enumerate(spatial)
        ]
        taps = [self.taps(place.reshape(len(x), -1), size) for place, size in zip(places, spatial, strict=True)]
        result = gathered(x, taps)
        return (result.reshape(*x.shape[:2], *grid.shape[1:-1]).astype(x.dtype, copy=False),)

    def positions(self, normalized: np.ndarray, size: int) -> np.ndarray:
        """Coordinates in elements of an axis of ``size``, after rounding (``nearest``) and padding of what is outside."""
        one = normalized.dtype.type
        if self.align_corners:
            place = (normalized + one(1)) / one(2) * one(size - 1)
        else:
            place = ((normalized + one(1)) * one(size) - one(1)) / one(2)
        if self.mode == "nearest":
            place = np.rint(place)
        low, high = (0.0, size - 1.0) if self.align_corners else (-0.5, size - 0.5)
        if self.padding == "border" and self.mode != "cubic":  # there each neighbour is clamped, as PyTorch and ONNX Runtime do
            place = np.where((place < low) | (place > high), np.clip(place, 0, size - 1), place)
        elif self.padding == "reflection":
            place = reflect(place, low, high)
        return np.fmin(np.fmax(place, one(-4)), one(size + 3))  # farther away nothing changes; NaN is outside

    def taps(self, place: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(index, weight) of each element that a position reads along an axis; index -1 reads zero."""
        if self.mode == "nearest":
            found = [(place.astype(np.int64), np.ones_like(place))]
        else:
            first = np.floor(place)
            weights = linear_weights(place - first) if self.mode == "linear" else cubic_weights(place - first)
            start = first.astype(np.int64) - (len(weights) // 2 - 1)
            found = [(start + number, weight) for number, weight in enumerate(weights)]
        return [(self.inside(index, size), weight) for index, weight in found]

    def inside(self, index: np.ndarray, size: int) -> np.ndarray:
        """``index`` padded into an axis of ``size``, -1 where zeros are read."""
        if self.padding == "zeros":
            return np.where((index >= 0) & (index < size), index, -1)
        if self.padding == "reflection":
            low, high = (0.0, size - 1.0) if self.align_corners else (-0.5, size - 0.5)
            index = reflect(index.astype(np.float64), low, high).astype(np.int64)
        return np.clip(index, 0, size - 1)


def reflect(place: np.ndarray, low: float, high: float) -> np.ndarray:
    """``place`` mirrored at ``low`` and ``high`` until it lies between them."""
    span = high - low
    if span <= 0:
        return np.full_like(place, low)
    with np.errstate(invalid="ignore"):
        beyond = np.where(place < low, low - place, place - high)
        turns = np.trunc(beyond / span)
        rest = beyond - turns * span
        even = turns % 2 == 0
        mirrored = np.where(even == (place < low), low + rest, high - rest)
        return np.where((place < low) | (place > high), mirrored, place).astype(place.dtype, copy=False)


def linear_weights(part: np.ndarray) -> list[np.ndarray]:
    """Weights of the two neighbours of a position ``part`` of the way between them."""
    return [1 - part, part]


def cubic_weights(part: np.ndarray) -> list[np.ndarray]:
    """Weights of the four neighbours of a position ``part`` of the way between the second and the third (cubic convolution)."""
    return [keys_kernel(distance, CUBIC) for distance in (part + 1, part, 1 - part, 2 - part)]


def gathered(x: np.ndarray, taps: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
    """Weighted sums ``[N, C, places]`` over ``x`` ``[N, C, *spatial]``; per axis the taps ``[N, places]`` of every place."""
    batch, channels, *spatial = x.shape
    flat = widen(x).reshape(batch, channels, -1)
    total: np.ndarray | None = None
    for choice in product(*taps):
        index = np.zeros_like(choice[0][0])
        outside = np.zeros(index.shape, bool)
        weight: np.ndarray = np.ones((), np.float32)
        for (one, factor), size in zip(choice, spatial, strict=True):
            index, outside, weight = index * size + np.maximum(one, 0), outside | (one < 0), weight * factor
        values = np.take_along_axis(flat, index[:, None, :], 2)
        values = np.where(outside[:, None, :], flat.dtype.type(0), values)
        if flat.dtype.kind == "f":
            values = values * weight[:, None, :].astype(flat.dtype, copy=False)
        total = values if total is None else total + values
    assert total is not None
    return total


@dataclass(frozen=True)
class DeformableColumns(Op):
    """What a deformable convolution multiplies its weights with, one column per output position.

    Inputs: x ``[N, C, *spatial]``, offset ``[N, groups * taps * r, *out]`` and, with ``masked``, mask ``[N, groups * taps, *out]``;
    taps are the elements of the window, in row-major order. Output ``[N, C * taps, *out]``: linear interpolation at window position
    plus offset (zero outside) times the mask.
    """

    window: tuple[int, ...]
    stride: tuple[int, ...]
    pre_padding: tuple[Dim, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    masked: bool = False

    layer_type: ClassVar[str] = "DeformableColumns"

    @property
    def arity(self) -> int:
        return 3 if self.masked else 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, offset, *mask = inputs
        rank, taps, channels = len(self.window), math.prod(self.window), x.shape[1]
        if len(x.shape) != rank + 2 or len(offset.shape) != rank + 2 or not x.dtype.is_float:
            raise ShapeError(f"a window of {rank} dimensions, x {x.shape}, offset {offset.shape}")
        if not isinstance(channels, int) or channels % self.groups:
            raise ShapeError(f"{channels} channels in {self.groups} groups of offsets")
        if offset.shape[1] != self.groups * taps * rank or any(one.shape[1] != self.groups * taps for one in mask):
            raise ShapeError(f"offset {offset.shape} or mask {[one.shape for one in mask]} does not fit {self.groups} groups of {taps} taps")
        return (TensorType(x.dtype, (x.shape[0], channels * taps, *offset.shape[2:])),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, offset, *mask = inputs
        batch, channels, *spatial = x.shape
        rank, count, out = len(self.window), math.prod(self.window), offset.shape[2:]
        shift = widen(offset).reshape(batch, self.groups, count, rank, *out)
        each = channels // self.groups
        result = np.empty((batch, self.groups, each, count, math.prod(out)), widen(x).dtype)
        parts = x.reshape(batch, self.groups, each, *spatial)
        scale = widen(mask[0]).reshape(batch, self.groups, count, -1) if mask else None
        for group in range(self.groups):
            for number, position in enumerate(np.ndindex(*self.window)):
                taps = []
                for axis in range(rank):
                    start = np.arange(out[axis]) * self.stride[axis] - int(self.pre_padding[axis])  # type: ignore[arg-type]
                    base = (start + position[axis] * self.dilation[axis]).reshape(-1, *(1,) * (rank - 1 - axis))
                    place = (base + shift[:, group, number, axis]).reshape(batch, -1).astype(shift.dtype, copy=False)
                    place = np.fmin(np.fmax(place, -4), spatial[axis] + 3).astype(shift.dtype, copy=False)
                    taps.append(GridSample("linear", "zeros", True).taps(place, spatial[axis]))
                values = gathered(parts[:, group], taps)
                result[:, group, :, number] = values if scale is None else values * scale[:, group, None, number]
        return (result.reshape(batch, channels * count, *out).astype(x.dtype, copy=False),)
