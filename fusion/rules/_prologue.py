"""What the prologue rules share: ``op(f(x))`` reads x and applies f to each element as it reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fusion.expression import Convert, Expression, Operand, substitute
from fusion.graph import Graph
from fusion.network import Layer, Op
from fusion.ops import Pointwise
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import equal_shape, is_narrow, number, too_large


def prologue_rule(
    name: str, equation: str, anchors: tuple[type[Op], ...], refuse: Callable[[Graph, Layer], Refusal | None] = lambda graph, layer: None, converts: bool = False
) -> Rule:
    """The rule that moves a pointwise layer of one tensor into the prologue of the anchor that reads it, unless ``refuse`` says why not; ``converts``:
    also one that makes floating-point numbers of integers."""

    def match(graph: Graph, layer: Layer) -> Match | None:
        before = graph.producer(layer.inputs[0])
        if before is None or not isinstance(before.op, Pointwise) or layer.inputs.count(before.outputs[0]) != 1:
            return None
        return Match((before, layer), (before.outputs[0],))

    def check(graph: Graph, match: Match) -> Refusal | None:
        return _check(graph, match, converts) or refuse(graph, match.layers[1])

    return Rule(name, equation, anchors, match, _rewrite, check)


def _check(graph: Graph, match: Match, converts: bool) -> Refusal | None:
    before, _layer = match.layers
    if len(before.inputs) != 1:
        return Refusal("operands", f"{before.name} reads {len(before.inputs)} tensors; a prologue has one")
    if not equal_shape(graph.type(before.inputs[0]).shape, graph.type(before.outputs[0]).shape):
        return Refusal("shape", f"{before.name} broadcasts its input")
    source, made = graph.type(before.inputs[0]).dtype, graph.type(before.outputs[0]).dtype
    if source.is_float != made.is_float and not (converts and made.is_float):
        return Refusal("data type", f"{before.name} turns {source.value} into {made.value}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    before, layer = match.layers
    op = layer.op
    prologue, _ = number(substitute(op.prologue, {0: before.op.expression}), before.inputs)
    epilogue: Expression = op.epilogue
    made = graph.type(before.outputs[0]).dtype
    if isinstance(prologue, Convert) and prologue.dtype is made and is_narrow(graph.type(before.inputs[0]).dtype):
        # The accumulator is wide anyway: widening belongs to the result.
        prologue, epilogue = prologue.argument, substitute(epilogue, {0: Convert(made, Operand(0))})
    refusal = too_large(prologue, 1, graph.limits)
    if refusal is not None:
        return refusal
    fused = replace(op, prologue=prologue, epilogue=epilogue)
    return Replacement((Layer("", fused, (*before.inputs, *layer.inputs[1:]), layer.outputs),))
