"""Q(DQ(q)) -> q, for equal scales, zero points and data types: the two undo each other exactly."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._quantized import QUANTIZED, dequantized, quantized


def _match(graph: Graph, layer: Layer) -> Match | None:
    if graph.type(layer.outputs[0]).dtype not in QUANTIZED:
        return None
    after = quantized(graph, layer)
    if after is None:
        return None
    maker = graph.producer(after.tensor)
    before = dequantized(graph, maker)
    if maker is None or before is None or graph.constant(before.tensor) is not None:
        return None
    return Match((maker, layer), (), {"before": before, "after": after})


def _check(graph: Graph, match: Match) -> Refusal | None:
    before, after = match.found["before"], match.found["after"]
    if before.quantized is not after.quantized:
        return Refusal("data type", f"{before.tensor} is {before.quantized.value}, the result is {after.quantized.value}")
    if not before.equals(after):
        return Refusal("scale", f"scale {before.scale.reshape(-1)[0]:.6g} and zero point {before.zero.reshape(-1)[0]:g} before, "
                                f"{after.scale.reshape(-1)[0]:.6g} and {after.zero.reshape(-1)[0]:g} after")  # fmt: skip
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    maker, layer = match.layers
    made = maker.outputs[0]
    shared = made in graph.outputs or any(reader.name != layer.name for reader in graph.readers(made))
    return Replacement((maker,) if shared else (), aliases={layer.outputs[0]: match.found["before"].tensor})


RULE = Rule("dequantize-quantize", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
