"""ONNX Runtime's quantised operators (domain com.microsoft): dequantise, compute, quantise, for fusion to join again.

Products of 8-bit numbers stay exact, in int32. MatMulNBits keeps weights of 4 and 8 bits packed; those of 2 bits, of GatherBlockQuantized and
of DynamicQuantizeLSTM are dequantised at build.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fusion.dims import product
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression
from fusion.importer.builder import X0, X1, X2, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators import recurrent
from fusion.importer.operators.convolution import widen
from fusion.importer.operators.matmul import integer_matmul
from fusion.importer.operators.microsoft import one_of
from fusion.importer.operators.microsoft_attention import attention
from fusion.importer.operators.movement import channels_first, channels_last
from fusion.importer.operators.pooling import pool
from fusion.importer.operators.quantization import dequantize_linear, quantize, quantize_linear
from fusion.importer.registry import MICROSOFT, operator
from fusion.importer.values import Value
from fusion.ops import Concatenation, Gather, MatrixMultiply, PackedMatrixMultiply, Reduce, Softmax
from fusion.ops.packed_matmul import unpacked

FLOAT, INT32 = DataType.FLOAT, DataType.INT32

operator("DequantizeLinear", domain=MICROSOFT)(dequantize_linear)
operator("QuantizeLinear", domain=MICROSOFT)(quantize_linear)


def _scalar(b: Builder, x: Value, suffix: str) -> Value:
    return b.reshape(x, (), suffix) if x.rank else x


def real(b: Builder, x: Value, scale: Value, zero: Value | None, name: str) -> Value:
    """``(x - zero) * scale`` in float32, for parameters of one element."""
    wide: Expression = X0 if zero is None else call("sub", Convert(INT32, X0), Convert(INT32, X2))
    extras = [_scalar(b, scale, f"{name}_scale")]
    if zero is not None:
        extras.append(_scalar(b, zero, f"{name}_zero"))
    return b.pointwise(call("mul", Convert(FLOAT, wide), X1), x, *extras, suffix=f"{name}_real")


def narrow(b: Builder, x: Value, scale: Value, zero: Value | None, dtype: DataType) -> Value:
    """x quantised with parameters of one element."""
    return quantize(b, x, _scalar(b, scale, "y_scale"), None if zero is None else _scalar(b, zero, "y_zero"), dtype)


@operator("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def binary(b: Builder, node: Node) -> Value:
    left = real(b, node.input(0), node.input(1), node.optional(2), "a")
    right = real(b, node.input(3), node.input(4), node.optional(5), "b")
    result = b.pointwise(call("add" if node.op == "QLinearAdd" else "mul", X0, X1), left, right, suffix="result")
    return narrow(b, result, node.input(6), node.optional(7), node.input(0).dtype)


@operator("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearGlobalAveragePool", "QLinearReduceMean", domain=MICROSOFT)
def unary(b: Builder, node: Node) -> Value:
    x = real(b, node.input(0), node.input(1), node.optional(2), "x")
    result = _UNARY[node.op](b, node, x)
    return narrow(b, result, node.input(3), node.optional(4), node.input(0).dtype)


def _softmax(b: Builder, node: Node, x: Value) -> Value:
    axis = node.axis(node.attr("axis", -1), x.rank)
    if node.attr("opset", 13) >= 13 or axis == x.rank - 1:
        return b.layer(Softmax(axis), x, suffix="softmax")
    flat = b.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])), "rows")  # before opset 13 all axes from this one are one
    return b.reshape(b.layer(Softmax(1), flat, suffix="softmax"), x.shape, "shape")


def _average(b: Builder, node: Node, x: Value) -> Value:
    axes = tuple(range(1, x.rank - 1)) if node.attr("channels_last", 0) else tuple(range(2, x.rank))
    return b.layer(Reduce("mean", axes, True), x, suffix="mean")


def _mean(b: Builder, node: Node, x: Value) -> Value:
    axes = tuple(sorted(node.axis(axis, x.rank) for axis in node.attr("axes", tuple(range(x.rank)))))
    return b.layer(Reduce("mean", axes, bool(node.attr("keepdims", 1))), x, suffix="mean")


_UNARY: dict[str, Callable[[Builder, Node, Value], Value]] = {
    "QLinearSigmoid": lambda b, node, x: b.pointwise(call("sigmoid", X0), x, suffix="sigmoid"),
    "QLinearLeakyRelu": lambda b, node, x: b.pointwise(
        call("leaky_relu", X0, literal(node.attr("alpha", 0.01), FLOAT)), x, suffix="leaky_relu"
    ),
    "QLinearSoftmax": _softmax,
    "QLinearGlobalAveragePool": _average,
    "QLinearReduceMean": _mean,
}


@operator("QLinearAveragePool", domain=MICROSOFT)
def average_pool(b: Builder, node: Node) -> Value:
    x = real(b, node.input(0), node.input(1), node.optional(2), "x")
    last = bool(node.attr("channels_last", 0))
    if last:
        x = channels_first(b, x)
    made = one_of(pool(b, replace(node, op="AveragePool", inputs=(x,), outputs=node.outputs[:1])))
    if last:
        made = channels_last(b, made)
    return narrow(b, made, node.input(3), node.optional(4), node.input(0).dtype)


@operator("QLinearConcat", domain=MICROSOFT)
def concat(b: Builder, node: Node) -> Value:
    """Triples of tensor, scale and zero point."""
    scale, zero = node.input(0), node.input(1)
    parts = [
        narrow(b, real(b, node.input(index), node.input(index + 1), node.input(index + 2), f"x{index}"), scale, zero, zero.dtype)
        for index in range(2, len(node.inputs), 3)
    ]
    return b.layer(Concatenation(node.axis(node.required("axis"), parts[0].rank)), *parts)


@operator("QLinearWhere", domain=MICROSOFT)
def where(b: Builder, node: Node) -> Value:
    x = real(b, node.input(1), node.input(2), node.input(3), "x")
    y = real(b, node.input(4), node.input(5), node.input(6), "y")
    chosen = b.pointwise(call("where", X0, X1, X2), node.input(0), x, y, suffix="chosen")
    return narrow(b, chosen, node.input(7), node.input(8), node.input(8).dtype)


@operator("QGemm", domain=MICROSOFT)
def q_gemm(b: Builder, node: Node) -> Value:
    """The int32 product plus an int32 bias, scaled, and quantised when a scale is given."""
    a, a_scale, a_zero, other, b_scale, b_zero = (node.input(index) for index in range(6))
    op = MatrixMultiply(bool(node.attr("transA", 0)), bool(node.attr("transB", 0)))
    if b_zero.rank == 1 and b_zero.shape != (1,) and op.transpose_b:
        b_zero = b.reshape(b_zero, (b_zero.shape[0], 1), "b_zero")
    total = integer_matmul(b, a, other, a_zero, b_zero, op)
    bias = node.optional(6)
    if bias is not None:
        total = b.pointwise(call("add", X0, X1), total, bias, suffix="biased")
    factor = b.pointwise(call("mul", call("mul", X0, X1), literal(node.attr("alpha", 1.0), FLOAT)), a_scale, b_scale, suffix="factor")
    result = b.pointwise(call("mul", Convert(FLOAT, X0), X1), total, factor, suffix="scaled")
    scale = node.optional(7)
    return result if scale is None else narrow(b, result, scale, node.optional(8), a.dtype)


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(b: Builder, node: Node) -> Value:
    a, other, a_scale, b_scale = (node.input(index) for index in range(4))
    return _scaled(b, a, a_scale, node.optional(4), other, b_scale, node.optional(5), node.optional(6))


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(b: Builder, node: Node) -> Value:
    """a is quantised to uint8 over its own range, zero included."""
    a, other, b_scale = (node.input(index) for index in range(3))
    axes = tuple(range(a.rank))
    low, high = (b.layer(Reduce(kind, axes, False), a, suffix=kind) for kind in ("min", "max"))
    zero_f, top = literal(0.0, FLOAT), literal(255.0, FLOAT)
    low, high = (b.pointwise(call(kind, X0, zero_f), one, suffix=f"{kind}_0") for one, kind in ((low, "min"), (high, "max")))
    span = call("div", call("sub", X1, X0), top)
    scale = b.pointwise(call("where", call("equal", X1, X0), literal(1.0, FLOAT), span), low, high, suffix="a_scale")
    offset = call("clip", call("round", call("div", call("neg", X0), X1)), zero_f, top)
    zero = b.pointwise(Convert(DataType.UINT8, offset), low, scale, suffix="a_zero")
    return _scaled(b, quantize(b, a, scale, zero, DataType.UINT8), scale, zero, other, b_scale, node.optional(3), node.optional(4))


def _scaled(
    b: Builder, a: Value, a_scale: Value, a_zero: Value | None, other: Value, b_scale: Value, b_zero: Value | None, bias: Value | None
) -> Value:
    """The int32 product times both scales (those of b may be one per column), plus a bias."""
    total = integer_matmul(b, a, other, a_zero, b_zero)
    factor = b.pointwise(call("mul", X0, X1), _scalar(b, a_scale, "a_scale_0"), b_scale, suffix="factor")
    expression: Expression = call("mul", Convert(FLOAT, X0), X1)
    return b.pointwise(expression if bias is None else call("add", expression, X2), total, factor, *([] if bias is None else [bias]))


@operator("MatMulNBits", domain=MICROSOFT)
def matmul_bits(b: Builder, node: Node) -> Value:
    """A product with ``[N, K]`` weights of 2, 4 or 8 bits in blocks along K."""
    x, bits, block = node.input(0), node.attr("bits", 4), node.required("block_size")
    rows, width = node.required("N"), node.required("K")
    if node.optional(4) is not None or node.attr("weight_prepacked", 0):
        raise Unsupported("g_idx and prepacked weights are not supported")
    packed = b.array(node.input(1), "weights")
    scales, zeros = b.array(node.input(2), "scales"), node.optional(3)
    blocks = -(-width // block)
    points = None if zeros is None else b.array(zeros, "zero points")
    if packed.size != rows * blocks * block * bits // 8:
        raise Unsupported(f"packed weights of shape {packed.shape}, not {(rows, blocks, block * bits // 8)}")
    bias = node.optional(5)
    epilogue, extras = (X0, ()) if bias is None else b.epilogue(call("add", X0, X1), bias)
    if x.rank < 2:
        raise Unsupported("a product with a vector")
    packed, scales = packed.reshape(rows, -1), scales.reshape(rows, blocks)
    if bits == 2:
        weights = dequantized(packed, scales, points, bits, block)[:, :width]
        matrix = b.constant(np.ascontiguousarray(weights.astype(x.dtype.numpy)), "weights")
        return b.layer(MatrixMultiply(transpose_b=True, epilogue=epilogue), x, matrix, *extras)
    inputs = {"weights": packed.view(np.uint8)[:, : -(-width * bits // 8)], "scales": scales, "zeros": _offsets(points, rows, blocks, bits)}
    types = {"weights": np.dtype(np.uint8), "scales": x.dtype.numpy, "zeros": x.dtype.numpy}
    values = [b.constant(np.ascontiguousarray(one.astype(types[name])), name) for name, one in inputs.items()]
    return b.layer(PackedMatrixMultiply(bits, width, block, epilogue), x, *values, *extras)


@operator("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(b: Builder, node: Node) -> Value:
    """Rows of a table of 2, 4 or 8 bits, blocks along its last axis."""
    table, indices, scales, zeros = node.input(0), node.input(1), node.input(2), node.optional(3)
    bits, block = node.attr("bits", 4), node.attr("block_size", 128)
    if table.rank != 2 or table.dtype is not DataType.UINT8 or node.attr("gather_axis", 0) != 0 or node.attr("quantize_axis", 1) not in (1, -1):
        raise Unsupported("only uint8 tables of two dimensions, gathered along 0 and in blocks along 1, are supported")
    points = None if zeros is None else b.array(zeros, "zero points")
    made = dequantized(b.array(table, "table"), b.array(scales, "scales"), points, bits, block)
    return b.layer(Gather(0), b.constant(made.astype(scales.dtype.numpy), "table"), indices)


def dequantized(packed: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int, block: int) -> np.ndarray:
    """Rows of packed unsigned numbers (the first in the lowest bits) as float32, less their block's zero point, times its scale."""
    if bits not in (2, 4, 8):
        raise Unsupported(f"{bits} bits; 2, 4 and 8 are supported")
    rows, blocks = scales.shape
    values = unpacked(packed, bits)[:, : blocks * block].astype(np.float32)
    width = values.shape[1]
    spread = [np.repeat(one, block, 1)[:, :width] for one in (_offsets(zeros, rows, blocks, bits), scales.astype(np.float32))]
    return (values - spread[0]) * spread[1]


