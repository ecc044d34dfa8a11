"""f(x, constant of one element) -> f(x, literal); repeated operands read once; constants without leading axes of length 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.expression import Expression, Literal, substitute
from fusion.graph import Graph
from fusion.network import Layer, TensorType
from fusion.ops import Fill, Pointwise
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Replacement, Rule
from fusion.rules._expressions import literal_value, number, removable
from fusion.rules._local import EXPRESSION_OPS


def _literal(graph: Graph, name: str) -> Literal | None:
    """The one value that the tensor has everywhere, when that is worth knowing: one element, or all zeros or all ones."""
    dtype = graph.type(name).dtype
    value = graph.constant(name)
    if value is None:
        maker = graph.producer(name)
        return Literal(maker.op.value, dtype) if maker is not None and isinstance(maker.op, Fill) else None
    if value.size == 1:
        return Literal(literal_value(value), dtype)
    if value.size and value.dtype.kind != "b" and value.flat[0] in (0, 1) and bool(np.all(value == value.flat[0])):
        return Literal(literal_value(value), dtype)
    return None


def _stripped(graph: Graph, name: str) -> np.ndarray | None:
    value = graph.constant(name)
    if value is None or value.ndim == 0 or value.shape[0] != 1:
        return None
    first = next((axis for axis, size in enumerate(value.shape) if size != 1), value.ndim)
    return value.reshape(value.shape[first:])


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    pointwise = isinstance(op, Pointwise)
    expression: Expression = op.expression if pointwise else op.epilogue
    if expression == IDENTITY:
        return None
    fixed = 0 if pointwise else 1
    names = [*layer.inputs] if pointwise else [layer.outputs[0], *layer.inputs[op.arity :]]
    replacements: dict[int, Expression] = {}
    constants: dict[str, np.ndarray] = {}
    types = [graph.type(name) for name in names]
    for index in range(fixed, len(names)):
        literal = _literal(graph, names[index])
        if literal is not None and (fixed or removable(types, index)):
            replacements[index] = literal
            continue
        short = _stripped(graph, names[index])
        if short is not None and (fixed or _rank_stays(types, index)):
            constants[graph.fresh(f"{names[index]}.stripped")] = short
            names[index] = next(reversed(constants))
    expression, used = number(substitute(expression, replacements), names, fixed)
    if expression == (op.expression if pointwise else op.epilogue) and not constants and len(used) == len(names):
        return None
    if pointwise and not used:
        return None
    fused = (
        Layer("", Pointwise(expression), used, layer.outputs)
        if pointwise
        else Layer("", replace(op, epilogue=expression), (*layer.inputs[: op.arity], *used[1:]), layer.outputs)
    )
    return Match((layer,), found={"layer": fused, "constants": constants})


def _rank_stays(types: list[TensorType], index: int) -> bool:
    """Whether another operand keeps the rank of the result when operand ``index`` loses its leading axes."""
    return any(i != index and len(kind.shape) >= len(types[index].shape) for i, kind in enumerate(types))


def _rewrite(graph: Graph, match: Match) -> Replacement:
    return Replacement((match.found["layer"],), match.found["constants"], keep_name=True)


RULE = Rule("constant-operand", __doc__.splitlines()[0], EXPRESSION_OPS, _match, _rewrite, canonical=True, local=True)
