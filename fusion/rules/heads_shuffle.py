"""Attention(f(transpose(x)) ...) -> Attention(transpose(f(x)) ...), for f of rows, a rotary embedding or a normalisation: attention reads any order of heads."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Concatenation, Normalization, RotaryEmbedding, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import inverse, last_transpose


def _match(graph: Graph, layer: Layer) -> Match | None:
    shuffle = graph.producer(layer.inputs[0])
    if shuffle is None or not isinstance(shuffle.op, Shuffle) or not for_attention(graph, layer):
        return None
    before, order = last_transpose(graph.type(shuffle.inputs[0]).shape, shuffle.op)
    return None if order is None else Match((shuffle, layer), (shuffle.outputs[0],), {"order": order, "before": before})


def for_attention(graph: Graph, layer: Layer) -> bool:
    """Whether attention reads what ``layer`` makes, and nothing else does; rows may turn, or be joined with others, before."""
    readers = graph.readers(layer.outputs[0])
    between = (Concatenation, RotaryEmbedding) if isinstance(layer.op, Normalization) else (Concatenation,) if isinstance(layer.op, RotaryEmbedding) else (RotaryEmbedding,)
    return bool(readers) and all(isinstance(reader.op, Attention) or (isinstance(reader.op, between) and for_attention(graph, reader)) for reader in readers)


def _check(graph: Graph, match: Match) -> Refusal | None:
    shuffle, layer = match.layers
    order = match.found["order"]
    if order[-1] != len(order) - 1:
        return Refusal("axes", f"{shuffle.name} moves the last axis")
    if isinstance(layer.op, Normalization) and layer.op.axes != (len(order) - 1,):
        return Refusal("axes", f"{layer.name} normalises over axes {layer.op.axes}, which are not the last one alone")
    if layer.op.heads:
        return Refusal("heads", f"{layer.name} takes a part of the heads")
    for name in layer.inputs[1:]:
        shape = _aligned(graph, name, len(order))
        back = [axis for axis in inverse(order) if shape[axis] != 1]
        if back != sorted(back):
            return Refusal("operands", f"{name} would have to be transposed")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    shuffle, layer = match.layers
    order, before = match.found["order"], match.found["before"]
    back = inverse(order)
    operands, views = [], []
    for name in layer.inputs[1:]:
        shape = _aligned(graph, name, len(back))
        view = graph.fresh(f"{name}.{layer.name}")
        views.append(Layer(f"{layer.name} {name}", Shuffle(reshape=tuple(shape[axis] for axis in back)), (name,), (view,)))
        operands.append(view)
    source = shuffle.inputs[0]
    if before is not None:
        source = graph.fresh(f"{shuffle.outputs[0]}.rows")
        views.append(replace(shuffle, op=before, outputs=(source,)))
    middle = graph.fresh(f"{layer.outputs[0]}.before")
    turned = Layer(layer.name, layer.op, (source, *operands), (middle,), layer.origins, (*layer.fusions, RULE.name))
    moved = Layer(f"{shuffle.name} transpose", Shuffle(order), (middle,), layer.outputs, shuffle.origins, shuffle.fusions)
    return Replacement((*views, turned, moved if before is not None else replace(moved, name=shuffle.name)))


def _aligned(graph: Graph, name: str, rank: int) -> tuple:
    shape = graph.type(name).shape
    return (*(1,) * (rank - len(shape)), *shape)


RULE = Rule("heads-shuffle", __doc__.splitlines()[0], (RotaryEmbedding, Normalization), _match, _rewrite, _check)
