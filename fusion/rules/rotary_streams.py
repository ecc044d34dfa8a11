"""RotaryEmbedding(Concat(a, b), cos, sin) -> Concat(RotaryEmbedding(a, cos[:n], sin[:n]), RotaryEmbedding(b, cos[n:], sin[n:])), for attention. On a GPU.

The streams of a model (an image and its text, in Flux) are projected and normalised apart: each then turns as it is normalised, in one layer, before
they are joined. Parts of the tables are views.
"""

from __future__ import annotations

from dataclasses import replace

from fusion.dims import Dim
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Concatenation, Normalization, RotaryEmbedding, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, turn: Layer) -> Match | None:
    join = graph.producer(turn.inputs[0])
    readers = graph.readers(turn.outputs[0])
    if join is None or not isinstance(join.op, Concatenation) or not readers or not all(isinstance(one.op, Attention) for one in readers):
        return None
    return Match((join, turn), (join.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    join, turn = match.layers
    shape = graph.type(join.outputs[0]).shape
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU a normalisation and a rotary embedding are layers of their own in any case")
    if turn.op.heads or turn.op.epsilon is not None or join.op.axis == len(shape) - 1:
        return Refusal("axes", f"{turn.name} takes a part of the heads, or {join.name} joins parts of rows")
    makers = [graph.producer(name) for name in join.inputs]
    if not any(maker is not None and isinstance(maker.op, Normalization) for maker in makers):
        return Refusal("no gain", f"no part of {join.outputs[0]} is normalised before")
    for name in turn.inputs[1:]:
        angles = graph.type(name).shape
        place = join.op.axis - len(shape)
        if -place > len(angles) or angles[place] != shape[join.op.axis]:
            return Refusal("angles", f"{name} of shape {angles} has no angles of its own for each of {shape[join.op.axis]} positions")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    join, turn = match.layers
    axis = join.op.axis
    place = axis - len(graph.type(join.outputs[0]).shape)
    layers, parts = [], []
    start: Dim = 0
    for number, name in enumerate(join.inputs):
        size = graph.type(name).shape[axis]
        tables = []
        for table in turn.inputs[1:]:
            shape = graph.type(table).shape
            starts, sizes = (tuple(value if at == place else other for at, other in zip(range(-len(shape), 0), base, strict=True))
                             for value, base in ((start, (0,) * len(shape)), (size, shape)))  # fmt: skip
            tables.append(graph.fresh(f"{table}.{turn.name}.{number}"))
            layers.append(Layer(f"{table} of {name}", Slice(starts, sizes, (1,) * len(shape)), (table,), (tables[-1],)))
        parts.append(graph.fresh(f"{turn.outputs[0]}.{number}"))
        layers.append(replace(turn, name=f"{turn.name} of {name}", inputs=(name, *tables), outputs=(parts[-1],), fusions=(*turn.fusions, RULE.name)))
        start = start + size
    return Replacement((*layers, replace(join, inputs=tuple(parts), outputs=turn.outputs, fusions=(*join.fusions, RULE.name))))


RULE = Rule("rotary-streams", __doc__.splitlines()[0], (RotaryEmbedding,), _match, _rewrite, _check)
