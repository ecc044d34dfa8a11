"""f(Concat(a, b), c) -> Concat(f(a, c[:n]), f(b, c[n:])), for constants c: each product adds its part of them as it stores its result.

So the embeddings of positions are added to the patches of an image and the class token before these are joined.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Pointwise
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules.shuffle_constants import shuffles_behind_product


def _match(graph: Graph, reader: Layer) -> Match | None:
    made = [name for name in reader.inputs if graph.constant(name) is None]
    join = graph.producer(made[0]) if len(made) == 1 and len(reader.inputs) > 1 else None
    if join is None or not isinstance(join.op, Concatenation):
        return None
    return Match((join, reader), (join.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    join, reader = match.layers
    shape = graph.type(join.outputs[0]).shape
    if graph.type(reader.outputs[0]).shape != shape:
        return Refusal("shape", f"{reader.name} broadcasts {join.outputs[0]}")
    if graph.type(reader.outputs[0]).dtype is not graph.type(join.outputs[0]).dtype:
        return Refusal("data type", f"{reader.name} changes the data type")
    parts = [name for name in join.inputs if graph.constant(name) is None]
    for name in parts:
        shuffles = shuffles_behind_product(graph, name)
        if not shuffles or any(graph.only_reader(tensor) is None for tensor in (shuffles[0].inputs[0], *(shuffle.outputs[0] for shuffle in shuffles))):
            return Refusal("no gain", f"{name} is not made by a product alone, moved, and read by {join.name} alone")
    if not parts or not all(isinstance(graph.type(name).shape[join.op.axis], int) for name in join.inputs):
        return Refusal("dynamic", f"the parts of {join.outputs[0]} have sizes known at run time only")
    if not any(_along(graph, name, join) != 1 for name in reader.inputs if graph.constant(name) is not None):
        return Refusal("no gain", f"{reader.name} does the same to every part")
    return None


def _along(graph: Graph, name: str, join: Layer) -> int:
    """How many elements the constant has along the joined axis."""
    value = graph.constants[name]
    place = join.op.axis - len(graph.type(join.outputs[0]).shape)
    return value.shape[place] if -place <= value.ndim else 1


def _rewrite(graph: Graph, match: Match) -> Replacement:
    join, reader = match.layers
    place = join.op.axis - len(graph.type(join.outputs[0]).shape)
    constants: dict[str, np.ndarray] = {}
    layers, parts = [], []
    start = 0
    for number, part in enumerate(join.inputs):
        count = int(graph.type(part).shape[join.op.axis])  # type: ignore[call-overload]
        inputs = []
        for name in reader.inputs:
            if graph.constant(name) is None:
                inputs.append(part)
            elif _along(graph, name, join) == 1:
                inputs.append(name)
            else:
                inputs.append(graph.fresh(f"{name}.{join.name}.{number}"))
                constants[inputs[-1]] = np.ascontiguousarray(graph.constants[name].take(range(start, start + count), axis=place))
        parts.append(graph.fresh(f"{reader.outputs[0]}.{number}"))
        layers.append(replace(reader, name=f"{reader.name} of {part}", inputs=tuple(inputs), outputs=(parts[-1],), fusions=(*reader.fusions, RULE.name)))
        start += count
    return Replacement((*layers, replace(join, inputs=tuple(parts), outputs=reader.outputs, fusions=(*join.fusions, RULE.name))), constants)


RULE = Rule("concatenation-constants", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
