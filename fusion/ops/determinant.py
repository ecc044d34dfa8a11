"""Determinants and inverses of square matrices."""

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
        _check(x)
        return (TensorType(x.dtype, x.shape[:-2]),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (np.asarray(np.linalg.det(widen(inputs[0]))).astype(inputs[0].dtype, copy=False),)


@dataclass(frozen=True)
class Inverse(Op):
    """Input and output ``[*batch, n, n]``. Singular matrices give numbers that are not finite."""

    layer_type: ClassVar[str] = "Inverse"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        _check(inputs[0])
        return (inputs[0],)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        x = widen(inputs[0])
        result = np.full(x.shape, np.nan, x.dtype)
        for place in np.ndindex(x.shape[:-2]):
            try:
                result[place] = np.linalg.inv(x[place])
            except np.linalg.LinAlgError:
                continue
        return (result.astype(inputs[0].dtype, copy=False),)


def _check(x: TensorType) -> None:
    if len(x.shape) < 2 or x.shape[-1] != x.shape[-2] or not x.dtype.is_float:
        raise ShapeError(f"{x.dtype.value} of shape {x.shape}; it takes square matrices of real numbers")
