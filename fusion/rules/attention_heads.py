"""Attention(q, repeat(k), repeat(v)) -> Attention(q, k, v): each key and value head serves several query heads without copies."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Expand, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import is_view


@dataclass(frozen=True)
class _Repeat:
    """``[B, K, T, D]`` -> ``[B, K, 1, T, D]`` -> ``[B, K, n, T, D]`` -> ``[B, K * n, T, D]``."""

    layers: tuple[Layer, ...]
    source: str
    heads: int


def _repeat(graph: Graph, tensor: str) -> _Repeat | None:
    join = graph.producer(tensor)
    expand = graph.producer(join.inputs[0]) if join is not None and isinstance(join.op, Shuffle) else None
    split = graph.producer(expand.inputs[0]) if expand is not None and isinstance(expand.op, Expand) else None
    if join is None or expand is None or split is None or not isinstance(split.op, Shuffle):
        return None
    source, narrow = graph.type(split.inputs[0]).shape, graph.type(expand.inputs[0]).shape
    wide, whole = graph.type(expand.outputs[0]).shape, graph.type(tensor).shape
    if len(source) != 4 or len(narrow) != 5 or len(wide) != 5 or len(whole) != 4 or not isinstance(source[1], int):
        return None
    if narrow != (*source[:2], 1, *source[2:]) or wide[:2] + wide[3:] != source or whole[2:] != source[2:]:
        return None
    for shuffle, shape in ((split, source), (join, wide)):
        if not is_view(shape, shuffle.op):
            return None
    return _Repeat((split, expand, join), split.inputs[0], source[1])


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    if op.packed or op.layouts[1] != "bhsd" or op.layouts[2] != "bhsd":
        return None
    k, v = (_repeat(graph, name) for name in layer.inputs[1:3])
    if k is None or v is None:
        return None
    layers = tuple(dict.fromkeys((*k.layers, *v.layers, layer)))
    vanishing = tuple(item.outputs[0] for item in layers[:-1])
    return Match(layers, vanishing, {"k": k, "v": v})


def _check(graph: Graph, match: Match) -> Refusal | None:
    k, v = match.found["k"], match.found["v"]
    if k.heads != v.heads:
        return Refusal("heads", f"{k.heads} key heads and {v.heads} value heads")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    attention = match.layers[-1]
    inputs = (attention.inputs[0], match.found["k"].source, match.found["v"].source, *attention.inputs[3:])
    return Replacement((Layer("", attention.op, inputs, attention.outputs),))


RULE = Rule("attention-heads", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
