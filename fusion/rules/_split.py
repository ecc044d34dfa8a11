"""What the rules that split products share: which channels of a result a reader takes, and the product of these alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fusion.dims import Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Convolution, Gather, MatrixMultiply, Shuffle, Slice
from fusion.rewrite import Match, Refusal, Replacement
from fusion.rules._shuffles import Factored, Movement, emit, factored, minimal


@dataclass(frozen=True)
class Selection:
    """``count`` elements from ``start`` along ``axis``; with ``squeeze`` the axis is dropped."""

    axis: int
    start: int
    count: int
    squeeze: bool


@dataclass(frozen=True)
class Channels:
    """Channels of the product, in their order, and what is done with them then."""

    indices: np.ndarray
    move: Movement

    @property
    def are_a_run(self) -> bool:
        """Whether they follow each other."""
        return int(self.indices[-1]) - int(self.indices[0]) + 1 == len(self.indices)

    @property
    def label(self) -> str:
        """``first:last`` of a run, else the first ones."""
        first, last = int(self.indices[0]), int(self.indices[-1])
        return f"{first}:{last + 1}" if self.are_a_run else f"{first}, ... {last}"


@dataclass(frozen=True)
class Source:
    """Where a reader's channels come from: the product, the axis of its result that they are along, and the shuffle between (None: there is none)."""

    product: Layer
    axis: int
    shuffle: Layer | None

    def factors(self, graph: Graph) -> Factored | None:
        """The shuffle by factors of the product's axes."""
        return factored(graph.type(self.product.outputs[0]).shape, self.shuffle.op if self.shuffle is not None else Shuffle())  # type: ignore[arg-type]


def selection_of(graph: Graph, layer: Layer) -> Selection | None:
    """What ``layer`` takes of its input, where that is a run along one axis, of one element or more, and known at build."""
    op = layer.op
    shape = graph.type(layer.inputs[0]).shape
    if isinstance(op, Gather):
        index = graph.constant(layer.inputs[1])
        size = shape[op.axis]
        if index is None or index.ndim != 0 or not isinstance(size, int):
            return None
        return Selection(op.axis, int(index) % size, 1, True)
    if isinstance(op, Slice):
        cut = [axis for axis, dim in enumerate(shape) if op.sizes[axis] != dim]
        if len(cut) != 1 or op.steps[cut[0]] != 1:
            return None
        start, count = op.starts[cut[0]], op.sizes[cut[0]]
        if isinstance(start, int) and isinstance(count, int) and count:
            return Selection(cut[0], start, count, False)
    return None


def shuffle_before(graph: Graph, layer: Layer) -> tuple[Layer | None, Layer | None]:
    """The shuffle that ``layer`` reads (None: it reads no shuffle), and the layer before that."""
    shuffle = graph.producer(layer.inputs[0])
    if shuffle is None or not isinstance(shuffle.op, Shuffle):
        return None, shuffle
    return shuffle, graph.producer(shuffle.inputs[0])


def part_of(graph: Graph, layer: Layer, kind: type[Convolution | MatrixMultiply]) -> Match | None:
    """``layer`` as one of the readers that take parts of the result of a ``kind`` with constant weights: a match with ``source`` and ``taken``."""
    taken = selection_of(graph, layer)
    if taken is None:
        return None
    shuffle, product = shuffle_before(graph, layer)
    if product is None or not isinstance(product.op, kind) or graph.constant(product.inputs[1]) is None:
        return None
    planes = isinstance(product.op, Convolution) and not product.op.channels_last
    source = Source(product, 1 if planes else len(graph.type(product.outputs[0]).shape) - 1, shuffle)
    return Match((layer,), found={"source": source, "taken": taken})


def refuse_readers(graph: Graph, layer: Layer, source: Source, taken: Selection) -> Refusal | None:
    """Why the product must be made as a whole, or None: something other than such selections reads it."""
    product, shuffle = source.product, source.shuffle
    for tensor in (product.outputs[0], *((shuffle.outputs[0],) if shuffle is not None else ())):
        if tensor in graph.outputs:
            return Refusal("network output", f"{tensor} is a network output")
    if shuffle is not None and graph.only_reader(product.outputs[0]) is None:
        return Refusal("shared", f"{product.outputs[0]} has readers besides {shuffle.name}")
    for reader in graph.readers(layer.inputs[0]):
        other = selection_of(graph, reader)
        if other is None or other.axis != taken.axis:
            return Refusal("shared", f"{layer.inputs[0]} is read as a whole by {reader.name}")
    return None


