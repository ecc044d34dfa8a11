"""Quantisation as pointwise expressions: per tensor, per axis and per block."""

from __future__ import annotations

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression
from fusion.importer.builder import X0, X1, X2, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.convolution import integer_product, per_channel
from fusion.importer.operators.elementwise import FP8_LIMITS
from fusion.importer.operators.slicing import cut
from fusion.importer.operators.windows import window
from fusion.importer.registry import operator
from fusion.importer.tensors import data_type_of
from fusion.importer.values import Value
from fusion.ops import Convolution, Expand

RANGES = {
    DataType.INT8: (-128, 127), DataType.UINT8: (0, 255), DataType.INT16: (-32768, 32767), DataType.UINT16: (0, 65535),
    DataType.INT32: (-(2**31), 2**31 - 1), DataType.INT4: (-8, 7), DataType.UINT4: (0, 15), DataType.INT2: (-2, 1), DataType.UINT2: (0, 3),
}  # fmt: skip

REAL_LIMITS = {**FP8_LIMITS, DataType.FP4: 6.0}


def along(b: Builder, node: Node, parameter: Value, x: Value, name: str) -> Value:
    """A scale or zero point, shaped to broadcast with ``x``."""
    if parameter.is_constant and parameter.array.size == 1:
        return b.constant(parameter.array.reshape(()), name)
    if all(dim == 1 for dim in parameter.shape):
        return parameter if parameter.rank == 0 else b.reshape(parameter, (), name)
    axis = node.axis(node.attr("axis", 1), x.rank)
    block = node.attr("block_size", 0)
    if not block:
        if parameter.rank != 1:
            raise Unsupported(f"{name} of shape {parameter.shape} without block_size")
        return b.reshape(parameter, (parameter.shape[0], *(1,) * (x.rank - axis - 1)), name)
    shape = parameter.shape
    column = b.reshape(parameter, (*shape[: axis + 1], 1, *shape[axis + 1 :]), f"{name}_column")
    spread = b.layer(Expand((*shape[: axis + 1], block, *shape[axis + 1 :])), column, suffix=f"{name}_spread")
    repeated = b.reshape(spread, (*shape[:axis], shape[axis] * block, *shape[axis + 1 :]), f"{name}_blocks")
    if repeated.shape == x.shape:
        return repeated
    return cut(b, repeated, (0,) * x.rank, x.shape, (1,) * x.rank, name)  # the last block is short


def quantize(
    b: Builder,
    x: Value,
    scale: Value,
    zero: Value | None,
    dtype: DataType,
    wide: DataType | None = None,
    saturate: bool = True,
) -> Value:
    """``saturate(round(x / scale) + zero)`` in ``wide``, half to even; 8-bit floats are not rounded to whole numbers first."""
    wide = wide or (x.dtype if x.dtype.is_float else scale.dtype if scale.dtype.is_float else DataType.FLOAT)
    value: Expression = X0 if x.dtype is wide else Convert(wide, X0)
    value = call("div", value, X1 if scale.dtype is wide else Convert(wide, X1))
    extras = [x, scale]
    if dtype in REAL_LIMITS:
        limit = REAL_LIMITS[dtype]
        low, high = -limit, limit
    else:
        if dtype not in RANGES:
            raise Unsupported(f"quantisation to {dtype.value}; supported are {', '.join(t.value for t in (*RANGES, *REAL_LIMITS))}")
        low, high = RANGES[dtype]
        value = call("round", value)
    if zero is not None and not _is_zero(zero):
        value = call("add", value, Convert(wide, X2))
        extras.append(zero)
    if saturate or dtype not in REAL_LIMITS:
        value = call("clip", value, literal(low, wide), literal(high, wide))
    return b.pointwise(Convert(dtype, value), *extras)


