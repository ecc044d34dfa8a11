"""f(reshape(x), c) -> reshape(f(x, c)), for a reshape that splits the columns of a product, and constants per column: a bias per head and element."""

from __future__ import annotations

import numpy as np

from fusion.dims import Shape, product
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, Pointwise, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    if len(layer.inputs) < 2:
        return None
    made = [name for name in layer.inputs if graph.constant(name) is None]
    shuffle = graph.producer(made[0]) if len(made) == 1 else None
    if shuffle is None or not isinstance(shuffle.op, Shuffle) or shuffle.op.first is not None or shuffle.op.second is not None:
        return None
    maker = graph.producer(shuffle.inputs[0])
    if maker is None or not isinstance(maker.op, MatrixMultiply):
        return None
    return Match((shuffle, layer), (shuffle.outputs[0],), {"maker": maker})


def _split(source: Shape, target: Shape) -> Shape | None:
    """The axes of ``target`` that the last axis of ``source`` was split into."""
    for count in range(2, len(target) + 1):
        if product(target[-count:]) == source[-1]:
            return target[-count:]
    return None


def _check(graph: Graph, match: Match) -> Refusal | None:
    shuffle, layer = match.layers
    source, target = graph.type(shuffle.inputs[0]).shape, graph.type(shuffle.outputs[0]).shape
    columns = _split(source, target) if source else None
    if columns is None or not all(isinstance(dim, int) for dim in columns):
        return Refusal("reshape", f"{shuffle.name} does more than split the columns of {match.found['maker'].name}, or into sizes known at run time")
    if graph.only_reader(shuffle.inputs[0]) is None:
        return Refusal("shared", f"{shuffle.inputs[0]}, before {shuffle.name}, has other readers")
    for name in layer.inputs:
        value = graph.constant(name)
        if value is not None and any(dim != 1 for dim in value.shape[: -len(columns)]):
            return Refusal("operands", f"{name} of shape {value.shape} is not the same for every row")
    if graph.type(layer.outputs[0]).shape != target:
        return Refusal("broadcast", f"{layer.name} broadcasts {shuffle.outputs[0]}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    shuffle, layer = match.layers
    columns = _split(graph.type(shuffle.inputs[0]).shape, graph.type(shuffle.outputs[0]).shape)
    assert columns is not None
    constants: dict[str, np.ndarray] = {}
    inputs = []
    for name in layer.inputs:
        value = graph.constant(name)
        if value is None:
            inputs.append(shuffle.inputs[0])
        elif value.size == 1:
            inputs.append(name)
        else:
            flat = graph.fresh(f"{name}.columns")
            constants[flat] = np.ascontiguousarray(np.broadcast_to(value.reshape(value.shape[-len(columns) :]), columns)).reshape(-1)  # type: ignore[arg-type]
            inputs.append(flat)
    middle = graph.fresh(f"{layer.outputs[0]}.before")
    return Replacement(
        (
            Layer(layer.name, layer.op, tuple(inputs), (middle,), layer.origins, layer.fusions),
            Layer(shuffle.name, shuffle.op, (middle,), layer.outputs, shuffle.origins, shuffle.fusions),
        ),
        constants,
    )


RULE = Rule("reshape-operands", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
