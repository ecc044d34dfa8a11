"""Slice(Transpose(x)) -> Transpose(Slice(x)), where x is cut elsewhere too: then all parts are cut from one tensor (a packed projection)."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Shuffle, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import inverse, transpose_of


def _match(graph: Graph, layer: Layer) -> Match | None:
    shuffle = graph.producer(layer.inputs[0])
    if shuffle is None or not isinstance(shuffle.op, Shuffle):
        return None
    shape = graph.type(shuffle.inputs[0]).shape
    order = transpose_of(shape, shuffle.op)
    if order is None or order == tuple(range(len(order))) or not any(isinstance(one.op, Slice) for one in graph.readers(shuffle.inputs[0])):
        return None
    found = {"shuffle": shuffle, "order": order}
    last = graph.only_reader(shuffle.outputs[0]) is not None
    return Match((shuffle, layer), (shuffle.outputs[0],), found) if last else Match((layer,), found=found)


def _check(graph: Graph, match: Match) -> Refusal | None:
    shuffle = match.found["shuffle"]
    if shuffle.outputs[0] in graph.outputs:
        return Refusal("network output", f"{shuffle.outputs[0]} is a network output")
    for reader in graph.readers(shuffle.outputs[0]):
        if not isinstance(reader.op, Slice):
            return Refusal("shared", f"{shuffle.outputs[0]} is also read by {reader.name}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, shuffle, order = match.layers[-1], match.found["shuffle"], match.found["order"]
    back = inverse(order)
    op = Slice(*(tuple(values[axis] for axis in back) for values in (layer.op.starts, layer.op.sizes, layer.op.steps)))
    part = graph.fresh(f"{layer.outputs[0]}.before")
    cut = Layer(layer.name, op, shuffle.inputs, (part,), layer.origins, (*layer.fusions, RULE.name))
    moved = Layer(f"{layer.name} transpose", Shuffle(order), (part,), layer.outputs, shuffle.origins, shuffle.fusions)
    return Replacement((cut, moved))


RULE = Rule("slice-shuffle", __doc__.splitlines()[0], (Slice,), _match, _rewrite, _check)
