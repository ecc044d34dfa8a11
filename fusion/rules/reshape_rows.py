"""reshape(MatMul(x, w)) -> MatMul(reshape(x), w), when the reshape only regroups rows.

The reshape then meets others in front of the product, and what follows the product (a residual sum) can join it.
"""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import movement


def _match(graph: Graph, layer: Layer) -> Match | None:
    after = graph.only_reader(layer.outputs[0])
    if after is None or not isinstance(after.op, Shuffle) or len(graph.type(layer.inputs[1]).shape) != 2:
        return None
    if layer.op.transpose_a or len(graph.type(after.outputs[0]).shape) < 2:
        return None
    if graph.type(layer.outputs[0]).shape[-1] != graph.type(after.outputs[0]).shape[-1]:
        return None  # it splits or joins columns
    move = movement(graph.type(layer.outputs[0]).shape, after.op)
    if move is None or not move.is_view:
        return None
    return Match((layer, after), (layer.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, _ = match.layers
    for name in layer.inputs[2:]:
        shape = graph.type(name).shape
        if any(dim != 1 for dim in shape[:-1]):
            return Refusal("operands", f"{name} of {layer.name} varies by row")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, after = match.layers
    shape = (*graph.type(after.outputs[0]).shape[:-1], graph.type(layer.inputs[0]).shape[-1])
    rows = graph.fresh(f"{layer.inputs[0]}.rows")
    view = Layer(after.name, Shuffle(reshape=shape), layer.inputs[:1], (rows,), after.origins, after.fusions)
    product = Layer(layer.name, layer.op, (rows, *layer.inputs[1:]), after.outputs, layer.origins, layer.fusions)
    if shape == graph.type(layer.inputs[0]).shape:
        return Replacement((Layer("", layer.op, layer.inputs, after.outputs),))
    return Replacement((view, product))


RULE = Rule("reshape-rows", __doc__.splitlines()[0], (MatrixMultiply,), _match, _rewrite, _check)
