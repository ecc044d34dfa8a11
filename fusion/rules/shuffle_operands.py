"""f(Shuffle(g(x, y)), z) -> f(g(Shuffle(x), Shuffle(y)), z), where the operands of g move for free: then f and g become one, or nothing moves."""

from __future__ import annotations

from fusion.dims import Dim, Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._expressions import equal_shape, show
from fusion.rules._shuffles import is_view, transpose_of


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` is the shuffle."""
    maker = graph.producer(layer.inputs[0])
    if maker is None or not isinstance(maker.op, Pointwise):
        return None
    if len(maker.inputs) < 2 and (maker.inputs[0] not in graph.inputs or _moved(graph, maker.inputs[0], maker, layer) is None):
        return None  # a function of one tensor goes before a shuffle, with its maker
    readers = graph.readers(layer.outputs[0])
    if is_view(graph.type(layer.inputs[0]).shape, layer.op) and not (len(readers) == 1 and isinstance(next(iter(readers)).op, Pointwise)):
        return None
    return Match((maker, layer), (maker.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    maker, layer = match.layers
    for name in maker.inputs:
        if _moved(graph, name, maker, layer) is None:
            return Refusal("moves", f"{name} of shape {show(graph.type(name).shape)} would have to move as {layer.name} does")
    return None


def _moved(graph: Graph, name: str, maker: Layer, layer: Layer) -> Shape | None:
    """The shape of operand ``name`` behind the shuffle, when that is a reshape of it."""
    source, target = graph.type(maker.outputs[0]).shape, graph.type(layer.outputs[0]).shape
    shape = graph.type(name).shape
    aligned = (*(1,) * (len(source) - len(shape)), *shape)
    order = transpose_of(source, layer.op)
    if order is not None:
        kept = [axis for axis in order if aligned[axis] != 1]
        return tuple(aligned[axis] for axis in order) if kept == sorted(kept) else None
    if layer.op.first is not None or layer.op.second is not None:
        return None
    if equal_shape(aligned, source):
        return target
    # Axes of length 1 come and go; the others are those of before.
    places = [axis for axis, dim in enumerate(source) if dim != 1]
    if [source[axis] for axis in places] != [dim for dim in target if dim != 1]:
        return None
    rest = iter(places)
    moved: tuple[Dim, ...] = tuple(1 if dim == 1 else aligned[next(rest)] for dim in target)
    return moved


def _rewrite(graph: Graph, match: Match) -> Replacement:
    maker, layer = match.layers
    views, inputs = [], []
    for name in maker.inputs:
        shape = _moved(graph, name, maker, layer)
        assert shape is not None
        if equal_shape(shape, graph.type(name).shape):
            inputs.append(name)
            continue
        view = graph.fresh(f"{name}.{layer.name}")
        views.append(Layer(f"{name} before {layer.name}", Shuffle(reshape=shape), (name,), (view,)))
        inputs.append(view)
    return Replacement((*views, Layer("", maker.op, tuple(inputs), layer.outputs)))


RULE = Rule("shuffle-operands", __doc__.splitlines()[0], (Shuffle,), _match, _rewrite, _check)
