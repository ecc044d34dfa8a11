"""Concat(x[k:], x[:k]) -> Gather(x, [k ... n, 0 ... k]): what rolls along an axis is moved once. So windows of images are shifted."""

from __future__ import annotations

from math import prod

import numpy as np

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Gather
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules.concatenation_slices import cut_of
from fusion.rules.gather_rows import LEAST_ROW


def _match(graph: Graph, layer: Layer) -> Match | None:
    """The two slices and ``layer``, which is not along the last axis: there elements would move one by one."""
    if len(layer.inputs) != 2:
        return None
    last, first = (cut_of(graph, name, layer.op.axis) for name in layer.inputs)
    makers = [maker for name in layer.inputs if (maker := graph.producer(name)) is not None]
    if first is None or last is None or first[0] != last[0] or len({maker.name for maker in makers}) < 2:
        return None
    return Match((*makers, layer), layer.inputs, {"source": first[0], "first": first[1:], "last": last[1:]})


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, source = match.layers[-1], match.found["source"]
    shape, axis, (start, middle), (begin, end) = graph.type(source).shape, layer.op.axis, match.found["first"], match.found["last"]
    if (start, begin, end) != (0, middle, shape[axis]):
        return Refusal("sequence", f"{layer.name} joins {source} from {begin} to {end}, then from {start} to {middle}; they are not all of it, turned")
    if axis == len(shape) - 1:
        return Refusal("axis", f"{layer.name} joins along the last axis, where single elements would be gathered")
    row = prod(dim for dim in shape[axis + 1 :] if isinstance(dim, int)) * graph.type(source).dtype.itemsize
    if row < LEAST_ROW:
        return Refusal("size", f"rows of {row} bytes would be gathered; {LEAST_ROW} are needed")
    if not isinstance(middle, int) or not isinstance(end, int):
        return Refusal("dynamic", f"{source} is cut at {middle} of {end}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, source, (_, middle), (_, end) = match.layers[-1], match.found["source"], match.found["first"], match.found["last"]
    indices = graph.fresh(f"{layer.outputs[0]}.order")
    return Replacement((Layer("", Gather(layer.op.axis), (source, indices), layer.outputs),), {indices: np.roll(np.arange(end, dtype=np.int64), -middle)})


RULE = Rule("roll", __doc__.splitlines()[0], (Concatenation,), _match, _rewrite, _check)
