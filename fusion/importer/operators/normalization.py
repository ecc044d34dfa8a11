"""Normalisations: batch (a scale and shift at inference), layer, RMS, instance, group, local response, Lp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression
from fusion.importer.builder import X0, X1, X2, X3, X4, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.convolution import per_channel
from fusion.importer.operators.pooling import lp_norm
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Expand, GroupNormalization, LocalResponseNormalization, Normalization, Reduce, Shuffle
from fusion.ops.normalization import unit_length


@operator("BatchNormalization")
def batch_normalization(b: Builder, node: Node) -> Value:
    """``x * scale + shift``, both computed in float64 and then rounded once. With ``training_mode``, by the statistics of x itself: so exporters write
    standardised weights (NFNet, BiT)."""
    x = node.input(0)
    parameters = [node.input(index) for index in range(1, 5)]
    if node.opset < 9 and not node.attr("spatial", 1):
        raise Unsupported("spatial = 0 (statistics per position) is not supported")
    node.refuse_outputs(1, 2, 3, 4, what="statistics of training")
    epsilon = node.attr("epsilon", 1e-5)
    if node.attr("training_mode", 0) or (node.opset < 7 and not node.attr("is_test", 0)):
        return _by_its_own_statistics(b, x, parameters[:2], epsilon)
    if all(value.is_constant for value in parameters):
        scale, bias, mean, variance = (np.asarray(value.array, np.float64) for value in parameters)
        factor = scale / np.sqrt(variance + epsilon)
        shift = bias - mean * factor
        rank = max(x.rank - 2, 0)
        factor, shift = (item.astype(x.dtype.numpy).reshape(-1, *(1,) * rank) for item in (factor, shift))
        expression = call("add", call("mul", X0, X1), X2)
        return b.pointwise(expression, x, b.constant(factor, "scale"), b.constant(shift, "shift"))
    wide = DataType.DOUBLE if x.dtype is DataType.DOUBLE else DataType.FLOAT
    shaped = [per_channel(b, b.convert(value, wide, f"float{index}"), x.rank, f"shape{index}")
              for index, value in enumerate(parameters)]  # fmt: skip
    factor_of = call("mul", X1, call("rsqrt", call("add", X4, literal(epsilon, wide))))
    normal = call("add", call("mul", call("sub", Convert(wide, X0), X3), factor_of), X2)
    return b.pointwise(normal if x.dtype is wide else Convert(x.dtype, normal), x, *shaped)


def _by_its_own_statistics(b: Builder, x: Value, parameters: Sequence[Value], epsilon: float) -> Value:
    """Every channel normalised over the batch and all positions: rows of it, which is moved to the front for that where there is more than one image."""
    scale, bias = (per_channel(b, value, x.rank, name) for value, name in zip(parameters, ("scale", "bias"), strict=True))
    epilogue, extras = b.epilogue(call("add", call("mul", X0, X1), X2), scale, bias)
    if x.shape[0] == 1 and x.rank > 2:
        return b.layer(Normalization(tuple(range(2, x.rank)), epsilon, epilogue=epilogue), x, *extras)
    order = (1, 0, *range(2, x.rank))
    rows = b.layer(Shuffle(order), x, suffix="channels")
    normal = b.layer(Normalization(tuple(range(1, x.rank)), epsilon), rows, suffix="normalised")
    back = b.layer(Shuffle(order), normal, suffix="images")
    return b.pointwise(epilogue, back, *extras)


@operator("InstanceNormalization")
def instance_normalization(b: Builder, node: Node) -> Value:
    x = node.input(0)
    scale, bias = (per_channel(b, node.input(index), x.rank, name) for index, name in ((1, "scale"), (2, "bias")))
    epilogue, extras = b.epilogue(call("add", call("mul", X0, X1), X2), scale, bias)
    op = Normalization(tuple(range(2, x.rank)), node.attr("epsilon", 1e-5), epilogue=epilogue)
    return b.layer(op, x, *extras)


@operator("GroupNormalization", since=18)
def group_normalization(b: Builder, node: Node) -> Value:
    """Before opset 21 scale and bias are given per group, since then per channel."""
    x, groups = node.input(0), node.required("num_groups")
    channels = x.shape[1]
    if not isinstance(channels, int) or channels % groups:
        raise Unsupported(f"{channels} channels in {groups} groups")
    shaped = []
    for index, name in ((1, "scale"), (2, "bias")):
        vector = node.input(index)
        if node.opset < 21 and channels != groups:
            spread = b.layer(Expand((groups, channels // groups)), b.reshape(vector, (groups, 1), f"{name}_column"), suffix=f"{name}_spread")
            vector = b.reshape(spread, (channels,), f"{name}_vector")
        shaped.append(per_channel(b, vector, x.rank, name))
    epilogue, extras = b.epilogue(call("add", call("mul", X0, X1), X2), *shaped)
    return b.layer(GroupNormalization(groups, node.attr("epsilon", 1e-5), epilogue=epilogue), x, *extras)


def layer_norm(
    b: Builder, x: Value, axis: int, epsilon: float, scale: Value | None, bias: Value | None, *, center: bool = True
) -> Value:
    """Normalised over ``axis`` and all behind it, then scaled and shifted in the epilogue."""
    expression: Expression = X0
    extras = [value for value in (scale, bias) if value is not None]
    if scale is not None:
        expression = call("mul", X0 if scale.dtype is x.dtype else Convert(scale.dtype, X0), X1)
    if bias is not None:
        expression = call("add", expression, X2 if scale is not None else X1)
    epilogue, operands = b.epilogue(expression, *extras)
    return b.layer(Normalization(tuple(range(axis, x.rank)), epsilon, center, epilogue), x, *operands)


def statistics(b: Builder, x: Value, axis: int, epsilon: float) -> tuple[Value, Value]:
    """(mean, 1 / standard deviation) over ``axis`` and all behind it, in float32 or wider."""
    wide = b.convert(x, DataType.DOUBLE if x.dtype is DataType.DOUBLE else DataType.FLOAT, "float")
    axes = tuple(range(axis, x.rank))
    mean = b.layer(Reduce("mean", axes, True), wide, suffix="mean")
    centred = b.pointwise(call("sub", X0, X1), wide, mean, suffix="centred")
    deviation = call("rsqrt", call("add", X0, literal(epsilon, wide.dtype)))
    return mean, b.layer(Reduce("mean", axes, True, call("square", X0), deviation), centred, suffix="deviation")


@operator("LayerNormalization")
def layer_normalization(b: Builder, node: Node) -> tuple[Value, ...]:
    x = node.input(0)
    axis, epsilon = node.axis(node.attr("axis", -1), x.rank), node.attr("epsilon", 1e-5)
    result = layer_norm(b, x, axis, epsilon, node.optional(1), node.optional(2))
    return (result, *statistics(b, x, axis, epsilon)) if node.wants(1) or node.wants(2) else (result,)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(b: Builder, node: Node) -> Value:
    x = node.input(0)
    axis = node.axis(node.attr("axis", -1), x.rank)
    return layer_norm(b, x, axis, node.attr("epsilon", 1e-5), node.optional(1), None, center=False)


@operator("LRN")
def local_response(b: Builder, node: Node) -> Value:
    alpha, beta, bias = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)
    return b.layer(LocalResponseNormalization(node.required("size"), alpha, beta, bias), node.input(0))


@operator("LpNormalization")
def lp_normalization(b: Builder, node: Node) -> Value:
    """``x / norm(x)`` along one axis; where the norm is 0 the result is 0."""
    x, p = node.input(0), int(node.attr("p", 2))
    axis = node.axis(node.attr("axis", -1), x.rank)
    count = x.shape[axis]
    if p == 2 and isinstance(count, int) and count and x.dtype.is_float:
        return b.layer(Normalization((axis,), 0.0, False, unit_length(x.dtype, count), float(np.finfo(np.float32).tiny)), x)
    prologue, epilogue = lp_norm(p, x)
    norm = b.layer(Reduce("sum", (axis,), True, prologue, epilogue), x, suffix="norm")
    zero = literal(0, x.dtype)
    return b.pointwise(call("where", call("equal", X1, zero), zero, call("div", X0, X1)), x, norm)
