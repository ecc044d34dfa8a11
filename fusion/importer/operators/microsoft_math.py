"""More operators of ONNX Runtime (domain com.microsoft): those of the standard under another name, and small compositions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.dims import product
from fusion.dtypes import DataType
from fusion.importer.builder import X0, X1, X2, X3, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.generate import range_
from fusion.importer.operators.indexing import gather, gather_nd
from fusion.importer.operators.matmul import product_of
from fusion.importer.operators.microsoft import activated, fused_matmul, one_of
from fusion.importer.operators.movement import channels_first, channels_last, pad
from fusion.importer.operators.quantization import qlinear_conv
from fusion.importer.operators.sampling import grid_sample
from fusion.importer.operators.select import unique
from fusion.importer.operators.signal import real_inverse, transform
from fusion.importer.operators.slicing import cut
from fusion.importer.registry import MICROSOFT, operator
from fusion.importer.values import Value
from fusion.ops import Concatenation, Inverse, MatrixMultiply, Reduce, Softmax

operator("GatherND", domain=MICROSOFT)(gather_nd)
operator("GridSample", domain=MICROSOFT)(grid_sample)
operator("Range", domain=MICROSOFT)(range_)
operator("TorchEmbedding", domain=MICROSOFT)(gather)


@operator("Inverse", domain=MICROSOFT)
def inverse(b: Builder, node: Node) -> Value:
    return b.layer(Inverse(), node.input(0))


@operator("Pad", domain=MICROSOFT)
def flat_pad(b: Builder, node: Node) -> Value:
    """Pads may stand in one row of a matrix."""
    pads = node.input(1)
    row = pads if pads.rank == 1 else b.reshape(pads, (product(pads.shape),), "pads")
    return one_of(pad(b, replace(node, inputs=(node.inputs[0], row, *node.inputs[2:]))))


@operator("Unique", domain=MICROSOFT)
def distinct(b: Builder, node: Node) -> tuple[Value, ...]:
    """Values in the order of their first places, the number of each element's value, how often each stands."""
    outputs = [*node.outputs, "", ""]
    values, _, inverse, counts = list(unique(b, replace(node, attributes={"sorted": 0}, outputs=(outputs[0], "", outputs[1], outputs[2]))))  # type: ignore[arg-type, misc]
    return values, inverse, counts


@operator("QLinearConv", domain=MICROSOFT)
def qlinear_conv_any(b: Builder, node: Node) -> Value:
    """As the standard's, channels last when ``channels_last`` is 1 (the weights stand as they always do)."""
    if not node.attr("channels_last", 0):
        return one_of(qlinear_conv(b, node))
    first = channels_first(b, node.input(0))
    return channels_last(b, one_of(qlinear_conv(b, replace(node, inputs=(first, *node.inputs[1:])))))


@operator("MatMulInteger16", domain=MICROSOFT)
def matmul_integer_16(b: Builder, node: Node) -> Value:
    """int16 times int16 (or their unsigned forms), summed in int32."""
    left, right = (b.convert(node.input(index), DataType.INT32, name) for index, name in ((0, "left"), (1, "right")))
    made = product_of(b, left, right)
    unsigned = all(node.input(index).dtype is DataType.UINT16 for index in (0, 1))
    return b.convert(made, DataType.UINT32, "unsigned") if unsigned else made


