"""Gather(reshape(x, [b * s, ...]), row * s + column) -> reshape(x), for rows and columns that count up: an indexed read of everything in order.

So exporters write ``mask[rows[:, None], columns]`` where both are all positions, as transformers reads the padding of keys.
"""

from __future__ import annotations

from fusion.dims import Dim
from fusion.expression import Apply, Expression, Literal, Operand
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Gather, Pointwise, Range, ShapeValue, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import show


def _match(graph: Graph, layer: Layer) -> Match | None:
    index = graph.producer(layer.inputs[1])
    if index is None or not isinstance(index.op, Pointwise) or layer.op.axis != 0:
        return None
    terms = _terms(index.op.expression)
    if terms is None:
        return None
    column, row, stride = terms
    columns, rows = (_counted(graph, index.inputs[one.index]) for one in (column, row))
    if columns is None or rows is None:
        return None
    return Match((layer,), found={"columns": columns, "rows": rows, "stride": _number(graph, index, stride)})


def _terms(expression: Expression) -> tuple[Operand, Operand, Expression] | None:
    """``a``, ``b`` and ``c`` of ``a + b * c``, a and b being operands."""
    if not isinstance(expression, Apply) or expression.function != "add":
        return None
    for one, other in (expression.arguments, expression.arguments[::-1]):
        if isinstance(one, Operand) and isinstance(other, Apply) and other.function == "mul":
            first, second = other.arguments
            if isinstance(first, Operand):
                return one, first, second
    return None


def _counted(graph: Graph, name: str) -> tuple[int, Dim] | None:
    """The axis along which ``name`` counts 0, 1, 2 ..., and how far; None where it does anything else."""
    layer = graph.producer(name)
    while layer is not None and isinstance(layer.op, Shuffle):
        layer = graph.producer(layer.inputs[0])
    shape = graph.type(name).shape
    if layer is None or not isinstance(layer.op, Range) or (layer.op.start, layer.op.delta) != (0, 1):
        return None
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    return (axes[0] - len(shape), layer.op.count) if len(axes) == 1 and shape[axes[0]] == layer.op.count else None


def _number(graph: Graph, index: Layer, expression: Expression) -> Dim | None:
    """The size that ``expression``, of the inputs of ``index``, is."""
    if isinstance(expression, Literal):
        return int(expression.value)
    if not isinstance(expression, Operand):
        return None
    maker = graph.producer(index.inputs[expression.index])
    while maker is not None and isinstance(maker.op, Shuffle):
        maker = graph.producer(maker.inputs[0])
    return maker.op.values[0] if maker is not None and isinstance(maker.op, ShapeValue) and len(maker.op.values) == 1 else None


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    (column, columns), (row, rows), stride = (match.found[key] for key in ("columns", "rows", "stride"))
    source, index = graph.type(layer.inputs[0]).shape, graph.type(layer.inputs[1]).shape
    if stride != columns or row >= column or source[0] != rows * columns:
        return Refusal("order", f"{layer.name} reads {show(index)} of {source[0]} rows, {stride} apart, which are not all of them in order")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    return Replacement((Layer("", Shuffle(reshape=graph.type(layer.outputs[0]).shape), layer.inputs[:1], layer.outputs),), keep_name=True)


RULE = Rule("gather-positions", __doc__.splitlines()[0], (Gather,), _match, _rewrite, _check)
