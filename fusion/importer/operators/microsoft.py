"""Operators of ONNX Runtime (domain com.microsoft) that map onto ours."""

from __future__ import annotations

from fusion.expression import Expression
from fusion.importer.builder import X0, X1, X2, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.matmul import product_of
from fusion.importer.operators.normalization import layer_norm, layer_normalization, rms_normalization, statistics
from fusion.importer.registry import MICROSOFT, operator
from fusion.importer.values import Value
from fusion.ops import MatrixMultiply

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
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        raise Unsupported("transBatchA and transBatchB are not supported")
    x, alpha = node.input(0), node.attr("alpha", 1.0)
    epilogue: Expression = X0 if alpha == 1.0 else call("mul", X0, literal(alpha, x.dtype))
    # Vectors are not transposed, whatever the flags say.
    first, second = (bool(node.attr(name, 0)) and node.input(i).rank >= 2 for i, name in enumerate(("transA", "transB")))
    return product_of(b, x, node.input(1), MatrixMultiply(first, second, epilogue))


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
