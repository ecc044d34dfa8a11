"""Attention(Concat(transpose(a), transpose(b)) ...) -> Attention(transpose(Concat(a, b)) ...): two streams of positions that attend to each other."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import last_transpose
from fusion.rules.heads_shuffle import for_attention


def _match(graph: Graph, layer: Layer) -> Match | None:
    shuffles = [graph.producer(name) for name in layer.inputs]
    found = [shuffle for shuffle in shuffles if shuffle is not None and isinstance(shuffle.op, Shuffle)]
    if len(found) < len(layer.inputs) or len({one.name for one in found}) < len(found) or not for_attention(graph, layer):
        return None
    moves = [last_transpose(graph.type(one.inputs[0]).shape, one.op) for one in found]
    if any(order is None for _, order in moves):
        return None
    return Match((*found, layer), tuple(one.outputs[0] for one in found), {"moves": moves})


def _check(graph: Graph, match: Match) -> Refusal | None:
    orders = {order for _, order in match.found["moves"]}
    if len(orders) > 1:
        return Refusal("order", f"the parts are transposed in different ways: {', '.join(map(str, sorted(orders)))}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    *shuffles, layer = match.layers
    views, parts = [], []
    order = match.found["moves"][0][1]
    for shuffle, (before, _) in zip(shuffles, match.found["moves"], strict=True):
        parts.append(shuffle.inputs[0])
        if before is not None:
            parts[-1] = graph.fresh(f"{shuffle.outputs[0]}.before")
            views.append(replace(shuffle, op=before, outputs=(parts[-1],)))
    joined = graph.fresh(f"{layer.outputs[0]}.before")
    concatenation = Layer(layer.name, Concatenation(order[layer.op.axis]), tuple(parts), (joined,), layer.origins, (*layer.fusions, RULE.name))
    origins = tuple(dict.fromkeys(origin for shuffle in shuffles for origin in shuffle.origins))
    return Replacement((*views, concatenation, Layer(f"{layer.name} transpose", Shuffle(order), (joined,), layer.outputs, origins)))


RULE = Rule("concatenation-shuffle", __doc__.splitlines()[0], (Concatenation,), _match, _rewrite, _check)
