"""Attention(q, k, v, mask of positions) -> Attention(q, k, v): a mask that compares positions is causal, or a window, at any length.

What such a mask says beside positions (padding of keys, a bias) stays a mask, usually of one row for all queries. Only where it hides for good
(false, or minus infinity): rows of which finite numbers hide every key would come out different. Positions may be cut out of a constant table (GPT-2's): as long as the table
reaches, for beyond it the model means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fusion.dims import Dim, bind, symbols
from fusion.expression import Apply, Convert, Expression, Literal, Operand
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Pointwise, Range, ShapeValue, Shuffle, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import number
from fusion.rules._scores import MASKED, band


@dataclass(frozen=True)
class _Affine:
    """``column * t + row * s + constant`` for key t and query s."""

    column: int
    row: int
    constant: Dim

    def minus(self, other: _Affine, sign: int = -1) -> _Affine:
        return _Affine(self.column + sign * other.column, self.row + sign * other.row, self.constant + sign * other.constant)


@dataclass(frozen=True)
class _Band:
    """What is kept: ``low <= t - s <= high``; None where nothing bounds it."""

    low: Dim | None = None
    high: Dim | None = None

    def complement(self) -> _Band | None:
        if (self.low is None) == (self.high is None):
            return None
        return _Band(None, self.low - 1) if self.low is not None else _Band(self.high + 1, None)  # type: ignore[operator]

    def both(self, other: _Band) -> _Band | None:
        if any(a is not None and b is not None and a != b for a, b in ((self.low, other.low), (self.high, other.high))):
            return None
        return _Band(self.low if other.low is None else other.low, self.high if other.high is None else other.high)


@dataclass(frozen=True)
class _Added:
    """A constant that is 0 in a band, minus infinity elsewhere."""

    band: _Band


_SAMPLES = 5  # sets of sizes at which two dimensions are compared that differ where a table ends

_Places = list[_Affine | _Band | _Added | None]  # by the mask's operand; None says nothing of positions


def _match(graph: Graph, layer: Layer) -> Match | None:
    if not layer.op.masked:
        return None
    tensor = layer.inputs[layer.op.arity - 1]
    mask = graph.producer(tensor)
    if mask is not None and isinstance(mask.op, Slice):  # of a table: the mask as it is
        mask = Layer(mask.name, Pointwise(Operand(0)), (tensor,), mask.outputs)
    if mask is None or not isinstance(mask.op, Pointwise):
        return None
    places = [_place(graph, name) for name in mask.inputs]
    tables = [table for name in mask.inputs if (table := _table(graph, name)) is not None and table.layers]
    ranges = [place for place in places if isinstance(place, _Affine)]
    if not any(isinstance(place, _Band | _Added) for place in places) and not (any(one.row for one in ranges) and any(one.column for one in ranges)):
        return None
    limit = min((min(table.value.shape[-2:]) for table in tables), default=0)
    found = {"mask": mask, "places": places, "tensor": tensor, "limit": limit}
    if graph.only_reader(tensor) is not None and mask.name in graph.layers and graph.layers[mask.name] is mask:
        return Match((mask, layer), (tensor,), found)
    return Match((layer,), found=found)


@dataclass(frozen=True)
class _Table:
    """A constant of which ``layers`` cut rows from ``row`` and columns from ``column`` on."""

    value: np.ndarray
    row: Dim = 0
    column: Dim = 0
    layers: tuple[Layer, ...] = ()


def _table(graph: Graph, tensor: str) -> _Table | None:
    row: Dim = 0
    column: Dim = 0
    layers: tuple[Layer, ...] = ()
    while (layer := graph.producer(tensor)) is not None and isinstance(layer.op, Slice) and len(layer.op.steps) >= 2 and set(layer.op.steps) == {1}:
        row, column = row + layer.op.starts[-2], column + layer.op.starts[-1]
        tensor, layers = layer.inputs[0], (layer, *layers)
    value = graph.constant(tensor)
    return _Table(value, row, column, layers) if value is not None and value.ndim >= 2 else None


def _place(graph: Graph, tensor: str) -> _Affine | _Band | _Added | None:
    """What an operand of the mask says of its place: a range along keys or queries, a number, or a constant band of the keys kept."""
    shape = graph.type(tensor).shape
    layer = graph.producer(tensor)
    table = _table(graph, tensor)
    if table is not None:
        value = table.value
        boolean, apart = value.dtype == np.bool_, value.shape[-1] - value.shape[-2] + table.row - table.column
        found = band(value, "keep" if boolean else "add") if boolean or np.isneginf(value[value != 0]).all() else None
        if found is None:
            return None
        kept = _Band(apart - found[1] + 1 if found[1] else None, apart if found[0] else None)
        return kept if boolean else _Added(kept)
    while layer is not None and isinstance(layer.op, Shuffle) and layer.op.first is layer.op.second is None:
        layer = graph.producer(layer.inputs[0])
    wide = [axis - len(shape) for axis, dim in enumerate(shape) if dim != 1]
    if layer is not None and isinstance(layer.op, ShapeValue) and not wide:
        return _Affine(0, 0, layer.op.values[0])
    if layer is None or not isinstance(layer.op, Range) or not layer.op.dtype.is_integer or layer.op.delta != 1 or isinstance(layer.op.start, float):
        return None
    if wide not in ([], [-1], [-2]):
        return None
    return _Affine(int(wide == [-1]), int(wide == [-2]), layer.op.start)


def _affine(expression: Expression, places: _Places) -> _Affine | None:
    if isinstance(expression, Operand):
        place = places[expression.index]
        return place if isinstance(place, _Affine) else None
    if isinstance(expression, Literal):
        return _Affine(0, 0, int(expression.value)) if expression.dtype.is_integer else None
    if isinstance(expression, Convert):
        return _affine(expression.argument, places) if expression.dtype.is_integer else None
    if expression.function not in ("add", "sub"):
        return None
    a, b = (_affine(argument, places) for argument in expression.arguments)
    return None if a is None or b is None else a.minus(b, 1 if expression.function == "add" else -1)


def _kept(expression: Expression, places: _Places) -> _Band | None:
    """The positions at which ``expression`` is true (not 0)."""
    if isinstance(expression, Operand):
        place = places[expression.index]
        return place if isinstance(place, _Band) else None
    if isinstance(expression, Convert):
        return _kept(expression.argument, places)
    if not isinstance(expression, Apply):
        return None
    name, arguments = expression.function, expression.arguments
    if name == "and":
        a, b = (_kept(argument, places) for argument in arguments)
        return None if a is None or b is None else a.both(b)
    if name == "not" or (name == "equal" and isinstance(arguments[1], Literal) and arguments[1].value == 0):
        inner = _kept(arguments[0], places)
        return None if inner is None else inner.complement()
    if name == "where":
        condition, yes, no = arguments
        inner = _kept(condition, places)
        if inner is None or not isinstance(yes, Literal) or not isinstance(no, Literal) or bool(yes.value) == bool(no.value):
            return None
        return inner if yes.value else inner.complement()
    if name in ("less", "less_or_equal", "greater", "greater_or_equal"):
        left, right = (_affine(argument, places) for argument in (arguments if name.startswith("less") else arguments[::-1]))
        apart = None if left is None or right is None else left.minus(right)  # at most 0 where true
        strict = 0 if name.endswith("equal") else 1
        if apart is not None and (apart.column, apart.row) == (1, -1):
            return _Band(None, -1 * apart.constant - strict)
        if apart is not None and (apart.column, apart.row) == (-1, 1):
            return _Band(apart.constant + strict, None)
    return None


def _band(expression: Expression, places: _Places, boolean: bool) -> _Band | None:
    """What a mask keeps: where it is true, or adds 0 and not a large negative number."""
    if boolean:
        return _kept(expression, places)
    while isinstance(expression, Convert) and expression.dtype.is_float:
        expression = expression.argument
    if not isinstance(expression, Apply) or expression.function != "where":
        return None
    condition, yes, no = expression.arguments
    kept = _kept(condition, places)
    if kept is None or not isinstance(yes, Literal) or not isinstance(no, Literal):
        return None
    if yes.value == 0 and no.value <= MASKED:
        return kept
    return kept.complement() if no.value == 0 and yes.value <= MASKED else None


def _split(expression: Expression, places: _Places, boolean: bool) -> tuple[_Band | None, Expression | None]:
    """What a mask keeps by position, and what else it says; (None, itself) where the two do not part, or finite numbers hide."""
    unparted = None, expression
    if isinstance(expression, Operand) and isinstance(place := places[expression.index], _Added) and not boolean:
        return place.band, None
    if boolean and (kept := _kept(expression, places)) is not None:
        return kept, None
    if isinstance(expression, Convert):
        kept, rest = _split(expression.argument, places, boolean)
        return (kept, rest and Convert(expression.dtype, rest)) if kept and expression.dtype.is_float is not boolean else unparted
    if not isinstance(expression, Apply):
        return unparted
    name, arguments = expression.function, expression.arguments
    if boolean and name == "not" and isinstance(arguments[0], Apply) and arguments[0].function == "or":
        name, arguments = "and", tuple(Apply("not", (argument,)) for argument in arguments[0].arguments)
    if name == ("and" if boolean else "add"):
        (first, one), (second, other) = (_split(argument, places, boolean) for argument in arguments)
        both = first.both(second) if first and second else first or second
        return (both, Apply(name, (one, other)) if one and other else one or other) if both else unparted
    if boolean or name != "where":
        return unparted
    condition, yes, no = arguments
    if isinstance(yes, Literal) and np.isneginf(yes.value):
        condition, yes, no = Apply("not", (condition,)), no, yes
    kept, rest = _split(condition, places, True)
    if kept is None or not isinstance(no, Literal) or not np.isneginf(no.value):
        return unparted
    if rest is None:
        return kept, None if isinstance(yes, Literal) and yes.value == 0 else yes
    return kept, Apply("where", (rest, yes, no))


def _parts(graph: Graph, match: Match) -> tuple[_Band | None, Expression | None]:
    """The band of the match's mask, and what is left of it."""
    expression, places, boolean = match.found["mask"].op.expression, match.found["places"], graph.type(match.found["tensor"]).dtype.itemsize == 1
    kept = _band(expression, places, boolean) if None not in places else None
    return (kept, None) if kept is not None else _split(expression, places, boolean)


