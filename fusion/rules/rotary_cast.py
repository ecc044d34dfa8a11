"""cast(RotaryEmbedding(widen(x), cos, sin)) -> RotaryEmbedding(x, cos, sin): it computes in float32 anyway, and rounds once."""

from __future__ import annotations

from fusion.expression import Convert, Operand
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, RotaryEmbedding
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` is the rotary embedding."""
    widen, narrow = graph.producer(layer.inputs[0]), graph.only_reader(layer.outputs[0])
    if widen is None or narrow is None or not isinstance(widen.op, Pointwise) or not isinstance(narrow.op, Pointwise):
        return None
    wide, source = graph.type(layer.inputs[0]).dtype, graph.type(widen.inputs[0]).dtype
    if widen.op.expression != Convert(wide, Operand(0)) or narrow.op.expression != Convert(source, Operand(0)):
        return None
    alone = graph.only_reader(widen.outputs[0]) is not None
    layers = (*((widen,) if alone else ()), layer, narrow)
    return Match(layers, tuple(one.outputs[0] for one in layers[:-1]), {"widen": widen})


def _check(graph: Graph, match: Match) -> Refusal | None:
    widen = match.found["widen"]
    wide, source = graph.type(widen.outputs[0]).dtype, graph.type(widen.inputs[0]).dtype
    if not source.is_float or not wide.is_float or source.itemsize not in (2, wide.itemsize):
        return Refusal("data type", f"{widen.name} makes {wide.value} of {source.value}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer = next(one for one in match.layers if isinstance(one.op, RotaryEmbedding))
    return Replacement((Layer("", layer.op, (match.found["widen"].inputs[0], *layer.inputs[1:]), match.layers[-1].outputs),))


RULE = Rule("rotary-cast", __doc__.splitlines()[0], (RotaryEmbedding,), _match, _rewrite, _check)
