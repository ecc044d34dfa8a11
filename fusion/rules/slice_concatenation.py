"""Slice(Concat(a, b)) -> Slice(b), where it takes elements of b alone; b itself, where it takes all of them."""

from __future__ import annotations

from dataclasses import replace

from fusion.dims import Dim
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    join = graph.producer(layer.inputs[0])
    if join is None or not isinstance(join.op, Concatenation):
        return None
    return Match((layer,), found={"join": join})


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,), join = match.layers, match.found["join"]
    if _part(graph, layer, join) is None:
        return Refusal("parts", f"{layer.name} takes elements of several of the tensors that {join.name} joins, or it is not known of which")
    return None


def _part(graph: Graph, layer: Layer, join: Layer) -> tuple[str, Dim] | None:
    """The one tensor of which ``layer`` takes elements, and the first of them along the joined axis there."""
    axis = join.op.axis
    start, count, step = layer.op.starts[axis], layer.op.sizes[axis], layer.op.steps[axis]
    if not isinstance(count, int) or not isinstance(step, int) or step < 1 or count < 1:
        return None
    place: Dim = 0
    for name in join.inputs:
        size = graph.type(name).shape[axis]
        first = start - place
        if isinstance(first, int) and isinstance(size, int) and first >= 0 and first + (count - 1) * step < size:
            return name, first
        place = place + size
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,), join = match.layers, match.found["join"]
    found = _part(graph, layer, join)
    assert found is not None
    name, first = found
    starts = tuple(first if axis == join.op.axis else start for axis, start in enumerate(layer.op.starts))
    return Replacement((replace(layer, op=replace(layer.op, starts=starts), inputs=(name,), fusions=(*layer.fusions, RULE.name)),))


RULE = Rule("slice-concatenation", __doc__.splitlines()[0], (Slice,), _match, _rewrite, _check)
