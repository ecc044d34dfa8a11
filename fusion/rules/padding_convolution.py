"""Conv(pad(x, 0), w) -> Conv(x, w, padding): zero padding of spatial axes becomes the convolution's own."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Convolution, Padding
from fusion.rewrite import Match, Refusal, Replacement, Rule


def spatial_padding(pad: Padding, channels_last: bool) -> tuple[tuple, tuple] | Refusal:
    """(before, after) of the spatial axes, or why there is more to it."""
    rank = len(pad.pre)
    spatial = range(1, rank - 1) if channels_last else range(2, rank)
    for axis in range(rank):
        amounts = (pad.pre[axis], pad.post[axis])
        if axis not in spatial and any(amount != 0 for amount in amounts):
            return Refusal("axes", f"it pads axis {axis} by {amounts}, which is not spatial")
        if any(isinstance(amount, int) and amount < 0 for amount in amounts):
            return Refusal("negative", f"it cuts {amounts} from axis {axis}")
    return tuple(pad.pre[axis] for axis in spatial), tuple(pad.post[axis] for axis in spatial)


def _match(graph: Graph, layer: Layer) -> Match | None:
    pad = graph.producer(layer.inputs[0])
    return Match((pad, layer), (pad.outputs[0],)) if pad is not None and isinstance(pad.op, Padding) else None


def _check(graph: Graph, match: Match) -> Refusal | None:
    pad, layer = match.layers
    if pad.op.mode != "constant" or pad.op.value != 0:
        return Refusal(
            "value",
            f"{pad.name} pads with {pad.op.mode if pad.op.mode != 'constant' else pad.op.value}, not with zeros",
        )
    amounts = spatial_padding(pad.op, layer.op.channels_last)
    return amounts if isinstance(amounts, Refusal) else None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    pad, layer = match.layers
    amounts = spatial_padding(pad.op, layer.op.channels_last)
    if isinstance(amounts, Refusal):
        return amounts
    op = replace(
        layer.op,
        pre_padding=tuple(a + b for a, b in zip(layer.op.pre_padding, amounts[0], strict=True)),
        post_padding=tuple(a + b for a, b in zip(layer.op.post_padding, amounts[1], strict=True)),
    )
    return Replacement((Layer("", op, (*pad.inputs, *layer.inputs[1:]), layer.outputs),))


RULE = Rule("padding-convolution", __doc__.splitlines()[0], (Convolution,), _match, _rewrite, _check)
