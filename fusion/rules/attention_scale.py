"""Attention(c * q, k, v) -> Attention(q, k, v) with c in its scale; also for k."""

from __future__ import annotations

from dataclasses import replace

from fusion.expression import Apply, Expression, Literal, Operand
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Pointwise, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    for side in range(2) if not layer.op.parts else ():
        tensor = layer.inputs[side]
        shuffle = graph.producer(tensor)
        if shuffle is not None and not isinstance(shuffle.op, Shuffle):
            shuffle = None
        scale = graph.producer(shuffle.inputs[0] if shuffle is not None else tensor)
        if scale is None or not isinstance(scale.op, Pointwise) or not _is_scale(scale.op.expression):
            continue
        factor = _factor(scale.op.expression)
        found = {"side": side, "factor": factor, "source": scale.inputs[0], "shuffle": shuffle}
        between = (scale, *((shuffle,) if shuffle is not None else ()))
        if all(graph.only_reader(one.outputs[0]) is not None for one in between) and layer.inputs.count(tensor) == 1:
            return Match((*between, layer), tuple(one.outputs[0] for one in between), found)
        return Match((layer,), found=found)
    return None


def _is_scale(expression: Expression) -> bool:
    return isinstance(expression, Apply) and expression.function in ("mul", "div") and Operand(0) in expression.arguments


def _factor(expression: Expression) -> float | None:
    if not isinstance(expression, Apply) or expression.function not in ("mul", "div"):
        return None
    a, b = expression.arguments
    if expression.function == "mul" and isinstance(a, Literal):
        a, b = b, a
    if a != Operand(0) or not isinstance(b, Literal) or not b.value:
        return None
    return float(b.value) if expression.function == "mul" else 1 / float(b.value)


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, factor = match.layers[-1], match.found["factor"]
    if factor is None:
        return Refusal("factor", f"{'queries' if match.found['side'] == 0 else 'keys'} are scaled by more than one number")
    if not 0 < abs(layer.op.scale * factor) < float("inf"):
        return Refusal("scale", f"scores scaled by {layer.op.scale:g} times {factor:g}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, side, shuffle, source = match.layers[-1], match.found["side"], match.found["shuffle"], match.found["source"]
    views: tuple[Layer, ...] = ()
    if shuffle is not None:
        moved = graph.fresh(f"{shuffle.outputs[0]}.unscaled")
        name = shuffle.name if len(match.layers) > 1 else f"{shuffle.name} for {layer.name}"
        views, source = (replace(shuffle, name=name, inputs=(source,), outputs=(moved,)),), moved
    inputs = tuple(source if number == side else name for number, name in enumerate(layer.inputs))
    op = replace(layer.op, scale=layer.op.scale * match.found["factor"])
    return Replacement((*views, Layer("", op, inputs, layer.outputs)), keep_name=len(match.layers) == 1)


RULE = Rule("attention-scale", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