def _offsets(zeros: np.ndarray | None, rows: int, blocks: int, bits: int) -> np.ndarray:
    """Zero points ``[rows, blocks]``: given as packed numbers or real ones, or the middle of the range."""
    if zeros is None:
        return np.full((rows, blocks), 1 << (bits - 1), np.float32)
    if zeros.dtype == np.uint8:
        return unpacked(zeros.reshape(rows, -1), bits)[:, :blocks].astype(np.float32)
    return zeros.reshape(rows, blocks).astype(np.float32)


@operator("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(b: Builder, node: Node) -> tuple[Value, ...]:
    """An LSTM with dequantised weights. (ONNX Runtime also rounds inputs and states to 8 bits at every step; this is more exact.)"""
    w, r = (
        _weights(b, node.input(index), node.input(scale), node.input(scale + 1), name) for index, scale, name in ((1, 8, "w"), (2, 10, "r"))
    )
    return recurrent.build(b, replace(node, inputs=node.inputs[:8]), w, r)


def _weights(b: Builder, x: Value, scale: Value, zero: Value, name: str) -> Value:
    """``[D, 4 * H, K]`` from ``[D, K, 4 * H]`` with one scale per direction, or per direction and column."""
    shapes = [(*one.shape[:1], 1, *one.shape[1:]) if one.rank == 2 else (*one.shape, 1, 1) for one in (scale, zero)]
    wide = call("mul", Convert(FLOAT, call("sub", Convert(INT32, X0), Convert(INT32, X2))), X1)
    parameters = [b.reshape(one, shape, f"{name}_{what}") for one, shape, what in zip((scale, zero), shapes, ("scale", "zero"), strict=True)]
    return b.transpose(b.pointwise(wide, x, *parameters, suffix=f"{name}_real"), (0, 2, 1), f"{name}_transposed")


@operator("QAttention", domain=MICROSOFT)
def q_attention(b: Builder, node: Node) -> tuple[Value, ...]:
    """Attention of the dequantised input and weights."""
    x, w, bias, x_scale, w_scale = (node.input(index) for index in range(5))
    zero = node.optional(7)
    wide: Expression = X0 if zero is None else call("sub", Convert(INT32, X0), Convert(INT32, X2))
    weights = b.pointwise(call("mul", Convert(FLOAT, wide), X1), w, w_scale, *([] if zero is None else [zero]), suffix="weights_real")
    inputs = (real(b, x, x_scale, node.optional(6), "x"), weights, bias, node.optional(5), node.optional(8))
    return tuple(attention(b, replace(node, inputs=inputs)))  # type: ignore[arg-type]


@operator("MulInteger", "ReduceSumInteger", domain=MICROSOFT)
def integers(b: Builder, node: Node) -> Value:
    """Sums and products of 8-bit numbers, in int32."""
    if node.op == "ReduceSumInteger":
        x = node.input(0)
        axes = tuple(sorted(node.axis(axis, x.rank) for axis in node.required("axes")))
        return b.layer(Reduce("sum", axes, bool(node.attr("keepdims", 1))), b.convert(x, INT32, "wide"))
    left, right = widen(b, node.input(0), node.optional(1), "a32"), widen(b, node.input(2), node.optional(3), "b32")
    return b.pointwise(call("mul", X0, X1), left, right)
