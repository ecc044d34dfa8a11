"""Gather(x, constant run of indices) -> Slice(x): one index, or evenly spaced ones; a run of memory is then read in place. Also GatherND."""

from __future__ import annotations

from math import prod

import numpy as np

from fusion.dims import Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Gather, GatherND, Shuffle, Slice
from fusion.ops.gather import wrap
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    indices = graph.constant(layer.inputs[1])
    if indices is None or not indices.size or graph.constant(layer.inputs[0]) is not None:
        return None
    shape = graph.type(layer.inputs[0]).shape
    if isinstance(layer.op, Gather):
        return Match((layer,), found={"indices": indices.reshape(-1).astype(np.int64), "shape": shape, "axis": layer.op.axis})
    depth = indices.shape[-1]
    sizes = [size for size in shape[:depth] if isinstance(size, int)]
    if layer.op.batch_dims or len(sizes) < depth or not depth:
        return None
    # Rows of the tensor with its first axes in one.
    rows = np.ravel_multi_index([wrap(indices[..., axis], size) for axis, size in enumerate(sizes)], sizes)
    return Match((layer,), found={"indices": rows.reshape(-1), "shape": (prod(sizes), *shape[depth:]), "axis": 0})


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    indices, dim = match.found["indices"], match.found["shape"][match.found["axis"]]
    if (indices < 0).any() and not isinstance(dim, int):
        return Refusal("dynamic", f"{layer.name} counts from the end of an axis whose size is known at run time only")
    places = _places(indices, dim)
    steps = np.diff(places)
    if len(set(steps.tolist())) > 1 or (len(steps) and steps[0] < 1):
        return Refusal("indices", f"the {len(indices)} indices of {layer.name} are not evenly spaced")
    # A Gather stays inside its tensor whatever the indices are, a Slice reads what lies behind.
    if places[0] < 0 or (places[-1] >= dim if isinstance(dim, int) else places[-1] > 0):
        return Refusal("bounds", f"{layer.name} reads element {places[-1]} of {dim}, which may not be there")
    return None


def _places(indices: np.ndarray, dim: object) -> np.ndarray:
    return np.where(indices < 0, indices + dim, indices) if isinstance(dim, int) else indices


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    shape: Shape = match.found["shape"]
    axis, source, views = match.found["axis"], layer.inputs[0], []
    if shape != graph.type(source).shape:
        rows = graph.fresh(f"{source}.rows")
        views.append(Layer(f"{layer.name} rows", Shuffle(reshape=shape), (source,), (rows,), layer.origins))
        source = rows
    places = _places(match.found["indices"], shape[axis]).tolist()
    starts = tuple(places[0] if one == axis else 0 for one in range(len(shape)))
    sizes = tuple(len(places) if one == axis else dim for one, dim in enumerate(shape))
    step = places[1] - places[0] if len(places) > 1 else 1
    op = Slice(starts, sizes, tuple(step if one == axis else 1 for one in range(len(shape))))
    out = graph.type(layer.outputs[0]).shape
    if len(out) == len(shape):
        return Replacement((*views, Layer("", op, (source,), layer.outputs)), keep_name=True)
    middle = graph.fresh(f"{layer.outputs[0]}.slice")
    view = Layer(f"{layer.name} reshape", Shuffle(reshape=out), (middle,), layer.outputs, layer.origins)
    return Replacement((*views, Layer("", op, (source,), (middle,)), view), keep_name=True)


RULE = Rule("gather-slice", __doc__.splitlines()[0], (Gather, GatherND), _match, _rewrite, _check)
