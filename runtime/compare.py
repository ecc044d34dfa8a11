"""Comparing results: how far one tensor is from another, in plain words."""

from __future__ import annotations

import numpy as np

from fusion.dtypes import data_type

_CHUNK = 1 << 22
_TIES = 1 / 3  # of all elements: more than that are not between two steps by chance, nor cut off instead of rounded


def difference(found: np.ndarray, wanted: np.ndarray, tolerance: float, poison: int | None = None, rounded: bool = False) -> str | None:
    """None when ``found`` is ``wanted`` within ``tolerance`` (see :func:`error_of`), else what is wrong.

    With ``rounded`` values were rounded to whole steps on the way (quantised): of what lies half way between two steps, which sums of few
    whole numbers often do, the last bit decides which one it is. Up to a third of the elements may then be one step off.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype} {found.shape} instead of {wanted.dtype} {wanted.shape}"
    missing = _unwritten(found, wanted, poison) if poison is not None else 0
    if missing:
        return f"{missing} of {found.size} elements are not written (or are NaN)"
    error = error_of(found, wanted)
    if error > tolerance and rounded:
        error = error_of(found, _with_ties(found, wanted))
    if error <= tolerance:
        return None
    if not _is_measured(found.dtype):
        return f"{round(error * found.size)} of {found.size} elements differ"
    if np.isinf(error):
        return "NaN or infinity where the reference has other values"
    return f"relative error {error:.3g}, {tolerance:.3g} is allowed"


def error_of(found: np.ndarray, wanted: np.ndarray, poison: int | None = None) -> float:
    """How far ``found`` is from ``wanted``, both of one type and shape.

    Floating point and 8-bit integers: the norm of the difference over the norm of ``wanted``; NaN must meet NaN, and infinity the same
    infinity, or it is infinite. Other types: the share of elements that differ. ``poison`` is the byte that filled ``found`` before it
    was written; an element that still holds it makes the error infinite.
    """
    if not found.size:
        return 0.0
    if poison is not None and _unwritten(found, wanted, poison):
        return float("inf")
    if _is_measured(found.dtype):
        return relative_error(found, wanted)
    a, b = np.ascontiguousarray(found), np.ascontiguousarray(wanted)
    if a.dtype == np.bool_:
        a, b = a.view(np.uint8), b.view(np.uint8)
    return float(np.count_nonzero(a != b)) / a.size


def _with_ties(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``wanted`` with those elements as they were ``found`` that are one step off, if they are not too many. A step is the least
    distance between two of its values, which is next to nothing where these are no multiples of one number."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    values = np.unique(b[np.isfinite(b)])
    step = np.diff(values).min() if values.size > 1 else 0.0
    with np.errstate(invalid="ignore"):
        distance = np.abs(a - b)
    ties = (distance > 0) & (distance < 1.25 * step)  # a step of a narrow type is rounded itself
    return np.where(ties, found, wanted) if np.count_nonzero(ties) <= _TIES * found.size else wanted


def _is_measured(dtype: np.dtype) -> bool:
    """Whether values of this type lie on a scale on which a small distance is small."""
    return data_type(dtype).is_float or (dtype.itemsize == 1 and dtype != np.bool_)


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


def _unwritten(found: np.ndarray, wanted: np.ndarray, poison: int) -> int:
    a, b = np.ascontiguousarray(found).reshape(-1), np.ascontiguousarray(wanted).reshape(-1)
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