@operator("QuantizeLinear")
def quantize_linear(b: Builder, node: Node) -> Value:
    x, scale, zero = node.input(0), node.input(1), node.optional(2)
    if zero is not None:
        dtype = zero.dtype
    elif node.attr("output_dtype", 0):
        dtype = data_type_of(node.attributes["output_dtype"])
    else:
        dtype = DataType.UINT8
    shaped = along(b, node, scale, x, "scale")
    wide = data_type_of(node.attributes["precision"]) if node.attr("precision", 0) else None
    offset = None if zero is None else along(b, node, zero, x, "zero_point")
    return quantize(b, x, shaped, offset, dtype, wide, bool(node.attr("saturate", 1)))


@operator("DequantizeLinear")
def dequantize_linear(b: Builder, node: Node) -> Value:
    """``(x - zero) * scale``, in the type of the scale."""
    x, scale, zero = node.input(0), node.input(1), node.optional(2)
    dtype = data_type_of(node.attributes["output_dtype"]) if node.attr("output_dtype", 0) else scale.dtype
    if zero is not None and _is_zero(zero):
        zero = None
    wide = DataType.FLOAT if scale.dtype.itemsize < 4 else scale.dtype
    shaped = along(b, node, scale, x, "scale")
    extras = [x, shaped]
    if x.dtype.is_float:
        value: Expression = Convert(wide, X0)
        if zero is not None:
            value = call("sub", value, Convert(wide, X2))
    elif zero is None:
        value = Convert(wide, X0)
    else:
        value = Convert(wide, call("sub", Convert(DataType.INT32, X0), Convert(DataType.INT32, X2)))
    if zero is not None:
        extras.append(along(b, node, zero, x, "zero_point"))
    result: Expression = call("mul", value, X1 if shaped.dtype is wide else Convert(wide, X1))
    # Weights of 8 bits stay as they are stored until the quantisation rules have seen them (they are folded later else).
    return b.pointwise(result if dtype is wide else Convert(dtype, result), *extras, fold=x.dtype.itemsize > 1)


def _is_zero(zero: Value) -> bool:
    return zero.is_constant and not np.any(zero.array)


@operator("QLinearConv")
def qlinear_conv(b: Builder, node: Node) -> Value:
    """The int32 convolution (zero points subtracted, bias added), then scaled and rounded."""
    x, x_scale, x_zero, weights, w_scale, w_zero, y_scale, y_zero = (node.input(index) for index in range(8))
    sizes = tuple(int(size) for size in weights.shape[2:])  # type: ignore[arg-type]
    w = window(node, x.shape[2:], sizes)
    if w_zero.rank == 1 and w_zero.shape != (1,):
        w_zero = b.reshape(w_zero, (w_zero.shape[0], *(1,) * (weights.rank - 1)), "w_zero")
    op = Convolution(w.strides, w.pre, w.post, w.dilations, node.attr("group", 1))
    total = integer_product(b, op, x, weights, _scalar(b, x_zero, "x_zero"), _scalar(b, w_zero, "w_zero_scalar"))
    bias = node.optional(8)
    if bias is not None:
        total = b.pointwise(call("add", X0, X1), total, per_channel(b, bias, x.rank, "bias"), suffix="sum")
    factor = b.pointwise(call("mul", X0, X1), _scalar(b, x_scale, "x_scale"), _scalar(b, w_scale, "w_scale"), suffix="factor")
    if factor.rank:
        factor = b.reshape(factor, (factor.shape[0], *(1,) * (x.rank - 2)), "factor_shape")
    real = b.pointwise(call("mul", Convert(DataType.FLOAT, X0), X1), total, factor, suffix="scaled")
    return quantize(b, real, _scalar(b, y_scale, "y_scale"), _scalar(b, y_zero, "y_zero"), y_zero.dtype)


def _scalar(b: Builder, x: Value, suffix: str) -> Value:
    return b.reshape(x, (), suffix) if x.rank and all(dim == 1 for dim in x.shape) else x
