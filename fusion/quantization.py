"""Arithmetic of quantised products: weights without zero points, and what an activation's zero point adds to a sum.

With ``x = (q - z) * s``, a sum ``sum((q - z) * w)`` is ``sum(q * w) - z * sum(w)``: the second part is known at build."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.dims import Shape
from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Operand
from fusion.network import Op
from fusion.ops import Convolution, Deconvolution, MatrixMultiply
from fusion.ops.epilogue import IDENTITY


def shifted_weights(values: np.ndarray, zero: np.ndarray) -> np.ndarray | str:
    """``values - zero`` as int8 (8-bit floats as they are), or why that cannot be."""
    if values.dtype.kind not in "iu":
        return "8-bit floats with a zero point" if np.any(zero) else values
    moved = values.astype(np.int32) - np.asarray(zero).astype(np.int32)
    low, high = int(moved.min(initial=0)), int(moved.max(initial=0))
    if low < -128 or high > 127:
        return f"without their zero points the weights go from {low} to {high}, which int8 does not hold"
    return moved.astype(np.int8)


def on_float_sums(expression: Expression, real: Expression = IDENTITY) -> Expression:
    """An epilogue of int32 sums for sums that are held, exactly, in floating point: ``real`` (operand 0 as float32) where they are converted
    anyway, int32 of them elsewhere."""
    if expression == Convert(DataType.FLOAT, Operand(0)):
        return real
    if expression == Operand(0):
        return Convert(DataType.INT32, Operand(0))
    if isinstance(expression, Convert):
        return Convert(expression.dtype, on_float_sums(expression.argument, real))
    if isinstance(expression, Apply):
        return Apply(expression.function, tuple(on_float_sums(child, real) for child in expression.arguments))
    return expression


def at_border(op: Op) -> bool:
    """Whether some sums of the layer have fewer products than others: windows hang over the border, or do not tile."""
    if isinstance(op, Convolution):
        return any(pad != 0 for pad in (*op.pre_padding, *op.post_padding))
    return isinstance(op, Deconvolution)


def correction(op: Op, weights: np.ndarray, shape: Shape, zero: int) -> np.ndarray:
    """``zero * sum(w)`` of every sum as an int32 epilogue operand: per output channel, or per channel and place where
    windows hang over the border (``shape`` is the activation's; then its spatial sizes must be known).

    Weights are int8; the layer is channels-first."""
    if isinstance(op, MatrixMultiply):
        sums = weights.astype(np.int64).sum(-1 if op.transpose_b else -2, keepdims=weights.ndim > 2) * zero
        if weights.ndim > 2 and op.transpose_b:
            sums = sums.swapaxes(-1, -2)
        return sums.astype(np.int32)
    assert isinstance(op, Convolution | Deconvolution)
    if not at_border(op):
        rows = weights.astype(np.int64).reshape(len(weights), -1).sum(1) * zero
        return rows.astype(np.int32).reshape(-1, *(1,) * (weights.ndim - 2))
    ones = np.ones((1, *shape[1:]), np.int8)  # type: ignore[type-var]
    (sums,) = replace(op, epilogue=IDENTITY).evaluate([ones, weights])
    return (sums[0].astype(np.int64) * zero).astype(np.int32)
