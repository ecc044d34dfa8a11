"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Expression
from fusion.network import Op, ShapeError, TensorType, broadcast
from fusion.ops.epilogue import IDENTITY, accumulator, apply_epilogue, epilogue_type, product_type


@dataclass(frozen=True)
class MatrixMultiply(Op):
    """Inputs: a ``[..., M, K]`` (``[..., K, M]`` when ``transpose_a``), b ``[..., K, N]`` (``[..., N, K]`` when
    ``transpose_b``), both of rank 2 or more; batch dimensions broadcast. Output ``[..., M, N]``.

    Accumulated in float32 (float64 for doubles, int32 for integers), then the epilogue. The result of 8-bit operands is
    int32, or float32 for 8-bit floats (see :class:`fusion.ops.Convolution`).
    """

    transpose_a: bool = False
    transpose_b: bool = False
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "MatrixMultiply"
    arity: ClassVar[int] = 2

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        a, b, *extras = inputs
        if len(a.shape) < 2 or len(b.shape) < 2:
            raise ShapeError(f"matrix product of {a.shape} and {b.shape}: both need two dimensions or more")
        m, k = (a.shape[-1], a.shape[-2]) if self.transpose_a else a.shape[-2:]
        k2, n = (b.shape[-1], b.shape[-2]) if self.transpose_b else b.shape[-2:]
        if isinstance(k, int) and isinstance(k2, int) and k != k2:
            raise ShapeError(f"matrix product of {a.shape} and {b.shape}: {k} and {k2} differ")
        shape = (*broadcast([a.shape[:-2], b.shape[:-2]]), m, n)
        return (epilogue_type(self.epilogue, product_type(a.dtype), shape, extras),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        a, b, *extras = inputs
        total = accumulator(a, b)
        left, right = a.astype(total, copy=False), b.astype(total, copy=False)
        if self.transpose_a:
            left = left.swapaxes(-1, -2)
        if self.transpose_b:
            right = right.swapaxes(-1, -2)
        dtype = product_type(DataType(a.dtype.name))
        return (apply_epilogue(self.epilogue, dtype, np.matmul(left, right), extras),)
