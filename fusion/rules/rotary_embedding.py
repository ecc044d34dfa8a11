"""x * cos + concat(-x2, x1) * sin -> RotaryEmbedding(x, cos, sin), for the halves or even and odd elements x1, x2 of x; also part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Literal, Operand, size, text, type_of
from fusion.graph import Graph
from fusion.network import Layer, ShapeError
from fusion.ops import Concatenation, Gather, Pointwise, RotaryEmbedding, Shuffle, Slice
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._expressions import join, number, swap


@dataclass(frozen=True)
class _Part:
    """One of two parts of every row of ``x``: its halves, or its even and odd elements (``interleaved``). ``layers`` cut it out."""

    x: str
    number: int
    interleaved: bool
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class _Joined:
    """Two tensors as the parts of the rows of one. ``layers`` join them; ``interleaved``, the last one makes ``[..., half, 2]``."""

    parts: tuple[str, str]
    interleaved: bool
    layers: tuple[Layer, ...]


def _match(graph: Graph, layer: Layer) -> Match | None:
    return _whole(graph, layer) if isinstance(layer.op, Pointwise) else _by_parts(graph, layer)


def _whole(graph: Graph, layer: Layer) -> Match | None:
    """``x * cos + turned * sin``, turned being the parts of x exchanged, one of them negated."""
    assert isinstance(layer.op, Pointwise)
    turned_sum, outer = _inside(layer.op.expression)
    terms = _terms(turned_sum, layer, "add")
    for straight, crossed in (terms, terms[::-1]) if terms else ():
        for turned in crossed:
            views, source = _behind_views(graph, turned)
            joined = None if source is None else _joined(graph, source)
            if joined is None or joined.interleaved != bool(views):
                continue
            negation = graph.producer(joined.parts[0])
            if negation is None or not isinstance(negation.op, Pointwise) or negation.op.expression != Apply("neg", (Operand(0),)):
                continue
            parts = _parts(graph, joined.parts[1], negation.inputs[0])
            if parts is None or parts[0].interleaved != joined.interleaved or parts[0].x not in straight:
                continue
            cut = dict.fromkeys(one for part in parts for one in part.layers)
            cos, sin = _other(straight, parts[0].x), _other(crossed, turned)
            layers = (*cut, negation, *joined.layers, *views, layer)
            found = {"inputs": (parts[0].x, cos, sin), "interleaved": joined.interleaved, "outer": outer}
            found["sum"] = type_of(turned_sum, [graph.type(name).dtype for name in layer.inputs])
            return Match(layers, tuple(one.outputs[0] for one in layers[:-1]), found)
    return None


def _by_parts(graph: Graph, join: Layer) -> Match | None:
    """``join(x1 * cos - x2 * sin, x2 * cos + x1 * sin)``."""
    joined = _joined(graph, join)
    if joined is None:
        return None
    left, right = (graph.producer(name) for name in joined.parts)
    if left is None or right is None or left is right:
        return None
    if not isinstance(left.op, Pointwise) or not isinstance(right.op, Pointwise):
        return None
    minus, plus = _terms(left.op.expression, left, "sub"), _terms(right.op.expression, right, "add")
    if minus is None or plus is None:
        return None
    for a in minus[0]:
        cos = _other(minus[0], a)
        for b in minus[1]:
            sin = _other(minus[1], b)
            if {frozenset(one) for one in plus} != {frozenset((b, cos)), frozenset((a, sin))}:
                continue
            parts = _parts(graph, a, b)
            if parts is None or parts[0].interleaved != joined.interleaved:
                continue
            cut = dict.fromkeys(one for part in parts for one in part.layers)
            layers = (*cut, left, right, *joined.layers)
            found = {"inputs": (parts[0].x, cos, sin), "interleaved": joined.interleaved, "pairs": joined.interleaved}
            found["sum"] = graph.type(left.outputs[0]).dtype
            return Match(layers, tuple(one.outputs[0] for one in layers[:-1]), found)
    return None


def _inside(expression: Expression) -> tuple[Expression, Expression]:
    """The sum within scales and casts that follow it, and these as a function of operand 0."""
    if isinstance(expression, Convert):
        inner, outer = _inside(expression.argument)
        return inner, replace(expression, argument=outer)
    if isinstance(expression, Apply) and expression.function in ("mul", "div"):
        for index, argument in enumerate(expression.arguments):
            if isinstance(expression.arguments[1 - index], Literal):
                inner, outer = _inside(argument)
                arguments = tuple(outer if one is argument else one for one in expression.arguments)
                return inner, replace(expression, arguments=arguments)
    return expression, Operand(0)


def _terms(expression: Expression, layer: Layer, function: str) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """The tensors of ``a * b`` and ``c * d`` when ``expression``, of the layer's inputs, is their sum (difference)."""
    if not isinstance(expression, Apply) or expression.function != function:
        return None
    first, second = (_product(argument, layer) for argument in expression.arguments)
    return None if first is None or second is None else (first, second)


