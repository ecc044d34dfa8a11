"""concat(RotaryEmbedding(x[..., :n]), x[..., n:]) -> RotaryEmbedding(x, rotated=n): the rest of a row is copied by the same layer."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, RotaryEmbedding, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, join: Layer) -> Match | None:
    if len(join.inputs) != 2 or join.op.axis != len(graph.type(join.outputs[0]).shape) - 1:
        return None
    turn, rest = (graph.producer(name) for name in join.inputs)
    if turn is None or rest is None or not isinstance(turn.op, RotaryEmbedding) or not isinstance(rest.op, Slice):
        return None
    front = graph.producer(turn.inputs[0])
    if front is None or not isinstance(front.op, Slice) or front.inputs[0] != rest.inputs[0]:
        return None
    layers = (front, rest, turn, join)
    return Match(layers, (turn.outputs[0], join.inputs[1], front.outputs[0]))


def _check(graph: Graph, match: Match) -> Refusal | None:
    front, rest, turn, _ = match.layers
    shape, width = graph.type(front.inputs[0]).shape, graph.type(front.outputs[0]).shape[-1]
    if turn.op.rotated or turn.op.heads:
        return Refusal("rows", f"{turn.name} turns a part of its rows already")
    for layer, start, size in ((front, 0, width), (rest, width, shape[-1] - width)):
        op = layer.op
        if op.starts != (*(0,) * (len(shape) - 1), start) or op.sizes != (*shape[:-1], size) or set(op.steps) != {1}:
            return Refusal("parts", f"{layer.name} takes other elements than the {'first' if layer is front else 'last'} {size} of each row")
    if not isinstance(width, int) or (isinstance(shape[-1], int) and shape[-1] % 2):
        return Refusal("width", f"{width} of {shape[-1]} elements turn; both must be even and known")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    front, _, turn, join = match.layers
    op = replace(turn.op, rotated=graph.type(front.outputs[0]).shape[-1])
    return Replacement((Layer("", op, (front.inputs[0], *turn.inputs[1:]), join.outputs),))


RULE = Rule("rotary-part", __doc__.splitlines()[0], (Concatenation,), _match, _rewrite, _check)
