"""Attention(q, concat(past, k), concat(past, v)) of one x -> CacheAppend and one product: q, k and v of a step are made, turned and stored together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusion.dims import Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, CacheAppend, Concatenation, MatrixMultiply, RotaryEmbedding, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._packed import joined_product, refuse_products, same_value, union
from fusion.rules._shuffles import is_view, movement

_SWAP = (0, 2, 1, 3)  # between [b, s, h, d] and [b, h, s, d]


@dataclass(frozen=True)
class _Side:
    """What makes q, or new keys or values: a product, seen as heads, turned or not. ``layers`` from the product on; ``heads_first``: the order of
    axes in which it turns; ``heads`` and ``size``."""

    product: Layer
    layers: tuple[Layer, ...]
    turn: Layer | None
    heads_first: bool
    heads: int
    size: int


def _side(graph: Graph, tensor: str, heads_first: bool) -> _Side | None:
    """``tensor`` is ``[b, h, s, d]`` (``heads_first``) or ``[b, s, h, d]``."""
    found: list[Layer] = []
    name = tensor
    while (layer := graph.producer(name)) is not None and len(found) < 4 and isinstance(layer.op, MatrixMultiply | RotaryEmbedding | Shuffle):
        found.insert(0, layer)
        name = layer.inputs[0]
        if isinstance(layer.op, MatrixMultiply):
            break
    turns = [layer for layer in found if isinstance(layer.op, RotaryEmbedding)]
    shape, rows = graph.type(tensor).shape, graph.type(found[0].outputs[0]).shape if found else ()
    heads, size = shape[1 if heads_first else 2], shape[3]
    if not found or not isinstance(found[0].op, MatrixMultiply) or len(turns) > 1 or len(rows) != 3:
        return None
    if not isinstance(heads, int) or not isinstance(size, int):
        return None
    # All that moves must be the transpose of heads and positions, before the turn or behind it.
    split: Shape = (*rows[:2], heads, size)
    whole = movement(rows, Shuffle(reshape=split, second=_SWAP) if heads_first else Shuffle(reshape=split))
    moves = {layer: movement(graph.type(layer.inputs[0]).shape, layer.op) for layer in found[1:] if isinstance(layer.op, Shuffle)}
    if whole is None or any(move is None for move in moves.values()):
        return None
    moving = [layer for layer, move in moves.items() if move is not None and not move.is_view]
    if [moves[layer] for layer in moving] != ([] if whole.is_view else [whole]):
        return None
    if not turns:
        return _Side(found[0], tuple(found), None, heads_first, heads, size)
    at = graph.type(turns[0].inputs[0]).shape
    first = found.index(moving[0]) < found.index(turns[0]) if moving else at != split
    if at != ((rows[0], heads, rows[1], size) if first else split):
        return None
    return _Side(found[0], tuple(found), turns[0], first, heads, size)


def _match(graph: Graph, layer: Layer) -> Match | None:
    op = layer.op
    if op.parts or op.layouts[1] != "bhsd" or op.layouts[2] != "bhsd" or op.layouts[0] not in ("bhsd", "bshd"):
        return None
    joins = tuple(dict.fromkeys(graph.producer(name) for name in layer.inputs[1:3]))
    news = _new_rows(graph, layer, joins)
    if news is None:
        return None
    sides = [_side(graph, layer.inputs[0], op.layouts[0] == "bhsd"), *(_side(graph, name, heads_first) for name, heads_first in news)]
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
    sides: Sequence[_Side] = match.found["sides"]
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU three products are as fast as one")
    if refusal := refuse_products(graph, [side.product for side in sides]):
        return refusal
    if len({side.size for side in sides}) > 1:
        return Refusal("shapes", f"heads of q, k and v have {', '.join(str(side.size) for side in sides)} elements")
    q, k, v = sides
    if (q.turn is None) != (k.turn is None) or v.turn is not None:
        return Refusal("rotary embedding", "only some of what would be one tensor turns")
    if q.turn is None or k.turn is None:
        return None
    tables = [_tables(graph, side) for side in (q, k)]
    if None in tables or q.turn.op != k.turn.op or q.turn.op.heads:
        return Refusal("rotary embedding", f"{q.turn.name} and {k.turn.name} turn by angles of their own for every head, or differently")
    alike = all(a[1] == b[1] and same_value(graph, a[0], b[0]) for a, b in zip(tables[0] or (), tables[1] or (), strict=True))
    return None if alike else Refusal("rotary embedding", f"{q.turn.name} and {k.turn.name} turn by different angles")


def _tables(graph: Graph, side: _Side) -> list[tuple[str, Shape]] | None:
    """Per table of angles: the tensor that holds it, and its shape as ``[b, s, 1, d]``; None when heads have angles of their own."""
    assert side.turn is not None
    found = []
    for name in side.turn.inputs[1:]:
        shape = graph.type(name).shape
        shape = (*(1,) * (4 - len(shape)), *shape)
        if shape[1 if side.heads_first else 2] != 1:
            return None
        view = graph.producer(name)
        while view is not None and isinstance(view.op, Shuffle) and is_view(graph.type(view.inputs[0]).shape, view.op):
            name = view.inputs[0]
            view = graph.producer(name)
        found.append((name, (shape[0], shape[2], 1, shape[3]) if side.heads_first else shape))
    return found


def _rewrite(graph: Graph, match: Match) -> Replacement:
    attention, sides, joins = match.layers[-1], match.found["sides"], match.found["joins"]
    product, constants = joined_product(graph, [side.product for side in sides], f"{attention.name}.qkv", RULE.name)
    (flat,), packed = product.outputs, graph.fresh(f"{attention.name}.packed")
    counts = [side.heads for side in sides]
    rows = graph.type(sides[0].product.outputs[0]).shape
    layers = [product, Layer(f"{attention.name} packed", Shuffle(reshape=(*rows[:2], sum(counts), sides[0].size)), (flat,), (packed,))]
    turned = packed
    if sides[0].turn is not None:
        tables = []
        for number, (name, shape) in enumerate(_tables(graph, sides[0]) or ()):
            table = graph.fresh(f"{name}.{attention.name}.{number}")
            layers.append(Layer(f"{attention.name} angles {number}", Shuffle(reshape=shape), (name,), (table,)))
            tables.append(table)
        turns, turned = [side.turn for side in sides[:2]], graph.fresh(f"{attention.name}.turned")
        layers.append(Layer(
            " + ".join(turn.name for turn in turns), replace(turns[0].op, heads=sum(counts[:2])), (packed, *tables), (turned,),
            union(turn.origins for turn in turns), union((*(turn.fusions for turn in turns), (RULE.name,))),
        ))  # fmt: skip
    sources = (turned, *((packed,) if packed != turned else ()))
    appended = ((2, counts[0]), (1 + len(sources), counts[0] + counts[1]))
    if isinstance(joins[0].op, CacheAppend):
        op, outputs = replace(joins[0].op, sources=appended), joins[0].outputs
        inputs = (*joins[0].inputs[:2], *sources, *((joins[0].inputs[-1],) if op.total is not None else ()))
    else:
        op, outputs, inputs = CacheAppend(appended), (joins[0].outputs[0], joins[1].outputs[0]), (joins[0].inputs[0], joins[1].inputs[0], *sources)
    moved = union(one.origins for side in sides[1:] for one in side.layers if isinstance(one.op, Shuffle))
    layers.append(Layer(
        " + ".join(join.name for join in joins), op, inputs, outputs,
        union((moved, *(join.origins for join in joins))), union((*(join.fusions for join in joins), (RULE.name,))),
    ))  # fmt: skip
    seen = union(one.origins for one in sides[0].layers if isinstance(one.op, Shuffle))
    changed = replace(attention.op, layouts=("bshd", *attention.op.layouts[1:]), parts=((0, 0, counts[0]), (1, 0, counts[1]), (2, 0, counts[2])))
    layers.append(replace(
        attention, op=changed, inputs=(turned, *attention.inputs[1:]), origins=union((seen, attention.origins)),
        fusions=union((attention.fusions, (RULE.name,))),
    ))  # fmt: skip
    return Replacement(tuple(layers), constants)


RULE = Rule("cache-append", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
