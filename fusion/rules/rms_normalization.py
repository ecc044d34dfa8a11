"""x / sqrt(mean(x ** 2) + e) * g -> Normalization(x, g, center=False), written out in layers."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise
from fusion.rewrite import Match, Rule
from fusion.rules._statistics import check, find_root_mean_square, normalization_match, rewrite


def _match(graph: Graph, layer: Layer) -> Match | None:
    for found in find_root_mean_square(graph, layer):
        return normalization_match(graph, found, found.data, (), center=False)
    return None


RULE = Rule("rms-normalization", __doc__.splitlines()[0], (Pointwise,), _match, rewrite, check)
