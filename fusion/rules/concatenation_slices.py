"""Concat(x[:k], x[k:], y) -> Concat(x, y): neighbouring slices of one tensor are one part."""

from __future__ import annotations

from itertools import pairwise

from fusion.dims import Dim
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Slice
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    axis = layer.op.axis
    for first in range(len(layer.inputs) - 1):
        source, start, end = cut_of(graph, layer.inputs[first], axis) or ("", 0, 0)
        last = first + 1
        while source and last < len(layer.inputs):
            following = cut_of(graph, layer.inputs[last], axis)
            if following is None or following[:2] != (source, end):
                break
            end, last = following[2], last + 1
        if last - first > 1:
            return Match((layer,), found={"run": (first, last), "source": source, "cut": (start, end)})
    return None


def cut_of(graph: Graph, tensor: str, axis: int) -> tuple[str, Dim, Dim] | None:
    """(x, k, l) when ``tensor`` is x from k to l along ``axis`` and all of it along the others."""
    producer = graph.producer(tensor)
    if producer is None or not isinstance(producer.op, Slice):
        return None
    op, shape = producer.op, graph.type(producer.inputs[0]).shape
    whole = all(one == axis or (op.starts[one], op.sizes[one]) == (0, dim) for one, dim in enumerate(shape))
    if not whole or any(step != 1 for step in op.steps):
        return None
    return producer.inputs[0], op.starts[axis], op.starts[axis] + op.sizes[axis]


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    (first, last), source, (start, end) = match.found["run"], match.found["source"], match.found["cut"]
    shape, axis = graph.type(source).shape, layer.op.axis
    joined, new = source, []
    if (start, end) != (0, shape[axis]):
        joined = graph.fresh(f"{layer.outputs[0]}.slice")
        starts = tuple(start if one == axis else 0 for one in range(len(shape)))
        sizes = tuple(end - start if one == axis else dim for one, dim in enumerate(shape))
        new.append(Layer(f"{layer.name} slice", Slice(starts, sizes, (1,) * len(shape)), (source,), (joined,), layer.origins))
    inputs = (*layer.inputs[:first], joined, *layer.inputs[last:])
    return Replacement((*new, Layer("", layer.op, inputs, layer.outputs)), keep_name=True)


def _near(graph: Graph, layer: Layer) -> Near | None:
    """Two slices of one tensor, side by side, that are no neighbours in it."""
    for first, second in pairwise(layer.inputs):
        makers = [one for one in (graph.producer(first), graph.producer(second)) if one is not None and isinstance(one.op, Slice)]
        if len(makers) < 2 or makers[0].inputs[0] != makers[1].inputs[0]:
            continue
        source, a, b = makers[0].inputs[0], cut_of(graph, first, layer.op.axis), cut_of(graph, second, layer.op.axis)
        if a is None or b is None:
            refusal = Refusal("cut", f"{first} and {second} are cut out of {source} in steps, or along other axes than {layer.op.axis}")
        else:
            refusal = Refusal("sequence", f"{first} is {source} from {a[1]} to {a[2]}, {second} from {b[1]} to {b[2]}")
        return Match((*dict.fromkeys(makers), layer)), refusal
    return None


RULE = Rule("concatenation-slices", __doc__.splitlines()[0], (Concatenation,), _match, _rewrite, near=_near)
