"""f(x), f(x) -> one f(x): two layers with the same operation and the same inputs are computed once."""

from __future__ import annotations

from dataclasses import fields

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import OPS, Concatenation, Pointwise
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._quantized import moves_data


def _match(graph: Graph, layer: Layer) -> Match | None:
    other = next(graph.twins(layer), None) if layer.inputs else None
    return None if other is None else Match(tuple(sorted((layer, other), key=graph.position)))


def _rewrite(graph: Graph, match: Match) -> Replacement:
    first, second = match.layers
    kept = Layer("", first.op, first.inputs, first.outputs)
    return Replacement((kept,), aliases=dict(zip(second.outputs, first.outputs, strict=True)), keep_name=True)


def _near(graph: Graph, layer: Layer) -> Near | None:
    """Another layer of this kind reads the same, and differs in its attributes, or in what it does with the result. Layers that only
    move elements, and functions of a tensor, are different things rather than nearly the same one."""
    if not layer.inputs or isinstance(layer.op, Pointwise | Concatenation) or moves_data(layer.op):
        return None
    arity = getattr(layer.op, "arity", len(layer.inputs))
    fewest = min(layer.inputs[: max(arity, 1)], key=lambda name: len(graph.readers(name)))
    for other in graph.readers(fewest):
        if type(other.op) is type(layer.op) and other.name != layer.name and other.inputs[:arity] == layer.inputs[:arity]:
            first, second = sorted((layer, other), key=graph.position)
            pairs = [(one.name, getattr(first.op, one.name), getattr(second.op, one.name)) for one in fields(layer.op)]
            apart = [f"{name} is {a} in {first.name}, {b} in {second.name}" for name, a, b in pairs if a != b and name != "epilogue"]
            if apart:
                return Match((first, second)), Refusal("attributes", "; ".join(apart))
            return Match((first, second)), Refusal("epilogue", f"{first.name} and {second.name} make different things of one result")
    return None


# Of two equal layers the younger one is tried when it appears, so once per layer is enough.
RULE = Rule("common-subexpression", __doc__.splitlines()[0], tuple(OPS.values()), _match, _rewrite, local=True, near=_near)
