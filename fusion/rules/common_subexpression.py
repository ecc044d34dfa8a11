"""f(x), f(x) -> one f(x): two layers with the same operation and the same inputs are computed once."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import OPS
from fusion.rewrite import Match, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    if not layer.inputs:
        return None
    siblings = graph.readers(layer.inputs[0])
    if len(siblings) == 1:
        return None
    for other in siblings:
        if other.name != layer.name and other.inputs == layer.inputs and other.op == layer.op:
            first, second = sorted((layer, other), key=graph.position)
            return Match((first, second))
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    first, second = match.layers
    kept = Layer("", first.op, first.inputs, first.outputs)
    return Replacement((kept,), aliases=dict(zip(second.outputs, first.outputs, strict=True)), keep_name=True)


# Of two equal layers the younger one is tried when it appears, so once per layer is enough.
RULE = Rule("common-subexpression", __doc__.splitlines()[0], tuple(OPS.values()), _match, _rewrite, local=True)
