"""Rules that rewrite the expressions of one layer and leave the graph as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, type_of
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
from fusion.rewrite import Match, Replacement, Rule
from fusion.rules._expressions import number

EXPRESSION_OPS: tuple[type[Op], ...] = (
    Pointwise, Convolution, Deconvolution, MatrixMultiply, PackedMatrixMultiply, Normalization, GroupNormalization, Pooling, Reduce, Softmax,
)  # fmt: skip

# From an expression and the types of its operands to a better expression, or the same.
Improve = Callable[[Expression, tuple[DataType, ...]], Expression]


def expression_rule(name: str, equation: str, improve: Improve, canonical: bool = False) -> Rule:
    """The rule that replaces expressions, prologues and epilogues by ``improve`` of them."""

    remembered = lru_cache(maxsize=4096)(improve)  # networks repeat the same few expressions hundreds of times

    def match(graph: Graph, layer: Layer) -> Match | None:
        changed = improved(graph, layer, remembered)
        return None if changed is None else Match((layer,), found={"layer": changed})

    def rewrite(graph: Graph, match: Match) -> Replacement:
        return Replacement((match.found["layer"],), keep_name=True)

    return Rule(name, equation, EXPRESSION_OPS, match, rewrite, canonical=canonical, local=True)


def improved(graph: Graph, layer: Layer, improve: Improve) -> Layer | None:
    """The layer with better expressions, its name empty; None when there is nothing better."""
    op = layer.op
    if isinstance(op, Pointwise):
        if not isinstance(op.expression, Apply | Convert):
            return None
        better = improve(op.expression, tuple([kind.dtype for kind in graph.types(layer.inputs)]))
        if better == op.expression:
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
        better = improve(prologue, (dtype,))
        changed = replace(changed, prologue=better)
        dtype = type_of(better, [dtype])
    inputs = layer.inputs
    if op.epilogue != IDENTITY:
        types = (dtype, *(kind.dtype for kind in graph.types(inputs[op.arity :])))
        better = improve(op.epilogue, types)
        if better != op.epilogue:
            better, names = number(better, (layer.outputs[0], *inputs[op.arity :]), fixed=1)
            changed = replace(changed, epilogue=better)
            inputs = (*inputs[: op.arity], *names[1:])
    return None if changed == op else Layer("", changed, inputs, layer.outputs)


def bottom_up(expression: Expression, step: Callable[[Expression], Expression]) -> Expression:
    """``step`` applied to every node, children first."""
    if isinstance(expression, Convert):
        expression = Convert(expression.dtype, bottom_up(expression.argument, step))
    elif isinstance(expression, Apply):
        expression = Apply(expression.function, tuple(bottom_up(child, step) for child in expression.arguments))
    return step(expression)
