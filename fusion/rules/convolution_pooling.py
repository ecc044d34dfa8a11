"""Pool(Conv(x, w)) -> ConvolutionPooling(x, w): the convolution's result is pooled where it is made. Optional.

It saves writing and reading the convolution's result, which is the larger the more the pooling shrinks it (a stem: four times). It
costs results that neighbouring tiles both need, and the freedom to choose the fastest kernel of each; what wins only a measurement tells.
"""

from __future__ import annotations

import math

from fusion.dims import is_static
from fusion.dtypes import DataType
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Convolution, ConvolutionPooling, Pooling
from fusion.ops.convolution import split_channels
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule

READS = 2.5  # how many windows may read each result: 3x3 with stride 2 has 2.25, a mean of the whole image 1
POSITIONS = 64  # of a window, whose results one block of a kernel holds
TYPES = (DataType.FLOAT, DataType.HALF, DataType.BF16)


def _match(graph: Graph, layer: Layer) -> Match | None:
    convolution = graph.producer(layer.inputs[0])
    if convolution is None or not isinstance(convolution.op, Convolution):
        return None
    return Match((convolution, layer), (convolution.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    first, layer = match.layers
    convolution, pooling = first.op, layer.op
    assert isinstance(convolution, Convolution) and isinstance(pooling, Pooling)
    if pooling.kind not in ("max", "average"):
        return Refusal("kind", f"{layer.name} is {pooling.kind} pooling; maxima and averages join")
    if pooling.prologue != IDENTITY:
        return Refusal("prologue", f"a function of each element stands between {first.name} and {layer.name}")
    if pooling.epilogue != IDENTITY:
        return Refusal("epilogue", f"{layer.name} has an epilogue of its own")
    if len(convolution.stride) != 2:
        return Refusal("dimensions", f"{first.name} has {len(convolution.stride)} spatial dimensions; two are allowed")
    if convolution.channels_last != pooling.channels_last or convolution.channels_last != (graph.limits.device == "cuda"):
        return Refusal("layout", f"{first.name} and {layer.name} must have the device's layout (channels last on a GPU, first on a CPU)")
    kinds = {graph.type(name).dtype for name in (*first.inputs[:2], first.outputs[0])}
    if len(kinds) > 1 or not kinds <= set(TYPES):
        return Refusal("precision", f"{first.name} has {', '.join(sorted(kind.label for kind in kinds))}; one floating-point type is allowed")
    if graph.constant(first.inputs[1]) is None:
        return Refusal("weights", f"the weights {first.inputs[1]} are not constant")
    sizes = (convolution.pre_padding, convolution.post_padding, pooling.window, pooling.stride, pooling.pre_padding, pooling.post_padding)
    if not is_static(sizes):
        return Refusal("dynamic", f"paddings or windows of {first.name} and {layer.name} are known at run time only")
    extents = [gap * (int(k) - 1) + 1 for gap, k in zip(pooling.dilation, pooling.window, strict=True)]  # type: ignore[arg-type]
    if math.prod(extents) > POSITIONS:
        return Refusal("window", f"{layer.name} has windows over {math.prod(extents)} positions; {POSITIONS} are allowed")
    reads = math.prod(_reads(graph, layer))
    if reads > READS:
        return Refusal("overlap", f"{reads:.3g} windows of {layer.name} read each result of {first.name}; {READS} are allowed")
    return None


def _reads(graph: Graph, layer: Layer) -> list[float]:
    """How many windows read each result, along each axis; where the whole image is one window, just that one."""
    pooling = layer.op
    assert isinstance(pooling, Pooling)
    counts = split_channels(graph.type(layer.outputs[0]).shape, pooling.channels_last)[2]
    return [
        min(int(k) / int(step), count if isinstance(count, int) else math.inf)  # type: ignore[arg-type]
        for k, step, count in zip(pooling.window, pooling.stride, counts, strict=True)
    ]


def _rewrite(graph: Graph, match: Match) -> Replacement:
    first, layer = match.layers
    assert isinstance(first.op, Convolution) and isinstance(layer.op, Pooling)
    return Replacement((Layer("", ConvolutionPooling(first.op, layer.op), first.inputs, layer.outputs),))


RULE = Rule("convolution-pooling", __doc__.splitlines()[0], (Pooling,), _match, _rewrite, _check)
