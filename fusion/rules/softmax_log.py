"""log(Softmax(x)) -> LogSoftmax(x), which does not overflow where a probability rounds to 0."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Softmax
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._epilogue import near_logarithm
from fusion.rules._expressions import without_logarithm


def _match(graph: Graph, layer: Layer) -> Match | None:
    if layer.op.log:
        return None
    epilogue = without_logarithm(layer.op.epilogue)
    return None if epilogue is None else Match((layer,), found={"epilogue": epilogue})


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    op = replace(layer.op, log=True, epilogue=match.found["epilogue"])
    return Replacement((Layer("", op, layer.inputs, layer.outputs),), keep_name=True)


def _near(graph: Graph, layer: Layer) -> Near | None:
    found = near_logarithm(graph, layer)
    if found is not None and layer.op.log:
        return found[0], Refusal("logarithm", f"{layer.name} is a logarithm already")
    return found


RULE = Rule("softmax-log", __doc__.splitlines()[0], (Softmax,), _match, _rewrite, near=_near)
