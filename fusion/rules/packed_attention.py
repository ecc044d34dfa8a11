"""Attention(x wq, x wk, x wv) -> Attention(x [wq wk wv]): projections of one tensor become one product, read in place; also two of them alone.

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
    groups = [match for chosen in (range(3), range(2), range(1, 3)) if (match := _group(graph, layer, sides, chosen)) is not None]
    alone = (match for match in groups if _layout(layer, match.found["sides"], match.found["chosen"]) and all(graph.only_reader(name) for name in match.vanishing))
    return next(alone, groups[0] if groups else None)


def _group(graph: Graph, attention: Layer, sides: Sequence[Side | None], chosen: Sequence[int]) -> Match | None:
    """The ``chosen`` ones of q, k and v, where they are of one tensor; keys and values of two are a near miss."""
    found = [side for number in chosen if (side := sides[number]) is not None]
    layers = tuple(dict.fromkeys((*(one for side in found for one in side.layers), attention)))
    sources = [side.product.inputs[0] for side in found]
    if len(found) < len(chosen) or len(layers) != sum(len(side.layers) for side in found) + 1:
        return None
    if len(set(sources)) > 1 and not (len(chosen) == 2 and chosen[0] == 1):
        return None
    return Match(layers, tuple(item.outputs[0] for item in layers[:-1]), {"sides": tuple(found), "chosen": chosen})


def _layout(attention: Layer, sides: Sequence[Side], chosen: Sequence[int]) -> str | None:
    """How all heads are stored: as those that are several. One head is stored in either order."""
    found = [attention.op.layouts[number] for number in chosen]
    layouts = {layout for layout, side in zip(found, sides, strict=True) if layout != "bhsd" or side.heads > 1}
    (layout,) = layouts if len(layouts) == 1 else ("bshd",) if not layouts else ("",)
    mixed = "bhsd" in found and layout != "bshd"
    return layout if layout in LAYOUTS and not mixed else None


def _check(graph: Graph, match: Match) -> Refusal | None:
    attention, sides, chosen = match.layers[-1], match.found["sides"], match.found["chosen"]
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU three products are as fast as one, and their results need no strides")
    if _layout(attention, sides, chosen) is None:
        return Refusal("layout", f"q, k and v are stored as {', '.join(attention.op.layouts[:3])}; {' or '.join(LAYOUTS)} is needed")
    for number in set(range(3)) - set(chosen):
        if not isinstance(graph.type(attention.inputs[number]).shape[attention.op.layouts[number].index("h")], int):
            return Refusal("shapes", f"{attention.inputs[number]} has heads whose number is known at run time only")
    return refuse_heads(graph, sides)


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    attention, sides, chosen = match.layers[-1], match.found["sides"], match.found["chosen"]
    joined = join_heads(graph, sides, attention.name, "".join("qkv"[number] for number in chosen), RULE.name)
    layout = _layout(attention, sides, chosen)
    assert layout is not None
    # Of what is not joined, all heads of its own tensor.
    places = [(name, 0, 0) for name in attention.inputs[:3]]
    layouts = list(attention.op.layouts)
    for number, place, side in zip(chosen, joined.places, sides, strict=True):
        places[number], layouts[number] = (*place, side.heads), layout
    sources = tuple(dict.fromkeys(name for name, _, _ in places))
    parts = []
    for number, (name, start, count) in enumerate(places):
        every = count or graph.type(name).shape[layouts[number].index("h")]
        parts.append((sources.index(name), start, int(every)))  # type: ignore[arg-type]
    changed = replace(attention.op, parts=tuple(parts), layouts=(layouts[0], layouts[1], layouts[2], layouts[3]))
    moved = union(one.origins for side in sides for one in side.layers if isinstance(one.op, Shuffle))
    layer = Layer(
        attention.name, changed, (*sources, *attention.inputs[3:]), attention.outputs,
        union((moved, attention.origins)), union((attention.fusions, (RULE.name,))),
    )  # fmt: skip
    return Replacement((*joined.layers, layer), joined.constants)


RULE = Rule("packed-attention", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