@operator("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(b: Builder, node: Node) -> Value:
    made, bias = product_of(b, node.input(0), node.input(1)), node.optional(2)
    return b.pointwise(call("gelu_tanh", X0 if bias is None else call("add", X0, X1)), made, *([] if bias is None else [bias]), suffix="gelu")


@operator("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul_activation(b: Builder, node: Node) -> Value:
    node.required("activation")
    return activated(b, node, one_of(fused_matmul(b, node)))


@operator("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(b: Builder, node: Node) -> Value:
    """Softmax of ``data + bias`` over all axes from ``axis`` on."""
    x, bias = node.input(0), node.input(1)
    axis = node.axis(node.attr("axis", 1), x.rank)
    if not node.attr("is_inner_broadcast", 1) or bias.rank == x.rank:
        total = b.pointwise(call("add", X0, X1), x, bias, suffix="sum")
    else:  # the bias has the leading axes and those of the softmax, none between
        lead = bias.rank - (x.rank - axis)
        shape = (*bias.shape[:lead], *(1,) * (axis - lead), *bias.shape[lead:])
        total = b.pointwise(call("add", X0, X1), x, b.reshape(bias, shape, "bias"), suffix="sum")
    if axis == x.rank - 1:
        return b.layer(Softmax(axis), total)
    flat = b.reshape(total, (product(x.shape[:axis]), product(x.shape[axis:])), "flat")
    return b.reshape(b.layer(Softmax(1), flat), x.shape, "shape")


@operator("BiasDropout", domain=MICROSOFT)
def bias_dropout(b: Builder, node: Node) -> Value:
    """``data + bias + residual``: nothing drops out of an inference."""
    training, residual = node.optional(4), node.optional(2)
    if training is not None and b.scalar(training, "training_mode"):
        raise Unsupported("training_mode is set")
    node.refuse_outputs(1, what="the mask")
    total = b.pointwise(call("add", X0, X1), node.input(0), node.input(1), suffix="biased" if residual is not None else "")
    return total if residual is None else b.pointwise(call("add", X0, X1), total, residual)


@operator("ComplexMul", "ComplexMulConj", domain=MICROSOFT)
def complex_mul(b: Builder, node: Node) -> Value:
    """Products of complex numbers (the last axis holds their parts); the second factor conjugated, or not."""
    parts = []
    for index, name in enumerate("ab"):
        x = node.input(index)
        shape = (*x.shape[:-1], 1)
        parts += [cut(b, x, (*(0,) * (x.rank - 1), part), shape, (1,) * x.rank, f"{name}_{part}") for part in (0, 1)]
    plus, minus = ("add", "sub") if node.op == "ComplexMulConj" else ("sub", "add")
    real = b.pointwise(call(plus, call("mul", X0, X2), call("mul", X1, X3)), *parts, suffix="real")
    imaginary = b.pointwise(call(minus, call("mul", X1, X2), call("mul", X0, X3)), *parts, suffix="imaginary")
    return b.layer(Concatenation(real.rank - 1), real, imaginary)


@operator("Rfft", "Irfft", domain=MICROSOFT)
def real_transform(b: Builder, node: Node) -> Value:
    """The first half of the spectrum of real signals along the last axis, and back (scaled by the number of points)."""
    x = node.input(0)
    if node.attr("signal_ndim", 1) != 1 or node.attr("normalized", 0) or not node.attr("onesided", 1):
        raise Unsupported("signals of several axes, normalised or whole spectra are not supported")
    if node.op == "Rfft":
        points = x.shape[-1]
        return transform(b, b.reshape(x, (*x.shape, 1), "complex_column"), points, False, points // 2 + 1)
    found = real_inverse(b, x, (x.shape[-2] - 1) * 2)
    return b.reshape(found, found.shape[:-1], "real")


@operator("CDist", domain=MICROSOFT)
def distances(b: Builder, node: Node) -> Value:
    """Distances of all rows of A to all rows of B, by ``|a|^2 + |b|^2 - 2ab``."""
    metric = node.attr("metric", "sqeuclidean")
    if metric not in ("euclidean", "sqeuclidean"):
        raise Unsupported(f"metric {metric!r}; there are euclidean and sqeuclidean")
    x, y = node.input(0), node.input(1)
    rows, columns = (b.layer(Reduce("sum", (1,), name == "a", call("square", X0)), one, suffix=f"{name}_norms") for one, name in ((x, "a"), (y, "b")))
    two, zero = literal(2.0, x.dtype), literal(0.0, x.dtype)
    square = call("max", call("sub", call("add", X1, X2), call("mul", X0, two)), zero)
    made = b.layer(MatrixMultiply(transpose_b=True), x, y, suffix="products")
    return b.pointwise(call("sqrt", square) if metric == "euclidean" else square, made, rows, columns)


@operator("IsAllFinite", domain=MICROSOFT)
def is_all_finite(b: Builder, node: Node) -> Value:
    """Whether no element of any input is infinite or NaN (or only one of both, when told so)."""
    yes = literal(1, DataType.INT32)
    infinite, nan = call("isinf", X0, yes, yes), call("isnan", X0)
    wrong = nan if node.attr("isnan_only", 0) else infinite if node.attr("isinf_only", 0) else call("or", infinite, nan)
    found = b.constant(np.array(True), "none")
    for index in range(len(node.inputs)):
        x = node.input(index)
        each = b.convert(b.pointwise(call("not", wrong), x, suffix=f"finite{index}"), DataType.INT32, f"finite{index}_number")
        least = b.layer(Reduce("min", tuple(range(x.rank)), False), each, suffix=f"least{index}") if x.rank else each
        found = b.pointwise(call("and", X0, X1), b.convert(least, DataType.BOOL, f"all{index}"), found, suffix=f"both{index}")
    return found
