"""What the normalisation rules share: finding ``x / sqrt(mean(x * x) + epsilon)`` in the layers that write it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusion.expression import Apply, Convert, Expression, Literal, Operand, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Normalization, Pointwise, Reduce
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement
from fusion.rules._expressions import fits_epilogue, number, subtrees, swap, too_large

_MARK = Operand(-1)


@dataclass(frozen=True)
class RootMeanSquare:
    """``data / sqrt(mean(data ** 2, axes) + epsilon)`` inside the expression of ``last``.

    ``squares`` are the layers that make the mean of squares; ``rest`` is the expression of ``last`` with operand -1 in place of
    the normalised data.
    """

    data: str
    axes: tuple[int, ...]
    epsilon: float
    squares: tuple[Layer, ...]
    last: Layer
    rest: Expression


def find_root_mean_square(graph: Graph, last: Layer) -> Iterator[RootMeanSquare]:
    """The places in the pointwise layer ``last`` where it divides something by its root mean square."""
    for node in dict.fromkeys(subtrees(last.op.expression)):
        if not isinstance(node, Apply) or node.function not in ("mul", "div"):
            continue
        above, below = factors_of(node)
        for factor in [*above, *below]:
            variance = _root(factor, inverted=factor in above)
            if variance is None:
                continue
            operand, epsilon = variance
            mean = graph.producer(last.inputs[operand])
            if mean is None or not _plain_mean(mean.op):
                continue
            squares, data = _squared(graph, mean)
            for numerator in above:
                if data is not None and _name(numerator, last) == data:
                    rest = swap(last.op.expression, node, product_of(above, below, numerator, factor))
                    yield RootMeanSquare(data, mean.op.axes, epsilon, squares, last, rest)


def normalization_match(
    graph: Graph, found: RootMeanSquare, data: str, before: tuple[Layer, ...], center: bool
) -> Match:
    """The match whose rewrite is one Normalization of ``data``; ``before`` are the layers that subtract the mean."""
    layers = tuple(dict.fromkeys([*before, *found.squares, found.last]))
    vanishing = tuple(name for layer in layers[:-1] for name in layer.outputs)
    return Match(layers, vanishing, {"found": found, "data": data, "center": center})


def check(graph: Graph, match: Match) -> Refusal | None:
    """Real numbers, and a result of the shape of the data."""
    found, data = match.found["found"], match.found["data"]
    if not graph.type(data).dtype.is_float:
        return Refusal("data type", f"{data} is {graph.type(data).dtype.value}")
    probe = Layer("", Normalization((), 0.0), (data,), (data,))
    refusal = fits_epilogue(graph, probe, found.last)
    if refusal is not None:
        return refusal
    gone = set(match.vanishing)
    if any(name in gone for name in _operands(found)):
        return Refusal("shared", f"{found.last.name} also reads {sorted(gone & set(_operands(found)))[0]}")
    return None


def rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    """One Normalization; what else the last layer computed becomes its epilogue."""
    found, data, center = (match.found[key] for key in ("found", "data", "center"))
    shifted = {index: Operand(index + 1) for index in range(len(found.last.inputs))}
    epilogue: Expression = substitute(found.rest, {-1: Operand(0), **shifted})
    kind, made = graph.type(data).dtype, graph.type(found.data).dtype
    if kind is not made:
        epilogue = substitute(epilogue, {0: Convert(made, Operand(0))})
    epilogue, names = number(epilogue, (data, *found.last.inputs), fixed=1)
    refusal = too_large(epilogue, len(names), graph.limits)
    if refusal is not None:
        return refusal
    op = Normalization(found.axes, found.epsilon, center, epilogue)
    return Replacement((Layer("", op, (data, *names[1:]), found.last.outputs),))


def _operands(found: RootMeanSquare) -> list[str]:
    return [found.last.inputs[n.index] for n in subtrees(found.rest) if isinstance(n, Operand) and n.index >= 0]


def strip(expression: Expression) -> Expression:
    """``expression`` without conversions between floating-point types around it."""
    while isinstance(expression, Convert) and expression.dtype.is_float:
        expression = expression.argument
    return expression


def _name(expression: Expression, layer: Layer) -> str | None:
    expression = strip(expression)
    return layer.inputs[expression.index] if isinstance(expression, Operand) and expression.index >= 0 else None


def factors_of(node: Expression) -> tuple[list[Expression], list[Expression]]:
    """(numerators, denominators) of a product."""
    if isinstance(node, Apply) and node.function == "mul":
        a, b = (factors_of(child) for child in node.arguments)
        return [*a[0], *b[0]], [*a[1], *b[1]]
    if isinstance(node, Apply) and node.function == "div":
        a, b = (factors_of(child) for child in node.arguments)
        return [*a[0], *b[1]], [*a[1], *b[0]]
    return [node], []


def product_of(above: list[Expression], below: list[Expression], data: Expression, root: Expression) -> Expression:
    """The product with the normalised data (operand -1) in place of ``data`` and ``root``."""
    above, below = list(above), list(below)
    above.remove(data)
    (above if root in above else below).remove(root)
    result: Expression = _MARK
    for factor in above:
        result = Apply("mul", (result, factor))
    for factor in below:
        result = Apply("div", (result, factor))
    return result


def _root(factor: Expression, inverted: bool) -> tuple[int, float] | None:
    """(operand, epsilon) of ``sqrt(v + epsilon)``, or of ``rsqrt`` of it when ``inverted``."""
    factor = strip(factor)
    if not isinstance(factor, Apply) or factor.function != ("rsqrt" if inverted else "sqrt"):
        return None
    inner = strip(factor.arguments[0])
    epsilon = 0.0
    if isinstance(inner, Apply) and inner.function == "add" and isinstance(inner.arguments[1], Literal):
        epsilon = float(inner.arguments[1].value)
        inner = strip(inner.arguments[0])
    return (inner.index, epsilon) if isinstance(inner, Operand) else None


def _plain_mean(op: object) -> bool:
    return isinstance(op, Reduce) and op.kind == "mean" and op.keep_dims and op.epilogue == IDENTITY


def _squared(graph: Graph, mean: Layer) -> tuple[tuple[Layer, ...], str | None]:
    """The layers that make ``mean(data ** 2)``, and ``data``."""
    source = mean.inputs[0]
    prologue = strip(mean.op.prologue)
    if isinstance(prologue, Apply) and prologue.function == "square" and strip(prologue.arguments[0]) == Operand(0):
        return (mean,), source
    squares = graph.producer(source)
    if mean.op.prologue != IDENTITY or squares is None or not isinstance(squares.op, Pointwise):
        return (mean,), None
    expression = strip(squares.op.expression)
    if isinstance(expression, Apply) and expression.function == "square":
        return (squares, mean), _name(expression.arguments[0], squares)
    return (mean,), None


def mean_of(graph: Graph, tensor: str, data: str, axes: tuple[int, ...]) -> Layer | None:
    """The layer that makes ``tensor`` as the mean of ``data`` over ``axes``, or None."""
    layer = graph.producer(tensor)
    if layer is None or not _plain_mean(layer.op) or layer.op.axes != axes or layer.op.prologue != IDENTITY:
        return None
    return layer if layer.inputs[0] == data else None
