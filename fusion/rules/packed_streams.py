"""Attention(Concat(a qa, b qb), Concat(a ka, b kb) ...) -> Attention(Concat(a [qa ka va], b [qb kb vb])): streams of positions, one product each.

Streams that attend to each other (an image and its text, in MMDiT) have projections of their own, which are joined along the positions. One product a stream
makes what packed-attention makes of a single one, normalised and turned alike, and one concatenation joins it: of one image that is a view. Where
heads of several images are normalised, values keep their own product and concatenation, which would be copied twice else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Concatenation, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._packed import Side, join_heads, refuse_heads, side_of, union

_LAYOUT = "bshd"
_POSITIONS = 1


@dataclass(frozen=True)
class _Streams:
    """The concatenations before attention's first inputs (q and k, also v), and what makes each of their parts, by stream."""

    joins: tuple[Layer, ...]
    sides: tuple[tuple[Side, ...], ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        return (*(layer for stream in self.sides for side in stream for layer in side.layers), *self.joins)


def _match(graph: Graph, layer: Layer) -> Match | None:
    if layer.op.parts or layer.op.layouts[:3] != (_LAYOUT,) * 3:
        return None
    streams = _streams(graph, layer, 3)
    if streams is not None and any(side.norm is not None for stream in streams.sides for side in stream) and graph.type(layer.inputs[0]).shape[0] != 1:
        streams = _streams(graph, layer, 2)
    if streams is None:
        return None
    return Match((*streams.layers, layer), tuple(one.outputs[0] for one in streams.layers), {"streams": streams})


def _streams(graph: Graph, attention: Layer, count: int) -> _Streams | None:
    """Of the first ``count`` inputs of ``attention``; None where these are no heads of projections, joined along the positions."""
    joins = [graph.producer(name) for name in attention.inputs[:count]]
    found = [join for join in joins if join is not None and isinstance(join.op, Concatenation) and join.op.axis == _POSITIONS]
    if len(found) < count or len({join.name for join in found}) < count or len({len(join.inputs) for join in found}) > 1:
        return None
    sides = []
    for names in zip(*(join.inputs for join in found), strict=True):
        made = [side for name in names if (side := side_of(graph, name, heads_first=False)) is not None]
        if len(made) < count:
            return None
        sides.append(tuple(made))
    streams = _Streams(tuple(found), tuple(sides))
    return streams if len({layer.name for layer in streams.layers}) == len(streams.layers) else None


def _check(graph: Graph, match: Match) -> Refusal | None:
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU three products are as fast as one, and their results need no strides")
    sides = match.found["streams"].sides
    for stream in sides:
        if refusal := refuse_heads(graph, stream):
            return refusal
    if len({tuple((side.heads, side.size) for side in stream) for stream in sides}) > 1:
        return Refusal("shapes", "the streams have heads of different numbers or sizes")
    if len({(stream[0].norm is None, stream[0].turn is None, stream[0].together(graph)) for stream in sides}) > 1:
        return Refusal("normalisation", "only some of the streams are normalised, or turn, or they do so in different ways")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    attention, streams = match.layers[-1], match.found["streams"]
    label = "qkv"[: len(streams.joins)]
    made = [join_heads(graph, stream, f"{attention.name}.{number}", label, RULE.name) for number, stream in enumerate(streams.sides)]
    layers = [layer for one in made for layer in one.layers]
    places = _places(made[0].sources, made[0].places)
    if any(_places(one.sources, one.places) != places for one in made[1:]):
        return Refusal("shapes", "heads lie in different places in the streams")
    joined = []
    for number in range(len(made[0].sources)):
        joins = [join for join, (source, _) in zip(streams.joins, places, strict=True) if source == number]
        joined.append(graph.fresh(f"{attention.name}.streams.{number}"))
        layers.append(Layer(
            " + ".join(join.name for join in joins), Concatenation(_POSITIONS), tuple(one.sources[number] for one in made), (joined[-1],),
            union(join.origins for join in joins), union((*(join.fusions for join in joins), (RULE.name,))),
        ))  # fmt: skip
    inputs = [*joined, *attention.inputs[len(streams.joins) : 3]]
    parts = [(number, start, side.heads) for (number, start), side in zip(places, streams.sides[0], strict=True)]
    if len(parts) < 3:
        heads = graph.type(attention.inputs[2]).shape[_LAYOUT.index("h")]
        if not isinstance(heads, int):
            return Refusal("shapes", f"{attention.inputs[2]} has heads whose number is known at run time only")
        parts.append((len(joined), 0, heads))
    moved = union(layer.origins for stream in streams.sides for side in stream for layer in side.layers if isinstance(layer.op, Shuffle))
    layers.append(replace(
        attention, op=replace(attention.op, parts=tuple(parts)), inputs=(*inputs, *attention.inputs[3:]), origins=union((moved, attention.origins)),
        fusions=union((attention.fusions, (RULE.name,))),
    ))  # fmt: skip
    constants = {name: value for one in made for name, value in one.constants.items()}
    return Replacement(tuple(layers), constants)


def _places(sources: Sequence[str], places: Sequence[tuple[str, int]]) -> list[tuple[int, int]]:
    """Per side the number of the tensor that holds its heads, and the first of them there."""
    return [(sources.index(name), first) for name, first in places]


RULE = Rule("packed-streams", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
