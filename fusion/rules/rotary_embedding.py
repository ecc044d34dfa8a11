"""x * cos + concat(-x2, x1) * sin -> RotaryEmbedding(x, cos, sin), for the halves x1, x2 of x; also half by half."""

from __future__ import annotations

from fusion.expression import Apply, Expression, Operand
from fusion.graph import Graph
from fusion.network import Layer, ShapeError
from fusion.ops import Concatenation, Pointwise, RotaryEmbedding, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    return _whole(graph, layer) if isinstance(layer.op, Pointwise) else _by_halves(graph, layer)


def _whole(graph: Graph, layer: Layer) -> Match | None:
    """``x * cos + turned * sin``, turned being the halves of x exchanged, one of them negated."""
    terms = _terms(layer, "add")
    for straight, crossed in (terms, terms[::-1]) if terms else ():
        for turned in crossed:
            join = graph.producer(turned)
            if join is None or not isinstance(join.op, Concatenation) or not _last(graph, join, turned) or len(join.inputs) != 2:
                continue
            negation, first = graph.producer(join.inputs[0]), graph.producer(join.inputs[1])
            if negation is None or first is None or not isinstance(negation.op, Pointwise):
                continue
            second = graph.producer(negation.inputs[0])
            if negation.op.expression != Apply("neg", (Operand(0),)) or second is None:
                continue
            x = _halved(graph, first, second)
            if x is None or x not in straight:
                continue
            cos, sin = _other(straight, x), _other(crossed, turned)
            layers = (first, second, negation, join, layer)
            return Match(layers, tuple(one.outputs[0] for one in layers[:-1]), {"inputs": (x, cos, sin)})
    return None


def _by_halves(graph: Graph, join: Layer) -> Match | None:
    """``concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin)``."""
    if len(join.inputs) != 2 or not _last(graph, join, join.outputs[0]):
        return None
    left, right = (graph.producer(name) for name in join.inputs)
    if left is None or right is None or left is right:
        return None
    minus, plus = _terms(left, "sub"), _terms(right, "add")
    if minus is None or plus is None:
        return None
    for a in minus[0]:
        cos = _other(minus[0], a)
        for b in minus[1]:
            sin = _other(minus[1], b)
            if {frozenset(one) for one in plus} != {frozenset((b, cos)), frozenset((a, sin))}:
                continue
            first, second = graph.producer(a), graph.producer(b)
            x = None if first is None or second is None else _halved(graph, first, second)
            if x is None or first is None or second is None:
                continue
            layers = (first, second, left, right, join)
            return Match(layers, tuple(one.outputs[0] for one in layers[:-1]), {"inputs": (x, cos, sin)})
    return None


def _terms(layer: Layer, function: str) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """The tensors of ``a * b`` and ``c * d`` when the layer computes their sum (difference)."""
    expression = layer.op.expression if isinstance(layer.op, Pointwise) else None
    if not isinstance(expression, Apply) or expression.function != function:
        return None
    first, second = (_product(argument, layer) for argument in expression.arguments)
    return None if first is None or second is None else (first, second)


def _product(expression: Expression, layer: Layer) -> tuple[str, str] | None:
    if not isinstance(expression, Apply) or expression.function != "mul":
        return None
    a, b = expression.arguments
    if not isinstance(a, Operand) or not isinstance(b, Operand):
        return None
    return layer.inputs[a.index], layer.inputs[b.index]


def _other(pair: tuple[str, str], name: str) -> str:
    return pair[1] if pair[0] == name else pair[0]


def _last(graph: Graph, join: Layer, tensor: str) -> bool:
    return bool(join.op.axis == len(graph.type(tensor).shape) - 1)


def _halved(graph: Graph, first: Layer, second: Layer) -> str | None:
    """The tensor of which ``first`` and ``second`` are the halves of every row."""
    source = first.inputs[0]
    if not isinstance(first.op, Slice) or not isinstance(second.op, Slice) or second.inputs[0] != source:
        return None
    shape = graph.type(source).shape
    width = shape[-1]
    if not isinstance(width, int) or width % 2:
        return None
    for layer, start in ((first, 0), (second, width // 2)):
        op = layer.op
        if op.starts != (*(0,) * (len(shape) - 1), start) or op.sizes != (*shape[:-1], width // 2) or set(op.steps) != {1}:
            return None
    return source


def _check(graph: Graph, match: Match) -> Refusal | None:
    types = graph.types(match.found["inputs"])
    if any(one.dtype is not types[0].dtype or not one.dtype.is_float for one in types):
        return Refusal("data type", f"x, cos and sin are {', '.join(one.dtype.value for one in types)}")
    try:
        RotaryEmbedding().infer(types)
    except ShapeError as error:
        return Refusal("shape", str(error))
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    return Replacement((Layer("", RotaryEmbedding(), match.found["inputs"], match.layers[-1].outputs),))


RULE = Rule("rotary-embedding", __doc__.splitlines()[0], (Pointwise, Concatenation), _match, _rewrite, _check)
