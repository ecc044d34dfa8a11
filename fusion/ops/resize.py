"""Interpolation to another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Dim, Shape
from fusion.network import Op, TensorType
from fusion.ops.interpolation import AxisTaps, axis_taps

UNIT = 1 << 40  # ratios and positions that data tell are integers of this fraction; float32 ratios from 2^-17 up fit exactly


@dataclass(frozen=True)
class Resize(Op):
    """Input: x. ``shape`` is the output's; ``scales[i]`` is the ratio to use for coordinates (None: the ratio of sizes).

    ``mode`` is ``nearest``, ``linear`` or ``cubic``; ``coordinates`` and ``rounding`` are ONNX's
    coordinate_transformation_mode and nearest_mode; ``cubic_a``, ``exclude_outside``, ``antialias``, ``roi`` (starts, then
    ends, per axis) and ``extrapolation`` as in ONNX. ``told_scales`` and ``told_roi`` are the same numbers in ``UNIT`` where an inference tells
    them; a told scale of None leaves the axis to ``scales``.
    """

    shape: Shape
    scales: tuple[float | None, ...]
    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    roi: tuple[float, ...] = ()
    extrapolation: float = 0.0
    told_scales: tuple[Dim | None, ...] = ()
    told_roi: Shape = ()

    layer_type: ClassVar[str] = "Resize"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(inputs[0].dtype, tuple(self.shape)),)

    def ratio(self, axis: int) -> float | None:
        """The ratio to use for the coordinates of ``axis``; None: that of the sizes."""
        told = self.told_scales[axis] if self.told_scales else None
        if told is not None:
            return int(told) / UNIT  # type: ignore[arg-type]
        return self.scales[axis] if self.scales else None

    def region(self, axis: int) -> tuple[float, float]:
        """Where the region of interest begins and ends along ``axis``."""
        if self.told_roi:
            return tuple(int(one) / UNIT for one in self.told_roi[axis :: len(self.shape)])  # type: ignore[arg-type, return-value]
        return (self.roi[axis], self.roi[axis + len(self.shape)]) if self.roi else (0.0, 1.0)

    def taps(self, shape: Sequence[int]) -> tuple[AxisTaps | None, ...]:
        """Per axis of an input of ``shape``, what to read with which weight (None: the axis stays)."""
        return tuple(
            axis_taps(
                size,
                int(self.shape[axis]),  # type: ignore[arg-type]
                self.ratio(axis),
                mode=self.mode,
                coordinates=self.coordinates,
                rounding=self.rounding,
                cubic_a=self.cubic_a,
                exclude_outside=self.exclude_outside,
                antialias=self.antialias,
                roi=self.region(axis),
            )
            for axis, size in enumerate(shape)
        )

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        (x,) = inputs
        exact = self.mode == "nearest"
        result = x if exact else x.astype(np.float64 if x.dtype == np.float64 else np.float32)
        taps = self.taps(x.shape)
        for axis, tap in enumerate(taps):
            if tap is None:
                continue
            if exact:
                result = np.take(result, tap.indices[:, 0], axis)
                continue
            weights = tap.weights.astype(result.dtype).T.reshape(-1, len(tap.indices), *(1,) * (x.ndim - axis - 1))
            result = sum(
                np.take(result, index, axis) * weight for index, weight in zip(tap.indices.T, weights, strict=True)
            )
        result = np.asarray(result).astype(x.dtype, copy=False)
        for axis, tap in enumerate(taps):
            if tap is not None and tap.outside is not None:
                outside = tap.outside.reshape(-1, *(1,) * (x.ndim - axis - 1))
                result = np.where(outside, np.asarray(self.extrapolation).astype(x.dtype), result)
        return (np.array(result) if result is x else result,)
