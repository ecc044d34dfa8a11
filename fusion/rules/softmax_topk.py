"""TopK(Softmax(x)) -> TopK of x whose values are the softmax there (or its logarithm): the softmax itself is never stored."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Softmax, TopK
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    softmax = graph.producer(layer.inputs[0])
    if softmax is None or not isinstance(softmax.op, Softmax) or layer.op.softmax:
        return None
    return Match((softmax, layer), (softmax.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    softmax, layer = match.layers
    if softmax.op.axis != layer.op.axis:
        return Refusal("axis", f"{softmax.name} is along axis {softmax.op.axis}, {layer.name} along {layer.op.axis}")
    if not layer.op.largest:
        return Refusal("order", f"{layer.name} wants the smallest elements")
    if softmax.op.prologue != IDENTITY or softmax.op.epilogue != IDENTITY:
        return Refusal("expression", f"{softmax.name} computes more than a softmax")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    softmax, layer = match.layers
    op = replace(layer.op, softmax="log" if softmax.op.log else "softmax")
    return Replacement((Layer("", op, softmax.inputs, layer.outputs),))


RULE = Rule("softmax-topk", __doc__.splitlines()[0], (TopK,), _match, _rewrite, _check)
