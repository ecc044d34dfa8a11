"""Matrix products with constant weights of a few bits, scaled block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Expression
from fusion.network import Op, ShapeError, TensorType
from fusion.ops.epilogue import IDENTITY, apply_epilogue, epilogue_type, widen


@dataclass(frozen=True)
class PackedMatrixMultiply(Op):
    """Inputs: a ``[..., M, K]``; weights ``[N, ceil(K * bits / 8)]`` uint8, unsigned numbers of 4 or 8 bits, the first in the lowest bits;
    scales and zero points ``[N, ceil(K / block)]``, real. ``K`` is ``depth``. Output ``[..., M, N]``: a times the transpose of

        w[n][k] = (weights[n][k] - zeros[n][k // block]) * scales[n][k // block]

    accumulated in float32, then the epilogue.
    """

    bits: int
    depth: int
    block: int
    epilogue: Expression = IDENTITY

    layer_type: ClassVar[str] = "MatrixMultiply"
    arity: ClassVar[int] = 4

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        a, weights, scales, zeros, *extras = inputs
        n, blocks = weights.shape[0], -(-self.depth // self.block)
        if len(a.shape) < 2 or (isinstance(a.shape[-1], int) and a.shape[-1] != self.depth):
            raise ShapeError(f"product of {a.shape} with {n} rows of {self.depth} packed weights")
        if weights.shape != (n, -(-self.depth * self.bits // 8)) or not scales.shape == zeros.shape == (n, blocks):
            raise ShapeError(f"packed weights {weights.shape} with scales {scales.shape} and zero points {zeros.shape}: {n} x {blocks} blocks")
        return (epilogue_type(self.epilogue, a.dtype, (*a.shape[:-1], n), extras),)

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        a, weights, scales, zeros, *extras = inputs
        w = self.dequantized(weights, scales, zeros)
        return (apply_epilogue(self.epilogue, DataType(a.dtype.name), np.matmul(widen(a), w.T), extras),)

    def dequantized(self, weights: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
        """The weights ``[N, K]`` in float32."""
        values = unpacked(weights, self.bits)[:, : self.depth].astype(np.float32)
        result = np.empty_like(values)
        for number, first in enumerate(range(0, self.depth, self.block)):
            part = slice(first, first + self.block)
            np.subtract(values[:, part], widen(zeros[:, number, None]), out=result[:, part])
            result[:, part] *= widen(scales[:, number, None])
        return result


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Rows of unsigned numbers of ``bits`` bits, a byte each."""
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (packed[..., None] >> shifts & (1 << bits) - 1).reshape(*packed.shape[:-1], -1)


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """The inverse; rows are filled up with zeros."""
    if bits == 8:
        return values
    per = 8 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % per))).reshape(len(values), -1, per)
    return np.bitwise_or.reduce(padded << np.arange(0, 8, bits, dtype=np.uint8), axis=-1).astype(np.uint8)
