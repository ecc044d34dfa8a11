"""f(Shuffle(x)) -> Shuffle(f(x)), for f of one tensor, where the maker of x can compute f, or the next Shuffle can join this one."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._local import EXPRESSION_OPS
from fusion.rules._shuffles import compose, movement


def _match(graph: Graph, layer: Layer) -> Match | None:
    if len(layer.inputs) != 1:
        return None
    shuffle = graph.producer(layer.inputs[0])
    if shuffle is None or not isinstance(shuffle.op, Shuffle):
        return None
    return Match((shuffle, layer), (shuffle.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    shuffle, layer = match.layers
    if _joins(graph, shuffle, layer):
        return None
    source = shuffle.inputs[0]
    maker = graph.producer(source)
    while maker is not None and isinstance(maker.op, Shuffle) and graph.only_reader(source) is not None:  # pixel shuffles are two
        source = maker.inputs[0]
        maker = graph.producer(source)
    if maker is None or not isinstance(maker.op, EXPRESSION_OPS):
        return Refusal("no gain", f"{source} is not made by a layer with an epilogue")
    if graph.only_reader(source) is None:
        return Refusal("shared", f"{source}, before {shuffle.name}, has other readers")
    out = graph.type(layer.outputs[0]).dtype.itemsize
    if out > graph.type(layer.inputs[0]).dtype.itemsize:
        return Refusal("no gain", f"{layer.name} widens its input, which {shuffle.name} would then have to move")
    return None


def _joins(graph: Graph, shuffle: Layer, layer: Layer) -> bool:
    """Whether the only reader of ``layer`` moves data too, so that the two become one movement, or none."""
    reader = graph.only_reader(layer.outputs[0])
    if reader is None or not isinstance(reader.op, Shuffle) or graph.only_reader(shuffle.outputs[0]) is None:
        return False
    a = movement(graph.type(shuffle.inputs[0]).shape, shuffle.op)
    b = movement(graph.type(layer.outputs[0]).shape, reader.op)
    return a is not None and b is not None and not a.is_view and not b.is_view and compose(a, b) is not None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    shuffle, layer = match.layers
    middle = graph.fresh(f"{layer.outputs[0]}.before")
    return Replacement(
        (
            Layer(layer.name, layer.op, shuffle.inputs, (middle,), layer.origins, layer.fusions),
            Layer(shuffle.name, shuffle.op, (middle,), layer.outputs, shuffle.origins, shuffle.fusions),
        )
    )


RULE = Rule("pointwise-shuffle", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
