"""Normalization(x + y) -> SumNormalization(x, y): the residual sum is formed as the rows are read, and written only if others need it."""

from __future__ import annotations

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Normalization, Pointwise, SumNormalization
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import static_size

LONGEST = 8192  # elements of a row that a block keeps in its registers
_SUM = apply("add", Operand(0), Operand(1))


def _match(graph: Graph, layer: Layer) -> Match | None:
    add = graph.producer(layer.inputs[0])
    if add is None or not isinstance(add.op, Pointwise) or add.op.expression != _SUM:
        return None
    return Match((add, layer))


def _check(graph: Graph, match: Match) -> Refusal | None:
    add, layer = match.layers
    kind = graph.type(add.outputs[0])
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU the sum stays in the cache")
    if kind.dtype not in (DataType.FLOAT, DataType.HALF, DataType.BF16):
        return Refusal("data type", f"{add.outputs[0]} is {kind.dtype.value}")
    if any(one != kind for one in graph.types(add.inputs)):
        return Refusal("shape", f"{add.name} broadcasts or converts one of {', '.join(add.inputs)}")
    if layer.op.floor:
        return Refusal("floor", f"{layer.name} divides by at least {layer.op.floor:g}")
    rank = len(kind.shape)
    if layer.op.axes != tuple(range(layer.op.axes[0], rank)):
        return Refusal("axes", f"{layer.name} normalises over axes {layer.op.axes}, which are not the last ones")
    size = static_size(kind.shape[layer.op.axes[0] :])
    if size is None or size > LONGEST:
        return Refusal("size", f"rows of {'unknown size' if size is None else size}; up to {LONGEST} elements fit the registers")
    for name in layer.inputs[1:]:
        if graph.constant(name) is None:
            return Refusal("epilogue", f"{layer.name} reads {name}, which is no constant")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    add, layer = match.layers
    total = add.outputs[0]
    keep = total in graph.outputs or any(reader.name != layer.name for reader in graph.readers(total))
    op = SumNormalization(layer.op.axes[0], layer.op.epsilon, layer.op.center, keep, layer.op.epilogue)
    outputs = (*layer.outputs, total) if keep else layer.outputs
    return Replacement((Layer("", op, (*add.inputs, *layer.inputs[1:]), outputs),))


RULE = Rule("normalization-sum", __doc__.splitlines()[0], (Normalization,), _match, _rewrite, _check)
