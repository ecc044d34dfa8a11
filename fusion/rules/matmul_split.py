"""MatMul(x, w)[..., i] -> MatMul(x, w[..., i]): a product that is only read in column slices becomes one product per slice.

Packed projections (query, key and value in one weight) are read this way, often through a transpose. Splitting the
weights at build costs nothing; slicing the result would go through memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fusion.dims import Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Gather, MatrixMultiply, Shuffle, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import Movement, emit, factored, minimal


@dataclass(frozen=True)
class _Selection:
    """``count`` elements from ``start`` along ``axis``; with ``squeeze`` the axis is dropped."""

    axis: int
    start: int
    count: int
    squeeze: bool


def _selection(graph: Graph, layer: Layer) -> _Selection | None:
    op = layer.op
    shape = graph.type(layer.inputs[0]).shape
    if isinstance(op, Gather):
        index = graph.constant(layer.inputs[1])
        size = shape[op.axis]
        if index is None or index.ndim != 0 or not isinstance(size, int):
            return None
        return _Selection(op.axis, int(index) % size, 1, True)
    if isinstance(op, Slice):
        cut = [axis for axis, dim in enumerate(shape) if op.sizes[axis] != dim]
        if len(cut) != 1 or op.steps[cut[0]] != 1:
            return None
        start, count = op.starts[cut[0]], op.sizes[cut[0]]
        if isinstance(start, int) and isinstance(count, int):
            return _Selection(cut[0], start, count, False)
    return None


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` is one of the readers."""
    selection = _selection(graph, layer)
    if selection is None:
        return None
    shuffle = graph.producer(layer.inputs[0])
    source = shuffle
    if shuffle is not None and isinstance(shuffle.op, Shuffle):
        source = graph.producer(shuffle.inputs[0])
    else:
        shuffle = None
    if source is None or not isinstance(source.op, MatrixMultiply) or graph.constant(source.inputs[1]) is None:
        return None
    return Match((layer,), found={"shuffle": shuffle, "product": source, "selection": selection})


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    product, shuffle = match.found["product"], match.found["shuffle"]
    for tensor in (product.outputs[0], *((shuffle.outputs[0],) if shuffle is not None else ())):
        if tensor in graph.outputs:
            return Refusal("network output", f"{tensor} is a network output")
    if shuffle is not None and graph.only_reader(product.outputs[0]) is None:
        return Refusal("shared", f"{product.outputs[0]} has readers besides {shuffle.name}")
    for reader in graph.readers(layer.inputs[0]):
        other = _selection(graph, reader)
        if other is None or other.axis != match.found["selection"].axis:
            return Refusal("shared", f"{layer.inputs[0]} is read as a whole by {reader.name}")
    if _columns(graph, match) is None:
        return Refusal("axes", f"{layer.name} does not take columns of {product.name}")
    if _within_heads(graph, match):
        counts = {part.count for reader in graph.readers(layer.inputs[0]) if (part := _selection(graph, reader)) is not None}
        whole = graph.type(layer.inputs[0]).shape[match.found["selection"].axis]
        if len(counts) > 1 or 3 * max(counts) > whole:
            return Refusal("parts", f"{layer.inputs[0]} is cut within each head, in parts of {sorted(counts)} of {whole}; equal thirds (q, k, v) are split")
    rank = len(graph.type(product.outputs[0]).shape)
    for name in product.inputs[product.op.arity :]:
        shape = graph.type(name).shape
        if shape and shape[-1] != 1 and (graph.constant(name) is None or len(shape) > rank):
            return Refusal("operands", f"{name} of {product.name} would have to be sliced at run time")
    return None


@dataclass(frozen=True)
class _Columns:
    """Columns of the product, in their order, and what is done with them then."""

    indices: np.ndarray
    move: Movement

    @property
    def label(self) -> str:
        """``first:last`` of a run, else the first ones."""
        first, last = int(self.indices[0]), int(self.indices[-1])
        return f"{first}:{last + 1}" if last - first + 1 == len(self.indices) else f"{first}, ... {last}"


