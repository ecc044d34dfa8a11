"""Layers that need no work: their output holds bytes of their inputs in the same order, so both can be one piece of memory.

A Shuffle that moves nothing is its input under another shape; a Slice of whole rows is a part of its input; the inputs of a Concatenation
along the outermost axis (of those longer than 1) are parts of its output: producers write, and readers read, in place. Such a view
has no tactic: the builder records :data:`VIEW` for it, and the context gives its tensors addresses within one piece of memory. Where that
is impossible (both ends belong to the caller), the view copies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fusion.bind import bind_type
from fusion.dims import Dim, Shape, divisor, product
from fusion.network import Layer, Network, Op, TensorType, typical_sizes
from fusion.ops import Concatenation, Shuffle, Slice
from fusion.rewrite import Miss
from runtime.segments import segments_of
from tactics.tactic import tensor_bytes

VIEW = "view"  # LayerPlan.tactic of such a layer
ALIGNMENT = 16  # bytes: what kernels may assume of any tensor's address (the caller's tensors have no more either)


@dataclass(frozen=True)
class Piece:
    """Input ``input`` and the output share memory: ``source`` elements into the one is ``target`` elements into the other."""

    input: int = 0
    source: Dim = 0
    target: Dim = 0


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: ``offset`` elements into the memory of tensor ``root``."""

    root: str
    offset: Dim = 0


@dataclass(frozen=True)
class Sharing:
    """Which tensors are one piece of memory, for every size of symbolic dimensions.

    Attributes:
        places: of every tensor that a layer reads or writes, and of inputs and outputs. A root holds at most one tensor whose address is
            not ours to choose (network input, network output, constant), and that one is the root.
        copies: per view layer, the pieces that must be copied; where there are none the layer vanishes.
        refusals: per layer that moves bytes although it changes no element: the rule, the condition that failed, and the values found.
    """

    places: Mapping[str, Place]
    copies: Mapping[str, tuple[Piece, ...]]
    refusals: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)

    @property
    def views(self) -> frozenset[str]:
        """Names of the layers that have no tactic."""
        return frozenset(self.copies)

    @property
    def elided(self) -> frozenset[str]:
        """Names of those that need no step at all."""
        return frozenset(name for name, pieces in self.copies.items() if not pieces)


def view_pieces(op: Op, inputs: Sequence[TensorType], output: TensorType) -> tuple[Piece, ...] | None:
    """How the output is made of whole pieces of the inputs' memory, or None when elements change their order."""
    shape = inputs[0].shape if inputs else ()
    if isinstance(op, Shuffle):
        return (Piece(),) if _moves_nothing(op, shape) else None
    if isinstance(op, Slice):
        offset = _slice_offset(op, shape)
        return None if offset is None else (Piece(source=offset),)
    if isinstance(op, Concatenation):
        if any(dim != 1 for dim in output.shape[: op.axis]):
            return None
        pieces = []
        offset = 0
        for number, tensor in enumerate(inputs):
            pieces.append(Piece(number, target=offset))
            offset = offset + product(tensor.shape)
        return tuple(pieces)
    return None


def _moves_nothing(op: Shuffle, shape: Shape) -> bool:
    """Whether the transposes move only axes of length 1 (they change no element's place)."""
    if op.first is not None:
        if not _keeps_order(op.first, shape):
            return False
        shape = tuple(shape[axis] for axis in op.first)
    if op.reshape is not None:
        shape = op.reshape
    return op.second is None or _keeps_order(op.second, shape)


def _keeps_order(permutation: Sequence[int], shape: Shape) -> bool:
    moved = [axis for axis in permutation if shape[axis] != 1]
    return moved == sorted(moved)


def _slice_offset(op: Slice, shape: Shape) -> Dim | None:
    """Elements before a slice that is one run of memory (single indices, then one range, then whole axes), or None."""
    whole = [dim == 1 or (start, size, step) == (0, dim, 1) for start, size, step, dim in zip(op.starts, op.sizes, op.steps, shape, strict=True)]
    cut = max((axis for axis, all_of_it in enumerate(whole) if not all_of_it), default=0)
    if any(size != 1 for size in op.sizes[:cut]) or (op.sizes and op.sizes[cut] != 1 and op.steps[cut] != 1):
        return None
    offset: Dim = 0
    for axis, start in enumerate(op.starts[: cut + 1]):
        offset = start * product(shape[axis + 1 :]) + offset
    return offset