def refuse_operands(graph: Graph, source: Source, operands: tuple[str, ...]) -> Refusal | None:
    """Why ``operands`` of the product's epilogue cannot be those of some channels, or None: only constants are cut at build."""
    rank = len(graph.type(source.product.outputs[0]).shape)
    for name in operands:
        shape = graph.type(name).shape
        along = shape[source.axis - rank] if len(shape) >= rank - source.axis else 1
        if along != 1 and (graph.constant(name) is None or len(shape) > rank):
            return Refusal("operands", f"{name} of {source.product.name} would have to be sliced at run time")
    return None


def channels_of(graph: Graph, source: Source, taken: Selection) -> Channels | None:
    """The channels that ``taken`` means, where the axis that it cuts is a factor of the channels alone."""
    found = source.factors(graph)
    count = graph.type(source.product.outputs[0]).shape[source.axis]
    if found is None or not isinstance(count, int):
        return None
    atoms = found.target[taken.axis]
    inner = found.source[source.axis]
    # So that the weights can be selected instead.
    if len(atoms) != 1 or atoms[0] not in inner:
        return None
    sizes = [found.move.sizes[atom] for atom in inner]
    if not all(isinstance(size, int) for size in sizes):
        return None
    grid = np.arange(count).reshape(sizes)  # type: ignore[arg-type]
    chosen = grid.take(range(taken.start, taken.start + taken.count), axis=inner.index(atoms[0]))
    left = tuple(taken.count if atom == atoms[0] else size for atom, size in enumerate(found.move.sizes))
    kept = [atom for atom, size in enumerate(left) if size != 1]
    order = tuple(kept.index(atom) for atom in found.move.order if atom in kept)
    return Channels(chosen.reshape(-1), minimal(Movement(tuple(left[atom] for atom in kept), order)))


def split(graph: Graph, layer: Layer, source: Source, taken: Channels, weights_axis: int, rule: str) -> Replacement:
    """``layer``, a reader, as a product of its own. ``weights_axis`` (from behind) has the channels in the second input of the product."""
    product, shuffle = source.product, source.shuffle
    constants: dict[str, np.ndarray] = {}

    def cut(name: str, axis: int) -> str:
        value = graph.constants[name]
        if value.ndim < -axis or value.shape[axis] == 1:
            return name
        index: list[slice | np.ndarray] = [slice(None)] * value.ndim
        index[axis] = taken.indices
        new = graph.fresh(f"{name}[{taken.label}]")
        constants[new] = np.ascontiguousarray(value[tuple(index)])
        return new

    whole = graph.type(product.outputs[0]).shape
    behind = source.axis - len(whole)
    weights = cut(product.inputs[1], weights_axis)
    extras = [cut(name, behind) if graph.constant(name) is not None else name for name in product.inputs[2:]]
    narrow: Shape = tuple(len(taken.indices) if axis == source.axis else size for axis, size in enumerate(whole))
    moves = emit(taken.move, narrow, graph.type(layer.outputs[0]).shape)
    origins = tuple(
        dict.fromkeys((*product.origins, *(shuffle.origins if shuffle is not None else ()), *layer.origins))
    )
    fusions = tuple(dict.fromkeys((*product.fusions, rule)))
    result = graph.fresh(f"{layer.outputs[0]}.columns") if moves else layer.outputs[0]
    name = f"{product.name} [{taken.label}]"
    layers = [Layer(name, product.op, (product.inputs[0], weights, *extras), (result,), origins, fusions)]
    for index, op in enumerate(moves):
        target_name = layer.outputs[0] if index == len(moves) - 1 else graph.fresh(f"{layer.outputs[0]}.moved")
        step = replace(layer, op=op, inputs=(result,), outputs=(target_name,))
        layers.append(step if index == 0 else replace(step, name=f"{layer.name} reshape"))
        result = target_name
    return Replacement(tuple(layers), constants)
