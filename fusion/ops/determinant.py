"""Determinants of square matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import widen


@dataclass(frozen=True)
class Determinant(Op):
    """Input ``[*batch, n, n]``, output ``[*batch]`` (ONNX Det)."""

    layer_type: ClassVar[str] = "Determinant"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (x,) = inputs
        if len(x.shape) < 2 or x.shape[-1] != x.shape[-2] or not x.dtype.is_float:
            raise ShapeError(f"{x.dtype.value} of shape {x.shape}; it takes square matrices of real numbers")
        return (TensorType(x.dtype, x.shape[:-2]),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (np.asarray(np.linalg.det(widen(inputs[0]))).astype(inputs[0].dtype, copy=False),)
