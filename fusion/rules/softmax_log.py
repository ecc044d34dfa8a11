"""log(Softmax(x)) -> LogSoftmax(x), which does not overflow where a probability rounds to 0."""

from __future__ import annotations

from dataclasses import replace

from fusion.expression import Operand, apply, operands, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Softmax
from fusion.rewrite import Match, Replacement, Rule
from fusion.rules._expressions import swap


def _match(graph: Graph, layer: Layer) -> Match | None:
    if layer.op.log:
        return None
    logarithm = apply("log", Operand(0))
    rest = swap(layer.op.epilogue, logarithm, Operand(-1))
    if rest == layer.op.epilogue or 0 in operands(rest):
        return None
    return Match((layer,), found={"epilogue": substitute(rest, {-1: Operand(0)})})


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    op = replace(layer.op, log=True, epilogue=match.found["epilogue"])
    return Replacement((Layer("", op, layer.inputs, layer.outputs),), keep_name=True)


RULE = Rule("softmax-log", __doc__.splitlines()[0], (Softmax,), _match, _rewrite)
