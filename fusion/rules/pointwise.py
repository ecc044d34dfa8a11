"""f(g(x, y), z) -> fused(x, y, z): two pointwise layers become one; chains, trees and diamonds in several steps."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import (
    distinct,
    equal_shape,
    join,
    joins_too_large,
    number,
    pointwise_reader,
    show,
    too_large,
)

# A producer that broadcasts is computed again for every element that reads it: worth it while that hides behind memory.
CHEAP = 8


def _match(graph: Graph, layer: Layer) -> Match | None:
    reader = pointwise_reader(graph, layer)
    return None if reader is None else Match((layer, reader), (layer.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, reader = match.layers
    made, out = graph.type(layer.outputs[0]).shape, graph.type(reader.outputs[0]).shape
    if not equal_shape(made, out) and (count := distinct(layer.op.expression)) > CHEAP:
        return Refusal("broadcast", f"{reader.name} broadcasts {show(made)} to {show(out)} and would compute {count} "
                                    f"functions again for each element; {CHEAP} are allowed")  # fmt: skip
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    layer, reader = match.layers
    refusal = joins_too_large(reader.op.expression, reader.inputs, layer.outputs[0], layer.op.expression, graph.limits)
    if refusal is not None:
        return refusal
    expression, names = join(reader.op.expression, reader.inputs, layer.outputs[0], layer.op.expression, layer.inputs)
    expression, names = number(expression, names)
    refusal = too_large(expression, len(names), graph.limits)
    if refusal is not None:
        return refusal
    return Replacement((Layer("", Pointwise(expression), names, reader.outputs),))


RULE = Rule("pointwise", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
