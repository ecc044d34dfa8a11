"""Where each output element of a Resize reads along one axis: indices and weights (ONNX operator Resize, opset 19)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AxisTaps:
    """Interpolation along one axis.

    Attributes:
        indices: ``[out, taps]`` (intp), inside the input.
        weights: ``[out, taps]`` (float64); each row sums to 1.
        outside: ``[out]`` (bool): elements that take the extrapolation value, or None when there are none.
    """

    indices: np.ndarray
    weights: np.ndarray
    outside: np.ndarray | None = None


def axis_taps(
    size: int,
    out: int,
    scale: float | None,
    *,
    mode: str,
    coordinates: str,
    rounding: str,
    cubic_a: float,
    exclude_outside: bool,
    antialias: bool,
    roi: tuple[float, float] = (0.0, 1.0),
) -> AxisTaps | None:
    """The taps along an axis of ``size`` elements resized to ``out``; None when the axis stays as it is.

    Raises:
        ValueError: an unknown mode, coordinate transformation or rounding.
    """
    ratio = out / size if scale is None else scale
    if out == size and ratio == 1 and coordinates != "tf_crop_and_resize":
        return None
    x, outside = _source(size, out, ratio, coordinates, roi)
    if mode == "nearest":
        index = np.clip(_round(x, rounding), 0, size - 1).astype(np.intp)
        return AxisTaps(index[:, None], np.ones((out, 1)), outside)
    # Neighbours base + i; an integer coordinate belongs to the right end of its interval, so x - base is in (0, 1].
    squeeze = min(ratio, 1.0) if antialias else 1.0
    if mode == "linear":
        reach, kernel = 1.0, _triangle
    elif mode == "cubic":
        reach, kernel = 2.0, lambda distance: keys_kernel(distance, cubic_a)
    else:
        raise ValueError(f"Resize has no mode {mode!r}: nearest, linear or cubic")
    first = math.floor(-reach / squeeze) + 1
    base = np.ceil(x) - 1
    steps = np.arange(first, 2 - first)
    weights = kernel(np.abs(steps - (x - base)[:, None]) * squeeze)
    positions = base.astype(np.intp)[:, None] + steps
    if exclude_outside:
        weights = np.where((positions >= 0) & (positions < size), weights, 0.0)
    if exclude_outside or antialias:
        total = weights.sum(1, keepdims=True)
        weights = weights / np.where(total == 0, 1.0, total)
    return AxisTaps(np.clip(positions, 0, size - 1), weights, outside)


def _source(
    size: int, out: int, scale: float, coordinates: str, roi: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray | None]:
    y = np.arange(out, dtype=np.float64)
    length = scale * size  # the output's length before it was rounded down
    if coordinates == "half_pixel":
        return (y + 0.5) / scale - 0.5, None
    if coordinates == "pytorch_half_pixel":
        return ((y + 0.5) / scale - 0.5 if out > 1 else np.zeros(out)), None
    if coordinates == "half_pixel_symmetric":
        return size / 2 * (1 - out / length) + (y + 0.5) / scale - 0.5, None
    if coordinates == "align_corners":
        return (y * (size - 1) / (length - 1) if length != 1 else np.zeros(out)), None
    if coordinates == "asymmetric":
        return y / scale, None
    if coordinates == "tf_half_pixel_for_nn":
        return (y + 0.5) / scale, None
    if coordinates == "tf_crop_and_resize":
        start, end = roi
        if length != 1:
            x = start * (size - 1) + y * (end - start) * (size - 1) / (length - 1)
        else:
            x = np.full(out, (start + end) * (size - 1) / 2)
        outside = (x < 0) | (x > size - 1)
        return x, outside if outside.any() else None
    raise ValueError(f"Resize has no coordinate transformation {coordinates!r}")


def _round(x: np.ndarray, rounding: str) -> np.ndarray:
    if rounding == "round_prefer_floor":
        return np.ceil(x - 0.5)
    if rounding == "round_prefer_ceil":
        return np.floor(x + 0.5)
    if rounding == "floor":
        return np.floor(x)
    if rounding == "ceil":
        return np.ceil(x)
    raise ValueError(f"Resize has no rounding {rounding!r}")


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distance, 0)


def keys_kernel(t: np.ndarray, a: float) -> np.ndarray:
    """The weight of a neighbour at distance ``t`` >= 0 in cubic convolution (R. G. Keys, 1981), with free parameter ``a``."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
