"""Operators of ONNX Runtime (domain com.microsoft) that map onto ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusion.dtypes import DataType
from fusion.expression import Expression
from fusion.importer.builder import X0, X1, X2, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.convolution import conv, per_channel
from fusion.importer.operators.generate import trilu
from fusion.importer.operators.matmul import gemm, product_of
from fusion.importer.operators.movement import channels_first, channels_last
from fusion.importer.operators.normalization import layer_norm, layer_normalization, rms_normalization, statistics
from fusion.importer.operators.pooling import pool
from fusion.importer.operators.slicing import cut
from fusion.importer.registry import MICROSOFT, operator
from fusion.importer.values import Value
from fusion.ops import Fill, Gather, GroupNormalization, MatrixMultiply, Range, Reduce

operator("LayerNormalization", domain=MICROSOFT)(layer_normalization)
operator("SimplifiedLayerNormalization", domain=MICROSOFT)(rms_normalization)


@operator("Gelu", "FastGelu", "BiasGelu", domain=MICROSOFT)
def gelu(b: Builder, node: Node) -> Value:
    """Gelu of ``x + bias``; FastGelu is the tanh form."""
    bias = node.optional(1)
    function = "gelu_tanh" if node.op == "FastGelu" else "gelu"
    if bias is None:
        return b.pointwise(call(function, X0), node.input(0))
    return b.pointwise(call(function, call("add", X0, X1)), node.input(0), bias)


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(b: Builder, node: Node) -> Value:
    x = node.input(0)
    return b.pointwise(call("swish", X0, literal(node.attr("alpha", 1.702), x.dtype)), x)


@operator("FusedMatMul", domain=MICROSOFT)
def fused_matmul(b: Builder, node: Node) -> Value:
    x, other, alpha = node.input(0), node.input(1), node.attr("alpha", 1.0)
    # The batch stands between rows and columns: [M, ..., K] becomes [..., M, K].
    if node.attr("transBatchA", 0):
        x = b.transpose(x, (*range(1, x.rank - 1), 0, x.rank - 1), "a_batch_first")
    if node.attr("transBatchB", 0):
        other = b.transpose(other, (*range(1, other.rank - 1), 0, other.rank - 1), "b_batch_first")
    epilogue: Expression = X0 if alpha == 1.0 else call("mul", X0, literal(alpha, x.dtype))
    # Vectors are not transposed, whatever the flags say.
    first, second = (bool(node.attr(name, 0)) and one.rank >= 2 for one, name in ((x, "transA"), (other, "transB")))
    return product_of(b, x, other, MatrixMultiply(first, second, epilogue))


@operator("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(b: Builder, node: Node) -> tuple[Value, ...]:
    """Layer normalisation of ``input + skip (+ bias)``; the last output is that sum."""
    simplified = node.op.startswith("SkipSimplified")
    x, skip, gamma = node.input(0), node.input(1), node.input(2)
    beta = None if simplified else node.optional(3)
    bias = node.optional(3 if simplified else 4)
    if bias is None:
        total = b.pointwise(call("add", X0, X1), x, skip, suffix="sum")
    else:
        total = b.pointwise(call("add", call("add", X0, X1), X2), x, skip, bias, suffix="sum")
    epsilon = node.attr("epsilon", 1e-12)
    result = layer_norm(b, total, total.rank - 1, epsilon, gamma, beta, center=not simplified)
    if simplified:
        node.refuse_outputs(1, 2, what="statistics")
        return result, result, result, total
    mean, deviation = statistics(b, total, total.rank - 1, epsilon) if node.wants(1) or node.wants(2) else (total, total)
    return result, mean, deviation, total


def one_of(results: Value | Sequence[Value]) -> Value:
    """The only (or first) result of another operator's importer."""
    return results if isinstance(results, Value) else results[0]


def activation_of(name: str, parameters: Sequence[float], dtype: DataType) -> Expression:
    """The activation that a fused operator applies to operand 0; ``parameters`` are those of the activation's own operator."""
    known = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Softplus": "softplus", "Softsign": "softsign", "HardSwish": "hard_swish"}
    taking = {"LeakyRelu": ("leaky_relu", (0.01,)), "Clip": ("clip", (float("-inf"), float("inf"))), "Elu": ("elu", (1.0,)),
              "HardSigmoid": ("hard_sigmoid", (0.2, 0.5)), "ThresholdedRelu": ("thresholded_relu", (1.0,))}  # fmt: skip
    if not name:
        return X0
    if name in known:
        return call(known[name], X0)
    if name not in taking:
        raise Unsupported(f"activation {name!r}; there are {', '.join((*known, *taking))}")
    function, defaults = taking[name]
    values = [*parameters[: len(defaults)], *defaults[len(parameters) :]]
    return call(function, X0, *(literal(value, dtype) for value in values))


def activated(b: Builder, node: Node, x: Value) -> Value:
    """The activation that the attributes of a fused product name, of ``x``; without one ``x`` itself."""
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [node.attributes[name] for name in names if name in node.attributes]
    return b.pointwise(activation_of(node.attr("activation", ""), parameters, x.dtype), x, suffix="activation")


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(b: Builder, node: Node) -> Value:
    return activated(b, node, one_of(gemm(b, node)))


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(b: Builder, node: Node) -> Value:
    """``activation(conv(x, w) + bias + z)``."""
    result = one_of(conv(b, node))
    z = node.optional(3)
    if z is not None:
        result = b.pointwise(call("add", X0, X1), result, z, suffix="sum")
    expression = activation_of(node.attr("activation", ""), node.attr("activation_params", ()), result.dtype)
    return b.pointwise(expression, result, suffix="activation")


