"""Reduce(transpose(x), axes) -> Reduce(x, axes before the transpose), when the order of the axes that stay is the same."""

from __future__ import annotations

from dataclasses import replace

from fusion.dims import Shape
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
    if op.arity < len(layer.inputs) and _result(graph, match) != graph.type(layer.outputs[0]).shape:
        return Refusal("epilogue", f"the epilogue of {layer.name} reads tensors in its layout")
    shape = graph.type(shuffle.inputs[0]).shape
    kept = [order[axis] for axis in range(len(order)) if axis not in op.axes and shape[order[axis]] != 1]
    if kept != sorted(kept):
        return Refusal("axes", f"{shuffle.name} changes the order of the axes {kept} that {layer.name} keeps")
    return None


def _result(graph: Graph, match: Match) -> Shape:
    """The shape of the reduction of what stands before the transpose."""
    shuffle, layer = match.layers
    axes = {match.found["order"][axis] for axis in layer.op.axes}
    shape = graph.type(shuffle.inputs[0]).shape
    return tuple(1 if axis in axes else dim for axis, dim in enumerate(shape) if layer.op.keep_dims or axis not in axes)


def _rewrite(graph: Graph, match: Match) -> Replacement:
    shuffle, layer = match.layers
    axes = tuple(sorted(match.found["order"][axis] for axis in layer.op.axes))
    op, inputs = replace(layer.op, axes=axes), (*shuffle.inputs, *layer.inputs[1:])
    out = graph.type(layer.outputs[0]).shape
    if _result(graph, match) == out:
        return Replacement((Layer("", op, inputs, layer.outputs),))
    # The axes of length 1 stand in other places: a view.
    middle = graph.fresh(f"{layer.outputs[0]}.before")
    view = Layer(f"{layer.name} reshape", Shuffle(reshape=out), (middle,), layer.outputs, layer.origins)
    return Replacement((Layer("", op, inputs, (middle,)), view))


RULE = Rule("shuffle-reduce", __doc__.splitlines()[0], (Reduce,), _match, _rewrite, _check)
