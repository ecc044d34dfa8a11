"""Conv(concat(a, b), w) -> Conv(b, w_b) + Conv(a, w_a): the joined channels never go through memory. Optional.

It saves writing and reading the joined tensor, and costs writing and reading one partial result; so the result must have
fewer channels than what is joined. Whether the two smaller products are as fast as the large one only a measurement
tells, and in narrow types the partial result is rounded once more: the rule runs when it is asked for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.expression import Operand, apply, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Convolution
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule

PARTS = 2  # of three parts, two partial results would go through memory


def _match(graph: Graph, layer: Layer) -> Match | None:
    joined = graph.producer(layer.inputs[0])
    if joined is None or not isinstance(joined.op, Concatenation) or layer.op.groups != 1:
        return None
    axis = len(graph.type(layer.inputs[0]).shape) - 1 if layer.op.reads_channels_last else 1
    if joined.op.axis != axis:
        return None
    return Match((joined, layer), (joined.outputs[0],), {"axis": axis})


def _check(graph: Graph, match: Match) -> Refusal | None:
    joined, layer = match.layers
    weights = graph.constant(layer.inputs[1])
    if weights is None:
        return Refusal("weights", f"the weights {layer.inputs[1]} are not constant")
    if len(joined.inputs) != PARTS:
        return Refusal("parts", f"{joined.name} joins {len(joined.inputs)} tensors; {PARTS} are allowed")
    if not all(isinstance(graph.type(name).shape[match.found["axis"]], int) for name in joined.inputs):
        return Refusal("dynamic", f"{joined.name} joins numbers of channels that are known at run time only")
    if weights.shape[0] >= weights.shape[1]:
        return Refusal("no gain", f"{layer.name} makes {weights.shape[0]} channels of {weights.shape[1]}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    joined, layer = match.layers
    weights = graph.constants[layer.inputs[1]]
    first = graph.type(joined.inputs[0]).shape[match.found["axis"]]
    assert isinstance(first, int)
    names = [graph.fresh(f"{layer.inputs[1]}.part{index}") for index in range(PARTS)]
    constants = {
        names[0]: np.ascontiguousarray(weights[:, :first]),
        names[1]: np.ascontiguousarray(weights[:, first:]),
    }
    partial = graph.fresh(f"{layer.outputs[0]}.partial")
    extra = Operand(len(layer.inputs) - layer.op.arity + 1)
    epilogue = substitute(layer.op.epilogue, {0: apply("add", Operand(0), extra)})
    part = Layer(
        f"{layer.name} part",
        replace(layer.op, epilogue=IDENTITY),
        (joined.inputs[0], names[0]),
        (partial,),
        layer.origins,
        (*layer.fusions, RULE.name),
    )
    inputs = (joined.inputs[1], names[1], *layer.inputs[2:], partial)
    return Replacement((part, Layer("", replace(layer.op, epilogue=epilogue), inputs, layer.outputs)), constants)


RULE = Rule("convolution-concatenation", __doc__.splitlines()[0], (Convolution,), _match, _rewrite, _check)