def _product(expression: Expression, layer: Layer) -> tuple[str, str] | None:
    if not isinstance(expression, Apply) or expression.function != "mul":
        return None
    a, b = (one.argument if isinstance(one, Convert) and one.dtype is DataType.FLOAT else one for one in expression.arguments)
    if not isinstance(a, Operand) or not isinstance(b, Operand):
        return None
    return layer.inputs[a.index], layer.inputs[b.index]


def _other(pair: tuple[str, str], name: str) -> str:
    return pair[1] if pair[0] == name else pair[0]


def _behind_views(graph: Graph, tensor: str) -> tuple[tuple[Layer, ...], Layer | None]:
    """The plain reshape that makes ``tensor``, if one does, and the layer before it."""
    layer = graph.producer(tensor)
    if layer is None or not isinstance(layer.op, Shuffle) or layer.op.first is not None or layer.op.second is not None:
        return (), layer
    return (layer,), graph.producer(layer.inputs[0])


def _joined(graph: Graph, join: Layer) -> _Joined | None:
    if not isinstance(join.op, Concatenation) or len(join.inputs) != 2 or join.op.axis != len(graph.type(join.outputs[0]).shape) - 1:
        return None
    if graph.type(join.inputs[0]).shape[-1] != 1:
        return _Joined((join.inputs[0], join.inputs[1]), False, (join,))
    views: list[Layer] = []
    sources = []
    for name in join.inputs:
        view, before = _behind_views(graph, name)
        if view and graph.type(view[0].inputs[0]).shape == graph.type(name).shape[:-1]:
            views += view
            sources.append(view[0].inputs[0])
        elif not view and before is not None and isinstance(before.op, Slice):  # the column itself: it lost its axis, and got it back
            sources.append(name)
        else:
            return None
    return _Joined((sources[0], sources[1]), True, (*views, join))


def _parts(graph: Graph, first: str, second: str) -> tuple[_Part, _Part] | None:
    """The first and the second part of the rows of one tensor, if that is what the two are."""
    a, b = _part(graph, first), _part(graph, second)
    if a is None or b is None or (a.x, a.interleaved, a.number, b.number) != (b.x, b.interleaved, 0, 1):
        return None
    return a, b


def _part(graph: Graph, tensor: str) -> _Part | None:
    layer, column = graph.producer(tensor), _column_part(graph, tensor)
    return column if column is not None or layer is None or not isinstance(layer.op, Slice) else _slice_part(graph, layer)


