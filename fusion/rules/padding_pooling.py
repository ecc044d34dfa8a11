"""Pooling(pad(x, v)) -> Pooling(x, padding): zeros before an average that counts them, -infinity before a maximum."""

from __future__ import annotations

import math
from dataclasses import replace

from fusion.expression import functions
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Pooling
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import NOT_NEGATIVE
from fusion.rules.padding_convolution import padding_before, spatial_padding


def _check(graph: Graph, match: Match) -> Refusal | None:
    pad, layer = match.layers
    op = layer.op
    if op.prologue != IDENTITY:
        return Refusal("prologue", f"{layer.name} applies a function to what {pad.name} fills in")
    if pad.op.mode != "constant":
        return Refusal("mode", f"{pad.name} pads by {pad.op.mode}")
    amounts = spatial_padding(pad.op, op.channels_last)
    if isinstance(amounts, Refusal):
        return amounts
    own = any(amount != 0 for amount in (*op.pre_padding, *op.post_padding))
    if op.kind == "max":
        lowest = -math.inf if graph.type(layer.inputs[0]).dtype.is_float else None
        if pad.op.value == lowest or (
            pad.op.value == 0 and _not_negative(graph, pad.inputs[0]) and _covered(op, amounts)
        ):
            return None
        return Refusal("value", f"{pad.name} pads with {pad.op.value}; a maximum needs -infinity")
    if pad.op.value != 0:
        return Refusal("value", f"{pad.name} pads with {pad.op.value}; {op.kind} pooling needs 0")
    if op.kind == "average" and not op.count_include_pad and own:
        return Refusal("count", f"{layer.name} counts the positions of {pad.name} but not its own padding")
    if op.ceil_mode:
        return Refusal("ceil mode", f"{layer.name} rounds its size up")
    return None


def _covered(op: Pooling, amounts: tuple[tuple, tuple]) -> bool:
    """Whether every window holds at least one real element (the maximum of padding alone would be -infinity)."""
    return all(
        isinstance(k, int) and isinstance(pad, int) and isinstance(own, int) and pad + own < k
        for pads, owns in ((amounts[0], op.pre_padding), (amounts[1], op.post_padding))
        for pad, own, k in zip(pads, owns, op.window, strict=True)
    )


def _not_negative(graph: Graph, tensor: str) -> bool:
    """Whether the last function of the layer that makes ``tensor`` is known to give no negative numbers."""
    maker = graph.producer(tensor)
    if maker is None:
        return False
    expression = maker.op.expression if isinstance(maker.op, Pointwise) else getattr(maker.op, "epilogue", None)
    names = functions(expression) if expression is not None else ()
    return bool(names) and names[-1] in NOT_NEGATIVE


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    pad, layer = match.layers
    amounts = spatial_padding(pad.op, layer.op.channels_last)
    if isinstance(amounts, Refusal):
        return amounts
    op = replace(
        layer.op,
        pre_padding=tuple(a + b for a, b in zip(layer.op.pre_padding, amounts[0], strict=True)),
        post_padding=tuple(a + b for a, b in zip(layer.op.post_padding, amounts[1], strict=True)),
        count_include_pad=layer.op.count_include_pad or layer.op.kind == "average",
    )
    return Replacement((Layer("", op, (*pad.inputs, *layer.inputs[1:]), layer.outputs),))


RULE = Rule("padding-pooling", __doc__.splitlines()[0], (Pooling,), padding_before, _rewrite, _check)
