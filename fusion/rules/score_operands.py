"""softmax(reshape(reshape(q k^T) + a + b)) -> softmax(q k^T + reshape(a + b)): relative positions along two axes, added to the scores of an image's positions.

a and b broadcast against each other, so their sum is as large as the scores. It is written once where else the scores would be, twice or more:
with it as its mask, attention stores no scores.
"""

from __future__ import annotations

from fusion.expression import Apply, Expression, Operand, operands
from fusion.graph import Graph
from fusion.network import Layer, broadcast
from fusion.ops import MatrixMultiply, Pointwise, Shuffle, Softmax
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import equal_shape, number, show
from fusion.rules._shuffles import reshape_before


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` is the softmax."""
    after = reshape_before(graph, layer.inputs[0])
    added = graph.producer(after.inputs[0]) if after is not None else None
    if after is None or added is None or not isinstance(added.op, Pointwise):
        return None
    for index, name in enumerate(added.inputs):
        before = reshape_before(graph, name)
        if before is None or not equal_shape(graph.type(before.inputs[0]).shape, graph.type(after.outputs[0]).shape):
            continue
        product = graph.producer(before.inputs[0])
        if product is not None and isinstance(product.op, MatrixMultiply) and graph.constant(product.inputs[1]) is None:
            return Match((before, added, after), (before.outputs[0], added.outputs[0]), {"index": index})
    return None


def _without(expression: Expression, index: int) -> Expression | None:
    """What ``expression`` adds to operand ``index``; None when it does anything else with it."""
    if not isinstance(expression, Apply) or expression.function != "add":
        return None
    for one, other in (expression.arguments, expression.arguments[::-1]):
        if index in operands(other) or not operands(other):
            continue
        if one == Operand(index):
            return other
        rest = _without(one, index)
        if rest is not None:
            return Apply("add", (rest, other))
    return None


def _check(graph: Graph, match: Match) -> Refusal | None:
    before, added, after = match.layers
    whole, split = (graph.type(tensor).shape for tensor in (after.outputs[0], before.outputs[0]))
    if _without(added.op.expression, match.found["index"]) is None:
        return Refusal("sum", f"{added.name} does more than add to {before.outputs[0]}")
    others = [graph.type(name).shape for index, name in enumerate(added.inputs) if index != match.found["index"]]
    if not equal_shape(graph.type(added.outputs[0]).shape, split) or not equal_shape(broadcast(others), split):
        return Refusal("shape", f"what is added to {show(split)} has the shapes {', '.join(show(shape) for shape in others)}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    before, added, after = match.layers
    rest = _without(added.op.expression, match.found["index"])
    assert rest is not None
    expression, names = number(rest, added.inputs)
    total, mask = graph.fresh(f"{added.outputs[0]}.added"), graph.fresh(f"{after.outputs[0]}.added")
    return Replacement((
        Layer(f"{added.name} operands", Pointwise(expression), names, (total,), added.origins, added.fusions),
        Layer(f"{after.name} of operands", Shuffle(reshape=graph.type(after.outputs[0]).shape), (total,), (mask,), after.origins, after.fusions),
        Layer("", Pointwise(Apply("add", (Operand(0), Operand(1)))), (before.inputs[0], mask), after.outputs),
    ))  # fmt: skip


RULE = Rule("score-operands", __doc__.splitlines()[0], (Softmax,), _match, _rewrite, _check)
