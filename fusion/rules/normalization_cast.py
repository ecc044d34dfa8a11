"""Normalization(Cast(x, float32)) -> Normalization(x): statistics of narrow types are float32 without a cast."""

from __future__ import annotations

from dataclasses import replace

from fusion.dtypes import DataType
from fusion.expression import Convert, Operand, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import GroupNormalization, Normalization, Pointwise
from fusion.rewrite import Match, Replacement, Rule
from fusion.rules._expressions import is_narrow


def _match(graph: Graph, layer: Layer) -> Match | None:
    cast = graph.producer(layer.inputs[0])
    if cast is None or not isinstance(cast.op, Pointwise) or layer.inputs.count(cast.outputs[0]) != 1:
        return None
    expression = cast.op.expression
    if not isinstance(expression, Convert) or expression.argument != Operand(0):
        return None
    source, made = graph.type(cast.inputs[0]).dtype, expression.dtype
    if not source.is_float or not is_narrow(source) or made is not DataType.FLOAT:
        return None
    return Match((cast, layer), (cast.outputs[0],))


def _rewrite(graph: Graph, match: Match) -> Replacement:
    cast, layer = match.layers
    widened = Convert(cast.op.expression.dtype, Operand(0))
    op = replace(layer.op, epilogue=substitute(layer.op.epilogue, {0: widened}))
    return Replacement((Layer("", op, (*cast.inputs, *layer.inputs[1:]), layer.outputs),))


RULE = Rule("normalization-cast", __doc__.splitlines()[0], (Normalization, GroupNormalization), _match, _rewrite)
