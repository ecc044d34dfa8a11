"""Slice(Shuffle(x)) -> Shuffle(Slice(x)), for a transpose where x is cut elsewhere too, or a reshape of what a shuffle made: all parts of a packed projection are cut from one tensor."""

from __future__ import annotations

from fusion.dims import Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Shuffle, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import inverse, reshape_before, transpose_of


def _match(graph: Graph, layer: Layer) -> Match | None:
    shuffle = graph.producer(layer.inputs[0])
    if shuffle is None or not isinstance(shuffle.op, Shuffle):
        return None
    shape = graph.type(shuffle.inputs[0]).shape
    order = transpose_of(shape, shuffle.op)
    elsewhere = any(isinstance(one.op, Slice) for one in graph.readers(shuffle.inputs[0]))
    if order is not None and order != tuple(range(len(order))) and elsewhere:
        op = Slice(*(tuple(values[axis] for axis in inverse(order)) for values in (layer.op.starts, layer.op.sizes, layer.op.steps)))
        found = {"shuffle": shuffle, "slice": op, "moved": Shuffle(order)}
    else:
        before, kept = graph.producer(shuffle.inputs[0]), _before_reshape(layer.op, shape, graph.type(layer.inputs[0]).shape)
        if reshape_before(graph, layer.inputs[0]) is None or before is None or not isinstance(before.op, Shuffle) or kept is None:
            return None
        found = {"shuffle": shuffle, "slice": kept, "moved": Shuffle(reshape=graph.type(layer.outputs[0]).shape)}
    last = graph.only_reader(shuffle.outputs[0]) is not None
    return Match((shuffle, layer), (shuffle.outputs[0],), found) if last else Match((layer,), found=found)


def _before_reshape(op: Slice, source: Shape, target: Shape) -> Slice | None:
    """The slice of ``source`` that a reshape to ``target`` makes ``op`` of: they have the axes up to the one that is cut in common."""
    cut = [axis for axis, size in enumerate(target) if op.sizes[axis] != size]
    if len(cut) != 1 or source[: cut[0] + 1] != target[: cut[0] + 1] or len(source) <= cut[0]:
        return None
    rest = source[cut[0] + 1 :]
    count = cut[0] + 1
    return Slice((*op.starts[:count], *(0 for _ in rest)), (*op.sizes[:count], *rest), (*op.steps[:count], *(1 for _ in rest)))


def _check(graph: Graph, match: Match) -> Refusal | None:
    shuffle = match.found["shuffle"]
    if shuffle.outputs[0] in graph.outputs:
        return Refusal("network output", f"{shuffle.outputs[0]} is a network output")
    for reader in graph.readers(shuffle.outputs[0]):
        if not isinstance(reader.op, Slice):
            return Refusal("shared", f"{shuffle.outputs[0]} is also read by {reader.name}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, shuffle = match.layers[-1], match.found["shuffle"]
    part = graph.fresh(f"{layer.outputs[0]}.before")
    cut = Layer(layer.name, match.found["slice"], shuffle.inputs, (part,), layer.origins, (*layer.fusions, RULE.name))
    moved = Layer(f"{layer.name} shuffle", match.found["moved"], (part,), layer.outputs, shuffle.origins, shuffle.fusions)
    return Replacement((cut, moved))


RULE = Rule("slice-shuffle", __doc__.splitlines()[0], (Slice,), _match, _rewrite, _check)