def share_memory(network: Network, host: Collection[int] = ()) -> Sharing:
    """Finds the views of ``network`` and places their tensors.

    ``host`` are layers (numbers) that the host computes: like control flow they say themselves where their outputs lie. Where the host
    steps in, memory that a later segment of the network sizes cannot be written by an earlier one. A Concatenation of which more than
    one input would have to be copied is no view: one kernel does that at once.
    """
    produced = {name for layer in network.layers for name in layer.outputs}
    read = {name for layer in network.layers for name in layer.inputs}
    segments = segments_of(network, host)
    deciders = {name for one in segments if one.host for name in network.layers[one.layers[0]].outputs}
    home = {name: index for index, one in enumerate(segments) for number in one.layers for name in network.layers[number].outputs}
    memory = _Memory(network, {*network.inputs, *network.outputs, *(read - produced), *deciders}, home)
    copies: dict[str, tuple[Piece, ...]] = {}
    refusals: dict[str, tuple[str, str, str]] = {}
    for layer in network.layers:
        types = [network.tensors[name] for name in layer.inputs]
        pieces = view_pieces(layer.op, types, network.tensors[layer.outputs[0]]) if layer.outputs else None
        if pieces is None:
            if isinstance(layer.op, Concatenation | Slice):
                refusals[layer.name] = (_RULES[type(layer.op)], "layout", _apart(layer, types, network.tensors[layer.outputs[0]]))
            continue
        before = dict(memory.parents) if len(pieces) > 1 else {}
        reasons = [memory.join(layer, piece) for piece in pieces]
        left = tuple(piece for piece, reason in zip(pieces, reasons, strict=True) if reason)
        if left and isinstance(layer.op, Concatenation | Slice):
            condition, detail = next(reason for reason in reasons if reason is not None)
            more = f", and {len(left) - 1} more" if len(left) > 1 else ""
            refusals[layer.name] = (_RULES[type(layer.op)], condition, detail + more)
        if len(left) > 1:
            memory.parents = before
            continue
        copies[layer.name] = left
    return Sharing({name: memory.find(name) for name in (*network.inputs, *network.outputs, *produced, *read)}, copies, refusals)


_RULES: Mapping[type[Op], str] = {Concatenation: "concatenation-view", Slice: "slice-view"}  # as reports call it


def _apart(layer: Layer, inputs: Sequence[TensorType], output: TensorType) -> str:
    """Why the bytes of a concatenation or slice are no runs of memory."""
    shape = "x".join(map(str, output.shape))
    if isinstance(layer.op, Concatenation):
        return f"along axis {layer.op.axis} of {shape} every input lies in several pieces; only the outermost axis longer than 1 is free"
    return f"the slice {shape} of {'x'.join(map(str, inputs[0].shape))} lies in several pieces of memory"


class _Memory:
    """A forest of tensors: each lies within its parent, at an offset."""

    def __init__(self, network: Network, fixed: set[str], home: Mapping[str, int]) -> None:
        self.types = network.tensors
        self.fixed = fixed
        self.home = home
        self.parents: dict[str, Place] = {}

    def find(self, name: str) -> Place:
        offset: Dim = 0
        while name in self.parents:
            place = self.parents[name]
            name, offset = place.root, place.offset + offset
        return Place(name, offset)

    def join(self, layer: Layer, piece: Piece) -> tuple[str, str] | None:
        """Puts the input and the output of ``layer`` in one piece of memory; the condition and the values found when that cannot be done."""
        source, target = layer.inputs[piece.input], layer.outputs[0]
        if isinstance(layer.op, Concatenation):
            return self._put(source, target, piece.target)
        reason = self._put(target, source, piece.source)
        return self._put(source, target, 0) if reason and isinstance(layer.op, Shuffle) else reason

    def _put(self, inner: str, outer: str, offset: Dim) -> tuple[str, str] | None:
        """Places ``inner``, with all that lies in its memory, ``offset`` elements into ``outer``."""
        a, b = self.find(inner), self.find(outer)
        offset = b.offset + offset
        covers = a.offset == 0 and product(self.types[a.root].shape) == product(self.types[inner].shape)
        aligned = divisor(offset) * self.types[outer].dtype.itemsize % ALIGNMENT == 0
        late = self.home.get(b.root, -1) > self.home.get(a.root, -1)
        if a.root in self.fixed:
            return "caller's memory", f"{inner} lies in {a.root}, which is a network input, a network output or a constant"
        if a.root == b.root or not covers:
            return "two places", f"{inner} lies in {a.root} already"
        if not aligned:
            return "alignment", f"{inner} would lie {offset} elements into {b.root}, no multiple of {ALIGNMENT} bytes"
        if late:
            return "host", f"{b.root} gets its memory when the host knows its size, after {inner} is written"
        self.parents[a.root] = Place(b.root, offset)
        return None


def view_layers(network: Network, host: Collection[int] = ()) -> frozenset[str]:
    """Names of the layers that are views; ``host`` as for :func:`share_memory`."""
    return share_memory(network, host).views


def missed_views(network: Network) -> dict[str, Miss]:
    """Per concatenation and slice that moves bytes, why it is no view."""
    refusals = share_memory(network).refusals
    producers = network.producers()
    found = {}
    for layer in network.layers:
        if layer.name in refusals:
            makers = dict.fromkeys(producers[name].name for name in layer.inputs if name in producers)
            rule, condition, detail = refusals[layer.name]
            found[layer.name] = Miss(rule, (*makers, layer.name), condition, detail, layer.outputs)
    return found


def intermediate_bytes(network: Network, sizes: Mapping[str, int]) -> int:
    """Bytes of all tensors between layers at the named ``sizes``: what is written, and neither a view nor a network output."""
    sharing, sizes = share_memory(network), typical_sizes(network, sizes)
    written = {sharing.places[name].root for layer in network.layers for name in layer.outputs}
    between = written - {*network.inputs, *network.outputs}
    return sum(tensor_bytes(bind_type(network.tensors[name], sizes)) for name in between)
