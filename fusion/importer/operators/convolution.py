"""Conv, ConvTranspose and the integer convolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.dims import Dim, is_static
from fusion.dtypes import DataType
from fusion.expression import Convert
from fusion.importer.builder import X0, X1, Builder, call
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.windows import window
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Convolution, Deconvolution, MatrixMultiply
from fusion.ops.epilogue import IDENTITY
from fusion.quantization import at_border, correction, shifted_weights


def per_channel(b: Builder, vector: Value, rank: int, suffix: str, axis: int = 1) -> Value:
    """A vector over ``axis`` of a tensor with ``rank`` dimensions, shaped ``[C, 1, 1 ...]`` to broadcast with it."""
    return b.reshape(vector, (vector.shape[0], *(1,) * (rank - axis - 1)), suffix)


def _weights(node: Node, index: int = 1) -> tuple[Value, tuple[int, ...]]:
    weights = node.input(index)
    sizes = weights.shape[2:]
    if not all(isinstance(size, int) for size in sizes):
        raise Unsupported(f"weights of shape {weights.shape}: the window's size must be known")
    given = node.attr("kernel_shape")
    if given is not None and tuple(given) != sizes:
        raise Unsupported(f"kernel_shape {given} and weights of shape {weights.shape} differ")
    return weights, sizes  # type: ignore[return-value]


def _check_rank(x: Value) -> None:
    if not 3 <= x.rank <= 5:
        raise Unsupported(f"convolution over a tensor with {x.rank} dimensions; 3 to 5 are supported")


def bias_epilogue(b: Builder, bias: Value | None, rank: int) -> tuple:
    """(epilogue, operands) that add a bias per channel."""
    if bias is None:
        return IDENTITY, ()
    return call("add", X0, X1), (per_channel(b, bias, rank, "bias"),)


@operator("Conv")
def conv(b: Builder, node: Node) -> Value:
    x = node.input(0)
    _check_rank(x)
    weights, sizes = _weights(node)
    w = window(node, x.shape[2:], sizes)
    epilogue, extras = bias_epilogue(b, node.optional(2), x.rank)
    op = Convolution(w.strides, w.pre, w.post, w.dilations, node.attr("group", 1), epilogue=epilogue)
    return b.layer(op, x, weights, *extras)


@operator("ConvInteger")
def conv_integer(b: Builder, node: Node) -> Value:
    """Exact in int32: zero points are subtracted before the product."""
    x, weights = node.input(0), node.input(1)
    _check_rank(x)
    _, sizes = _weights(node)
    w = window(node, x.shape[2:], sizes)
    zero = node.optional(3)
    if zero is not None and zero.rank == 1 and zero.shape != (1,):
        zero = b.reshape(zero, (zero.shape[0], *(1,) * (weights.rank - 1)), "zero")
    op = Convolution(w.strides, w.pre, w.post, w.dilations, node.attr("group", 1))
    return integer_product(b, op, x, weights, node.optional(2), zero)


def integer_product(
    b: Builder, op: Convolution | MatrixMultiply, x: Value, weights: Value, zero_x: Value | None, zero_w: Value | None
) -> Value:
    """``op`` of ``x - zero_x`` and ``weights - zero_w``, exact in int32.

    Constant weights stay 8 bits wide where int8 holds them without their zero point, and then x does too: what its zero point
    (a number, one per row, or known at run time only) adds to the sums is subtracted behind the product."""
    moved = _plain_weights(op, x, weights, zero_x, zero_w)
    if moved is None:
        return b.layer(op, widen(b, x, zero_x, "x32"), widen(b, weights, zero_w, "w32"))
    values = b.constant(moved, "weights")
    if zero_x is None or (zero_x.is_constant and not np.any(zero_x.array)):
        return b.layer(op, x, values)
    sums = b.constant(correction(op, moved, x.shape, 1), "sums")
    if zero_x.rank and all(dim == 1 for dim in zero_x.shape):
        zero_x = b.reshape(zero_x, (), "zero_x")
    shift = b.pointwise(call("mul", Convert(DataType.INT32, X0), X1), zero_x, sums, suffix="shift")
    return b.layer(replace(op, epilogue=call("sub", X0, X1)), x, values, shift)


def _plain_weights(
    op: Convolution | MatrixMultiply, x: Value, weights: Value, zero_x: Value | None, zero_w: Value | None
) -> np.ndarray | None:
    """Constant weights as int8 without zero point, where the product can be computed with them."""
    eight = (DataType.INT8, DataType.UINT8)
    if x.dtype not in eight or weights.dtype not in eight or not weights.is_constant or weights.rank < 2:
        return None
    if zero_w is not None and not zero_w.is_constant:
        return None
    if zero_x is not None and at_border(op) and not is_static(x.shape[1:]):
        return None
    moved = shifted_weights(weights.array, np.zeros((), np.int32) if zero_w is None else zero_w.array)
    return None if isinstance(moved, str) else moved


def widen(b: Builder, x: Value, zero: Value | None, suffix: str) -> Value:
    """``x - zero`` in int32."""
    if zero is None:
        return b.convert(x, DataType.INT32, suffix)
    return b.pointwise(call("sub", Convert(DataType.INT32, X0), Convert(DataType.INT32, X1)), x, zero, suffix=suffix)


@operator("ConvTranspose")
def conv_transpose(b: Builder, node: Node) -> Value:
    x = node.input(0)
    _check_rank(x)
    weights, sizes = _weights(node)
    spatial = x.shape[2:]
    rank = len(spatial)
    strides = node.attr("strides", (1,) * rank)
    dilations = node.attr("dilations", (1,) * rank)
    extra: tuple[Dim, ...] = node.attr("output_padding", (0,) * rank)
    pads: tuple[Dim, ...] = node.attr("pads", (0,) * (2 * rank))
    mode = node.attr("auto_pad", "NOTSET")
    wanted: tuple[Dim, ...] | None = node.attr("output_shape")
    if wanted is not None:
        wanted = wanted[-rank:]
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(size * stride for size, stride in zip(spatial, strides, strict=True))
    elif mode == "VALID":
        pads = (0,) * (2 * rank)
    if wanted is not None:
        totals = [
            (size - 1) * stride + more + (k - 1) * dilation + 1 - out
            for size, stride, more, k, dilation, out in zip(spatial, strides, extra, sizes, dilations, wanted, strict=True)
        ]
        # A wanted shape larger than the full result is reached by padding at the end.
        extra = tuple(
            more - total if isinstance(total, int) and total < 0 else more for total, more in zip(totals, extra, strict=True)
        )
        totals = [0 if isinstance(total, int) and total < 0 else total for total in totals]
        smaller = [total // 2 for total in totals]
        larger = [total - half for total, half in zip(totals, smaller, strict=True)]
        pads = (*smaller, *larger) if mode == "SAME_UPPER" else (*larger, *smaller)
    epilogue, extras = bias_epilogue(b, node.optional(2), x.rank)
    op = Deconvolution(
        tuple(strides), tuple(pads[:rank]), tuple(pads[rank:]), tuple(dilations), tuple(extra), node.attr("group", 1),
        epilogue=epilogue,
    )  # fmt: skip
    return b.layer(op, x, weights, *extras)
