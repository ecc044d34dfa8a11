"""MatMul(transpose(a), b) -> MatMul(a, b, transpose_a), when the transpose swaps the last two axes; likewise for b."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import transpose_of


def _match(graph: Graph, layer: Layer) -> Match | None:
    nearest = None
    for side in (0, 1):
        shuffle = graph.producer(layer.inputs[side])
        if shuffle is None or not isinstance(shuffle.op, Shuffle):
            continue
        order = transpose_of(graph.type(shuffle.inputs[0]).shape, shuffle.op)
        if order is None:
            continue
        rank = len(order)
        swap = (*range(rank - 2), rank - 1, rank - 2)
        alone = graph.only_reader(shuffle.outputs[0]) is not None and layer.inputs.count(shuffle.outputs[0]) == 1
        layers = (shuffle, layer) if alone else (layer,)
        found = {"side": side, "shuffle": shuffle, "order": order, "fits": order == swap}
        match = Match(layers, (shuffle.outputs[0],) if alone else (), found)
        if order == swap:
            return match
        nearest = nearest or (match if alone else None)
    return nearest


def _check(graph: Graph, match: Match) -> Refusal | None:
    if not match.found["fits"]:
        return Refusal(
            "permutation", f"{match.found['shuffle'].name} permutes {match.found['order']}, not only the last two axes"
        )
    layer, side = match.layers[-1], match.found["side"]
    op = layer.op
    along = op.transpose_a if side == 0 else not op.transpose_b  # the shuffle brings the depth to the end of each row
    if graph.limits.device == "cuda" and graph.type(layer.inputs[side]).dtype.itemsize == 1 and not along:
        return Refusal("data type", f"tensor cores read {layer.inputs[side]} of 8 bits along the depth")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, side, shuffle = match.layers[-1], match.found["side"], match.found["shuffle"]
    op = layer.op
    changed = replace(op, transpose_a=not op.transpose_a) if side == 0 else replace(op, transpose_b=not op.transpose_b)
    inputs = tuple(shuffle.inputs[0] if i == side else name for i, name in enumerate(layer.inputs))
    return Replacement((Layer("", changed, inputs, layer.outputs),), keep_name=len(match.layers) == 1)


RULE = Rule("shuffle-matmul", __doc__.splitlines()[0], (MatrixMultiply,), _match, _rewrite, _check)
