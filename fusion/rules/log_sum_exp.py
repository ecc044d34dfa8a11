"""log(ReduceSum(exp(x))) -> ReduceLogSumExp(x), which does not overflow where exp(x) does; also log(sum(exp(x - max(x)))) + max(x)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fusion.expression import Apply, Expression, Operand, evaluate, operands, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Reduce, Shuffle
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._epilogue import near_logarithm
from fusion.rules._expressions import (
    as_double,
    fits_epilogue,
    join,
    number,
    show,
    subtrees,
    swap,
    too_large,
    without_logarithm,
)
from fusion.rules._statistics import strip

_FINITE = np.array([-4e4, -3.5, 0.0, 0.25, 7.0, 1e4])


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    if isinstance(op, Pointwise):
        return next(_shifted(graph, layer), None)
    if op.kind != "sum" or not isinstance(op.prologue, Apply) or op.prologue.function != "exp":
        return None
    epilogue = without_logarithm(op.epilogue)
    return None if epilogue is None else Match((layer,), found={"epilogue": epilogue})


@dataclass(frozen=True)
class _Reduced:
    """A reduction of ``source`` over ``axes``, and what is made of its result (operand 0) by ``layers``, of which it is the first."""

    source: str
    axes: tuple[int, ...]
    expression: Expression
    layers: tuple[Layer, ...]


def _shifted(graph: Graph, last: Layer) -> Iterator[Match]:
    """``last`` adds the maximum to the logarithm of the sum of what was shifted by it."""
    for node in dict.fromkeys(subtrees(last.op.expression)):
        if not isinstance(node, Apply) or node.function != "add":
            continue
        for log, added in (node.arguments, node.arguments[::-1]):
            log = strip(log)
            total = _reduced(graph, log.arguments[0], last.inputs, "sum") if isinstance(log, Apply) and log.function == "log" else None
            powers = graph.producer(total.source) if total is not None and total.expression == IDENTITY else None
            if total is None or powers is None or not isinstance(powers.op, Pointwise):
                continue
            power = strip(powers.op.expression)
            inner = strip(power.arguments[0]) if isinstance(power, Apply) and power.function == "exp" else None
            if not isinstance(inner, Apply) or inner.function != "sub" or not isinstance(strip(inner.arguments[0]), Operand):
                continue
            x = powers.inputs[strip(inner.arguments[0]).index]  # type: ignore[union-attr]
            shifts = _reduced(graph, inner.arguments[1], powers.inputs, "max"), _reduced(graph, added, last.inputs, "max")
            if any(one is None or one.source != x or one.axes != total.axes for one in shifts):
                continue
            layers = dict.fromkeys((*(maker for one in shifts if one is not None for maker in one.layers), powers, *total.layers))
            layers = dict.fromkeys((*sorted(layers, key=graph.position), last))
            found = {"x": x, "axes": total.axes, "shifts": shifts, "made": total.layers[-1].outputs[0], "rest": swap(last.op.expression, node, Operand(-1))}
            yield Match(tuple(layers), tuple(one.outputs[0] for one in layers if one is not last), found)


def _reduced(graph: Graph, expression: Expression, names: tuple[str, ...], kind: str) -> _Reduced | None:
    """``expression`` of tensors ``names`` as a function of one reduction of this kind; reshapes may drop its axes or bring them back."""
    expression, names = number(strip(expression), names)
    layers: tuple[Layer, ...] = ()
    while len(names) == 1 and len(layers) < 4 and (maker := graph.producer(names[0])) is not None:
        layers = (maker, *layers)
        if isinstance(maker.op, Reduce):
            plain = replace(maker.op, prologue=IDENTITY) == Reduce(kind, maker.op.axes, maker.op.keep_dims)
            return _Reduced(maker.inputs[0], maker.op.axes, expression, layers) if plain and maker.op.prologue == IDENTITY else None
        if isinstance(maker.op, Shuffle) and maker.op.first is None and maker.op.second is None:
            names = maker.inputs
        elif isinstance(maker.op, Pointwise):
            expression, names = number(*join(expression, names, names[0], maker.op.expression, maker.inputs))
        else:
            return None
    return None


def _check(graph: Graph, match: Match) -> Refusal | None:
    if "x" not in match.found:
        return None
    last, x, axes = match.layers[-1], match.found["x"], match.found["axes"]
    made, shape = graph.type(match.found["made"]).shape, graph.type(x).shape
    if not graph.type(x).dtype.is_float:
        return Refusal("data type", f"{x} is {graph.type(x).dtype.value}")
    if made not in _results(shape, axes):
        return Refusal("shape", f"sums of shape {show(made)} of data of shape {show(shape)}")
    for shift in match.found["shifts"]:
        if not np.array_equal(evaluate(as_double(shift.expression), [_FINITE]), _FINITE):
            return Refusal("maximum", f"what {last.name} adds, or what is subtracted before, is not the maximum of {x}")
    read = {last.inputs[index] for index in operands(match.found["rest"]) if index >= 0} & set(match.vanishing)
    if read:
        return Refusal("shared", f"{last.name} also reads {sorted(read)[0]}")
    return fits_epilogue(graph, Layer("", Reduce("logsumexp", axes, True), (x,), (match.found["made"],)), last)


def _results(shape: tuple, axes: tuple[int, ...]) -> tuple[tuple, tuple]:
    """What reducing ``axes`` makes of ``shape``: with these axes, and without."""
    return tuple(1 if axis in axes else dim for axis, dim in enumerate(shape)), tuple(dim for axis, dim in enumerate(shape) if axis not in axes)


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    if "x" not in match.found:
        (layer,) = match.layers
        op = replace(layer.op, kind="logsumexp", prologue=layer.op.prologue.arguments[0], epilogue=match.found["epilogue"])
        return Replacement((Layer("", op, layer.inputs, layer.outputs),), keep_name=True)
    last, x, axes = match.layers[-1], match.found["x"], match.found["axes"]
    shifted = {index: Operand(index + 1) for index in range(len(last.inputs))}
    epilogue, names = number(substitute(match.found["rest"], {-1: Operand(0), **shifted}), (x, *last.inputs), fixed=1)
    refusal = too_large(epilogue, len(names), graph.limits)
    if refusal is not None:
        return refusal
    kept = graph.type(match.found["made"]).shape == _results(graph.type(x).shape, axes)[0]
    return Replacement((Layer("", Reduce("logsumexp", axes, kept, IDENTITY, epilogue), (x, *names[1:]), last.outputs),))


def _near(graph: Graph, layer: Layer) -> Near | None:
    """The logarithm of the sum where the exponentials, or the sum, are read elsewhere too."""
    op = layer.op
    if not isinstance(op, Reduce) or op.kind != "sum":
        return None
    before = graph.producer(layer.inputs[0])
    if isinstance(op.prologue, Apply) and op.prologue.function == "exp":
        return near_logarithm(graph, layer)
    if op.prologue != IDENTITY or before is None or not isinstance(before.op, Pointwise):
        return None
    if not isinstance(before.op.expression, Apply) or before.op.expression.function != "exp":
        return None
    if without_logarithm(op.epilogue) is not None:
        return Match((before, layer), before.outputs), None
    found = near_logarithm(graph, layer)
    if found is None:
        return None
    match, refusal = found
    return Match((before, *match.layers), (*before.outputs, *match.vanishing)), refusal


RULE = Rule("log-sum-exp", __doc__.splitlines()[0], (Reduce, Pointwise), _match, _rewrite, _check, near=_near)
