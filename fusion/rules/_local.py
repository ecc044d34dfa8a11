"""Rules that rewrite the expressions of one layer and leave the graph as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, size, type_of, vocabulary, with_children
from fusion.graph import Graph
from fusion.network import Layer, Op
from fusion.ops import (
    Convolution,
    Deconvolution,
    GroupNormalization,
    MatrixMultiply,
    Normalization,
    PackedMatrixMultiply,
    Pointwise,
    Pooling,
    Reduce,
    Softmax,
)
from fusion.ops.epilogue import IDENTITY, product_type
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._expressions import join, number

EXPRESSION_OPS: tuple[type[Op], ...] = (
    Pointwise, Convolution, Deconvolution, MatrixMultiply, PackedMatrixMultiply, Normalization, GroupNormalization, Pooling, Reduce, Softmax,
)  # fmt: skip

# From an expression and the types of its operands to a better expression, or the same.
Improve = Callable[[Expression, tuple[DataType, ...]], Expression]
# The same, with None where there is nothing better.
Remembered = Callable[[Expression, tuple[DataType, ...]], "Expression | None"]
# From the same to why an expression that was not improved nearly is what the rule looks for, or None.
Nearly = Callable[[Expression, tuple[DataType, ...]], Refusal | None]

# Groups of functions of which a pattern has one each.
Pieces = tuple[frozenset[str], ...]

_LAYERS, _FUNCTIONS = 4, 24  # over how many layers, and of how many functions, a pattern is looked for that is not in one


def expression_rule(
    name: str, equation: str, improve: Improve, canonical: bool = False, pieces: Pieces = (), nearly: Nearly = lambda expression, types: None
) -> Rule:
    """The rule that replaces expressions, prologues and epilogues by ``improve`` of them.

    It comes near where a pattern of these ``pieces`` stands in several layers that could not be joined, and where ``nearly`` says so."""

    @lru_cache(maxsize=4096)  # networks repeat the same few expressions hundreds of times
    def remembered(expression: Expression, types: tuple[DataType, ...]) -> Expression | None:
        better = improve(expression, types)
        return None if better == expression else better

    near_remembered = lru_cache(maxsize=4096)(nearly)

    def match(graph: Graph, layer: Layer) -> Match | None:
        changed = improved(graph, layer, remembered)
        return None if changed is None else Match((layer,), found={"layer": changed})

    def rewrite(graph: Graph, match: Match) -> Replacement:
        return Replacement((match.found["layer"],), keep_name=True)

    def near(graph: Graph, layer: Layer) -> Near | None:
        apart = _apart(graph, layer, remembered, pieces) if pieces else None
        if apart is not None:
            return apart, None
        found = (near_remembered(*one) for one in _expressions(graph, layer))
        refusal = next((one for one in found if one is not None), None)
        return None if refusal is None else (Match((layer,)), refusal)

    return Rule(name, equation, EXPRESSION_OPS, match, rewrite, canonical=canonical, local=True, near=near)


def _apart(graph: Graph, layer: Layer, improve: Remembered, pieces: Pieces) -> Match | None:
    """``layer`` and the pointwise layers before it which, were they one, ``improve`` would change."""
    if not isinstance(layer.op, Pointwise):
        return None
    layers = [layer]
    for one in layers:  # which grows
        makers = (graph.producer(name) for name in one.inputs)
        layers += [maker for maker in makers if maker is not None and isinstance(maker.op, Pointwise) and maker not in layers]
        if len(layers) >= _LAYERS:
            break
    if len(layers) == 1 or not all(any(group & vocabulary(one.op.expression) for one in layers) for group in pieces):
        return None
    expression, names = layer.op.expression, layer.inputs
    layers[1:] = sorted(layers[1:_LAYERS], key=graph.position, reverse=True)  # readers before makers
    for count, maker in enumerate(layers[1:], 2):
        if size(expression) + size(maker.op.expression) > _FUNCTIONS:
            return None
        expression, names = number(*join(expression, names, maker.outputs[0], maker.op.expression, maker.inputs))
        if improve(expression, tuple(kind.dtype for kind in graph.types(names))) is not None:
            return Match(tuple(reversed(layers[:count])), tuple(one.outputs[0] for one in layers[1:count]))
    return None


def _expressions(graph: Graph, layer: Layer) -> list[tuple[Expression, tuple[DataType, ...]]]:
    """The expressions of ``layer`` that compute something, each with the types of its operands."""
    op, types = layer.op, [kind.dtype for kind in graph.types(layer.inputs)]
    if isinstance(op, Pointwise):
        return [(op.expression, tuple(types))]
    prologue = getattr(op, "prologue", IDENTITY)
    result = type_of(prologue, types[:1])
    result = product_type(result) if isinstance(op, Convolution | Deconvolution | MatrixMultiply) else result
    found = [(prologue, tuple(types[:1])), (op.epilogue, (result, *types[op.arity :]))]
    return [one for one in found if one[0] != IDENTITY]


def improved(graph: Graph, layer: Layer, improve: Remembered) -> Layer | None:
    """The layer with better expressions, its name empty; None when there is nothing better."""
    op = layer.op
    if isinstance(op, Pointwise):
        if not isinstance(op.expression, Apply | Convert):
            return None
        better = improve(op.expression, tuple([kind.dtype for kind in graph.types(layer.inputs)]))
        if better is None:
            return None
        expression, names = number(better, layer.inputs)
        if not names:
            return None  # a constant: constant folding's work
        return Layer("", Pointwise(expression), names, layer.outputs)
    prologue = getattr(op, "prologue", IDENTITY)
    if op.epilogue == IDENTITY and prologue == IDENTITY:
        return None
    changed: Op = op
    dtype = graph.type(layer.inputs[0]).dtype
    dtype = product_type(dtype) if isinstance(op, Convolution | Deconvolution | MatrixMultiply) else dtype
    if prologue != IDENTITY:
        better = improve(prologue, (dtype,)) or prologue
        changed = replace(changed, prologue=better)
        dtype = type_of(better, [dtype])
    inputs = layer.inputs
    if op.epilogue != IDENTITY:
        types = (dtype, *(kind.dtype for kind in graph.types(inputs[op.arity :])))
        better = improve(op.epilogue, types)
        if better is not None:
            better, names = number(better, (layer.outputs[0], *inputs[op.arity :]), fixed=1)
            changed = replace(changed, epilogue=better)
            inputs = (*inputs[: op.arity], *names[1:])
    return None if changed == op else Layer("", changed, inputs, layer.outputs)


def bottom_up(expression: Expression, step: Callable[[Expression], Expression]) -> Expression:
    """``step`` applied to every node, children first."""
    if isinstance(expression, Convert):
        expression = with_children(expression, (bottom_up(expression.argument, step),))
    elif isinstance(expression, Apply):
        expression = with_children(expression, tuple([bottom_up(child, step) for child in expression.arguments]))
    return step(expression)