def _slice_part(graph: Graph, layer: Layer) -> _Part | None:
    op, shape = layer.op, graph.type(layer.inputs[0]).shape
    width = shape[-1]
    if not isinstance(width, int) or width % 2 or op.sizes != (*shape[:-1], width // 2) or any(op.starts[:-1]) or set(op.steps[:-1]) - {1}:
        return None
    start, step = op.starts[-1], op.steps[-1]
    if step == 1 and start in (0, width // 2):
        return _Part(layer.inputs[0], int(start > 0), False, (layer,))
    return _Part(layer.inputs[0], start, True, (layer,)) if step == 2 and start in (0, 1) else None


def _column_part(graph: Graph, tensor: str) -> _Part | None:
    """One column of x seen as ``[..., half, 2]``."""
    views, layer = _behind_views(graph, tensor)
    if layer is None or not isinstance(layer.op, Slice | Gather):
        return None
    pairs = graph.type(layer.inputs[0]).shape
    number: object = None
    if pairs[-1] != 2:
        return None
    if isinstance(layer.op, Slice):
        if not any(layer.op.starts[:-1]) and layer.op.sizes == (*pairs[:-1], 1):
            number = layer.op.starts[-1]
    elif layer.op.axis == len(pairs) - 1:
        index = graph.constant(layer.inputs[1])
        number = int(index.reshape(-1)[0]) % 2 if index is not None and index.size == 1 else None
    before, _ = _behind_views(graph, layer.inputs[0])
    if number not in (0, 1) or not before or graph.type(tensor).shape not in (pairs[:-1], (*pairs[:-1], 1)):
        return None
    x = before[0].inputs[0]
    if graph.type(x).shape != (*pairs[:-2], pairs[-2] * 2):
        return None
    return _Part(x, number, True, (*before, layer, *views))  # type: ignore[arg-type]


def _near(graph: Graph, layer: Layer) -> Near | None:
    return _near_whole(graph, layer) if isinstance(layer.op, Pointwise) else _near_halves(graph, layer)


def _near_whole(graph: Graph, layer: Layer) -> Near | None:
    """The turned tensor is made of two slices that are not the halves of every row, or of halves in another order."""
    terms = _terms(_inside(layer.op.expression)[0], layer, "add")
    for turned in {*terms[0], *terms[1]} if terms else ():
        concatenation = graph.producer(turned)
        if concatenation is None or not isinstance(concatenation.op, Concatenation) or len(concatenation.inputs) != 2:
            continue
        negation, first = (graph.producer(name) for name in concatenation.inputs)
        if negation is None or first is None or not isinstance(negation.op, Pointwise) or negation.op.expression != Apply("neg", (Operand(0),)):
            continue
        second = graph.producer(negation.inputs[0])
        if second is None or not isinstance(first.op, Slice) or not isinstance(second.op, Slice):
            continue
        cuts = (f"{one.name} takes {one.inputs[0]} from {one.op.starts}, {one.op.sizes} elements in steps of {one.op.steps}" for one in (first, second))
        layers = tuple(dict.fromkeys((first, second, negation, concatenation, layer)))
        return Match(layers), Refusal("halves", f"{'; '.join(cuts)}: not the halves of each row of a term")
    return None


def _near_halves(graph: Graph, layer: Layer) -> Near | None:
    """Two expressions of the halves of one tensor are joined, but they are not those of a rotation."""
    joined = _joined(graph, layer)
    found = (_spread(graph, graph.producer(name)) for name in joined.parts) if joined is not None else ()
    sides = [one for one in found if one is not None]
    if joined is None or len(sides) != 2:
        return None
    (left, a), (right, b) = sides
    for first, second in permutations([name for name in a if name in b], 2):
        parts = _parts(graph, first, second)
        if parts is not None:
            layers = tuple(dict.fromkeys((*parts[0].layers, *parts[1].layers, *joined.layers)))
            terms = f"{text(left, a)} and {text(right, b)}; a rotation joins a * cos - b * sin and b * cos + a * sin"
            return Match(layers), Refusal("terms", f"{layer.name} joins {terms}")
    return None


def _spread(graph: Graph, layer: Layer | None) -> tuple[Expression, tuple[str, ...]] | None:
    """What the pointwise ``layer`` computes, with the pointwise layers before it."""
    if layer is None or not isinstance(layer.op, Pointwise):
        return None
    expression, names = layer.op.expression, layer.inputs
    while size(expression) <= _LARGEST:
        makers = (graph.producer(name) for name in names)
        maker = next((one for one in makers if one is not None and isinstance(one.op, Pointwise)), None)
        if maker is None:
            return expression, names
        expression, names = number(*join(expression, names, maker.outputs[0], maker.op.expression, maker.inputs))
    return None


_LARGEST = 12  # functions that half of a rotary embedding may be made of


def _check(graph: Graph, match: Match) -> Refusal | None:
    types = graph.types(match.found["inputs"])
    x, angles = types[0].dtype, types[1].dtype
    # The angles may be float32 where x is narrower, if the result is rounded to x's type at once.
    rounded = (angles is x and match.found["sum"] is x) or (angles is DataType.FLOAT and x.itemsize < 4 and _rounding(match, x) is not None)
    if not x.is_float or types[2].dtype is not angles or not rounded:
        return Refusal("data type", f"x, cos and sin are {', '.join(one.dtype.value for one in types)}")
    try:
        RotaryEmbedding().infer(types)
    except ShapeError as error:
        return Refusal("shape", str(error))
    return None


def _rounding(match: Match, dtype: DataType) -> Expression | None:
    """What follows the sum when the first of it is a rounding to ``dtype``, without that."""
    outer = match.found.get("outer", IDENTITY)
    rest = swap(outer, Convert(dtype, Operand(0)), Operand(0))
    return None if rest == outer else rest


def _rewrite(graph: Graph, match: Match) -> Replacement:
    op, inputs, outputs = RotaryEmbedding(match.found["interleaved"]), match.found["inputs"], match.layers[-1].outputs
    outer = match.found.get("outer", IDENTITY)
    if graph.type(inputs[0]).dtype is not graph.type(inputs[1]).dtype:
        outer = _rounding(match, graph.type(inputs[0]).dtype) or IDENTITY
    if outer != IDENTITY:
        turned = graph.fresh(f"{outputs[0]}.turned")
        rest = replace(match.layers[-1], name=f"{match.layers[-1].name} scale", op=Pointwise(outer), inputs=(turned,))
        return Replacement((Layer("", op, inputs, (turned,)), rest))
    if not match.found.get("pairs"):
        return Replacement((Layer("", op, inputs, outputs),))
    turned = graph.fresh(f"{outputs[0]}.turned")  # what reads the pairs makes rows of them
    view = Layer(f"{outputs[0]} pairs", Shuffle(reshape=graph.type(outputs[0]).shape), (turned,), outputs)
    return Replacement((Layer("", op, inputs, (turned,)), view))


RULE = Rule("rotary-embedding", __doc__.splitlines()[0], (Pointwise, Concatenation), _match, _rewrite, _check, near=_near)
