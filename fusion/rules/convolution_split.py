"""Conv(x, w)[:, i] -> Conv(x, w[i]), for channels i that are no run: a convolution that is only read in such parts becomes one per part.

So detectors project queries, keys and values of every head (YOLO 11 and 12): channels are those of one head after the other, which no view can
cut. Parts that are runs of channels stay: they are views of the result.
"""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Convolution, Gather, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._split import (
    channels_of,
    part_of,
    refuse_operands,
    refuse_readers,
    selection_of,
    split,
)


def _match(graph: Graph, layer: Layer) -> Match | None:
    return part_of(graph, layer, Convolution)


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    source, taken = match.found["source"], match.found["taken"]
    refusal = refuse_readers(graph, layer, source, taken)
    if refusal is not None:
        return refusal
    parts = [channels_of(graph, source, part) for reader in graph.readers(layer.inputs[0]) if (part := selection_of(graph, reader)) is not None]
    if any(part is None for part in parts):
        return Refusal("axes", f"{layer.name} does not take channels of {source.product.name}")
    if all(part.are_a_run for part in parts if part is not None):
        return Refusal("views", f"{layer.name} takes channels of {source.product.name} that follow each other, as the other readers do")
    if source.product.op.groups != 1:
        return Refusal("groups", f"{source.product.name} has {source.product.op.groups} groups")
    return refuse_operands(graph, source, source.product.inputs[source.product.op.arity :])


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    source = match.found["source"]
    taken = channels_of(graph, source, match.found["taken"])
    assert taken is not None
    return split(graph, layer, source, taken, -len(graph.type(source.product.inputs[1]).shape), RULE.name)


RULE = Rule("convolution-split", __doc__.splitlines()[0], (Gather, Slice), _match, _rewrite, _check)
