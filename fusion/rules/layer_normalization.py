"""(x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + e) * g + b -> Normalization(x, g, b), written out in layers; also by mean(x ** 2) - mean(x) ** 2."""

from __future__ import annotations

from fusion.expression import Apply, Operand
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise
from fusion.rewrite import Match, Rule
from fusion.rules._moments import find_moments
from fusion.rules._statistics import check, find_root_mean_square, mean_of, normalization_match, rewrite, strip


def _match(graph: Graph, layer: Layer) -> Match | None:
    for found in find_root_mean_square(graph, layer):
        centered = graph.producer(found.data)
        if centered is None or not isinstance(centered.op, Pointwise):
            continue
        expression = strip(centered.op.expression)
        if not isinstance(expression, Apply) or expression.function != "sub":
            continue
        x, m = (strip(child) for child in expression.arguments)
        if not isinstance(x, Operand) or not isinstance(m, Operand):
            continue
        data = centered.inputs[x.index]
        mean = mean_of(graph, centered.inputs[m.index], data, found.axes)
        if mean is not None:
            return normalization_match(graph, found, data, (mean, centered), center=True)
    moments = find_moments(graph, layer)
    return None if moments is None else normalization_match(graph, moments, moments.data, (), center=True)


RULE = Rule("layer-normalization", __doc__.splitlines()[0], (Pointwise,), _match, rewrite, check)
