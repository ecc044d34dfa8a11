"""Transpose(f(x)), f(Transpose(x)) -> Reformat(x), for f of one tensor into another data type: a cast and a change of layout in one. On a GPU.

A function that keeps the type is left to what reads it: a product may take it as its prologue, which a cast cannot be.
"""

from __future__ import annotations

from fusion.dtypes import DataType
from fusion.graph import Graph
from fusion.layout import REFORMAT
from fusion.network import Layer
from fusion.ops import Pointwise, Reformat, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule, joined_name
from fusion.rules._expressions import show
from fusion.rules._shuffles import is_view, transpose_of

CONVERTED = (DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT8, DataType.UINT8, DataType.FP8)


def _match(graph: Graph, layer: Layer) -> Match | None:
    before = graph.producer(layer.inputs[0]) if len(layer.inputs) == 1 else None
    if before is None or len(before.inputs) != 1 or {type(before.op), type(layer.op)} != {Pointwise, Shuffle}:
        return None
    shuffle, function = (before, layer) if isinstance(before.op, Shuffle) else (layer, before)
    return Match((before, layer), (before.outputs[0],), {"shuffle": shuffle, "function": function})


def _check(graph: Graph, match: Match) -> Refusal | None:
    shuffle = match.found["shuffle"]
    before, layer = match.layers
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU a movement is a copy of NumPy's, which computes nothing")
    shape = graph.type(shuffle.inputs[0]).shape
    if is_view(shape, shuffle.op):
        return Refusal("no gain", f"{shuffle.name} moves no element of {show(shape)}")
    if transpose_of(shape, shuffle.op) is None:
        return Refusal("shape", f"{shuffle.name} splits or joins axes of {show(shape)}; a transpose is allowed")
    for name in (before.inputs[0], layer.outputs[0]):
        if graph.type(name).dtype not in CONVERTED:
            return Refusal("data type", f"{name} is {graph.type(name).dtype.label}; {', '.join(kind.label for kind in CONVERTED)} are allowed")
    if graph.type(before.inputs[0]).dtype is graph.type(layer.outputs[0]).dtype:
        return Refusal("data type", f"{match.found['function'].name} keeps the data type: what reads it may compute it")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    shuffle, function = match.found["shuffle"], match.found["function"]
    order = transpose_of(graph.type(shuffle.inputs[0]).shape, shuffle.op)
    assert order is not None
    before, layer = match.layers
    origins = tuple(dict.fromkeys((*before.origins, *layer.origins)))
    fusions = dict.fromkeys((*before.fusions, *layer.fusions, RULE.name))
    if origins:  # it does what the model says, too
        fusions.pop(REFORMAT, None)
    op = Reformat(order, function.op.expression)
    return Replacement((Layer(joined_name([before, layer], pointwise=False), op, before.inputs, layer.outputs, origins, tuple(fusions)),))


RULE = Rule("transpose-pointwise", __doc__.splitlines()[0], (Pointwise, Shuffle), _match, _rewrite, _check)
