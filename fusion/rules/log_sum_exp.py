"""log(ReduceSum(exp(x))) -> ReduceLogSumExp(x), which does not overflow where exp(x) does."""

from __future__ import annotations

from dataclasses import replace

from fusion.expression import Apply, Operand, apply, operands, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Reduce
from fusion.rewrite import Match, Replacement, Rule
from fusion.rules._expressions import swap


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    if op.kind != "sum" or not isinstance(op.prologue, Apply) or op.prologue.function != "exp":
        return None
    rest = swap(op.epilogue, apply("log", Operand(0)), Operand(-1))
    if rest == op.epilogue or 0 in operands(rest):
        return None
    return Match((layer,), found={"epilogue": substitute(rest, {-1: Operand(0)})})


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    op = replace(layer.op, kind="logsumexp", prologue=layer.op.prologue.arguments[0], epilogue=match.found["epilogue"])
    return Replacement((Layer("", op, layer.inputs, layer.outputs),), keep_name=True)


RULE = Rule("log-sum-exp", __doc__.splitlines()[0], (Reduce,), _match, _rewrite)
