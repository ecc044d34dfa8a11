"""exp(x - max(x)) / sum(exp(x - max(x))) -> Softmax(x), written out in layers; also without the maximum, and its logarithm."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusion.dims import Shape
from fusion.expression import Apply, Expression, Operand, operands, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Reduce, Shuffle, Softmax
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import fits_epilogue, number, subtrees, swap, too_large
from fusion.rules._statistics import strip


@dataclass(frozen=True)
class _Reduced:
    """A reduction of one tensor to one element per row, what it does to each element before, and the layers that make it (a reshape may
    bring back the axis)."""

    source: str
    prologue: Expression
    axes: tuple[int, ...]
    layers: tuple[Layer, ...]


def _reduced(graph: Graph, tensor: str, kind: str) -> _Reduced | None:
    layer = graph.producer(tensor)
    layers: tuple[Layer, ...] = ()
    if layer is not None and isinstance(layer.op, Shuffle) and layer.op.first is None and layer.op.second is None:
        layers, layer = (layer,), graph.producer(layer.inputs[0])
    if layer is None or not isinstance(layer.op, Reduce) or replace(layer.op, prologue=IDENTITY) != Reduce(kind, layer.op.axes, layer.op.keep_dims):
        return None
    source = layer.inputs[0]
    kept: Shape = tuple(1 if axis in layer.op.axes else dim for axis, dim in enumerate(graph.type(source).shape))
    return _Reduced(source, layer.op.prologue, layer.op.axes, (layer, *layers)) if graph.type(tensor).shape == kept else None


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` divides by the sum, or subtracts its logarithm."""
    for node in dict.fromkeys(subtrees(layer.op.expression)):
        for above, below, log in _quotient(node):
            if isinstance(above, Operand) and isinstance(below, Operand):
                found = _written_out(graph, layer.inputs[above.index], layer.inputs[below.index], log)
                if found is not None:
                    x, axes, layers = found
                    rest = swap(layer.op.expression, node, Operand(-1))
                    layers = tuple(dict.fromkeys((*layers, layer)))
                    return Match(layers, tuple(one.outputs[0] for one in layers[:-1]), {"x": x, "axes": axes, "log": log, "rest": rest})
    return None


def _quotient(node: Expression) -> list[tuple[Expression, Expression, bool]]:
    """(a, b, log) where ``node`` is ``a / b`` or ``a - log(b)``."""
    if not isinstance(node, Apply) or node.function not in ("div", "mul", "sub"):
        return []
    first, second = (strip(one) for one in node.arguments)
    if node.function == "div":
        return [(first, second, False)]
    wanted = "log" if node.function == "sub" else "reciprocal"
    pairs = ((first, second),) if node.function == "sub" else ((first, second), (second, first))
    return [(a, strip(b.arguments[0]), node.function == "sub") for a, b in pairs if isinstance(b, Apply) and b.function == wanted]


def _written_out(graph: Graph, above: str, below: str, log: bool) -> tuple[str, tuple[int, ...], tuple[Layer, ...]] | None:
    """(x, axes, layers) when ``above`` is ``exp(x - m)`` (``x - m`` with ``log``) and ``below`` the sum of ``exp(x - m)``, for the maximum m or none."""
    total = _reduced(graph, below, "sum")
    if total is None or (not log and total.source != above):
        return None
    powers = graph.producer(total.source) if total.prologue == IDENTITY else None
    if powers is not None and isinstance(powers.op, Pointwise):
        expression, inputs, layers = strip(powers.op.expression), powers.inputs, (powers, *total.layers)
    elif not log:
        return None
    else:  # the sum took the exponential as its prologue
        expression, inputs, layers = strip(total.prologue), (total.source,), total.layers
    if not isinstance(expression, Apply) or expression.function != "exp":
        return None
    inner = strip(expression.arguments[0])
    if log and inner == Operand(0) and inputs == (above,):
        shifted = graph.producer(above)  # x - m, which others read as well
        if shifted is not None and isinstance(shifted.op, Pointwise) and shifted.op.expression == Apply("sub", (Operand(0), Operand(1))):
            inner, inputs, layers = shifted.op.expression, shifted.inputs, (shifted, *layers)
    elif log:
        return None
    if isinstance(inner, Operand):
        return inputs[inner.index], total.axes, layers
    if not isinstance(inner, Apply) or inner.function != "sub":
        return None
    x, shift = (strip(one) for one in inner.arguments)
    if not isinstance(x, Operand) or not isinstance(shift, Operand):
        return None
    most = _reduced(graph, inputs[shift.index], "max")
    if most is None or most.prologue != IDENTITY or most.source != inputs[x.index] or most.axes != total.axes:
        return None
    return inputs[x.index], total.axes, (*most.layers, *layers)


def _check(graph: Graph, match: Match) -> Refusal | None:
    last, x, axes = match.layers[-1], match.found["x"], match.found["axes"]
    if len(axes) != 1:
        return Refusal("axes", f"the sum is over axes {axes}; a softmax has one")
    if not graph.type(x).dtype.is_float:
        return Refusal("data type", f"{x} is {graph.type(x).dtype.value}")
    refusal = fits_epilogue(graph, Layer("", Softmax(axes[0]), (x,), (x,)), last)
    if refusal is not None:
        return refusal
    read = {last.inputs[index] for index in operands(match.found["rest"]) if index >= 0} & set(match.vanishing)
    return Refusal("shared", f"{last.name} also reads {sorted(read)[0]}") if read else None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    last, x = match.layers[-1], match.found["x"]
    shifted = {index: Operand(index + 1) for index in range(len(last.inputs))}
    epilogue, names = number(substitute(match.found["rest"], {-1: Operand(0), **shifted}), (x, *last.inputs), fixed=1)
    refusal = too_large(epilogue, len(names), graph.limits)
    if refusal is not None:
        return refusal
    (axis,) = match.found["axes"]
    return Replacement((Layer("", Softmax(axis, match.found["log"], IDENTITY, epilogue), (x, *names[1:]), last.outputs),))


RULE = Rule("softmax", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
