"""Attention(q, repeat(k), repeat(v)) -> Attention(q, k, v): each key and value head serves several query heads without copies."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.dims import Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Expand, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import is_view


@dataclass(frozen=True)
class _Repeat:
    """``narrow`` ``[B, K, 1, T, D]`` -> ``[B, K, n, T, D]`` -> ``[B, K * n, T, D]``."""

    layers: tuple[Layer, ...]
    narrow: str
    shape: Shape  # [B, K, T, D]


def _repeat(graph: Graph, tensor: str) -> _Repeat | None:
    join = graph.producer(tensor)
    expand = graph.producer(join.inputs[0]) if join is not None and isinstance(join.op, Shuffle) else None
    if join is None or expand is None or not isinstance(expand.op, Expand):
        return None
    narrow, wide, whole = (graph.type(name).shape for name in (expand.inputs[0], expand.outputs[0], tensor))
    if len(narrow) != 5 or len(wide) != 5 or len(whole) != 4 or not isinstance(narrow[1], int):
        return None
    if narrow[2] != 1 or narrow[:2] + narrow[3:] != wide[:2] + wide[3:] or whole[2:] != narrow[3:] or not is_view(wide, join.op):
        return None
    return _Repeat((expand, join), expand.inputs[0], narrow[:2] + narrow[3:])


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    if op.parts or op.layouts[1] != "bhsd" or op.layouts[2] != "bhsd":
        return None
    k, v = (_repeat(graph, name) for name in layer.inputs[1:3])
    if k is None or v is None:
        return None
    layers = tuple(dict.fromkeys((*k.layers, *v.layers, layer)))
    vanishing = tuple(item.outputs[0] for item in layers[:-1])
    return Match(layers, vanishing, {"k": k, "v": v})


def _check(graph: Graph, match: Match) -> Refusal | None:
    k, v = match.found["k"], match.found["v"]
    if k.shape[1] != v.shape[1]:
        return Refusal("heads", f"{k.shape[1]} key heads and {v.shape[1]} value heads")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    attention, views, sources = match.layers[-1], [], []
    for one in (match.found["k"], match.found["v"]):
        before = graph.producer(one.narrow)  # a plain reshape of the heads that made room for the repetition
        if before is not None and isinstance(before.op, Shuffle) and before.op.first is before.op.second is None and graph.type(before.inputs[0]).shape == one.shape:
            sources.append(before.inputs[0])
            continue
        source = graph.fresh(f"{one.narrow}.heads")
        if source not in sources:
            views.append(Layer(f"{one.narrow} heads", Shuffle(reshape=one.shape), (one.narrow,), (source,)))
        sources.append(source)
    inputs = (attention.inputs[0], *sources, *attention.inputs[3:])
    return Replacement((*views, Layer("", attention.op, inputs, attention.outputs)))


RULE = Rule("attention-heads", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
