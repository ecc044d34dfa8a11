"""reshape(Normalization(reshape(x, [N, G, -1]))) -> GroupNormalization(x, G): the groups that an exporter folded into channels."""

from __future__ import annotations

from fusion.dims import product
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import GroupNormalization, Normalization, Shuffle
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import equal_shape, show
from fusion.rules._shuffles import is_view


def _match(graph: Graph, layer: Layer) -> Match | None:
    rank = len(graph.type(layer.inputs[0]).shape)
    if not layer.op.center or layer.op.heads is not None or layer.op.axes != tuple(range(2, rank)) or rank < 3:
        return None
    before = graph.producer(layer.inputs[0])
    after = next(iter(graph.readers(layer.outputs[0])), None)
    if before is None or after is None or not isinstance(before.op, Shuffle) or not isinstance(after.op, Shuffle):
        return None
    return Match((before, layer, after), (before.outputs[0], layer.outputs[0]))


def _check(graph: Graph, match: Match) -> Refusal | None:
    before, layer, after = match.layers
    source, grouped = graph.type(before.inputs[0]).shape, graph.type(layer.inputs[0]).shape
    target = graph.type(after.outputs[0]).shape
    if layer.op.epilogue != IDENTITY:
        return Refusal("epilogue", f"{layer.name} scales its groups")
    for shuffle, shape in ((before, source), (after, grouped)):
        if not is_view(shape, shuffle.op):
            return Refusal("moves", f"{shuffle.name} moves data")
    if len(target) < 3 or source[:2] != target[:2] or product(source) != product(target):  # pixels may come back in a row
        return Refusal("shape", f"{show(source)} comes back as {show(target)}")
    groups, channels = grouped[1], source[1] if len(source) >= 3 else None
    if source[0] != grouped[0] or not isinstance(groups, int) or not isinstance(channels, int) or channels % groups:
        return Refusal("groups", f"{show(grouped)} is not {show(source)} with its channels in groups")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    before, layer, after = match.layers
    groups = graph.type(layer.inputs[0]).shape[1]
    assert isinstance(groups, int)
    op, target = GroupNormalization(groups, layer.op.epsilon), graph.type(after.outputs[0]).shape
    if equal_shape(graph.type(before.inputs[0]).shape, target):
        return Replacement((Layer("", op, before.inputs, after.outputs),))
    view = graph.fresh(f"{after.outputs[0]}.pixels")
    return Replacement((Layer(f"{before.name} pixels", Shuffle(reshape=target), before.inputs, (view,)), Layer("", op, (view,), after.outputs)))


RULE = Rule("group-normalization", __doc__.splitlines()[0], (Normalization,), _match, _rewrite, _check)
