"""f(Shuffle(op(x)), c) -> Shuffle(op(x, c', epilogue=f)), for constants c: what is added behind a movement of a product's result is added before it.

So vision transformers add the embeddings of positions, which are rows, to the result of a convolution, which has planes of channels or rows of pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.dims import Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule, joined_name
from fusion.rules._epilogue import PRODUCTS
from fusion.rules._expressions import show, with_epilogue
from fusion.rules._shuffles import factored, inverse


def _match(graph: Graph, reader: Layer) -> Match | None:
    made = [name for name in reader.inputs if graph.constant(name) is None]
    if len(made) != 1 or len(reader.inputs) < 2:
        return None
    shuffles = shuffles_behind_product(graph, made[0])
    if not shuffles:
        return None
    product = graph.producer(shuffles[0].inputs[0])
    assert product is not None
    layers = (product, *shuffles, reader)
    return Match(layers, tuple(layer.outputs[0] for layer in layers[:-1]))


def shuffles_behind_product(graph: Graph, tensor: str) -> tuple[Layer, ...]:
    """The shuffles between a convolution or matrix product and ``tensor``, in order; none where it is not made so."""
    found: list[Layer] = []
    layer = graph.producer(tensor)
    while layer is not None and isinstance(layer.op, Shuffle):
        found.insert(0, layer)
        layer = graph.producer(layer.inputs[0])
    return tuple(found) if layer is not None and isinstance(layer.op, PRODUCTS) else ()


def _check(graph: Graph, match: Match) -> Refusal | None:
    product, *shuffles, reader = match.layers
    if graph.type(reader.outputs[0]).shape != graph.type(shuffles[-1].outputs[0]).shape:
        return Refusal("shape", f"{reader.name} broadcasts {shuffles[-1].outputs[0]}")
    made, out = graph.type(product.outputs[0]).dtype, graph.type(reader.outputs[0]).dtype
    if made is not out:
        return Refusal("data type", f"{reader.name} turns {made.value} into {out.value}")
    for name in reader.inputs:
        value = graph.constant(name)
        if value is not None and _before(graph, value, shuffles) is None:
            return Refusal("operands", f"{name} of shape {show(value.shape)} does not lie along axes of {product.outputs[0]}, or would be repeated there")
    return None


def _before(graph: Graph, value: np.ndarray, shuffles: list[Layer]) -> np.ndarray | None:
    """``value``, an operand behind ``shuffles``, as one before them."""
    moved: np.ndarray | None = value
    for shuffle in reversed(shuffles):
        moved = None if moved is None else moved_back(moved, graph.type(shuffle.inputs[0]).shape, shuffle.op)  # type: ignore[arg-type]
    return moved


def moved_back(value: np.ndarray, shape: Shape, op: Shuffle) -> np.ndarray | None:
    """What broadcasts against a tensor of ``shape`` as ``value`` does against what ``op`` makes of it; None where elements would be repeated."""
    found = factored(shape, op)
    if found is None or value.ndim > len(found.target):
        return None
    aligned = value.reshape((1,) * (len(found.target) - value.ndim) + value.shape)
    sizes = {atom: found.move.sizes[atom] if size != 1 else 1 for atoms, size in zip(found.target, aligned.shape, strict=True) for atom in atoms}
    pieces = [sizes[atom] for atom in found.move.order]
    if not all(isinstance(size, int) for size in pieces):
        return None
    moved = aligned.reshape(pieces).transpose(inverse(found.move.order))  # type: ignore[arg-type]
    whole = []
    for atoms in found.source:
        if len({sizes[atom] == 1 for atom in atoms}) > 1:
            return None
        whole.append(int(np.prod([sizes[atom] for atom in atoms], dtype=np.int64)))  # type: ignore[arg-type]
    return np.ascontiguousarray(moved.reshape(whole))


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    product, *shuffles, reader = match.layers
    constants: dict[str, np.ndarray] = {}
    inputs = []
    for name in reader.inputs:
        value = graph.constant(name)
        moved = None if value is None else _before(graph, value, shuffles)
        if moved is None:
            inputs.append(product.outputs[0])
            continue
        inputs.append(graph.fresh(f"{name}.{product.name}"))
        constants[inputs[-1]] = moved
    middle = graph.fresh(f"{reader.outputs[0]}.before")
    fused = with_epilogue(graph, product, replace(reader, inputs=tuple(inputs), outputs=(middle,)))
    if isinstance(fused, Refusal):
        return fused
    origins, fusions = (tuple(dict.fromkeys((*a, *b))) for a, b in ((product.origins, reader.origins), (product.fusions, (*reader.fusions, RULE.name))))
    layers = [replace(fused, name=joined_name([product, reader], pointwise=False), origins=origins, fusions=fusions)]
    for shuffle in shuffles:
        last = shuffle is shuffles[-1]
        layers.append(replace(shuffle, inputs=layers[-1].outputs, outputs=reader.outputs if last else (graph.fresh(f"{shuffle.outputs[0]}.moved"),)))
    return Replacement(tuple(layers), constants)


RULE = Rule("shuffle-constants", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, _check)
