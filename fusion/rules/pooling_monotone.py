"""MaxPool(f(x, c ...)) -> MaxPool(x, c ..., epilogue=f): where f keeps the order of each channel's values, so that it is computed once per window.

The maximum of f(x) is f of the maximum: f gives larger values no smaller results, NaN for NaN, and no NaN for anything else. Windows may overlap.
A window that lies in padding alone has no maximum to give to f; where there may be one, the layers stay.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.expression import Convert, Expression, Literal, Operand, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Pooling
from fusion.ops.convolution import split_channels
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import COMMUTATIVE, equal_shape, number, show, too_large, value_of

RISING = frozenset({"relu", "sigmoid", "tanh", "exp", "softplus", "erf", "floor", "ceil", "round", "min", "max", "clip", "add", "sub"})  # in their first argument
POSITIVE = {"mul": (1,), "div": (1,), "leaky_relu": (1,), "prelu": (1,), "elu": (1,), "celu": (1,), "selu": (1, 2), "hard_sigmoid": (1,)}  # if these arguments are


def _match(graph: Graph, layer: Layer) -> Match | None:
    before = graph.producer(layer.inputs[0])
    if not isinstance(layer.op, Pooling) or layer.op.kind != "max" or before is None or not isinstance(before.op, Pointwise):
        return None
    return Match((before, layer), (before.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    before, layer = match.layers
    op = layer.op
    assert isinstance(op, Pooling) and isinstance(before.op, Pointwise)
    x = _pooled(graph, before)
    if x is None:
        return Refusal("shape", f"{before.name} broadcasts its input")
    if layer.inputs.count(before.outputs[0]) != 1 or op.prologue != IDENTITY:
        return Refusal("operands", f"{layer.name} computes another function of what {before.name} makes")
    if not graph.type(x).dtype.is_float or not graph.type(before.outputs[0]).dtype.is_float:
        return Refusal("data type", f"{before.name} makes {graph.type(before.outputs[0]).dtype.label} of {graph.type(x).dtype.label}; floating-point numbers are allowed")
    constants = {}
    for index, name in enumerate(before.inputs):
        if name == x:
            continue
        value = graph.constant(name)
        if value is None:
            return Refusal("operands", f"{name} is no constant: whether {before.name} keeps the order of values is known at run time only")
        padded = (1,) * (len(graph.type(x).shape) - value.ndim) + value.shape
        if any(size != 1 for size in split_channels(padded, op.channels_last)[2]):
            return Refusal("shape", f"{name} of shape {show(value.shape)} differs within a window")
        constants[index] = value
    if not _rises(before.op.expression, before.inputs.index(x), constants):
        return Refusal("order", f"{before.name} does not keep the order of values")
    sizes = split_channels(graph.type(x).shape, op.channels_last)[2]
    for size, window, pre, post, dilation in zip(sizes, op.window, op.pre_padding, op.post_padding, op.dilation, strict=True):
        if pre == post == 0:
            continue
        if not all(isinstance(one, int) for one in (window, pre, post)) or (dilation > 1 and not isinstance(size, int)):
            return Refusal("dynamic", f"whether a window of {layer.name} lies in padding alone is known at run time only")
        reach = dilation * (window - 1) + 1  # type: ignore[operator]
        if max(pre, post) >= reach or (dilation > 1 and size < dilation):  # type: ignore[operator, type-var]
            return Refusal("padding", f"windows {show(op.window)} of {layer.name} may lie in its padding {show(op.pre_padding)}, {show(op.post_padding)} alone")
    return None


def _pooled(graph: Graph, before: Layer) -> str | None:
    """The tensor that is pooled in place of what ``before`` makes."""
    shape = graph.type(before.outputs[0]).shape
    return next((name for name in before.inputs if equal_shape(graph.type(name).shape, shape) and graph.constant(name) is None), None)


def _rises(expression: Expression, x: int, constants: dict[int, np.ndarray]) -> bool:
    """Whether ``expression`` keeps the order of values of operand ``x``, whatever they are, and makes NaN of NaN alone."""
    if isinstance(expression, Operand):
        return expression.index == x
    if isinstance(expression, Convert):
        return expression.dtype.is_float and _rises(expression.argument, x, constants)
    if isinstance(expression, Literal):
        return False
    first, *others = expression.arguments
    values = [value_of(one, constants) for one in others]
    if expression.function in COMMUTATIVE and (value := value_of(first, constants)) is not None:
        values, first = [value], others[0]
    known = [value for value in values if value is not None and np.isfinite(value).all()]
    if not _rises(first, x, constants) or len(known) < len(values):
        return False
    needed = POSITIVE.get(expression.function, ())
    return (expression.function in RISING or bool(needed)) and all(bool(np.all(known[one - 1] > 0)) for one in needed)


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    before, layer = match.layers
    x = _pooled(graph, before)
    assert isinstance(before.op, Pointwise) and isinstance(layer.op, Pooling) and x is not None
    others = [name for name in before.inputs if name != x]
    shift = len(layer.inputs)  # operand 0 and those that the epilogue has
    function = substitute(before.op.expression, {index: Operand(0 if name == x else shift + others.index(name)) for index, name in enumerate(before.inputs)})
    epilogue, names = number(substitute(layer.op.epilogue, {0: function}), (layer.outputs[0], *layer.inputs[1:], *others), fixed=1)
    refusal = too_large(epilogue, len(names), graph.limits)
    if refusal is not None:
        return refusal
    return Replacement((Layer("", replace(layer.op, epilogue=epilogue), (x, *names[1:]), layer.outputs),))


RULE = Rule("pooling-monotone", __doc__.splitlines()[0], (Pooling,), _match, _rewrite, _check)
