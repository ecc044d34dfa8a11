"""op(x, g(y), epilogue=f) -> op(x, y, epilogue=f(g)): a pointwise layer that only an epilogue reads is computed in it."""

from __future__ import annotations

from dataclasses import replace

from fusion.expression import Expression, Operand, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._expressions import distinct, equal_shape, join, joins_too_large, number, show, static_size, too_large
from fusion.rules.pointwise import CHEAP


def _match(graph: Graph, layer: Layer) -> Match | None:
    reader = graph.only_reader(layer.outputs[0])
    if reader is None or getattr(reader.op, "epilogue", IDENTITY) == IDENTITY:
        return None
    if layer.outputs[0] in reader.inputs[: reader.op.arity]:
        return None
    return Match((layer, reader), (layer.outputs[0],))


def _near(graph: Graph, layer: Layer) -> Near | None:
    """An epilogue alone reads it, but it is a network output."""
    for reader in graph.readers(layer.outputs[0]) if layer.outputs[0] in graph.outputs else ():
        if getattr(reader.op, "epilogue", IDENTITY) != IDENTITY and layer.outputs[0] not in reader.inputs[: reader.op.arity]:
            return Match((layer, reader), layer.outputs), None
    return None


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, reader = match.layers
    made, out = graph.type(layer.outputs[0]).shape, graph.type(reader.outputs[0]).shape
    if not equal_shape(made, out) and distinct(layer.op.expression) > CHEAP:
        return Refusal(
            "broadcast", f"{layer.name} of shape {show(made)} would be computed again for each of {show(out)}"
        )
    bytes_before = _size(graph, layer.outputs)
    bytes_after = _size(graph, tuple(dict.fromkeys(layer.inputs)))
    if bytes_before is not None and bytes_after is not None and bytes_after > 3 * bytes_before:
        return Refusal("traffic", f"{layer.name} reads {bytes_after} bytes to make {bytes_before}")
    return None


def _size(graph: Graph, names: tuple[str, ...]) -> int | None:
    """The bytes of tensors, when all of their sizes are numbers."""
    counts = [(static_size(kind.shape), kind.dtype.itemsize) for kind in graph.types(names)]
    return None if any(count is None for count, _ in counts) else sum(count * width for count, width in counts if count is not None)


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    layer, reader = match.layers
    op, arity = reader.op, reader.op.arity
    result = reader.outputs[0]
    # The operands of g come after a placeholder for operand 0, which keeps its number.
    outer_names = (result, *reader.inputs[arity:])
    refusal = joins_too_large(op.epilogue, outer_names, layer.outputs[0], layer.op.expression, graph.limits)
    if refusal is not None:
        return refusal
    expression, names = join(op.epilogue, outer_names, layer.outputs[0], layer.op.expression, layer.inputs)
    expression, names = _result_first(expression, names, len(layer.inputs))
    expression, names = number(expression, names, fixed=1)
    refusal = too_large(expression, arity + len(names) - 1, graph.limits)
    if refusal is not None:
        return refusal
    fused = Layer("", replace(op, epilogue=expression), (*reader.inputs[:arity], *names[1:]), reader.outputs)
    return Replacement((fused,))


def _result_first(expression: Expression, names: tuple[str, ...], place: int) -> tuple[Expression, tuple[str, ...]]:
    """Operand ``place`` moved to the front, the ones before it up by one."""
    moves: dict[int, Expression] = {place: Operand(0), **{index: Operand(index + 1) for index in range(place)}}
    return substitute(expression, moves), (names[place], *names[:place], *names[place + 1 :])


RULE = Rule("epilogue-operand", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check, near=_near)
