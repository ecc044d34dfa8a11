"""Pooling(f(x)) -> Pooling(x, prologue=f): where windows do not overlap, so that each f(x) is computed once. Padding stays outside f."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pooling
from fusion.ops.convolution import split_channels
from fusion.rewrite import Refusal
from fusion.rules._expressions import show
from fusion.rules._prologue import prologue_rule


def overlap(graph: Graph, layer: Layer) -> Refusal | None:
    """A refusal where two windows may read one element."""
    op = layer.op
    assert isinstance(op, Pooling)
    counts = split_channels(graph.type(layer.outputs[0]).shape, op.channels_last)[2]
    for count, window, stride, dilation in zip(counts, op.window, op.stride, op.dilation, strict=True):
        if count == 1:  # such as the whole image, of whatever size
            continue
        if not isinstance(window, int) or not isinstance(stride, int):
            return Refusal("dynamic", f"whether windows {show(op.window)} of {layer.name} with stride {show(op.stride)} overlap is known at run time only")
        if stride < dilation * (window - 1) + 1:
            return Refusal("overlap", f"windows {show(op.window)} of {layer.name} with stride {show(op.stride)} overlap: a value would be computed again")
    return None


RULE = prologue_rule("pooling-prologue", __doc__.splitlines()[0], (Pooling,), overlap, converts=True)
