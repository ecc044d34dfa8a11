"""Attention(x wq, x wk, x wv) -> Attention(x [wq wk wv]): projections of one tensor become one product, read in place; also keys and values alone.

A normalisation and a rotary embedding of queries and keys stay between: they work on their heads of the joined projection, and attention reads
values behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._packed import Side, join_heads, refuse_heads, side_of, union

LAYOUTS = ("bshd", "sbhd")  # a row of a projection holds all heads of one position


def _match(graph: Graph, layer: Layer) -> Match | None:
    if layer.op.parts:
        return None
    sides = [side_of(graph, name, layout.startswith("bh")) for name, layout in zip(layer.inputs[:3], layer.op.layouts, strict=False)]
    first = 0 if sides[0] is not None and sides[2] is not None and sides[0].product.inputs[0] == sides[2].product.inputs[0] else 1
    found = [side for side in sides[first:] if side is not None]
    layers = tuple(dict.fromkeys((*(one for side in found for one in side.layers), layer)))
    if len(found) < 3 - first or len(layers) != sum(len(side.layers) for side in found) + 1:
        return None
    return Match(layers, tuple(item.outputs[0] for item in layers[:-1]), {"sides": tuple(found), "first": first})


def _layout(attention: Layer, sides: Sequence[Side], first: int) -> str | None:
    """How all heads are stored: as those that are several. One head is stored in either order."""
    layouts = {layout for layout, side in zip(attention.op.layouts[first:3], sides, strict=True) if layout != "bhsd" or side.heads > 1}
    (layout,) = layouts if len(layouts) == 1 else ("bshd",) if not layouts else ("",)
    mixed = any(one == "bhsd" for one in attention.op.layouts[first:3]) and layout != "bshd"
    return layout if layout in LAYOUTS and not mixed else None


def _check(graph: Graph, match: Match) -> Refusal | None:
    attention, sides, first = match.layers[-1], match.found["sides"], match.found["first"]
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU three products are as fast as one, and their results need no strides")
    if _layout(attention, sides, first) is None:
        return Refusal("layout", f"q, k and v are stored as {', '.join(attention.op.layouts[:3])}; {' or '.join(LAYOUTS)} is needed")
    return refuse_heads(graph, sides)


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    attention, sides, first = match.layers[-1], match.found["sides"], match.found["first"]
    joined = join_heads(graph, sides, attention.name, RULE.name)
    sources = joined.sources
    parts = [(sources.index(name), start, side.heads) for (name, start), side in zip(joined.places, sides, strict=True)]
    layout = _layout(attention, sides, first)
    assert layout is not None
    layouts = [layout] * 3
    if first:
        layouts[0] = attention.op.layouts[0]
        query = graph.type(attention.inputs[0]).shape[layouts[0].index("h")]
        sources, parts = (attention.inputs[0], *sources), [(0, 0, int(query)), *((1 + number, *rest) for number, *rest in parts)]  # type: ignore[call-overload]
    changed = replace(attention.op, parts=tuple(parts), layouts=(*layouts, attention.op.layouts[3]))
    moved = union(one.origins for side in sides for one in side.layers if isinstance(one.op, Shuffle))
    layer = Layer(
        attention.name, changed, (*sources, *attention.inputs[3:]), attention.outputs,
        union((moved, attention.origins)), union((attention.fusions, (RULE.name,))),
    )  # fmt: skip
    return Replacement((*joined.layers, layer), joined.constants)


RULE = Rule("packed-attention", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
