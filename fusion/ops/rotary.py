"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, ShapeError, TensorType, broadcast
from fusion.ops.epilogue import widen


@dataclass(frozen=True)
class RotaryEmbedding(Op):
    """Inputs: x ``[..., D]``, cos, sin. Element i of the first half of a row and element i of the second turn by an angle:
    ``x1 * cos - x2 * sin`` and ``x2 * cos + x1 * sin``, in float32 or wider. (Su et al., "RoFormer", 2021.)

    cos and sin broadcast against x; their last axis has D elements (one per element of the result) or D / 2 (one per pair).
    """

    layer_type: ClassVar[str] = "RotaryEmbedding"
    arity: ClassVar[int] = 3

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, *angles = inputs
        width = x.shape[-1]
        if width % 2 != 0:
            raise ShapeError(f"rows of {width} elements have no two halves")
        for one in angles:
            if one.shape[-1] not in (width, width // 2) or len(one.shape) > len(x.shape):
                raise ShapeError(f"angles of shape {one.shape} for x of shape {x.shape}")
            broadcast([x.shape[:-1], one.shape[:-1]])
        return (x,)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x, cos, sin = (widen(one) for one in inputs)
        half = x.shape[-1] // 2
        first, second = x[..., :half], x[..., half:]
        result = np.empty_like(x)
        with np.errstate(all="ignore"):
            result[..., :half] = first * cos[..., :half] - second * sin[..., :half]
            result[..., half:] = second * cos[..., -half:] + first * sin[..., -half:]
        return (result.astype(inputs[0].dtype, copy=False),)
