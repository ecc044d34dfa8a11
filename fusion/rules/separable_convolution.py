"""Conv1x1(DepthwiseConv(x, f), w) -> SeparableConvolution(x, f, w): a depthwise-separable pair, whose middle tensor is never stored. Optional.

It saves writing and reading the depthwise result, which is what both convolutions spend most of their time on. It costs results that tiles of
many output channels compute again, and the freedom to choose the fastest kernel of each; what wins only a measurement tells.
"""

from __future__ import annotations

import math

from fusion.dims import is_static
from fusion.dtypes import DataType
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Convolution, SeparableConvolution
from fusion.rewrite import Match, Refusal, Replacement, Rule

TAPS = 49  # of the window, which kernels unroll
CHANNELS = 640  # of the output; a block of a kernel has up to 320 and computes the depthwise results for itself
INTEGERS = (DataType.INT8, DataType.UINT8)
FLOATS = {"cuda": (DataType.HALF, DataType.BF16), "cpu": (DataType.FLOAT, DataType.DOUBLE)}  # in float32 a GPU has no tensor cores for it


def _match(graph: Graph, layer: Layer) -> Match | None:
    op, first = layer.op, graph.producer(layer.inputs[0])
    if first is None or not isinstance(first.op, Convolution) or first.op.groups == 1:
        return None
    assert isinstance(op, Convolution)
    if set(graph.type(layer.inputs[1]).shape[2:]) != {1}:
        return None
    return Match((first, layer), (first.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    first, layer = match.layers
    depthwise, pointwise = first.op, layer.op
    assert isinstance(depthwise, Convolution) and isinstance(pointwise, Convolution)
    if len(depthwise.stride) != 2:
        return Refusal("dimensions", f"{first.name} has {len(depthwise.stride)} spatial dimensions; two are allowed")
    filters, weights = graph.type(first.inputs[1]).shape, graph.type(layer.inputs[1]).shape
    if filters[:2] != (depthwise.groups, 1):
        return Refusal("groups", f"{first.name} has {depthwise.groups} groups of {filters[1]} channels and {filters[0]} filters; one filter a channel is allowed")
    padded = any(pad != 0 for pad in (*pointwise.pre_padding, *pointwise.post_padding))
    if set(pointwise.stride) != {1} or padded or pointwise.groups != 1:
        return Refusal("pointwise", f"{layer.name} has a stride, padding or {pointwise.groups} groups; a plain 1x1 convolution is allowed")
    if depthwise.channels_last != pointwise.channels_last or depthwise.channels_last != (graph.limits.device == "cuda"):
        return Refusal("layout", f"{first.name} and {layer.name} must have the device's layout (channels last on a GPU, first on a CPU)")
    if depthwise.reads_channels_last != depthwise.channels_last or pointwise.reads_channels_last != pointwise.channels_last:
        return Refusal("layout", f"{first.name} reads another layout than it writes")
    kinds = [graph.type(name).dtype for name in (*first.inputs[:2], first.outputs[0], layer.inputs[1])]
    floats = len(set(kinds)) == 1 and kinds[0] in FLOATS.get(graph.limits.device, ())
    if not floats and not (kinds[0] in INTEGERS and kinds[2] in INTEGERS and kinds[1] is kinds[3] is DataType.INT8):
        allowed = ", ".join(kind.label for kind in FLOATS.get(graph.limits.device, ()))
        return Refusal("precision", f"{first.name} and {layer.name} have {', '.join(kind.label for kind in kinds)}; one of {allowed}, or 8-bit integers are allowed")
    if graph.constant(first.inputs[1]) is None or graph.constant(layer.inputs[1]) is None:
        return Refusal("weights", f"the weights of {first.name} or {layer.name} are not constant")
    if not is_static((depthwise.pre_padding, depthwise.post_padding)):
        return Refusal("dynamic", f"paddings of {first.name} are known at run time only")
    taps = math.prod(graph.constant(first.inputs[1]).shape[2:])  # type: ignore[union-attr]
    if taps > TAPS:
        return Refusal("window", f"{first.name} has windows over {taps} positions; {TAPS} are allowed")
    if int(weights[0]) > CHANNELS:  # type: ignore[arg-type]
        return Refusal("channels", f"{layer.name} has {weights[0]} output channels; {CHANNELS} are allowed, for every 320 compute {first.name} again")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    first, layer = match.layers
    assert isinstance(first.op, Convolution) and isinstance(layer.op, Convolution)
    x, filters, *operands = first.inputs
    _, weights, *later = layer.inputs
    op = SeparableConvolution(first.op, layer.op, len(operands))
    return Replacement((Layer("", op, (x, filters, weights, *operands, *later), layer.outputs),))


RULE = Rule("separable-convolution", __doc__.splitlines()[0], (Convolution,), _match, _rewrite, _check)
