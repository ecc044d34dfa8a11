"""Attention(x wq, x wk, x wv) -> Attention(x [wq wk wv]): projections of one tensor become one product, read in place; also keys and values alone.

A rotary embedding of queries and keys stays between: it turns their heads of the joined projection, and attention reads values behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, MatrixMultiply, RotaryEmbedding, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._packed import joined_product, refuse_products, same_value, union
from fusion.rules._shuffles import movement

LAYOUTS = ("bshd", "sbhd")  # a row of a projection holds all heads of one position


@dataclass(frozen=True)
class _Side:
    """What makes q, k or v: a product, seen as heads, which a rotary embedding may turn."""

    product: Layer
    view: Layer
    turn: Layer | None

    @property
    def layers(self) -> tuple[Layer, ...]:
        return (self.product, self.view, *((self.turn,) if self.turn is not None else ()))

    @property
    def heads(self) -> str:
        """The tensor of heads that the product makes."""
        return self.view.outputs[0]


def _side(graph: Graph, tensor: str) -> _Side | None:
    turn = graph.producer(tensor)
    view = turn
    if turn is not None and isinstance(turn.op, RotaryEmbedding):
        view = graph.producer(turn.inputs[0])
    else:
        turn = None
    product = graph.producer(view.inputs[0]) if view is not None and isinstance(view.op, Shuffle) else None
    if view is None or product is None or not isinstance(product.op, MatrixMultiply):
        return None
    return _Side(product, view, turn)


def _match(graph: Graph, layer: Layer) -> Match | None:
    if layer.op.parts:
        return None
    sides = [_side(graph, name) for name in layer.inputs[:3]]
    first = 0 if sides[0] is not None and sides[2] is not None and sides[0].product.inputs[0] == sides[2].product.inputs[0] else 1
    found = [side for side in sides[first:] if side is not None]
    layers = tuple(dict.fromkeys((*(one for side in found for one in side.layers), layer)))
    if len(found) < 3 - first or len(layers) != sum(len(side.layers) for side in found) + 1:
        return None
    return Match(layers, tuple(item.outputs[0] for item in layers[:-1]), {"sides": tuple(found), "first": first})


def _check(graph: Graph, match: Match) -> Refusal | None:
    attention, sides, first = match.layers[-1], match.found["sides"], match.found["first"]
    products = [side.product for side in sides]
    if graph.limits.device != "cuda":
        return Refusal("device", "on the CPU three products are as fast as one, and their results need no strides")
    if refusal := refuse_products(graph, products):
        return refusal
    if len(set(attention.op.layouts[first:3])) > 1 or attention.op.layouts[2] not in LAYOUTS:
        return Refusal("layout", f"q, k and v are stored as {', '.join(attention.op.layouts[:3])}; {' or '.join(LAYOUTS)} is needed")
    for side in sides:
        moved = movement(graph.type(side.view.inputs[0]).shape, side.view.op)
        if moved is None or not moved.is_view:
            return Refusal("moves", f"{side.view.name} moves data")
    shapes = [graph.type(side.heads).shape for side in sides]
    others = {(*shape[:2], shape[3]) for shape in shapes}
    if len(others) > 1 or not all(isinstance(shape[2], int) for shape in shapes):
        return Refusal("shapes", f"q, k and v differ in more than the number of their heads: {', '.join(map(str, shapes))}")
    return _turns_differ(graph, sides)


def _turns_differ(graph: Graph, sides: Sequence[_Side]) -> Refusal | None:
    """Rotary embeddings can be one layer when queries and keys turn alike, and values do not turn."""
    turns = [side.turn for side in sides]
    if not any(turns):
        return None
    if len(sides) < 3 or turns[2] is not None or turns[0] is None or turns[1] is None:
        return Refusal("rotary embedding", "only some of what would be one tensor turns")
    alike = all(same_value(graph, *pair) for pair in zip(turns[0].inputs[1:], turns[1].inputs[1:], strict=True))
    if turns[0].op != turns[1].op or not alike or turns[0].op.heads:
        return Refusal("rotary embedding", f"{turns[0].name} and {turns[1].name} turn by different angles")
    for name in turns[0].inputs[1:]:
        shape = graph.type(name).shape
        if len(shape) > 1 and shape[-2] != 1:
            return Refusal("rotary embedding", f"{name} has angles of its own for every head")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    attention, sides, first = match.layers[-1], match.found["sides"], match.found["first"]
    products = [side.product for side in sides]
    product, constants = joined_product(graph, products, f"{attention.name}.{'kv' if first else 'qkv'}", RULE.name)
    (flat,), packed = product.outputs, graph.fresh(f"{attention.name}.packed")
    shapes = [graph.type(side.heads).shape for side in sides]
    counts = [int(shape[2]) for shape in shapes]
    a, b, _, size = shapes[0]
    layers = [product, Layer(f"{attention.name} packed", Shuffle(reshape=(a, b, sum(counts), size)), (flat,), (packed,))]
    if sides[0].turn is not None:
        turns = [side.turn for side in sides[:2]]
        turned = graph.fresh(f"{attention.name}.turned")
        layers.append(Layer(
            " + ".join(turn.name for turn in turns), replace(turns[0].op, heads=sum(counts[:2])), (packed, *turns[0].inputs[1:]), (turned,),
            union(turn.origins for turn in turns), union((*(turn.fusions for turn in turns), (RULE.name,))),
        ))  # fmt: skip
        sources, parts = [turned, packed], [(0, 0, counts[0]), (0, counts[0], counts[1]), (1, counts[0] + counts[1], counts[2])]
    elif first:
        query = graph.type(attention.inputs[0]).shape[attention.op.layouts[0].index("h")]
        sources, parts = [attention.inputs[0], packed], [(0, 0, int(query)), (1, 0, counts[0]), (1, counts[0], counts[1])]  # type: ignore[arg-type]
    else:
        sources, parts = [packed], [(0, sum(counts[:side]), count) for side, count in enumerate(counts)]
    changed = replace(attention.op, parts=tuple(parts))
    moved = union(side.view.origins for side in sides)
    layers.append(Layer(
        attention.name, changed, (*sources, *attention.inputs[3:]), attention.outputs,
        union((moved, attention.origins)), union((attention.fusions, (RULE.name,))),
    ))  # fmt: skip
    return Replacement(tuple(layers), constants)


RULE = Rule("packed-attention", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
