"""Conv1x1(f(x, y ...), w) -> Conv1x1(x, w, y ..., prologue=f): each element goes through f as it is read. Optional.

Pre-activation networks (ResNet V2, DenseNet) have a normalisation and a ReLU there, which no convolution before can take, squeeze-and-excitation a
factor per image and channel.
"""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Convolution
from fusion.rewrite import Refusal
from fusion.rules._expressions import show
from fusion.rules._product_prologue import product_prologue_rule


def _refuse(graph: Graph, layer: Layer) -> Refusal | None:
    op, window = layer.op, graph.type(layer.inputs[1]).shape[2:]
    assert isinstance(op, Convolution)
    padded = any(pad != 0 for pad in (*op.pre_padding, *op.post_padding))
    if set(window) != {1} or set(op.stride) != {1} or padded or op.groups != 1:
        more = f", padding, {op.groups} groups" if padded or op.groups != 1 else ""
        return Refusal("window", f"{layer.name} has windows of {show(window)}, stride {show(op.stride)}{more}; a plain 1x1 convolution reads each element once")
    if graph.constant(layer.inputs[1]) is None:
        return Refusal("weights", f"the weights of {layer.name} are not constant")
    if op.channels_last != (graph.limits.device == "cuda") or op.reads_channels_last != op.channels_last:
        return Refusal("layout", f"{layer.name} must have the device's layout (channels last on a GPU, first on a CPU)")
    return None


RULE = product_prologue_rule("convolution-prologue", __doc__.splitlines()[0], Convolution, _refuse)
