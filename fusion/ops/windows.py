"""Sliding windows over the spatial axes of ``[N, C, *spatial]`` arrays, for the NumPy meaning of convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided


def channels_first(x: np.ndarray, channels_last: bool) -> np.ndarray:
    """``x`` as ``[N, C, *spatial]`` (a view)."""
    return np.moveaxis(x, -1, 1) if channels_last else x


def channels_back(x: np.ndarray, channels_last: bool) -> np.ndarray:
    """The inverse of :func:`channels_first` (a view)."""
    return np.moveaxis(x, 1, -1) if channels_last else x


def pad_spatial(x: np.ndarray, pre: Sequence[int], post: Sequence[int], value: object = 0) -> np.ndarray:
    """``x`` with ``pre[i]`` and ``post[i]`` elements of ``value`` around spatial axis ``i``; negative numbers cut off, also of what the other
    side has added."""
    sizes, source, target = [], [], []
    for size, a, b in zip(x.shape[2:], pre, post, strict=True):
        sizes.append(max(size + a + b, 0))
        first = max(a, 0)
        last = max(first, min(size + a, sizes[-1]))
        source.append(slice(first - a, last - a))
        target.append(slice(first, last))
    kept = x[(slice(None), slice(None), *source)]
    if list(kept.shape[2:]) == sizes:
        return kept
    padded = np.full((*x.shape[:2], *sizes), value, x.dtype)
    padded[(slice(None), slice(None), *target)] = kept
    return padded


def windows(
    x: np.ndarray, window: Sequence[int], stride: Sequence[int], dilation: Sequence[int], counts: Sequence[int]
) -> np.ndarray:
    """The view ``[N, C, *counts, *window]`` of the windows of a (padded) array ``[N, C, *spatial]``.

    Raises:
        ValueError: the last window does not fit.
    """
    for size, k, step, gap, count in zip(x.shape[2:], window, stride, dilation, counts, strict=True):
        if count and (count - 1) * step + (k - 1) * gap >= size:
            raise ValueError(f"{count} windows of {k} (stride {step}, dilation {gap}) do not fit into {size} elements")
    spatial = x.strides[2:]
    strides = (
        *x.strides[:2],
        *(byte * step for byte, step in zip(spatial, stride, strict=True)),
        *(byte * gap for byte, gap in zip(spatial, dilation, strict=True)),
    )
    return as_strided(x, (*x.shape[:2], *counts, *window), strides, writeable=False)
