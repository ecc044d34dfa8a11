"""op(DQ(q)) -> DQ(op(q)), for op that moves elements or picks the largest: shuffle, slice, gather, nearest resize, max pooling, relu.

The layer then moves a quarter of the bytes, and the dequantisation comes next to the product that takes it away."""

from __future__ import annotations

from dataclasses import replace

from fusion.expression import Literal, Operand, apply
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Expand, Gather, Padding, Pointwise, Pooling, Resize, Shuffle, Slice, Tile
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._quantized import QUANTIZED, Scaling, dequantized, keeps_order, moves_data


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    if isinstance(op, Pointwise):
        if op.expression != apply("relu", Operand(0)):
            return None
    elif not (moves_data(op) or keeps_order(op) or isinstance(op, Concatenation | Padding)):
        return None
    count = len(layer.inputs) if isinstance(op, Concatenation) else 1
    makers = [graph.producer(name) for name in layer.inputs[:count]]
    scalings = [dequantized(graph, maker) for maker in makers]
    if any(one is None or one.quantized not in QUANTIZED for one in scalings):
        return None
    constant = [graph.constant(one.tensor) is not None for one in scalings if one is not None]
    if any(constant) and not isinstance(op, Gather):
        return None  # weights: the product looks through their shuffles itself
    layers = tuple({maker.name: maker for maker in makers if maker is not None}.values())
    return Match((*layers, layer), (), {"scalings": scalings})


def _check(graph: Graph, match: Match) -> Refusal | None:
    scalings: list[Scaling] = match.found["scalings"]
    layer = match.layers[-1]
    first = scalings[0]
    if not first.uniform:
        return Refusal("scale", f"{layer.inputs[0]} has scales per channel, which {layer.name} would move")
    for name, other in zip(layer.inputs, scalings, strict=False):
        if not other.equals(first) or other.real is not first.real:
            return Refusal("scale", f"{layer.inputs[0]} and {name} have scales {first.scale.reshape(-1)[0]:.6g} and "
                                    f"{other.scale.reshape(-1)[0]:.6g} and zero points {first.zero.reshape(-1)[0]:g} and "
                                    f"{other.zero.reshape(-1)[0]:g}")  # fmt: skip
    if isinstance(layer.op, Padding) and layer.op.mode == "constant" and layer.op.value != 0:
        return Refusal("value", f"{layer.name} pads with {layer.op.value:g}; only 0 is sure to be a quantised value")
    if first.quantized.is_float and not moves_data(layer.op) and not isinstance(layer.op, Concatenation):
        return Refusal("data type", f"{layer.name} would compare or fill {first.quantized.value}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    *makers, layer = match.layers
    scalings: list[Scaling] = match.found["scalings"]
    zero = int(scalings[0].zero.reshape(()))
    op = layer.op
    if isinstance(op, Padding) and op.mode == "constant":
        op = replace(op, value=float(zero))
    elif isinstance(op, Pointwise):
        op = Pointwise(apply("max", Operand(0), Literal(zero, scalings[0].quantized)))
    middle = graph.fresh(f"{layer.outputs[0]}.{scalings[0].quantized.value}")
    count = len(scalings)
    moved = Layer(layer.name, op, (*(one.tensor for one in scalings), *layer.inputs[count:]), (middle,), layer.origins, layer.fusions)
    maker = makers[0]
    source = scalings[0].tensor
    inputs = tuple(middle if name == source else name for name in maker.inputs)
    after = Layer(maker.name, maker.op, inputs, layer.outputs, maker.origins, maker.fusions)
    kept = tuple(one for one in makers if _is_shared(graph, one, layer))
    others = tuple(origin for one in makers[1:] for origin in one.origins)
    return Replacement((*kept, moved, replace(after, origins=(*after.origins, *others))))


def _is_shared(graph: Graph, maker: Layer, layer: Layer) -> bool:
    (made,) = maker.outputs
    return made in graph.outputs or any(reader.name != layer.name for reader in graph.readers(made))


ANCHORS = (Shuffle, Slice, Expand, Tile, Gather, Resize, Concatenation, Padding, Pooling, Pointwise)
RULE = Rule("dequantize-forward", __doc__.splitlines()[0], ANCHORS, _match, _rewrite, _check)
