"""Conv(pad(x, 0), w) -> Conv(x, w, padding): zero padding of spatial axes becomes the convolution's own.

A deconvolution of a padded image is that of the image with ``stride`` elements less cut off per element of padding. Where more is
padded than was cut off its own padding is negative: what lies beyond the full result has no products, so its sums are 0.
"""

from __future__ import annotations

from dataclasses import replace

from fusion.dims import is_static
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Convolution, Deconvolution, Padding
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


def padding_before(graph: Graph, layer: Layer) -> Match | None:
    """The padding layer in front of ``layer``, and ``layer``."""
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
    if isinstance(amounts, Refusal):
        return amounts
    if isinstance(layer.op, Deconvolution) and not is_static(amounts):
        return Refusal("dynamic", f"{pad.name} pads by {amounts}, which is known at run time only; kernels arrange the weights of {layer.name} by it")
    return None


def _paddings(op: Convolution | Deconvolution, amounts: tuple[tuple, tuple]) -> tuple[tuple, tuple]:
    """(before, after) of the convolution without the padding layer."""
    sides = zip(amounts, (op.pre_padding, op.post_padding), strict=True)
    if isinstance(op, Deconvolution):
        before, after = (tuple(own - pad * s for pad, own, s in zip(a, b, op.stride, strict=True)) for a, b in sides)
    else:
        before, after = (tuple(pad + own for pad, own in zip(a, b, strict=True)) for a, b in sides)
    return before, after


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    pad, layer = match.layers
    amounts = spatial_padding(pad.op, layer.op.channels_last)
    if isinstance(amounts, Refusal):
        return amounts
    before, after = _paddings(layer.op, amounts)
    op = replace(layer.op, pre_padding=before, post_padding=after)
    return Replacement((Layer("", op, (*pad.inputs, *layer.inputs[1:]), layer.outputs),))


RULE = Rule("padding-convolution", __doc__.splitlines()[0], (Convolution, Deconvolution), padding_before, _rewrite, _check)
