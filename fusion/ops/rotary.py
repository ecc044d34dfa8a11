"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, ShapeError, TensorType, broadcast
from fusion.ops.epilogue import widen
from fusion.ops.normalization import normalize


@dataclass(frozen=True)
class RotaryEmbedding(Op):
    """Inputs: x ``[..., D]``, cos, sin. Pairs (a, b) of elements of a row turn by an angle: ``a * cos - b * sin`` and ``b * cos + a * sin``,
    in float32 or wider; the result has x's type, whatever the angles'. (Su et al., "RoFormer", 2021.)

    ``rotated`` elements of a row turn, the first ones (0: all D, a partial rotation else); the others stay. A pair is element i of the first
    half of these and element i of the second; with ``interleaved``, elements 2i and 2i + 1. cos and sin broadcast against x; their last axis has
    one value per element that turns, or one per pair.

    With ``heads``, x is ``[..., H, D]`` and the result its first ``heads`` heads: queries and keys of a projection that holds values as well.

    With ``epsilon``, a last input is a scale that broadcasts against x: before they turn, rows are divided by ``sqrt(mean(x * x) + epsilon)`` and
    multiplied with it.
    """

    interleaved: bool = False
    rotated: int = 0
    heads: int = 0
    epsilon: float | None = None

    layer_type: ClassVar[str] = "RotaryEmbedding"

    @property
    def arity(self) -> int:
        return 3 if self.epsilon is None else 4

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, *angles = inputs[:3]
        width = x.shape[-1]
        turned = self.rotated or width
        if width % 2 != 0 or turned % 2 != 0 or (isinstance(width, int) and self.rotated > width):
            raise ShapeError(f"rows of {width} elements, of which {turned} turn in pairs")
        shape = x.shape
        if self.heads:
            if len(shape) < 2 or (isinstance(shape[-2], int) and self.heads > shape[-2]):
                raise ShapeError(f"{self.heads} heads of x of shape {shape}")
            shape = (*shape[:-2], self.heads, width)
        for one in angles:
            if one.shape[-1] not in (turned, turned // 2) or len(one.shape) > len(shape):
                raise ShapeError(f"angles of shape {one.shape} for x of shape {x.shape}, of which {turned} elements turn")
            broadcast([shape[:-1], one.shape[:-1]])
        if self.epsilon is not None and (inputs[3].shape[-1:] != (width,) or broadcast([shape, inputs[3].shape]) != shape):
            raise ShapeError(f"a scale of shape {inputs[3].shape} for rows of shape {shape}")
        return (TensorType(x.dtype, shape),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, cos, sin, *scale = (widen(one) for one in inputs)
        x = x[..., : self.heads, :] if self.heads else x
        if self.epsilon is not None:
            x = normalize(x, (x.ndim - 1,), self.epsilon, center=False) * scale[0]
        half = (self.rotated or x.shape[-1]) // 2
        first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if self.interleaved else (slice(half), slice(half, 2 * half))
        a, b = x[..., first], x[..., second]
        # One value per pair serves both of its elements.
        cos_a, cos_b, sin_a, sin_b = (t if t.shape[-1] == half else t[..., part] for t in (cos, sin) for part in (first, second))
        result = x.copy()
        with np.errstate(all="ignore"):
            result[..., first] = a * cos_a - b * sin_a
            result[..., second] = b * cos_b + a * sin_b
        return (result.astype(inputs[0].dtype, copy=False),)
