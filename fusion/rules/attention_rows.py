"""Attention(reshape(q, [B, K, n, D]), k, v) of q [B, K * n, 1, D] -> Attention(q, k, v): heads of a group that were written as its positions.

Where there is one position, exporters fold the queries of a group into rows of its key and value head.
"""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import show
from fusion.rules._shuffles import reshape_before


def _match(graph: Graph, layer: Layer) -> Match | None:
    op, view = layer.op, reshape_before(graph, layer.inputs[0])
    if view is None or op.parts or (op.layouts[0], op.layouts[3]) != ("bhsd", "bhsd"):
        return None
    heads, rows = graph.type(view.inputs[0]).shape, graph.type(layer.inputs[0]).shape
    if len(heads) != 4 or heads[2] != 1 or rows[2] == 1 or (heads[0], heads[1], heads[3]) != (rows[0], rows[1] * rows[2], rows[3]):
        return None
    return Match((view, layer), (view.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    _, layer = match.layers
    rows = graph.type(layer.inputs[0]).shape
    if layer.op.causal or layer.op.window:
        return Refusal("causal", f"rows of {layer.name} see different keys")
    for name, layout in zip(layer.inputs[1:3], layer.op.layouts[1:3], strict=True):
        count = graph.type(name).shape[layout.index("h")]
        if count != rows[1]:
            return Refusal("heads", f"{name} has {count} heads, {layer.inputs[0]} {rows[1]}")
    if layer.op.masked:
        mask = (1, 1, 1, *graph.type(layer.inputs[3]).shape)[-4:]
        if mask[1] != 1 or mask[2] != 1:
            return Refusal("mask", f"the mask of shape {show(mask)} differs from row to row, or head to head")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    view, layer = match.layers
    heads = graph.fresh(f"{layer.outputs[0]}.heads")
    back = Layer(f"{layer.name} rows", Shuffle(reshape=graph.type(layer.outputs[0]).shape), (heads,), layer.outputs)
    return Replacement((replace(layer, name="", inputs=(view.inputs[0], *layer.inputs[1:]), outputs=(heads,)), back))


RULE = Rule("attention-rows", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
