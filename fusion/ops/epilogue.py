"""What operations with an epilogue share: its result type, and its value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion.dims import Shape
from fusion.dtypes import DataType
from fusion.expression import Expression, Operand, compute_type, evaluate, type_of
from fusion.network import ShapeError, TensorType, broadcast

IDENTITY = Operand(0)


def widen(x: np.ndarray) -> np.ndarray:
    """``x`` in the type in which it is computed (float32 for narrower floating-point types)."""
    return x.astype(compute_type(DataType(x.dtype.name)).numpy, copy=False)


def product_type(dtype: DataType) -> DataType:
    """The type of a sum of products of ``dtype``, which an epilogue sees as operand 0: int32 for narrower integers, float32
    for 8-bit floats, else ``dtype`` itself. A layer of 8-bit operands is what quantisation makes of a product."""
    if dtype.itemsize == 1:
        return DataType.FLOAT if dtype.is_float else DataType.INT32
    return DataType.INT32 if dtype in (DataType.INT16, DataType.UINT16) else dtype


def accumulator(*arrays: np.ndarray) -> np.dtype:
    """The type in which NumPy sums products of ``arrays``: float32 (float64 for doubles), float64 for 8-bit integers, whose
    sums it holds exactly (and BLAS is fast), int32 or a wider integer for others."""
    if all(array.dtype.kind in "iu" and array.dtype.itemsize == 1 for array in arrays):
        return np.dtype(np.float64)
    wide = np.result_type(*(compute_type(DataType(array.dtype.name)).numpy for array in arrays))
    return wide if wide.kind == "f" or wide.itemsize >= 4 else np.dtype(np.int32)


def apply_prologue(prologue: Expression, x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """``prologue`` of each element of ``x`` (and its further operands), in the type in which it is computed."""
    return x if prologue == IDENTITY and x is widen(x) else widen(evaluate(prologue, [widen(x), *map(widen, others)]))


def epilogue_type(epilogue: Expression, dtype: DataType, shape: Shape, extras: Sequence[TensorType]) -> TensorType:
    """The type of an output whose result (``dtype``, ``shape``) goes through ``epilogue``.

    Raises:
        ShapeError: an extra operand does not broadcast to ``shape``.
    """
    for extra in extras:
        if broadcast([shape, extra.shape]) != tuple(shape) and extra.is_static:
            raise ShapeError(f"epilogue operand of shape {extra.shape} does not broadcast to {shape}")
    return TensorType(type_of(epilogue, [dtype, *(extra.dtype for extra in extras)]), tuple(shape))


def apply_epilogue(
    epilogue: Expression, dtype: DataType, result: np.ndarray, extras: Sequence[np.ndarray]
) -> np.ndarray:
    """``epilogue`` of ``result``, which is of type ``dtype`` but may be held wider; rounded once, at the end."""
    out = type_of(epilogue, [dtype, *(DataType(extra.dtype.name) for extra in extras)])
    if epilogue == IDENTITY:
        return result.astype(out.numpy, copy=False)
    wide = result.astype(compute_type(dtype).numpy, copy=False)
    return evaluate(epilogue, [wide, *extras]).astype(out.numpy, copy=False)
