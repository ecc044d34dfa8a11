"""ReduceMean(x, all spatial axes, keepdims) -> average Pooling(x, window = whole image)."""

from __future__ import annotations

from fusion.expression import text
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pooling, Reduce
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._expressions import show, static_size

# A pooling kernel walks the window in one thread. Larger windows are better cut into pieces, which Reduce does.
LARGEST_WINDOW = 256


def _match(graph: Graph, layer: Layer) -> Match | None:
    rank = len(graph.type(layer.inputs[0]).shape)
    op = layer.op
    if op.kind != "mean" or rank not in (4, 5) or op.axes != tuple(range(2, rank)) or op.prologue != IDENTITY:
        return None
    return Match((layer,))


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    shape = graph.type(layer.inputs[0]).shape
    if not layer.op.keep_dims:
        return Refusal("keepdims", f"{layer.name} drops the spatial axes")
    if graph.limits.device != "cuda":
        return Refusal("device", "a NumPy mean over contiguous axes is faster than a loop over windows")
    if not graph.type(layer.inputs[0]).dtype.is_float:
        return Refusal("data type", f"{layer.name} averages {graph.type(layer.inputs[0]).dtype.value}")
    count = static_size(shape[2:])
    if count is None:
        return Refusal("dynamic", f"the window {show(shape[2:])} depends on run-time sizes")
    if count > LARGEST_WINDOW:
        return Refusal("size", f"the window {show(shape[2:])} has {count} positions, {LARGEST_WINDOW} are allowed")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    window = graph.type(layer.inputs[0]).shape[2:]
    zeros, ones = (0,) * len(window), (1,) * len(window)
    op = Pooling("average", window, ones, zeros, zeros, ones, epilogue=layer.op.epilogue)
    return Replacement((Layer("", op, layer.inputs, layer.outputs),), keep_name=True)


def _near(graph: Graph, layer: Layer) -> Near | None:
    """A mean over other axes of an image, or of a function of it."""
    rank = len(graph.type(layer.inputs[0]).shape)
    spatial = tuple(range(2, rank))
    if layer.op.kind != "mean" or rank not in (4, 5) or not set(spatial) & set(layer.op.axes):
        return None
    if graph.limits.device == "cuda" and layer.op.axes == tuple(range(1, rank - 1)):
        return None  # those of a channels-last image: what stood in the way was seen before its layout was chosen
    if layer.op.axes != spatial:
        return Match((layer,)), Refusal("axes", f"{layer.name} is a mean over axes {layer.op.axes}; pooling is one over {spatial}")
    return Match((layer,)), Refusal("prologue", f"{layer.name} is a mean of {text(layer.op.prologue, ['x'])}; pooling takes x itself")


RULE = Rule("reduce-pooling", __doc__.splitlines()[0], (Reduce,), _match, _rewrite, _check, near=_near)
