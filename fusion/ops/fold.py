"""Fold: columns of windows summed back into an image (ONNX Col2Im)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Dim, Shape, product
from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import widen


@dataclass(frozen=True)
class Fold(Op):
    """Input ``[N, C * taps, places]``, output ``[N, C, *image]``: each element is the sum of the columns' elements that cover it."""

    image: tuple[Dim, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    pre_padding: tuple[int, ...]
    post_padding: tuple[int, ...]
    dilation: tuple[int, ...]

    layer_type: ClassVar[str] = "Fold"
    arity: ClassVar[int] = 1

    def counts(self) -> Shape:
        """Window positions along each axis."""
        axes = zip(self.image, self.window, self.stride, self.pre_padding, self.post_padding, self.dilation, strict=True)
        return tuple((size + pre + post - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, pre, post, dilation in axes)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (x,) = inputs
        taps, places = math.prod(self.window), product(self.counts())
        if len(x.shape) != 3 or not isinstance(x.shape[1], int) or x.shape[1] % taps:
            raise ShapeError(f"columns of shape {x.shape} for windows of {taps} elements")
        if isinstance(places, int) and isinstance(x.shape[2], int) and places != x.shape[2]:
            raise ShapeError(f"{x.shape[2]} columns; windows {self.window} over image {self.image} have {places} positions")
        return (TensorType(x.dtype, (x.shape[0], x.shape[1] // taps, *self.image)),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        (x,) = inputs
        counts = self.counts()
        channels = x.shape[1] // math.prod(self.window)
        columns = widen(x).reshape(len(x), channels, *self.window, *counts)
        padded = np.zeros(
            (len(x), channels, *(int(s) + a + b for s, a, b in zip(self.image, self.pre_padding, self.post_padding, strict=True))),  # type: ignore[arg-type]
            columns.dtype,
        )
        for place in np.ndindex(*self.window):
            cut = tuple(
                slice(k * gap, k * gap + (int(count) - 1) * step + 1, step)  # type: ignore[arg-type]
                for k, gap, step, count in zip(place, self.dilation, self.stride, counts, strict=True)
            )
            padded[(slice(None), slice(None), *cut)] += columns[(slice(None), slice(None), *place)]
        inner = tuple(slice(pre, pre + int(size)) for pre, size in zip(self.pre_padding, self.image, strict=True))  # type: ignore[arg-type]
        return (np.array(padded[(slice(None), slice(None), *inner)], x.dtype, order="C"),)
