"""What language models are exported with beside attention (domain com.microsoft): mixtures of experts, and layers that carry a state."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.dims import product
from fusion.expression import Expression
from fusion.importer.builder import X0, X1, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.attention import linear_attention
from fusion.importer.operators.convolution import per_channel
from fusion.importer.operators.slicing import cut
from fusion.importer.registry import MICROSOFT, operator
from fusion.importer.values import Value
from fusion.ops import Concatenation, Convolution, Fill, MatrixMultiply, Padding, Reduce, ScatterElements, Softmax, TopK

ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh", "silu": "swish", "identity": ""}


@operator("MoE", domain=MICROSOFT)
def mixture_of_experts(b: Builder, node: Node) -> Value:
    """Every expert over every token, in products with one batch entry per expert; the weights of those that are not chosen are 0.

    That is as much work as all experts are, whatever ``k`` is: right, and fast where there are few experts or many tokens.
    """
    x, router, first, second = node.input(0), node.input(1), node.input(2), node.input(4)
    if node.attr("use_sparse_mixer", 0) or node.attr("swiglu_limit_after_activation", 0):
        raise Unsupported("use_sparse_mixer and swiglu_limit_after_activation are not supported")
    rows, width, experts = product(x.shape[:-1]), x.shape[-1], first.shape[0]
    tokens = b.reshape(x, (1, rows, width), "tokens")
    hidden = _expert(b, tokens, first, node.optional(3), "fc1")
    gate = node.optional(6)
    hidden = _activated(b, node, hidden, None if gate is None else _expert(b, tokens, gate, node.optional(7), "fc3"))
    results = _expert(b, hidden, second, node.optional(5), "fc2")
    weights = b.reshape(b.transpose(_weights(b, node, router, rows, experts), (1, 0), "by_expert"), (experts, rows, 1), "weight_column")
    weighted = b.pointwise(call("mul", X0, X1), results, weights, suffix="weighted")
    return b.reshape(b.layer(Reduce("sum", (0,), False), weighted, suffix="sum"), x.shape)


def _weights(b: Builder, node: Node, router: Value, rows: object, experts: object) -> Value:
    """``[rows, experts]``: the probabilities of the k most probable experts of each token (made to sum up to 1, when told so), else 0."""
    probable, chosen = b.layers(TopK(node.attr("k", 1), 1), (b.layer(Softmax(1), router, suffix="router"),), "chosen")
    if node.attr("normalize_routing_weights", 0):
        total = b.layer(Reduce("sum", (1,), True), probable, suffix="chosen_sum")
        probable = b.pointwise(call("div", X0, X1), probable, total, suffix="normalised")
    nothing = b.layer(Fill((rows, experts), router.dtype, 0.0), suffix="unchosen", fold=False)  # type: ignore[arg-type]
    return b.layer(ScatterElements(1), nothing, chosen, probable, suffix="weights")


def _expert(b: Builder, x: Value, weights: Value, bias: Value | None, name: str) -> Value:
    """x ``[1 or E, rows, in]`` times the weights ``[E, out, in]`` of each expert, plus its bias."""
    if bias is None:
        return b.layer(MatrixMultiply(transpose_b=True), x, weights, suffix=name)
    epilogue, extras = b.epilogue(call("add", X0, X1), b.reshape(bias, (bias.shape[0], 1, bias.shape[1]), f"{name}_bias"))
    return b.layer(MatrixMultiply(transpose_b=True, epilogue=epilogue), x, weights, *extras, suffix=name)


def _activated(b: Builder, node: Node, x: Value, linear: Value | None) -> Value:
    kind, layout = node.attr("activation_type", "relu"), node.attr("swiglu_fusion", 0)
    if kind != "swiglu":
        if kind not in ACTIVATIONS:
            raise Unsupported(f"activation_type {kind!r}; there are swiglu, {', '.join(ACTIVATIONS)}")
        function, extra = ACTIVATIONS[kind], (literal(1.0, x.dtype),) if kind == "silu" else ()
        active: Expression = call(function, X0, *extra) if function else X0
        return b.pointwise(active, x, suffix=kind) if linear is None else b.pointwise(call("mul", active, X1), x, linear, suffix=kind)
    if layout:
        lead, half = x.shape[:-1], x.shape[-1] // 2
        shape, axis = ((*lead, half, 2), 3) if layout == 1 else ((*lead, 2, half), 2)
        pairs = b.reshape(x, shape, "pairs")
        one = tuple(1 if place == axis else dim for place, dim in enumerate(shape))
        x, linear = (b.reshape(cut(b, pairs, tuple(part if place == axis else 0 for place in range(4)), one, (1,) * 4, f"{name}_part"),
                               (*lead, half), name) for part, name in ((0, "gate"), (1, "linear")))  # fmt: skip
    if linear is None:
        raise Unsupported("activation_type 'swiglu' with swiglu_fusion 0 needs fc3_experts_weights")
    gate: Expression = X0
    up: Expression = X1
    if "swiglu_limit" in node.attributes:
        limit, least = (literal(sign * node.attributes["swiglu_limit"], x.dtype) for sign in (1, -1))
        gate, up = call("min", gate, limit), call("max", call("min", up, limit), least)
    alpha, beta = (literal(node.attr(f"activation_{name}", usual), x.dtype) for name, usual in (("alpha", 1.0), ("beta", 0.0)))
    return b.pointwise(call("mul", call("swish", gate, alpha), call("add", up, beta)), x, linear, suffix="swiglu")


@operator("LinearAttention", domain=MICROSOFT)
def stateful_attention(b: Builder, node: Node) -> Value | Sequence[Value]:
    if node.attr("state_window", 0):
        raise Unsupported(f"state_window is {node.attr('state_window')}; states of several steps are not supported")
    return linear_attention(b, node)


@operator("CausalConvWithState", domain=MICROSOFT)
def causal_convolution(b: Builder, node: Node) -> tuple[Value, ...]:
    """A convolution of each channel ``[B, C, L]`` with what came before it; the new state is the end of both."""
    x, weights, bias, past = node.input(0), node.input(1), node.optional(2), node.optional(3)
    usual = {"ndim": 1, "channels_last": 0, "state_window": 0, "state_update_capacity": 0, "state_length": 0, "input_channel_offset": 0}
    for name, value in usual.items():
        if node.attr(name, value) != value:
            raise Unsupported(f"{name} is {node.attr(name)}; only {value} is supported")
    kind, dilation = node.attr("activation", "none"), node.attr("dilation", 1)
    if kind not in ("none", "silu", "swish") or x.rank != 3 or not isinstance(weights.shape[2], int):
        raise Unsupported(f"activation {kind!r} over x of shape {x.shape}; it takes none, silu or swish and a known window")
    batch, channels, length = x.shape
    before = (weights.shape[2] - 1) * dilation
    if past is None:
        whole = b.layer(Padding((0, 0, before), (0, 0, 0)), x, suffix="with_past") if before else x
    else:
        whole = b.layer(Concatenation(2), past, x, suffix="with_past")
    op = Convolution((1,), (0,), (0,), (dilation,), int(channels))
    made = b.layer(op, whole, weights, suffix="convolution")
    expression: Expression = X0 if bias is None else call("add", X0, X1)
    if kind != "none":
        expression = call("swish", expression, literal(1.0, x.dtype))
    out = b.pointwise(expression, made, *([] if bias is None else [per_channel(b, bias, 3, "bias")]))
    if not node.wants(1):
        return (out,)
    return out, cut(b, whole, (0, 0, length), (batch, channels, before), (1, 1, 1), "present_state")
