"""Attention(q, concat(past, k), concat(past, v)) of one x -> CacheAppend and one product: q, k and v of a step are made, turned and stored together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, CacheAppend, Concatenation, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._packed import join_heads, refuse_heads, side_of, union


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    if op.parts or op.layouts[1] != "bhsd" or op.layouts[2] != "bhsd" or op.layouts[0] not in ("bhsd", "bshd"):
        return None
    joins = tuple(dict.fromkeys(graph.producer(name) for name in layer.inputs[1:3]))
    news = _new_rows(graph, layer, joins)
    if news is None:
        return None
    sides = [side_of(graph, layer.inputs[0], op.layouts[0] == "bhsd"), *(side_of(graph, name, heads_first) for name, heads_first in news)]
    if any(side is None for side in sides):
        return None
    inner = [one for side in sides if side is not None for one in side.layers]
    layers = tuple(dict.fromkeys((*inner, *(join for join in joins if join is not None), layer)))
    if len(layers) != len(inner) + len(joins) + 1:
        return None
    return Match(layers, tuple(one.outputs[0] for one in inner), {"sides": tuple(sides), "joins": joins})


def _new_rows(graph: Graph, layer: Layer, joins: Sequence[Layer | None]) -> list[tuple[str, bool]] | None:
    """New keys and values, and whether their heads stand first: what two concatenations, or one append, put behind the past."""
    if len(joins) == 1 and joins[0] is not None and isinstance(joins[0].op, CacheAppend):
        append = joins[0]
        whole = [name for name, (number, first) in zip(append.outputs, append.op.sources, strict=True) if first == 0 and
                 graph.type(name).shape[1] == graph.type(append.inputs[number]).shape[2]]  # fmt: skip
        if append.outputs != layer.inputs[1:3] or whole != list(append.outputs) or len({number for number, _ in append.op.sources}) < 2:
            return None
        return [(append.inputs[number], False) for number, _ in append.op.sources]
    for join in joins:
        if join is None or not isinstance(join.op, Concatenation) or join.op.axis != 2 or len(join.inputs) != 2:
            return None
    return [(join.inputs[1], True) for join in joins if join is not None] if len(joins) == 2 else None


def _check(graph: Graph, match: Match) -> Refusal | None:
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU three products are as fast as one")
    return refuse_heads(graph, match.found["sides"])


def _rewrite(graph: Graph, match: Match) -> Replacement:
    attention, sides, joins = match.layers[-1], match.found["sides"], match.found["joins"]
    joined = join_heads(graph, sides, attention.name, "qkv", RULE.name)
    (query, first), *news = joined.places
    sources = tuple(dict.fromkeys(name for name, _ in news))
    appended = tuple((2 + sources.index(name), start) for name, start in news)
    if isinstance(joins[0].op, CacheAppend):
        op, outputs = replace(joins[0].op, sources=appended), joins[0].outputs
        inputs = (*joins[0].inputs[:2], *sources, *((joins[0].inputs[-1],) if op.total is not None else ()))
    else:
        op, outputs, inputs = CacheAppend(appended), (joins[0].outputs[0], joins[1].outputs[0]), (joins[0].inputs[0], joins[1].inputs[0], *sources)
    moved = union(one.origins for side in sides[1:] for one in side.layers if isinstance(one.op, Shuffle))
    append = Layer(
        " + ".join(join.name for join in joins), op, inputs, outputs,
        union((moved, *(join.origins for join in joins))), union((*(join.fusions for join in joins), (RULE.name,))),
    )  # fmt: skip
    seen = union(one.origins for one in sides[0].layers if isinstance(one.op, Shuffle))
    parts = ((0, first, sides[0].heads), (1, 0, sides[1].heads), (2, 0, sides[2].heads))
    changed = replace(
        attention, op=replace(attention.op, layouts=("bshd", *attention.op.layouts[1:]), parts=parts), inputs=(query, *attention.inputs[1:]),
        origins=union((seen, attention.origins)), fusions=union((attention.fusions, (RULE.name,))),
    )  # fmt: skip
    return Replacement((*joined.layers, append, changed), joined.constants)


RULE = Rule("cache-append", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