def _lengths(graph: Graph, layer: Layer) -> tuple[Dim, Dim]:
    """Queries and keys."""
    q, k, _ = layer.op.stored(graph.types(layer.inputs[: layer.op.sources]))
    return q.type.shape[q.layout.index("s")], k.type.shape[k.layout.index("s")]


def _difference(one: Dim, other: Dim, limit: int) -> int | None:
    """``one - other`` where it is the same number whatever the sizes, as long as these stay within a table of ``limit``; None otherwise."""
    apart = one - other
    if isinstance(apart, int):
        return apart
    names = sorted(symbols(apart))
    most = limit // (4 * len(names))
    if most < _SAMPLES:
        return None
    values = {bind(apart, {name: 1 + (sample + 1) * (place + 2) % most for place, name in enumerate(names)}) for sample in range(_SAMPLES)}
    return values.pop() if len(values) == 1 else None


def _within_table(kept: _Band | None, apart: Dim, limit: int) -> _Band | None:
    """``kept`` in terms of ``apart``, how many more keys than queries there are, where the two differ only beyond the table."""
    if kept is None or not limit:
        return kept
    ends = [None if end is None else end if (number := _difference(end, apart, limit)) is None else apart + number for end in (kept.low, kept.high)]
    return _Band(*ends)


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, mask, limit = match.layers[-1], match.found["mask"], match.found["limit"]
    kind = graph.type(match.found["tensor"])
    kept, rest = _parts(graph, match)
    if kept is None:
        return Refusal("positions", f"{mask.name} is more than one or two comparisons of positions")
    queries, keys = _lengths(graph, layer)
    kept = _within_table(kept, keys - queries, limit)
    assert kept is not None
    if any(_difference(dim, size, limit) != 0 for dim, size in zip(kind.shape[-2:], (queries, keys), strict=True)) or (rest is None and any(dim != 1 for dim in kind.shape[:-2])):
        return Refusal("shape", f"{mask.name} makes {kind.shape}; there are {queries} queries and {keys} keys")
    if kept.high is not None and kept.high != keys - queries:
        return Refusal("offset", f"{mask.name} keeps keys up to {kept.high} behind a query; causal attention keeps {keys - queries}")
    if kept.low is not None:
        window = keys - queries - kept.low + 1
        if not isinstance(window, int) or window < 1:
            return Refusal("offset", f"{mask.name} keeps {window} keys up to a query")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, mask = match.layers[-1], match.found["mask"]
    kept, rest = _parts(graph, match)
    queries, keys = _lengths(graph, layer)
    kept = _within_table(kept, keys - queries, match.found["limit"])
    assert kept is not None
    window = 0 if kept.low is None else keys - queries - kept.low + 1
    window = min(window, layer.op.window) if window and layer.op.window else window or layer.op.window
    op = replace(layer.op, masked=rest is not None, causal=layer.op.causal or kept.high is not None, window=window)
    inputs, before = layer.inputs[:-1], list[Layer]()
    if isinstance(rest, Operand):
        inputs = (*inputs, mask.inputs[rest.index])
    elif rest is not None:
        expression, names = number(rest, mask.inputs)
        inputs = (*inputs, graph.fresh(f"{mask.name}.rest"))
        before.append(Layer(f"{mask.name} rest", Pointwise(expression), names, inputs[-1:]))
    return Replacement((*before, Layer("", op, inputs, layer.outputs)), keep_name=len(match.layers) == 1)


RULE = Rule("attention-causal", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
