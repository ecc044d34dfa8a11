"""y = g(x), f(y), h(y) -> f(g(x)), h(g(x)): what pointwise layers alone read, each computes for itself, where that takes fewer bytes than storing it."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from fusion.graph import Graph
from fusion.network import Layer, TensorType
from fusion.ops import Pointwise, Reduce
from fusion.rewrite import Match, Refusal, Replacement, Rule, joined_name
from fusion.rules._expressions import distinct, equal_shape, join, joins_too_large, number, too_large
from fusion.rules.pointwise import CHEAP

MOST = 4  # readers


def _match(graph: Graph, layer: Layer) -> Match | None:
    (output,) = layer.outputs
    readers = graph.readers(output)
    if not 2 <= len(readers) <= MOST or not all(isinstance(reader.op, Pointwise) for reader in readers):
        return None
    # A layer that reads another one's result joins that one first.
    if any(name in layer.outputs or any(graph.producer(name) is other for other in readers) for reader in readers for name in reader.inputs if name != output):
        return None
    return Match((layer, *readers), (output,))


def _share(kind: TensorType, whole: TensorType) -> float:
    """Bytes of ``kind`` per element of ``whole``; an axis of unknown size counts as one that both have."""
    pairs = zip(kind.shape[::-1], whole.shape[::-1], strict=False)
    known = prod((a if isinstance(a, int) else 1) / ((b if isinstance(b, int) else 1) or 1) for a, b in pairs if isinstance(a, int) == isinstance(b, int) or a == 1)
    ahead = prod(dim for dim in whole.shape[: len(whole.shape) - len(kind.shape)] if isinstance(dim, int))
    return kind.dtype.itemsize * known / max(ahead, 1)


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, *readers = match.layers
    made = graph.type(layer.outputs[0])
    if not all(equal_shape(graph.type(reader.outputs[0]).shape, made.shape) for reader in readers):
        return Refusal("broadcast", f"a layer that reads {layer.outputs[0]} broadcasts it")
    reduced = next((name for name in layer.inputs if (maker := graph.producer(name)) is not None and isinstance(maker.op, Reduce)), None)
    if reduced is not None:  # what is left of a normalisation keeps its form, by which the report knows it
        return Refusal("statistics", f"{layer.name} reads {reduced}, a reduction")
    if distinct(layer.op.expression) > CHEAP:
        return Refusal("size", f"{layer.name} computes {distinct(layer.op.expression)} functions, which each of {len(readers)} layers would; {CHEAP} are allowed")
    read, stored = sum(_share(kind, made) for kind in graph.types(dict.fromkeys(layer.inputs))), made.dtype.itemsize
    if len(readers) * read > read + (len(readers) + 1) * stored:
        return Refusal("bytes", f"{len(readers)} layers would read {read:g} bytes an element where {layer.outputs[0]} has {stored}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    layer, *readers = match.layers
    layers = []
    for reader in readers:
        refusal = joins_too_large(reader.op.expression, reader.inputs, layer.outputs[0], layer.op.expression, graph.limits)
        if refusal is not None:
            return refusal
        expression, names = number(*join(reader.op.expression, reader.inputs, layer.outputs[0], layer.op.expression, layer.inputs))
        refusal = too_large(expression, len(names), graph.limits)
        if refusal is not None:
            return refusal
        origins, fusions = (tuple(dict.fromkeys((*one, *other))) for one, other in ((layer.origins, reader.origins), (layer.fusions, reader.fusions)))
        name = joined_name([layer, reader], pointwise=True)
        layers.append(replace(reader, name=name, op=Pointwise(expression), inputs=names, origins=origins, fusions=(*fusions, RULE.name)))
    return Replacement(tuple(layers))


RULE = Rule("pointwise-readers", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
