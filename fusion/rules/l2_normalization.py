"""x / max(sqrt(sum(x ** 2)), e) -> Normalization(x) / sqrt(n), of rows of n; also without e, or with e added to the sum."""

from __future__ import annotations

import numpy as np

from fusion.expression import Apply, Expression, Operand, evaluate, operands, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Normalization, Pointwise, Reduce, Shuffle
from fusion.ops.epilogue import IDENTITY
from fusion.ops.normalization import unit_length
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import (
    as_double,
    fits_epilogue,
    join,
    number,
    show,
    static_size,
    subtrees,
    swap,
    too_large,
)
from fusion.rules._statistics import factors_of, product_of, strip

_SUMS = np.array([1e-12, 1e-6, 1e-3, 0.2, 1.0, 3.0, 40.0, 1e4])
_SQUARE = Apply("square", (Operand(0),))


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` divides by the norm."""
    for node in dict.fromkeys(subtrees(layer.op.expression)):
        if not isinstance(node, Apply) or node.function not in ("mul", "div"):
            continue
        above, below = factors_of(node)
        for factor in (*above, *below):
            norm = _norm(graph, layer, factor)
            if norm is None:
                continue
            data, op, expression, layers = norm
            values = [one for one in above if one is not factor and isinstance(strip(one), Operand) and layer.inputs[strip(one).index] == data]  # type: ignore[union-attr]
            if not values:
                continue
            rest = swap(layer.op.expression, node, product_of(above, below, values[0], factor))
            found = {"data": data, "op": op, "factor": expression, "inverted": factor in above, "rest": rest}
            return Match((*layers, layer), tuple(one.outputs[0] for one in layers), found)
    return None


def _norm(graph: Graph, layer: Layer, factor: Expression) -> tuple[str, Reduce, Expression, tuple[Layer, ...]] | None:
    """(x, the reduction, ``factor`` as a function of the reduced squares, the layers that make it), for a sum (mean) of squares of x."""
    expression, names = number(factor, layer.inputs)
    layers: tuple[Layer, ...] = ()
    while len(names) == 1 and len(layers) < 4:
        maker = graph.producer(names[0])
        if maker is None:
            return None
        layers = (maker, *layers)
        if isinstance(maker.op, Reduce):
            return _squares(graph, maker, expression, layers)
        if isinstance(maker.op, Shuffle) and maker.op.first is None and maker.op.second is None:
            names = maker.inputs  # which brings the axis back
        elif isinstance(maker.op, Pointwise):
            expression, names = number(*join(expression, names, names[0], maker.op.expression, maker.inputs))
        else:
            return None
    return None


def _squares(graph: Graph, reduce: Layer, expression: Expression, layers: tuple[Layer, ...]) -> tuple[str, Reduce, Expression, tuple[Layer, ...]] | None:
    op, source = reduce.op, reduce.inputs[0]
    assert isinstance(op, Reduce)
    if op.kind not in ("sum", "mean") or operands(op.epilogue) != (0,):
        return None
    expression = substitute(expression, {0: op.epilogue})
    if strip(op.prologue) == _SQUARE:
        return source, op, expression, layers
    before = graph.producer(source)
    if op.prologue != IDENTITY or before is None or not isinstance(before.op, Pointwise) or strip(before.op.expression) != _SQUARE:
        return None
    return before.inputs[0], op, expression, (before, *layers)


def _root(match: Match) -> tuple[float, float] | None:
    """(epsilon, floor) when the factor is ``max(sqrt(squares + epsilon), floor)``, or 1 / it; None when it is anything else."""
    wide, inverted = as_double(match.found["factor"]), match.found["inverted"]
    with np.errstate(all="ignore"):
        least = float(np.asarray(evaluate(wide, [np.zeros(1)])).reshape(-1)[0])
        least = 1 / least if inverted and least else 0.0 if inverted or not least > 0 else least
        sums = np.concatenate((_SUMS, np.linspace(0.1, 10, 12) * least**2))
        given = np.asarray(evaluate(wide, [sums]), np.float64)
        given = 1 / given if inverted else given
        for epsilon, floor in ((least**2, 0.0), (0.0, least)):
            if np.allclose(given, np.maximum(np.sqrt(sums + epsilon), floor), 1e-5, 0, equal_nan=True):
                return epsilon, floor
    return None


def _check(graph: Graph, match: Match) -> Refusal | None:
    data, op, last = match.found["data"], match.found["op"], match.layers[-1]
    kind = graph.type(data)
    if not kind.dtype.is_float:
        return Refusal("data type", f"{data} is {kind.dtype.value}")
    kept = tuple(1 if axis in op.axes else dim for axis, dim in enumerate(kind.shape))
    divisor = graph.type(match.layers[-2].outputs[0]).shape
    if divisor != kept:
        return Refusal("shape", f"norms of shape {show(divisor)} of data of shape {show(kind.shape)}")
    if static_size([kind.shape[axis] for axis in op.axes]) is None:
        return Refusal("size", f"{data} has shape {show(kind.shape)}; how many elements make a norm is known at run time only")
    refusal = fits_epilogue(graph, Layer("", Normalization((), 0.0), (data,), (data,)), last)
    if refusal is not None:
        return refusal
    read = {last.inputs[index] for index in operands(match.found["rest"]) if index >= 0} & set(match.vanishing)
    if read:
        return Refusal("shared", f"{last.name} also reads {sorted(read)[0]}")
    if _root(match) is None:
        return Refusal("norm", f"what {last.name} divides by is no root of a sum of squares, nor at least a number")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    data, op, last = match.found["data"], match.found["op"], match.layers[-1]
    root = _root(match)
    assert root is not None
    epsilon, floor = root
    kind = graph.type(data)
    unit: Expression = Operand(0)
    if op.kind == "sum":
        count = static_size([kind.shape[axis] for axis in op.axes]) or 1
        epsilon, floor, unit = epsilon / count, floor * count**-0.5, unit_length(kind.dtype, count)
    shifted = {index: Operand(index + 1) for index in range(len(last.inputs))}
    epilogue, names = number(substitute(match.found["rest"], {-1: unit, **shifted}), (data, *last.inputs), fixed=1)
    refusal = too_large(epilogue, len(names), graph.limits)
    if refusal is not None:
        return refusal
    return Replacement((Layer("", Normalization(op.axes, epsilon, False, epilogue, floor), (data, *names[1:]), last.outputs),))


RULE = Rule("l2-normalization", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