def _columns(graph: Graph, match: Match) -> _Columns | None:
    product, shuffle, selection = (match.found[key] for key in ("product", "shuffle", "selection"))
    shape = graph.type(product.outputs[0]).shape
    columns = shape[-1]
    found = factored(shape, shuffle.op if shuffle is not None else Shuffle())
    if found is None or not isinstance(columns, int):
        return None
    atoms = found.target[selection.axis]
    inner = found.source[-1]
    # The selected axis must be a factor of the columns alone, so that the weights can be selected instead.
    if len(atoms) != 1 or atoms[0] not in inner:
        return None
    sizes = [found.move.sizes[atom] for atom in inner]
    if not all(isinstance(size, int) for size in sizes):
        return None
    grid = np.arange(columns).reshape(sizes)  # type: ignore[arg-type]
    chosen = grid.take(range(selection.start, selection.start + selection.count), axis=inner.index(atoms[0]))
    left = tuple(selection.count if atom == atoms[0] else size for atom, size in enumerate(found.move.sizes))
    kept = [atom for atom, size in enumerate(left) if size != 1]
    order = tuple(kept.index(atom) for atom in found.move.order if atom in kept)
    return _Columns(chosen.reshape(-1), minimal(Movement(tuple(left[atom] for atom in kept), order)))


def _within_heads(graph: Graph, match: Match) -> bool:
    """Whether the parts alternate along the columns and are runs of them, as the halves of every head are in a rotary embedding."""
    product, shuffle, selection = (match.found[key] for key in ("product", "shuffle", "selection"))
    found = factored(graph.type(product.outputs[0]).shape, shuffle.op if shuffle is not None else Shuffle())
    inner = found.source[-1] if found is not None else ()
    return len(inner) > 1 and found is not None and found.target[selection.axis] == (inner[-1],)


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    (layer,) = match.layers
    product, shuffle = match.found["product"], match.found["shuffle"]
    block = _columns(graph, match)
    assert block is not None
    constants: dict[str, np.ndarray] = {}

    def cut(name: str, axis: int) -> str:
        value = graph.constants[name]
        if value.ndim < -axis or value.shape[axis] == 1:
            return name
        index: list[slice | np.ndarray] = [slice(None)] * value.ndim
        index[axis] = block.indices
        new = graph.fresh(f"{name}[{block.label}]")
        constants[new] = np.ascontiguousarray(value[tuple(index)])
        return new

    weights = cut(product.inputs[1], -2 if product.op.transpose_b else -1)
    extras = [cut(name, -1) if graph.constant(name) is not None else name for name in product.inputs[2:]]
    narrow: Shape = (*graph.type(product.outputs[0]).shape[:-1], len(block.indices))
    target = graph.type(layer.outputs[0]).shape
    moves = emit(block.move, narrow, target)
    origins = tuple(
        dict.fromkeys((*product.origins, *(shuffle.origins if shuffle is not None else ()), *layer.origins))
    )
    fusions = tuple(dict.fromkeys((*product.fusions, RULE.name)))
    result = graph.fresh(f"{layer.outputs[0]}.columns") if moves else layer.outputs[0]
    name = f"{product.name} [{block.label}]"
    layers = [Layer(name, product.op, (product.inputs[0], weights, *extras), (result,), origins, fusions)]
    for index, op in enumerate(moves):
        target_name = layer.outputs[0] if index == len(moves) - 1 else graph.fresh(f"{layer.outputs[0]}.moved")
        step = replace(layer, op=op, inputs=(result,), outputs=(target_name,))
        layers.append(step if index == 0 else replace(step, name=f"{layer.name} reshape"))
        result = target_name
    return Replacement(tuple(layers), constants)


RULE = Rule("matmul-split", __doc__.splitlines()[0], (Gather, Slice), _match, _rewrite, _check)
