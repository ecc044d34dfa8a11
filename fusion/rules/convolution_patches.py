"""Conv(x, w) of windows that lie side by side -> MatMul(Shuffle(x), w'): each patch of the image is a row of a matrix. Optional.

So vision transformers embed images. It costs moving the image once, and saves the gathering of windows of few channels, which no copy engine does: 3x224x224 in
patches of 16x16 are rows of 768 values, a product like any other. Whether it pays only a measurement tells.

For every device, images in planes or channels-last (pixels that are merged between stages), any number of spatial axes; the movement is a layer
like any other, which may vanish into its neighbours. Where patches are no whole number of 16 bytes long (14x14 of three channels) Hopper's products
do not take the rows: ``cuda.conv.patches_sm90`` lays them out with gaps, inside one layer, for images in planes. Where both serve, the measurement decides.
"""

from __future__ import annotations

from itertools import chain
from math import prod

import numpy as np

from fusion.dtypes import DataType
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Convolution, MatrixMultiply, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import show

FLOATS = (DataType.HALF, DataType.BF16, DataType.FLOAT)


def _match(graph: Graph, layer: Layer) -> Match | None:
    window = graph.type(layer.inputs[1]).shape[2:]
    return Match((layer,)) if layer.op.stride == window and prod(layer.op.stride) > 1 else None


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    op = layer.op
    assert isinstance(op, Convolution)
    kinds = [graph.type(name).dtype for name in (*layer.inputs[:2], layer.outputs[0])]
    if not op.channels_last:
        return Refusal("layout", f"{layer.name} writes planes of channels, not rows of them")
    if op.groups != 1:
        return Refusal("groups", f"{layer.name} has {op.groups} groups")
    if any(pad != 0 for pad in (*op.pre_padding, *op.post_padding)) or set(op.dilation) != {1}:
        return Refusal("window", f"windows of {layer.name} are padded or dilated")
    if len(set(kinds)) > 1 or kinds[0] not in FLOATS:
        return Refusal("precision", f"{layer.name} has {', '.join(kind.label for kind in kinds)}; one of {', '.join(kind.label for kind in FLOATS)} is allowed")
    if graph.constant(layer.inputs[1]) is None:
        return Refusal("weights", f"the weights {layer.inputs[1]} are not constant")
    shape = graph.type(layer.inputs[0]).shape
    sizes = shape[1:-1] if op.reads_channels_last else shape[2:]
    if not all(isinstance(size, int) and size % step == 0 for size, step in zip(sizes, op.stride, strict=True)):
        return Refusal("size", f"an image of {show(sizes)} is not divided into whole patches of {show(op.stride)}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    op, x, weights = layer.op, graph.type(layer.inputs[0]).shape, graph.constants[layer.inputs[1]]
    assert isinstance(op, Convolution)
    rank = len(op.stride)
    sizes, channels = (x[1:-1], x[-1]) if op.reads_channels_last else (x[2:], x[1])
    cut = tuple(chain.from_iterable((size // step, step) for size, step in zip(sizes, op.stride, strict=True)))  # patches, positions of each axis
    first = 1 if op.reads_channels_last else 2  # axis of `cut` in what is reshaped
    patches, positions = (tuple(range(first + number, first + 2 * rank, 2)) for number in (0, 1))
    if op.reads_channels_last:
        apart, inside, rows = (x[0], *cut, channels), (*positions, first + 2 * rank), np.moveaxis(weights, 1, -1)
    else:
        apart, inside, rows = (x[0], channels, *cut), (1, *positions), weights
    moved, matrix, w = (graph.fresh(f"{layer.name}.{name}") for name in ("moved", "patches", "rows"))
    kept = layer.origins, (*layer.fusions, RULE.name)
    layers = (
        Layer(f"{layer.name} patches", Shuffle(None, apart, (0, *patches, *inside)), layer.inputs[:1], (moved,), *kept),
        Layer(f"{layer.name} rows", Shuffle(None, (x[0], *cut[::2], prod(weights.shape[1:]))), (moved,), (matrix,), *kept),
        Layer("", MatrixMultiply(False, True, op.epilogue), (matrix, w, *layer.inputs[2:]), layer.outputs),
    )
    return Replacement(layers, {w: np.ascontiguousarray(rows.reshape(len(rows), -1))})


RULE = Rule("convolution-patches", __doc__.splitlines()[0], (Convolution,), _match, _rewrite, _check)
