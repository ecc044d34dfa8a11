"""reshape(f(reshape(x), c)) -> f(x, c'), for reshapes that split the batch and join it again: the masks of shifted windows. c' has the whole batch."""

from __future__ import annotations

from fusion.dims import Dim, Shape, product
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Expand, Pointwise, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import equal_shape, show, static_size
from fusion.rules._shuffles import reshape_before


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` is the second reshape."""
    pointwise = graph.producer(layer.inputs[0])
    if reshape_before(graph, layer.outputs[0]) is None or pointwise is None or not isinstance(pointwise.op, Pointwise) or len(pointwise.inputs) < 2:
        return None
    whole = graph.type(layer.outputs[0]).shape
    for name in pointwise.inputs:
        before = reshape_before(graph, name)
        if before is not None and equal_shape(graph.type(before.inputs[0]).shape, whole):
            return Match((before, pointwise, layer), (before.outputs[0], pointwise.outputs[0]), {"x": before.inputs[0]})
    return None


def _check(graph: Graph, match: Match) -> Refusal | None:
    before, pointwise, after = match.layers
    whole, split = (graph.type(name).shape for name in (match.found["x"], before.outputs[0]))
    if not equal_shape(graph.type(pointwise.outputs[0]).shape, split):
        return Refusal("broadcast", f"{pointwise.name} broadcasts {before.outputs[0]}")
    if len(whole) < 2 or len(split) <= len(whole) or not equal_shape(split[1 - len(whole) :], whole[1:]):
        return Refusal("reshape", f"{before.name} makes {show(split)} of {show(whole)}; it does more than split the first axis")
    for name in pointwise.inputs:
        operand = _aligned(graph.type(name).shape, len(split))
        batch, rest = _halves(operand, len(whole))
        size, most = static_size(rest), static_size(whole[1:])
        if any(dim != 1 for dim in batch) and batch != split[: len(batch)] and (size is None or most is None or 2 * size > most):
            return Refusal("size", f"{name} of shape {show(operand)} would be repeated for the batch, and is as large as what it is added to")
    return None


def _aligned(shape: Shape, rank: int) -> Shape:
    return (*(1,) * (rank - len(shape)), *shape)


def _halves(operand: Shape, rank: int) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """The axes into which the batch is split, and the others, of which there are ``rank`` - 1."""
    return operand[: 1 - rank], operand[1 - rank :]


def _rewrite(graph: Graph, match: Match) -> Replacement:
    before, pointwise, after = match.layers
    x = match.found["x"]
    whole, split = (graph.type(name).shape for name in (x, before.outputs[0]))
    layers: list[Layer] = []
    inputs = []
    for name in pointwise.inputs:
        shape = graph.type(name).shape
        if name == before.outputs[0] or len(shape) < len(whole):
            inputs.append(x if name == before.outputs[0] else name)
            continue
        batch, rest = _halves(_aligned(shape, len(split)), len(whole))
        base, source = f"{name}.{pointwise.name}", name
        if any(dim != 1 for dim in batch) and batch != split[: len(batch)]:
            source = graph.fresh(f"{base}.split")
            layers.append(Layer(f"{name} for {pointwise.name}", Expand((*split[: len(batch)], *rest)), (name,), (source,)))
            batch = split[: len(batch)]
        joined = graph.fresh(f"{base}.batch")
        layers.append(Layer(f"{name} as {pointwise.name} reads it", Shuffle(reshape=(product(batch), *rest)), (source,), (joined,)))
        inputs.append(joined)
    return Replacement((*layers, Layer("", pointwise.op, tuple(inputs), after.outputs)))


RULE = Rule("batch-operands", __doc__.splitlines()[0], (Shuffle,), _match, _rewrite, _check)
