"""Gather(x, constant run of indices) -> Slice(x): one index, or evenly spaced ones; a run of memory is then read in place."""

from __future__ import annotations

import numpy as np

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Gather, Shuffle, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    indices = graph.constant(layer.inputs[1])
    if indices is None or not indices.size or graph.constant(layer.inputs[0]) is not None:
        return None
    return Match((layer,), found={"indices": indices.reshape(-1).astype(np.int64)})


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    indices, dim = match.found["indices"], graph.type(layer.inputs[0]).shape[layer.op.axis]
    if (indices < 0).any() and not isinstance(dim, int):
        return Refusal("dynamic", f"{layer.name} counts from the end of an axis whose size is known at run time only")
    places = _places(indices, dim)
    steps = np.diff(places)
    if len(set(steps.tolist())) > 1 or (len(steps) and steps[0] < 1):
        return Refusal("indices", f"the {len(indices)} indices of {layer.name} are not evenly spaced")
    return None


def _places(indices: np.ndarray, dim: object) -> np.ndarray:
    return np.where(indices < 0, indices + dim, indices) if isinstance(dim, int) else indices


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    shape, axis = graph.type(layer.inputs[0]).shape, layer.op.axis
    places = _places(match.found["indices"], shape[axis]).tolist()
    starts = tuple(places[0] if one == axis else 0 for one in range(len(shape)))
    sizes = tuple(len(places) if one == axis else dim for one, dim in enumerate(shape))
    step = places[1] - places[0] if len(places) > 1 else 1
    op = Slice(starts, sizes, tuple(step if one == axis else 1 for one in range(len(shape))))
    out = graph.type(layer.outputs[0]).shape
    if len(out) == len(shape):
        return Replacement((Layer("", op, layer.inputs[:1], layer.outputs),), keep_name=True)
    middle = graph.fresh(f"{layer.outputs[0]}.slice")
    view = Layer(f"{layer.name} reshape", Shuffle(reshape=out), (middle,), layer.outputs, layer.origins)
    return Replacement((Layer("", op, layer.inputs[:1], (middle,)), view), keep_name=True)


RULE = Rule("gather-slice", __doc__.splitlines()[0], (Gather,), _match, _rewrite, _check)
