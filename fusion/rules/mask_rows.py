"""f(x, c) -> Expand(f(x, c[:1])), for masks of attention and operands c that are the same in all rows: what tells queries (heads) nothing has one row.

So transformers' models write the padding of keys: joined with "a query is at position 0 or behind", which is true for all of them. Attention then reads a
row of keys instead of a matrix (expand-operand).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Literal, Operand, with_children
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Expand, Pointwise, Range, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import number, show

_QUERIES, _HEADS = -2, -3


@dataclass(frozen=True)
class _Narrow:
    """``expression`` of ``names``, of which those in ``rows`` are constants that are cut."""

    expression: Expression
    names: tuple[str, ...]
    rows: dict[str, np.ndarray]


def _match(graph: Graph, layer: Layer) -> Match | None:
    shape = graph.type(layer.outputs[0]).shape
    readers = graph.readers(layer.outputs[0])
    if not readers or len(shape) < 2 or not any(size != 1 for size in shape[_HEADS:-1]) or not all(_masks(reader, layer.outputs[0]) for reader in readers):
        return None
    return Match((layer,), found={"axes": tuple(axis for axis in (_QUERIES, _HEADS) if -axis <= len(shape) and shape[axis] != 1)})


def _masks(reader: Layer, tensor: str) -> bool:
    """Whether ``tensor`` is the mask of ``reader``, and nothing else there."""
    return isinstance(reader.op, Attention) and reader.op.masked and reader.inputs.index(tensor) == reader.op.arity - 1 and reader.inputs.count(tensor) == 1


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    if layer.outputs[0] in graph.outputs:
        return Refusal("network output", f"{layer.outputs[0]} is a network output")
    if not any(_narrow(graph, layer, (axis,)) for axis in match.found["axes"]):
        return Refusal("operands", f"{layer.name} of shape {show(graph.type(layer.outputs[0]).shape)} differs from row to row, and from head to head")
    return None


def _narrow(graph: Graph, layer: Layer, axes: tuple[int, ...]) -> _Narrow | None:
    """``layer`` with one row along ``axes``; None where an operand differs along one of them."""
    assert isinstance(layer.op, Pointwise)
    expression, names = number(_simplified(graph, layer.op.expression, layer.inputs), layer.inputs)
    rows: dict[str, np.ndarray] = {}
    for name in names:
        shape = graph.type(name).shape
        for axis in axes:
            if -axis > len(shape) or shape[axis] == 1:
                continue
            value = rows.get(name, graph.constant(name))
            first = None if value is None or not value.size else value.take([0], axis)
            if value is None or first is None or not np.array_equal(value, np.broadcast_to(first, value.shape)):
                return None
            rows[name] = first
    return _Narrow(expression, names, rows) if names else None


def _simplified(graph: Graph, expression: Expression, names: tuple[str, ...]) -> Expression:
    """``expression`` without comparisons of positions, which count from 0, that are always true."""
    if isinstance(expression, Convert):
        return with_children(expression, (_simplified(graph, expression.argument, names),))
    if not isinstance(expression, Apply):
        return expression
    a, *rest = arguments = tuple(_simplified(graph, child, names) for child in expression.arguments)
    if expression.function == "greater_or_equal" and isinstance(a, Operand) and isinstance(rest[0], Literal) and rest[0].value <= 0 and _counts_up(graph, names[a.index]):
        return Literal(True, DataType.BOOL)
    if expression.function == "and":
        for one, other in (arguments, arguments[::-1]):
            if isinstance(one, Literal) and one.value:
                return other
    return with_children(expression, arguments)


def _counts_up(graph: Graph, name: str) -> bool:
    """Whether ``name`` holds 0 and more: positions, in whatever shape."""
    layer = graph.producer(name)
    while layer is not None and isinstance(layer.op, Shuffle):
        layer = graph.producer(layer.inputs[0])
    if layer is None or not isinstance(layer.op, Range):
        return False
    return all(isinstance(value, int) and value >= 0 for value in (layer.op.start, layer.op.delta))


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    possible = tuple(axis for axis in match.found["axes"] if _narrow(graph, layer, (axis,)))
    narrow = _narrow(graph, layer, possible)
    assert narrow is not None
    constants, names = {}, []
    for name in narrow.names:
        names.append(graph.fresh(f"{name}.row") if name in narrow.rows else name)
        if name in narrow.rows:
            constants[names[-1]] = narrow.rows[name]
    row = graph.fresh(f"{layer.outputs[0]}.row")
    spread = Layer(f"{layer.name} expand", Expand(graph.type(layer.outputs[0]).shape), (row,), layer.outputs, layer.origins)
    return Replacement((replace(layer, op=Pointwise(narrow.expression), inputs=tuple(names), outputs=(row,), fusions=(*layer.fusions, RULE.name)), spread), constants)


RULE = Rule("mask-rows", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