@operator("NhwcConv", "NhwcFusedConv", "NhwcMaxPool", domain=MICROSOFT)
def channels_last_operator(b: Builder, node: Node) -> Value:
    """The operator on channels-first tensors between two transpositions, which the layout pass makes disappear."""
    inner = {"NhwcConv": conv, "NhwcFusedConv": fused_conv, "NhwcMaxPool": pool}[node.op]
    inputs = list(node.inputs)
    for index in (0, 3):
        value = node.optional(index)
        if value is not None:
            inputs[index] = channels_first(b, value, f"channels_first_{index}")
    if node.op != "NhwcMaxPool" and inputs[1] is not None:  # the weights stand as [O, *window, C / groups]
        inputs[1] = channels_first(b, inputs[1], "weights")
    made = one_of(inner(b, replace(node, op="MaxPool" if inner is pool else node.op, inputs=tuple(inputs))))
    return channels_last(b, made)


@operator("BiasAdd", domain=MICROSOFT)
def bias_add(b: Builder, node: Node) -> Value:
    return b.pointwise(call("add", call("add", X0, X1), X2), *(node.input(index) for index in range(3)))


@operator("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(b: Builder, node: Node) -> Value:
    """The left half of ``x + bias`` times the gelu of the right half."""
    x, bias = node.input(0), node.input(1)
    half = x.shape[-1] // 2
    total = b.pointwise(call("add", X0, X1), x, bias, suffix="sum")
    left, right = (cut(b, total, (*(0,) * (x.rank - 1), start), (*x.shape[:-1], half), (1,) * x.rank, name)
                   for start, name in ((0, "left"), (half, "right")))  # fmt: skip
    return b.pointwise(call("mul", X0, call("gelu", X1)), left, right)


@operator("GroupNorm", "SkipGroupNorm", domain=MICROSOFT)
def group_norm(b: Builder, node: Node) -> tuple[Value, ...]:
    """Group normalisation, channels last unless told otherwise, with a sigmoid linear unit behind it when ``activation`` is 1."""
    x, gamma, beta = node.input(0), node.input(1), node.input(2)
    last, rank = bool(node.attr("channels_last", 1)), x.rank
    if node.op == "SkipGroupNorm":
        skip, bias = node.input(3), node.optional(4)
        if skip.rank == 2:  # one value per image and channel
            shape = (skip.shape[0], *(1,) * (rank - 2), skip.shape[1]) if last else (*skip.shape, *(1,) * (rank - 2))
            skip = b.reshape(skip, shape, "skip")
        x = b.pointwise(call("add", X0, X1), x, skip, suffix="sum")
        if bias is not None:
            x = b.pointwise(call("add", X0, X1), x, bias if last else per_channel(b, bias, rank, "bias"), suffix="biased")
    first = channels_first(b, x) if last else x
    wide = [b.convert(value, x.dtype, name) for value, name in ((gamma, "scale_type"), (beta, "shift_type"))]
    scale, shift = (per_channel(b, value, rank, name) for value, name in zip(wide, ("scale", "shift"), strict=True))
    expression: Expression = call("add", call("mul", X0, X1), X2)
    if node.attr("activation", 0):
        expression = call("swish", expression, literal(1.0, x.dtype))
    epilogue, extras = b.epilogue(expression, scale, shift)
    result = b.layer(GroupNormalization(node.required("groups"), node.attr("epsilon", 1e-5), epilogue=epilogue), first, *extras)
    return (channels_last(b, result) if last else result), x


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(b: Builder, node: Node) -> tuple[Value, ...]:
    """The sum of word, position and segment embeddings, normalised; how many ones each row of the mask has; that sum."""
    ids, segments = node.input(0), node.optional(1)
    batch, steps = ids.shape
    total = b.layer(Gather(0), node.input(2), ids, suffix="word")
    positions = node.optional(8)
    if positions is None:
        positions = b.layer(Range(0, 1, steps, DataType.INT64), suffix="positions")
    found = [b.layer(Gather(0), node.input(3), positions, suffix="position")]
    if segments is not None:
        found.append(b.layer(Gather(0), node.input(4), segments, suffix="segment"))
    for number, part in enumerate(found):
        total = b.pointwise(call("add", X0, X1), total, part, suffix=f"sum{number}")
    result = layer_norm(b, total, 2, node.attr("epsilon", 1e-12), node.input(5), node.input(6))
    mask = node.optional(7)
    if mask is None:
        index = b.layer(Fill((batch,), DataType.INT32, 0), suffix="mask_index")
    else:
        index = b.layer(Reduce("sum", (1,), False), b.convert(mask, DataType.INT32, "mask"), suffix="mask_index")
    return result, index, total


@operator("ExpandDims", domain=MICROSOFT)
def expand_dims(b: Builder, node: Node) -> Value:
    x = node.input(0)
    (axis,) = b.ints(node.input(1), "axis")
    axis = node.axis(axis, x.rank + 1)
    return b.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


operator("Trilu", domain=MICROSOFT)(trilu)
operator("TransposeMatMul", domain=MICROSOFT)(fused_matmul)
