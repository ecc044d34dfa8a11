"""Gather(Shuffle(x), order) -> Gather(x, order'), for a constant order of rows: any movements of whole rows that follow each other are one."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from fusion.dims import Dim, Shape, product
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Gather, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import factored, reshape_before

LEAST_ROW = 32  # bytes of a row: less would be gathered at the price of so much
_MOST = 1 << 16  # rows that an order names


@dataclass(frozen=True)
class _Order:
    """Of every ``len(rows)`` rows of ``size`` elements that follow each other, in which order they are stored."""

    rows: np.ndarray
    size: int

    def narrowed(self, size: int) -> np.ndarray:
        """The order of rows of ``size`` elements, of which this one's are a multiple."""
        factor = self.size // size
        return (self.rows[:, None] * factor + np.arange(factor)).reshape(-1)

    def repeated(self, times: int) -> _Order:
        """The order of so many times as many rows."""
        return _Order(_repeated(self.rows, times), self.size)

    def then(self, other: _Order) -> _Order | None:
        """Both, one after the other; None where rows of neither are parts of the other's."""
        size = min(self.size, other.size)
        if max(self.size, other.size) % size:
            return None
        first, second = self.narrowed(size), other.narrowed(size)
        count = max(len(first), len(second))
        if count % len(first) or count % len(second) or count > _MOST:
            return None
        return _Order(_repeated(first, count // len(first))[_repeated(second, count // len(second))], size)


def _repeated(rows: np.ndarray, times: int) -> np.ndarray:
    return ((np.arange(times) * len(rows))[:, None] + rows).reshape(-1)


def _order(graph: Graph, layer: Layer) -> _Order | None:
    """What ``layer`` does to rows; None where it does more, or sizes are not known."""
    shape = graph.type(layer.inputs[0]).shape
    if isinstance(layer.op, Gather):
        indices, rest = graph.constant(layer.inputs[1]), shape[layer.op.axis + 1 :]
        if indices is None or indices.ndim != 1 or not all(isinstance(dim, int) for dim in rest):
            return None
        moved = np.array_equal(np.sort(indices), np.arange(len(indices))) and shape[layer.op.axis] == len(indices)
        return _Order(indices, prod(rest)) if moved else None  # type: ignore[arg-type]
    if not isinstance(layer.op, Shuffle):
        return None
    found = factored(shape, layer.op)
    if found is None:
        return None
    sizes, order = found.move.sizes, found.move.order
    first = next((place for place, atom in enumerate(order) if place != atom), len(order))
    last = next((len(order) - back for back, atom in enumerate(reversed(order)) if atom != len(order) - 1 - back), first)
    if first >= last or not all(isinstance(dim, int) for dim in sizes[first:]):
        return None
    middle = sizes[first:last]
    rows = np.arange(prod(middle)).reshape(middle).transpose([atom - first for atom in order[first:last]])  # type: ignore[arg-type]
    return _Order(rows.reshape(-1), prod(sizes[last:])) if rows.size <= _MOST else None  # type: ignore[arg-type]


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` is the second movement; a plain reshape may stand between."""
    between = reshape_before(graph, layer.inputs[0])
    first = graph.producer(between.inputs[0] if between is not None else layer.inputs[0])
    if first is None or not isinstance(first.op, Gather | Shuffle) or not (isinstance(first.op, Gather) or isinstance(layer.op, Gather)):
        return None
    orders = _order(graph, first), _order(graph, layer)
    if orders[0] is None or orders[1] is None:
        return None
    layers = (first, *((between,) if between is not None else ()), layer)
    return Match(layers, tuple(one.outputs[0] for one in layers[:-1]), {"order": orders[0].then(orders[1])})


def _check(graph: Graph, match: Match) -> Refusal | None:
    order, source = match.found["order"], match.layers[0].inputs[0]
    kind = graph.type(source)
    if order is None:
        return Refusal("rows", f"{match.layers[0].name} and {match.layers[-1].name} move rows of which neither are parts of the other's, or more than {_MOST}")
    if order.size * kind.dtype.itemsize < LEAST_ROW:
        return Refusal("size", f"rows of {order.size} elements would be moved; {LEAST_ROW} bytes are needed")
    return None if _repeats(graph, match) is not None else Refusal("dynamic", f"how often {len(order.rows)} rows follow each other in {source} is not known")


def _repeats(graph: Graph, match: Match) -> tuple[Dim, _Order] | None:
    """How many times the order repeats, and the order: longer where only so the number is known."""
    order = match.found["order"]
    shapes: tuple[Shape, ...] = graph.type(match.layers[0].inputs[0]).shape, graph.type(match.layers[-1].outputs[0]).shape
    whole = len(order.rows) * order.size
    total = product(shapes[0])
    if isinstance(total, int):
        return total // whole, order
    for shape in shapes:
        for count in reversed(range(len(shape) + 1)):
            inner = product(shape[count:])
            if isinstance(inner, int) and inner % whole == 0 and inner // order.size <= _MOST:
                return product(shape[:count]), order.repeated(inner // whole)
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    first, layer, repeats = match.layers[0], match.layers[-1], _repeats(graph, match)
    assert repeats is not None
    outer, order = repeats
    rows, moved, indices = (graph.fresh(f"{layer.outputs[0]}.{what}") for what in ("rows", "moved", "order"))
    return Replacement(
        (
            Layer(f"{layer.name} rows", Shuffle(reshape=(outer, len(order.rows), order.size)), (first.inputs[0],), (rows,)),
            Layer("", Gather(1), (rows, indices), (moved,)),
            Layer(f"{layer.name} back", Shuffle(reshape=graph.type(layer.outputs[0]).shape), (moved,), layer.outputs),
        ),
        {indices: order.rows.astype(np.int64)},
    )


RULE = Rule("gather-rows", __doc__.splitlines()[0], (Gather, Shuffle), _match, _rewrite, _check)
