"""Concat(a, b), Concat(a, b, c) -> Concat(Concat(a, b), c): what is joined already is one part. A dense block's tensors then lie in each other."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    found: tuple[int, int, Layer] | None = None
    for tensor in dict.fromkeys(layer.inputs):
        for other in graph.readers(tensor):
            size = len(other.inputs)
            if not isinstance(other.op, Concatenation) or other.op != layer.op or not 1 < size < len(layer.inputs) or other.inputs[0] != tensor:
                continue
            place = _place(other.inputs, layer.inputs)
            if place is not None and (found is None or size > found[0]):
                found = size, place, other
    return None if found is None else Match((layer,), found={"place": found[1], "part": found[2]})


def _place(part: tuple[str, ...], whole: tuple[str, ...]) -> int | None:
    """Where ``part`` stands in ``whole``."""
    return next((place for place in range(len(whole) - len(part) + 1) if whole[place : place + len(part)] == part), None)


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    part, place = match.found["part"], match.found["place"]
    inputs = (*layer.inputs[:place], part.outputs[0], *layer.inputs[place + len(part.inputs) :])
    return Replacement((Layer("", layer.op, inputs, layer.outputs),), keep_name=True)


def _near(graph: Graph, layer: Layer) -> Near | None:
    """The parts of another concatenation, in another order or apart."""
    for tensor in dict.fromkeys(layer.inputs):
        for other in graph.readers(tensor):
            if other.op == layer.op and 1 < len(other.inputs) < len(layer.inputs) and set(other.inputs) <= set(layer.inputs):
                parts = f"{other.name} joins {', '.join(other.inputs)}, {layer.name} joins {', '.join(layer.inputs)}"
                return Match((other, layer)), Refusal("sequence", f"{parts}: the few do not follow each other in the many")
    return None


RULE = Rule("concatenation-part", __doc__.splitlines()[0], (Concatenation,), _match, _rewrite, near=_near)
