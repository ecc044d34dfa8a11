"""Comparing results: how far one tensor is from another, in plain words."""

from __future__ import annotations

import numpy as np

from fusion.dtypes import data_type

_CHUNK = 1 << 22


def difference(found: np.ndarray, wanted: np.ndarray, tolerance: float, poison: int | None = None) -> str | None:
    """None when ``found`` is ``wanted`` within ``tolerance``, else what is wrong.

    Floating point and 8-bit integers: the norm of the difference over the norm of ``wanted``, where NaN must meet NaN and infinity the same
    infinity. Other types: the share of elements that differ. ``poison`` is the byte that filled ``found`` before it was written.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype} {found.shape} instead of {wanted.dtype} {wanted.shape}"
    a, b = np.ascontiguousarray(found).reshape(-1), np.ascontiguousarray(wanted).reshape(-1)
    if not a.size:
        return None
    if poison is not None:
        missing = _unwritten(a, b, poison)
        if missing:
            return f"{missing} of {a.size} elements are not written (or are NaN)"
    if data_type(a.dtype).is_float or a.dtype.itemsize == 1 and a.dtype != np.bool_:
        return _by_norm(a, b, tolerance)
    unequal = int(np.count_nonzero(a.view(np.uint8) != b.view(np.uint8) if a.dtype == np.bool_ else a != b))
    if unequal > tolerance * a.size:
        return f"{unequal} of {a.size} elements differ"
    return None


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The norm of the difference over the norm of ``wanted``; infinite when NaN or infinities do not match."""
    a, b = found.reshape(-1), wanted.reshape(-1)
    distance = size = 0.0
    for start in range(0, a.size, _CHUNK):
        x = a[start : start + _CHUNK].astype(np.float64)
        y = b[start : start + _CHUNK].astype(np.float64)
        finite = np.isfinite(y)
        with np.errstate(invalid="ignore"):
            if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(x[finite]).all():
                return float("inf")
        distance += float(np.square(x[finite] - y[finite]).sum())
        size += float(np.square(y[finite]).sum())
    # A result of zeros has no norm to compare with: one millionth per element then counts as its scale.
    return float(np.sqrt(distance) / max(np.sqrt(size), 1e-6 * np.sqrt(a.size)))


def _by_norm(a: np.ndarray, b: np.ndarray, tolerance: float) -> str | None:
    error = relative_error(a, b)
    if error <= tolerance:
        return None
    if np.isinf(error):
        return "NaN or infinity where the reference has other values"
    return f"relative error {error:.3g}, {tolerance:.3g} is allowed"


def _unwritten(a: np.ndarray, b: np.ndarray, poison: int) -> int:
    width = a.dtype.itemsize
    if width == 1 and a.dtype != np.bool_:
        # 255 or -1 is a usual value of one byte: only where the reference is far from it
        if data_type(a.dtype).is_integer:
            far = np.abs(b.astype(np.int32) - a.astype(np.int32)) > 1
            return int(np.count_nonzero((a.view(np.uint8) == poison) & far))
        return int(np.count_nonzero((a.view(np.uint8) == poison) & (b.view(np.uint8) != poison)))
    word = np.dtype(f"u{width}")
    pattern = word.type(int.from_bytes(bytes([poison]) * width, "little"))
    return int(np.count_nonzero((a.view(word) == pattern) & (b.view(word) != pattern)))
