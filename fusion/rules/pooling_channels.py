"""Pooling(f(x, c ...)) -> Pooling(x, c ..., prologue=f): as pooling-prologue, where f reads further tensors (scales of channels). On a GPU.

What is read for each element beside it is small: operands are the same for all positions of an image.
"""

from __future__ import annotations

from dataclasses import replace

from fusion.expression import Operand, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Pooling
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import equal_shape, show, too_large
from fusion.rules.pooling_prologue import overlap


def _match(graph: Graph, layer: Layer) -> Match | None:
    before = graph.producer(layer.inputs[0])
    if before is None or not isinstance(before.op, Pointwise) or len(before.inputs) < 2:
        return None
    return Match((before, layer), (before.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    before, layer = match.layers
    op, made = layer.op, graph.type(before.outputs[0])
    assert isinstance(op, Pooling)
    if graph.limits.device != "cuda" or not op.channels_last:
        return Refusal("device", "pooling of channels-last images on a GPU reads further tensors")
    if layer.inputs.count(before.outputs[0]) != 1 or op.prologue != IDENTITY:
        return Refusal("operands", f"{layer.name} computes another function of what {before.name} makes")
    whole = [name for name in before.inputs if equal_shape(graph.type(name).shape, made.shape)]
    if len(whole) != 1:
        return Refusal("operands", f"{before.name} reads {len(whole)} tensors of the shape {show(made.shape)}; one is allowed")
    for name in before.inputs:
        shape = (1,) * (len(made.shape) - len(graph.type(name).shape)) + tuple(graph.type(name).shape)
        if name not in whole and any(size != 1 for size in shape[1:-1]):
            return Refusal("shape", f"{name} of shape {show(graph.type(name).shape)} is another at every position")
    kinds = [graph.type(name).dtype for name in (whole[0], before.outputs[0])]
    if not all(kind.is_float and kind.itemsize <= 4 for kind in kinds):
        return Refusal("data type", f"{before.name} makes {kinds[1].label} of {kinds[0].label}; floating-point numbers of up to 32 bits are allowed")
    return overlap(graph, layer)


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    before, layer = match.layers
    op = layer.op
    assert isinstance(before.op, Pointwise) and isinstance(op, Pooling)
    shape = graph.type(before.outputs[0]).shape
    names = sorted(before.inputs, key=lambda name: not equal_shape(graph.type(name).shape, shape))  # x first
    prologue = substitute(before.op.expression, {number: Operand(names.index(name)) for number, name in enumerate(before.inputs)})
    refusal = too_large(prologue, len(layer.inputs) + len(names) - 1, graph.limits)
    if refusal is not None:
        return refusal
    fused = replace(op, prologue=prologue, operands=len(names) - 1)
    return Replacement((Layer("", fused, (names[0], *layer.inputs[1:], *names[1:]), layer.outputs),))


RULE = Rule("pooling-channels", __doc__.splitlines()[0], (Pooling,), _match, _rewrite, _check)
