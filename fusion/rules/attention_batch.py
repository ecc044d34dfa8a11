"""Attention(fold(q), fold(k), fold(v)) -> fold(Attention(q, k, v)): heads that were folded into the batch are heads again."""

from __future__ import annotations

from fusion.dims import Dim, Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import factored


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    if op.parts or set(op.layouts) != {"bhsd"} or any(graph.type(name).shape[1] != 1 for name in layer.inputs[:3]):
        return None
    for name in layer.inputs[:3]:
        lead = _lead(graph, name)
        if lead is not None:
            return Match((layer,), found={"lead": lead})
    return None


def _lead(graph: Graph, tensor: str) -> tuple[Dim, Dim] | None:
    """Batch and heads, where a shuffle made one axis of the two."""
    shuffle = graph.producer(tensor)
    if shuffle is None or not isinstance(shuffle.op, Shuffle):
        return None
    source, shape = graph.type(shuffle.inputs[0]).shape, graph.type(tensor).shape
    if len(source) == 4 and source[2:] == shape[2:] and source[0] != shape[0] and shuffle.op.first is shuffle.op.second is None:
        return source[0], source[1]
    found = factored(source, shuffle.op)
    if found is None or found.move.is_view or len(found.target[0]) != 2:
        return None
    batch, heads = (found.move.sizes[atom] for atom in found.target[0])
    return batch, heads


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    batch, heads = match.found["lead"]
    if not isinstance(heads, int):
        return Refusal("heads", f"the number of heads, {heads}, is known at run time only")
    for name in layer.inputs[1:3]:
        if graph.type(name).shape[0] != graph.type(layer.inputs[0]).shape[0]:
            return Refusal("batch", f"{name} has another batch than {layer.inputs[0]}")
    if layer.op.masked and _unfolded(graph, layer, batch, heads) is None:
        return Refusal("mask", f"{layer.inputs[3]} of shape {graph.type(layer.inputs[3]).shape} is no batch of {batch} times {heads}")
    return None


def _unfolded(graph: Graph, layer: Layer, batch: Dim, heads: Dim) -> Shape | None:
    """The mask's shape over batch and heads."""
    shape = graph.type(layer.inputs[3]).shape
    if len(shape) < 4 or shape[0] == 1:
        return shape
    whole = graph.type(layer.inputs[0]).shape[0]
    return (batch, heads, *shape[2:]) if shape[0] == whole and shape[1] == 1 else None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    batch, heads = match.found["lead"]
    layers, inputs = [], []
    for number, name in enumerate(layer.inputs):
        shape = graph.type(name).shape
        wide = (batch, heads, *shape[2:]) if number < 3 else _unfolded(graph, layer, batch, heads)
        if wide == shape:
            inputs.append(name)
            continue
        view = graph.fresh(f"{name}.heads")
        layers.append(Layer(f"{layer.name} heads {number}", Shuffle(reshape=wide), (name,), (view,)))
        inputs.append(view)
    result = graph.fresh(f"{layer.outputs[0]}.heads")
    folded = Layer(f"{layer.name} fold", Shuffle(reshape=graph.type(layer.outputs[0]).shape), (result,), layer.outputs)
    return Replacement((*layers, Layer("", layer.op, tuple(inputs), (result,)), folded), keep_name=True)


RULE = Rule("attention-batch", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
