"""MatMul(reshape(transpose(x)), w) -> MatMul(reshape(x), w with its rows permuted), for constant w.

A channels-last image that is flattened for a fully connected layer needs no transpose: the weights take its order.
"""

from __future__ import annotations

import numpy as np

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import Movement, movement, refine


def _match(graph: Graph, layer: Layer) -> Match | None:
    shuffle = graph.producer(layer.inputs[0])
    if shuffle is None or not isinstance(shuffle.op, Shuffle) or layer.op.transpose_a:
        return None
    value = graph.constant(layer.inputs[1])
    if value is None or value.ndim != 2:
        return None
    move = movement(graph.type(shuffle.inputs[0]).shape, shuffle.op)
    if move is None or move.is_view:
        return None
    return Match((shuffle, layer), (shuffle.outputs[0],), {"move": move})


def _columns(graph: Graph, match: Match) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(sizes of the factors of K in the order of x, their order in the columns of the product's input)."""
    move: Movement = match.found["move"]
    k = graph.type(match.layers[0].outputs[0]).shape[-1]
    moved = tuple(move.sizes[atom] for atom in move.order)
    pieces = refine(moved, (*graph.type(match.layers[0].outputs[0]).shape[:-1], k))
    if pieces is None or not isinstance(k, int):
        return None
    from_moved, from_target, _ = pieces
    inside = set(from_target[-1])
    tail = [position for position, atoms in enumerate(from_moved) if inside.intersection(atoms)]
    if not tail or any(not set(from_moved[position]) <= inside for position in tail):
        return None
    atoms = [move.order[position] for position in tail]
    head = [atom for atom in move.order if atom not in atoms]
    if head != list(range(len(head))):  # rows move as well, or K is not the end of x
        return None
    sizes = [move.sizes[atom] for atom in sorted(atoms)]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return tuple(int(size) for size in sizes), tuple(sorted(atoms).index(atom) for atom in atoms)  # type: ignore[arg-type]


def _check(graph: Graph, match: Match) -> Refusal | None:
    if _columns(graph, match) is None:
        return Refusal("permutation", f"{match.layers[0].name} moves rows, or sizes that are not known")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    shuffle, layer = match.layers
    found = _columns(graph, match)
    assert found is not None
    sizes, order = found
    value = graph.constants[layer.inputs[1]]
    rows = value.T if layer.op.transpose_b else value
    given = rows.reshape(*(sizes[atom] for atom in order), rows.shape[1])
    back = [order.index(atom) for atom in range(len(order))]
    moved = given.transpose(*back, len(order)).reshape(rows.shape)
    weights = graph.fresh(f"{layer.inputs[1]}.permuted")
    flat = graph.fresh(f"{shuffle.outputs[0]}.flat")
    shape = graph.type(shuffle.outputs[0]).shape
    fusions = tuple(name for name in shuffle.fusions if name != "reformat")
    view = Layer(shuffle.name, Shuffle(reshape=shape), shuffle.inputs, (flat,), shuffle.origins, fusions)
    inputs = (flat, weights, *layer.inputs[2:])
    product = Layer(layer.name, layer.op, inputs, layer.outputs, layer.origins, (*layer.fusions, RULE.name))
    constants = {weights: np.ascontiguousarray(moved.T if layer.op.transpose_b else moved)}
    if shape == graph.type(shuffle.inputs[0]).shape:
        inputs = (shuffle.inputs[0], *inputs[1:])
        return Replacement((Layer("", layer.op, inputs, layer.outputs),), constants)
    return Replacement((view, product), constants)


RULE = Rule("shuffle-weights", __doc__.splitlines()[0], (MatrixMultiply,), _match, _rewrite, _check)
