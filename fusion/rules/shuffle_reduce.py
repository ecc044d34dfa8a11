"""Reduce(transpose(x), axes) -> Reduce(x, axes before the transpose), when the order of the axes that stay is the same."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Reduce, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import transpose_of


def _match(graph: Graph, layer: Layer) -> Match | None:
    shuffle = graph.producer(layer.inputs[0])
    if shuffle is None or not isinstance(shuffle.op, Shuffle):
        return None
    order = transpose_of(graph.type(shuffle.inputs[0]).shape, shuffle.op)
    if order is None:
        return None
    return Match((shuffle, layer), (shuffle.outputs[0],), {"order": order})


def _check(graph: Graph, match: Match) -> Refusal | None:
    shuffle, layer = match.layers
    order, op = match.found["order"], layer.op
    if op.keep_dims:
        # The lengths that stay must come out on their old places, or have length 1.
        shape = graph.type(shuffle.inputs[0]).shape
        left = [1 if axis in {order[a] for a in op.axes} else dim for axis, dim in enumerate(shape)]
        if [left[axis] for axis in order] != left or [a for a in order if left[a] != 1] != [
            a for a in range(len(left)) if left[a] != 1
        ]:
            return Refusal("axes", f"{shuffle.name} moves axes that {layer.name} keeps")
        return None
    kept = [order[axis] for axis in range(len(order)) if axis not in op.axes]
    if kept != sorted(kept):
        return Refusal("axes", f"{shuffle.name} changes the order of the axes {kept} that {layer.name} keeps")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    shuffle, layer = match.layers
    axes = tuple(sorted(match.found["order"][axis] for axis in layer.op.axes))
    return Replacement((Layer("", replace(layer.op, axes=axes), (*shuffle.inputs, *layer.inputs[1:]), layer.outputs),))


RULE = Rule("shuffle-reduce", __doc__.splitlines()[0], (Reduce,), _match, _rewrite, _check)
