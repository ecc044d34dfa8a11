"""Q(op(x)) -> op(Q(x)), for op that moves elements or picks the largest; Q(Concat(x, y)) -> Concat(Q(x), Q(y)).

The layer then moves a quarter of the bytes, and the quantisation comes into the epilogue of the layer that makes x."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Pointwise
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import equal_shape, static_size
from fusion.rules._quantized import keeps_order, moves_data, quantized


def _match(graph: Graph, layer: Layer) -> Match | None:
    scaling = quantized(graph, layer)
    maker = graph.producer(scaling.tensor) if scaling is not None else None
    if scaling is None or maker is None:
        return None
    if not (moves_data(maker.op) or keeps_order(maker.op) or isinstance(maker.op, Concatenation)):
        return None
    return Match((maker, layer), (maker.outputs[0],), {"scaling": scaling})


def _check(graph: Graph, match: Match) -> Refusal | None:
    maker, layer = match.layers
    scaling = match.found["scaling"]
    if not scaling.uniform or len(layer.inputs) != 1:
        return Refusal("scale", f"{layer.name} has scales per channel, which {maker.name} moves")
    if keeps_order(maker.op) and (scaling.scale.reshape(()) < 0 or scaling.quantized.is_float):
        return Refusal("data type", f"{maker.name} would compare {scaling.quantized.value}, scale {float(scaling.scale.reshape(())):g}")
    before, after = (graph.type(one.inputs[0] if one is maker else one.outputs[0]) for one in match.layers)
    if not keeps_order(maker.op) and not equal_shape(before.shape, after.shape) and _shrinks(before.shape, after.shape):
        return Refusal("no gain", f"{maker.name} cuts {maker.inputs[0]} down: more would be quantised than is read")
    return None


def _shrinks(before: tuple, after: tuple) -> bool:
    """Whether ``after`` surely has less than a quarter of the elements of ``before``."""
    read, quantised = static_size(before), static_size(after)
    return read is not None and quantised is not None and read > 4 * quantised


def _rewrite(graph: Graph, match: Match) -> Replacement:
    maker, layer = match.layers
    count = len(maker.inputs) if isinstance(maker.op, Concatenation) else 1
    new: list[Layer] = []
    made: dict[str, str] = {}
    for name in maker.inputs[:count]:
        if name not in made:
            made[name] = graph.fresh(f"{name}.{layer.name}")
            label = layer.name if count == 1 else f"{layer.name} of {name}"
            new.append(Layer(label, layer.op, (name,), (made[name],), layer.origins, layer.fusions))
    inputs = (*(made[name] for name in maker.inputs[:count]), *maker.inputs[count:])
    return Replacement((*new, Layer(maker.name, maker.op, inputs, layer.outputs, maker.origins, maker.fusions)))


RULE = Rule("quantize-backward", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
