"""Conv(f(x, y ...), w) -> Conv(x, w, y ..., prologue=f): each element goes through f as it is read, padding does not. Optional.

Pre-activation networks (ResNet V2, DenseNet) have a normalisation and a ReLU there, which no convolution before can take, squeeze-and-excitation a
factor per image and channel. Larger windows compute f again at every position: on an H100 3x3 windows took 1.3 to 2.4 times as long as the two layers.
"""

from __future__ import annotations

from fusion.dims import is_static
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Convolution
from fusion.rewrite import Refusal
from fusion.rules._expressions import show
from fusion.rules._product_prologue import product_prologue_rule


def _refuse(graph: Graph, layer: Layer) -> Refusal | None:
    op, weights, device = layer.op, graph.constant(layer.inputs[1]), graph.limits.device
    assert isinstance(op, Convolution)
    if weights is None:
        return Refusal("weights", f"the weights of {layer.name} are not constant")
    if op.groups != 1:
        return Refusal("groups", f"{layer.name} has {op.groups} groups; one is allowed")
    if set(weights.shape[2:]) != {1} or not is_static((op.pre_padding, op.post_padding)):
        return Refusal("window", f"{layer.name} has windows of {show(weights.shape[2:])}, of which each position computes the function again, or paddings known at run time only")
    padded = any(pad != 0 for pad in (*op.pre_padding, *op.post_padding))
    if device == "cpu" and (set(op.stride) != {1} or padded):
        return Refusal("window", f"{layer.name} has a stride of {show(op.stride)}{' and padding' if padded else ''}; on the CPU neither is allowed")
    if op.channels_last != (device == "cuda") or op.reads_channels_last != op.channels_last:
        return Refusal("layout", f"{layer.name} must have the device's layout (channels last on a GPU, first on a CPU)")
    return None


RULE = product_prologue_rule("convolution-prologue", __doc__.splitlines()[0], Convolution, _refuse)
