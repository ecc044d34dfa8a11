"""log(ReduceSum(exp(x))) -> ReduceLogSumExp(x), which does not overflow where exp(x) does."""

from __future__ import annotations

from dataclasses import replace

from fusion.expression import Apply
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Reduce
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Near, Replacement, Rule
from fusion.rules._epilogue import near_logarithm
from fusion.rules._expressions import without_logarithm


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    if op.kind != "sum" or not isinstance(op.prologue, Apply) or op.prologue.function != "exp":
        return None
    epilogue = without_logarithm(op.epilogue)
    return None if epilogue is None else Match((layer,), found={"epilogue": epilogue})


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    op = replace(layer.op, kind="logsumexp", prologue=layer.op.prologue.arguments[0], epilogue=match.found["epilogue"])
    return Replacement((Layer("", op, layer.inputs, layer.outputs),), keep_name=True)


def _near(graph: Graph, layer: Layer) -> Near | None:
    """The logarithm of the sum where the exponentials, or the sum, are read elsewhere too."""
    op, before = layer.op, graph.producer(layer.inputs[0])
    if op.kind != "sum":
        return None
    if isinstance(op.prologue, Apply) and op.prologue.function == "exp":
        return near_logarithm(graph, layer)
    if op.prologue != IDENTITY or before is None or not isinstance(before.op, Pointwise):
        return None
    if not isinstance(before.op.expression, Apply) or before.op.expression.function != "exp":
        return None
    if without_logarithm(op.epilogue) is not None:
        return Match((before, layer), before.outputs), None
    found = near_logarithm(graph, layer)
    if found is None:
        return None
    match, refusal = found
    return Match((before, *match.layers), (*before.outputs, *match.vanishing)), refusal


RULE = Rule("log-sum-exp", __doc__.splitlines()[0], (Reduce,), _match, _rewrite, near=_near)
