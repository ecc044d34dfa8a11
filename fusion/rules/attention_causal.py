"""Attention(q, k, v, mask of positions) -> Attention(q, k, v): a mask that only compares positions is causal, or a window, at any length."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusion.dims import Dim
from fusion.expression import Apply, Convert, Expression, Literal, Operand
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Attention, Pointwise, Range, ShapeValue, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._scores import MASKED


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


def _match(graph: Graph, layer: Layer) -> Match | None:
    if not layer.op.masked:
        return None
    tensor = layer.inputs[layer.op.arity - 1]
    mask = graph.producer(tensor)
    if mask is None or not isinstance(mask.op, Pointwise):
        return None
    places = [_place(graph, name) for name in mask.inputs]
    if not places or any(place is None for place in places):
        return None
    found = {"mask": mask, "places": places, "tensor": tensor}
    if graph.only_reader(tensor) is not None:
        return Match((mask, layer), (tensor,), found)
    return Match((layer,), found=found)


def _place(graph: Graph, tensor: str) -> _Affine | None:
    """What an operand of the mask says of its place: a range along keys or queries, or a number."""
    shape = graph.type(tensor).shape
    layer = graph.producer(tensor)
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


def _affine(expression: Expression, places: list[_Affine]) -> _Affine | None:
    if isinstance(expression, Operand):
        return places[expression.index]
    if isinstance(expression, Literal):
        return _Affine(0, 0, int(expression.value)) if expression.dtype.is_integer else None
    if isinstance(expression, Convert):
        return _affine(expression.argument, places) if expression.dtype.is_integer else None
    if expression.function not in ("add", "sub"):
        return None
    a, b = (_affine(argument, places) for argument in expression.arguments)
    return None if a is None or b is None else a.minus(b, 1 if expression.function == "add" else -1)


def _kept(expression: Expression, places: list[_Affine]) -> _Band | None:
    """The positions at which ``expression`` is true (not 0)."""
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


def _band(expression: Expression, places: list[_Affine], boolean: bool) -> _Band | None:
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


def _lengths(graph: Graph, layer: Layer) -> tuple[Dim, Dim]:
    """Queries and keys."""
    q, k, _ = layer.op.stored(graph.types(layer.inputs[: layer.op.sources]))
    return q.type.shape[q.layout.index("s")], k.type.shape[k.layout.index("s")]


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, mask = match.layers[-1], match.found["mask"]
    kind = graph.type(match.found["tensor"])
    band = _band(mask.op.expression, match.found["places"], kind.dtype.itemsize == 1)
    if band is None:
        return Refusal("positions", f"{mask.name} is more than one or two comparisons of positions")
    queries, keys = _lengths(graph, layer)
    if kind.shape[-2:] != (queries, keys) or any(dim != 1 for dim in kind.shape[:-2]):
        return Refusal("shape", f"{mask.name} makes {kind.shape}; there are {queries} queries and {keys} keys")
    if band.high is not None and band.high != keys - queries:
        return Refusal("offset", f"{mask.name} keeps keys up to {band.high} behind a query; causal attention keeps {keys - queries}")
    if band.low is not None:
        window = keys - queries - band.low + 1
        if not isinstance(window, int) or window < 1:
            return Refusal("offset", f"{mask.name} keeps {window} keys up to a query")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer, mask = match.layers[-1], match.found["mask"]
    band = _band(mask.op.expression, match.found["places"], graph.type(match.found["tensor"]).dtype.itemsize == 1)
    queries, keys = _lengths(graph, layer)
    assert band is not None
    window = 0 if band.low is None else keys - queries - band.low + 1
    window = min(window, layer.op.window) if window and layer.op.window else window or layer.op.window
    op = replace(layer.op, masked=False, causal=layer.op.causal or band.high is not None, window=window)
    return Replacement((Layer("", op, layer.inputs[:-1], layer.outputs),), keep_name=len(match.layers) == 1)


RULE = Rule("attention-causal", __doc__.splitlines()[0], (Attention,), _match, _rewrite, _check)
