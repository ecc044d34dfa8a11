"""Shuffle that moves no element -> plain reshape, which the engine executes as nothing."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Shuffle
from fusion.rewrite import Match, Replacement, Rule
from fusion.rules._shuffles import movement


def _match(graph: Graph, layer: Layer) -> Match | None:
    shape, target = graph.type(layer.inputs[0]).shape, graph.type(layer.outputs[0]).shape
    op = layer.op
    if shape == target or (op.first is None and op.second is None):
        return None
    move = movement(shape, op)
    return Match((layer,)) if move is not None and move.is_view else None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    target = graph.type(layer.outputs[0]).shape
    fusions = tuple(name for name in layer.fusions if name != "reformat")  # what moves nothing is no reformat
    name = f"reshape {layer.inputs[0]}" if fusions != layer.fusions and not layer.origins else layer.name
    return Replacement((Layer(name, Shuffle(reshape=target), layer.inputs, layer.outputs, layer.origins, fusions),))


RULE = Rule("shuffle-reshape", __doc__.splitlines()[0], (Shuffle,), _match, _rewrite, canonical=True, local=True)
