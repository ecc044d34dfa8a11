"""Conv, ConvTranspose and the integer convolution."""

from __future__ import annotations

from fusion.dims import Dim
from fusion.dtypes import DataType
from fusion.expression import Convert
from fusion.importer.builder import X0, X1, Builder, call
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.windows import window
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Convolution, Deconvolution
from fusion.ops.epilogue import IDENTITY


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
    x = widen(b, x, node.optional(2), "x")
    zero = node.optional(3)
    if zero is not None and zero.rank == 1 and zero.shape != (1,):
        zero = b.reshape(zero, (zero.shape[0], *(1,) * (weights.rank - 1)), "zero")
    weights = widen(b, weights, zero, "w")
    return b.layer(Convolution(w.strides, w.pre, w.post, w.dilations, node.attr("group", 1)), x, weights)


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
