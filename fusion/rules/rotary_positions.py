"""concat(x[:n], RotaryEmbedding(x[n:], cos, sin)) -> RotaryEmbedding(x, pad(cos, 1), pad(sin, 0)): positions that do not turn have the angle 0.

Class tokens and registers of vision models (EVA-02, DINOv3) have no place in the image, so only the positions beside them turn. Tables are padded
at build where they are known then, and once for all layers that share them otherwise.
"""

from __future__ import annotations

from fusion.dims import Dim
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Padding, RotaryEmbedding, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, join: Layer) -> Match | None:
    makers = [graph.producer(name) for name in join.inputs]
    turns = [one for one in makers if one is not None and isinstance(one.op, RotaryEmbedding)]
    if len(turns) != 1 or len(makers) < 2 or join.op.axis == len(graph.type(join.outputs[0]).shape) - 1:
        return None
    (turn,) = turns
    pieces = [graph.producer(turn.inputs[0]) if one is turn else one for one in makers]
    slices = [one for one in pieces if one is not None and isinstance(one.op, Slice)]
    if len(slices) != len(makers) or len({one.inputs[0] for one in slices}) != 1:
        return None
    layers = (*dict.fromkeys(slices), turn, join)
    return Match(layers, tuple(one.outputs[0] for one in layers[:-1]), {"slices": slices, "place": makers.index(turn)})


def _check(graph: Graph, match: Match) -> Refusal | None:
    turn, join = match.layers[-2:]
    if turn.op.heads or turn.op.epsilon is not None:
        return Refusal("rows", f"{turn.name} takes a part of the heads, or normalises its rows")
    start: Dim = 0
    shape, axis = graph.type(match.found["slices"][0].inputs[0]).shape, join.op.axis
    for one in match.found["slices"]:
        size = one.op.sizes[axis]
        wanted = tuple((start, size) if at == axis else (0, whole) for at, whole in enumerate(shape))
        if tuple(zip(one.op.starts, one.op.sizes, strict=True)) != wanted or set(one.op.steps) != {1}:
            return Refusal("parts", f"{one.name} does not take the positions behind those of the part before")
        start = start + size
    if start != shape[axis]:
        return Refusal("parts", f"the parts are {start} of {shape[axis]} positions")
    for name in turn.inputs[1:3]:
        angles, size = graph.type(name).shape, graph.type(turn.inputs[0]).shape[axis]
        place = axis - len(shape)
        if -place > len(angles) or angles[place] != size:
            return Refusal("angles", f"{name} of shape {angles} has no angles of its own for each of {size} positions")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    turn, join = match.layers[-2:]
    slices, number = match.found["slices"], match.found["place"]
    source = slices[0].inputs[0]
    place = join.op.axis - len(graph.type(source).shape)  # from behind, as tables may have fewer axes
    before: Dim = slices[number].op.starts[join.op.axis]
    behind: Dim = graph.type(source).shape[place] - before - slices[number].op.sizes[join.op.axis]
    layers, tables = [], []
    for name, still in zip(turn.inputs[1:3], (1.0, 0.0), strict=True):
        rank = len(graph.type(name).shape)
        pre, post = (tuple(count if at == place else 0 for at in range(-rank, 0)) for count in (before, behind))
        tables.append(graph.fresh(f"{name}.all"))
        layers.append(Layer(f"{name} of all positions", Padding(pre, post, value=still), (name,), (tables[-1],), turn.origins, turn.fusions))
    return Replacement((*layers, Layer("", turn.op, (source, *tables), join.outputs)))


RULE = Rule("rotary-positions", __doc__.splitlines()[0], (Concatenation,), _match, _rewrite, _check)
