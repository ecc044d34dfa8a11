"""Layers that need no work: their output holds elements of their inputs, and both can be one piece of memory.

Two kinds of place make that possible. A part may be a *run of bytes*: a Shuffle that moves nothing is its input under another shape; a
Slice of whole rows is a part of its input; the inputs of a Concatenation along the outermost axis (of those longer than 1) are parts of its
output. Or it may be *columns* of a wider tensor: the inputs of a Concatenation along the last axis (the channels of a channels-last image), a
Slice of it. Rows of such a part stand ``pitch`` elements apart, and whoever writes or reads it must know: the part is given its place only
when every layer that touches it has a tactic for that (``Ask``, :func:`tactics.tactic.refusal`).

Producers write, and readers read, in place. Such a view has no tactic: the builder records :data:`VIEW` for it, and the context gives its
tensors addresses within one piece of memory. Where a run of bytes cannot be shared (both ends belong to the caller), the view copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from fusion.bind import bind_type
from fusion.dims import Dim, Shape, divisor, product
from fusion.network import Layer, Network, Op, TensorType, typical_sizes
from fusion.ops import Concatenation, Shuffle, Slice
from fusion.rewrite import VIEW_RULES, Miss, disabled_by
from runtime.segments import segments_of
from tactics.tactic import tensor_bytes

VIEW = "view"  # LayerPlan.tactic of such a layer
ALIGNMENT = 16  # bytes: what kernels may assume of any tensor's address (the caller's tensors have no more either)


# (number of a layer, pitch of each of its tensors that is columns of another) -> why it cannot run so, or nothing
Ask: TypeAlias = "Callable[[int, Mapping[str, int]], str]"


@dataclass(frozen=True)
class Piece:
    """Input ``input`` and the output share memory: ``source`` elements into the one is ``target`` elements into the other.

    ``columns``: the smaller of the two is some columns of the larger one; the offset counts columns.
    """

    input: int = 0
    source: Dim = 0
    target: Dim = 0
    columns: bool = False


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: ``offset`` elements into the memory of tensor ``root``; with a ``pitch``, in rows of ``width`` elements (its
    last axis) that begin ``pitch`` elements apart."""

    root: str
    offset: Dim = 0
    pitch: int = 0
    width: int = 0


@dataclass(frozen=True)
class Sharing:
    """Which tensors are one piece of memory, for every size of symbolic dimensions.

    Attributes:
        places: of every tensor that a layer reads or writes, and of inputs and outputs. A root holds at most one tensor whose address is
            not ours to choose (network input, network output, constant), and that one is the root.
        copies: per view layer, the pieces that must be copied; where there are none the layer vanishes.
        refusals: per layer that moves bytes although it changes no element: the rule, the condition that failed, and the values found.
        apart: per concatenation that is no view, the inputs (numbers) that would have to be copied, where copies of them could lie in place.
    """

    places: Mapping[str, Place]
    copies: Mapping[str, tuple[Piece, ...]]
    refusals: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    apart: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def pitches(self) -> dict[str, int]:
        """The pitch of every tensor that is columns of another."""
        return {name: place.pitch for name, place in self.places.items() if place.pitch}

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
        if offset is not None:
            return (Piece(source=offset),)
        return (Piece(source=op.starts[-1], columns=True),) if _cuts_columns(op, shape) else None
    if isinstance(op, Concatenation):
        columns = any(dim != 1 for dim in output.shape[: op.axis])
        if columns and op.axis != len(output.shape) - 1:
            return None
        pieces = []
        offset = 0
        for number, tensor in enumerate(inputs):
            pieces.append(Piece(number, target=offset, columns=columns))
            offset = offset + (tensor.shape[-1] if columns else product(tensor.shape))
        return tuple(pieces)
    return None


def _cuts_columns(op: Slice, shape: Shape) -> bool:
    """Whether the slice takes neighbours along the last axis and everything along the others."""
    whole = all((start, size, step) == (0, dim, 1) for start, size, step, dim in zip(op.starts[:-1], op.sizes, op.steps, shape[:-1], strict=False))
    return whole and op.steps[-1] == 1


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


def share_memory(
    network: Network,
    host: Collection[int] = (),
    *,
    ask: Ask | None = None,
    disabled: Collection[str] = (),
    views: Collection[str] | None = None,
) -> Sharing:
    """Finds the views of ``network`` and places their tensors.

    ``host`` are layers (numbers) that the host computes: like control flow they say themselves where their outputs lie. Where the host
    steps in, memory that a later segment of the network sizes cannot be written by an earlier one. A Concatenation of which more than
    one input would have to be copied is no view: one kernel does that at once.

    ``ask`` tells which layers can work with columns of a wider tensor; without it none can. ``disabled`` are rules that must not run, as in
    ``FusionOptions``. When a network was built, ``views`` are the layers that
    became views: then nothing is asked, and the answer is the one of the build.
    """
    produced = {name for layer in network.layers for name in layer.outputs}
    read = {name for layer in network.layers for name in layer.inputs}
    segments = segments_of(network, host)
    deciders = {name for one in segments if one.host for name in network.layers[one.layers[0]].outputs}
    home = {name: index for index, one in enumerate(segments) for number in one.layers for name in network.layers[number].outputs}
    fixed = {*network.inputs, *network.outputs, *(read - produced), *deciders}
    read_by_host = {reading.tensor for reading in network.sizes.values()}
    memory = _Memory(network, fixed, read_by_host, home, _anything if views is not None else ask)
    switched_off = frozenset(disabled)
    refusals: dict[str, tuple[str, str, str]] = {}
    apart: dict[str, tuple[int, ...]] = {}
    for number, layer in enumerate(network.layers):
        if views is not None and layer.name not in views:
            continue
        types = [network.tensors[name] for name in layer.inputs]
        pieces = view_pieces(layer.op, types, network.tensors[layer.outputs[0]]) if layer.outputs else None
        told: tuple[str, str] | None = None
        if pieces is None:
            told = ("layout", _apart(layer, types, network.tensors[layer.outputs[0]])) if isinstance(layer.op, Concatenation | Slice) else None
        elif switch := disabled_by(_rule(layer), (layer,), switched_off):
            refusals[layer.name] = (_rule(layer), "disabled", f"switched off by --disableFusion={switch}")
        else:
            told, kept = _become_view(memory, number, layer, pieces)
            if kept:
                apart[layer.name] = kept
        if told is not None and isinstance(layer.op, Concatenation | Slice):
            refusals[layer.name] = (_rule(layer), *told)
    return Sharing({name: memory.find(name) for name in (*network.inputs, *network.outputs, *produced, *read)}, memory.copies, refusals, apart)


def _become_view(memory: _Memory, number: int, layer: Layer, pieces: Sequence[Piece]) -> tuple[tuple[str, str] | None, tuple[int, ...]]:
    """Makes a layer a view if that can be, of which some pieces may have to be copied; why not (of all of it or of a piece), and where it stays a
    kernel, the inputs that alone keep it one: a copy would do for them."""
    before = memory.state() if len(pieces) > 1 else None  # one piece that does not fit changes nothing
    reasons = [memory.join(number, piece) for piece in pieces]
    found = [reason for reason in reasons if reason is not None]
    left = tuple(piece for piece, reason in zip(pieces, reasons, strict=True) if reason)
    more = f", and {len(left) - 1} more" if len(left) > 1 else ""
    told = (found[0][0], found[0][1] + more) if found else None
    # What lies in columns is not copied as bytes, and what a tactic refused another may do: such a layer runs as a kernel.
    wide = any(piece.columns for piece in pieces) or any(memory.find(name).pitch for name in (*layer.inputs, *layer.outputs))
    if len(left) > 1 or (left and (wide or any(condition in _TACTICS for condition, _ in found))):
        if before is not None:
            memory.reset(before)
        copied = isinstance(layer.op, Concatenation) and wide and all(condition in _BY_COPY for condition, _ in found)
        return told, tuple(piece.input for piece in left) if copied else ()
    memory.copies[layer.name] = left
    return told, ()


def _anything(number: int, pitches: Mapping[str, int]) -> str:
    return ""


_RULES: Mapping[type[Op], str] = dict(zip((Concatenation, Slice, Shuffle), VIEW_RULES, strict=True))
_TACTICS = ("kernel", "rows")  # conditions that depend on who writes and reads
_BY_COPY = ("caller's memory", "two places", "read", *_TACTICS)  # those that a copy of the part would not fail


def _rule(layer: Layer) -> str:
    return _RULES[type(layer.op)]


def _apart(layer: Layer, inputs: Sequence[TensorType], output: TensorType) -> str:
    """Why the bytes of a concatenation or slice are no runs of memory."""
    shape = "x".join(map(str, output.shape))
    if isinstance(layer.op, Concatenation):
        return f"along axis {layer.op.axis} of {shape} every input lies in several pieces; only the outermost axis longer than 1 and the last one are free"
    return f"the slice {shape} of {'x'.join(map(str, inputs[0].shape))} lies in several pieces of memory"


class _Memory:
    """A forest of tensors: each lies within its parent, as a run of elements or as columns."""

    def __init__(self, network: Network, fixed: set[str], read_by_host: set[str], home: Mapping[str, int], ask: Ask | None) -> None:
        self.network = network
        self.types = network.tensors
        self.fixed = fixed
        self.read_by_host = read_by_host
        self.home = home
        self.ask = ask
        self.parents: dict[str, Place] = {}
        self.members: dict[str, tuple[str, ...]] = {}  # of a root: all tensors in its memory, where there are several
        self.copies: dict[str, tuple[Piece, ...]] = {}  # of the layers that are views so far
        self.touched: dict[str, list[int]] = {}
        for number, layer in enumerate(network.layers):
            for name in dict.fromkeys((*layer.inputs, *layer.outputs)):
                self.touched.setdefault(name, []).append(number)

    def state(self) -> tuple[dict[str, Place], dict[str, tuple[str, ...]]]:
        """What :meth:`reset` takes back to."""
        return dict(self.parents), dict(self.members)

    def reset(self, state: tuple[dict[str, Place], dict[str, tuple[str, ...]]]) -> None:
        """Forget what was joined since."""
        self.parents, self.members = state

    def find(self, name: str) -> Place:
        """Where ``name`` lies."""
        place = self._find(name)
        assert place is not None, f"{name} has no place"
        return place

    def _find(self, name: str) -> Place | None:
        place: Place | None = Place(name)
        last = self.types[name].shape[-1:]
        while place is not None and place.root in self.parents:
            place = _compose(place, last, self.parents[place.root])
        return place

    def join(self, number: int, piece: Piece) -> tuple[str, str] | None:
        """Puts the input and the output of layer ``number`` in one piece of memory; the condition and the values found when that cannot be."""
        layer = self.network.layers[number]
        source, target = layer.inputs[piece.input], layer.outputs[0]
        if isinstance(layer.op, Concatenation):
            return self._put(number, source, target, piece.target, piece.columns)
        reason = self._put(number, target, source, piece.source, piece.columns)
        return self._put(number, source, target, 0, False) if reason and isinstance(layer.op, Shuffle) else reason

    def _put(self, number: int, inner: str, outer: str, offset: Dim, columns: bool) -> tuple[str, str] | None:
        """Places ``inner``, with all that lies in its memory, ``offset`` elements into ``outer``."""
        a, b = self.find(inner), self.find(outer)
        shape, whole = self.types[inner].shape, self.types[outer].shape
        within = Place(outer, offset)
        if columns:
            if not (isinstance(offset, int) and isinstance(shape[-1], int) and isinstance(whole[-1], int)):
                return "dynamic", f"how many channels {outer} or its parts have is known at run time only"
            if not shape[-1]:
                return "empty", f"{inner} has no elements: there is nothing to share"
            within = Place(outer, offset, whole[-1], shape[-1])
        place = _compose(within, shape[-1:], b)
        covers = a.offset == 0 and not a.pitch and product(self.types[a.root].shape) == product(shape)
        late = self.home.get(b.root, -1) > self.home.get(a.root, -1)
        if a.root in self.fixed:
            return "caller's memory", f"{inner} lies in {a.root}, which is a network input, a network output or a constant"
        if a.root == b.root or not covers:
            return "two places", f"{inner} lies in {a.root} already"
        if place is None:
            return "rows", f"{inner} is no run of whole rows of {b.root}, where {outer} lies in columns"
        itemsize = self.types[outer].dtype.itemsize
        if divisor(place.offset) * itemsize % ALIGNMENT or place.pitch * itemsize % ALIGNMENT:
            if not place.pitch:
                return "alignment", f"{inner} would lie {place.offset} elements into {b.root}, no multiple of {ALIGNMENT} bytes"
            return "alignment", f"{inner} would be columns from {offset} on of rows of {place.pitch}; both must be multiples of {ALIGNMENT // itemsize}"
        if late:
            return "host", f"{b.root} gets its memory when the host knows its size, after {inner} is written"
        before = self.state() if place.pitch else None
        self.parents[a.root] = place
        moved = self.members.get(a.root, (a.root,))
        self.members[b.root] = (*self.members.get(b.root, (b.root,)), *moved)
        if before is None:
            return None
        reason = self._refused(number, moved)
        if reason:
            self.reset(before)
        return reason

    def _refused(self, number: int, moved: Sequence[str]) -> tuple[str, str] | None:
        """Why the tensors ``moved`` cannot lie as they would now; layer ``number`` becomes the view."""
        if self.ask is None:
            return "kernel", "which layers can write and read columns of a wider tensor is known for a device only"
        for name in moved:
            if self._find(name) is None:
                return "rows", f"{name}, in the same memory, is no run of whole rows"
            if name in self.read_by_host:
                return "read", f"{name} is read by the host"
        for other in dict.fromkeys(other for name in moved for other in self.touched.get(name, ())):
            layer = self.network.layers[other]
            if other == number or self.copies.get(layer.name) == ():
                continue
            pitches = {name: self.find(name).pitch for name in (*layer.inputs, *layer.outputs)}
            reason = f"{layer.name} copies bytes" if layer.name in self.copies else self.ask(other, {name: pitch for name, pitch in pitches.items() if pitch})
            if reason:
                return "kernel", reason
        return None


def _compose(inner: Place, last: Shape, outer: Place) -> Place | None:
    """A place within ``inner.root`` as one within ``outer.root``, where that lies in ``outer``; None when its elements would be no rows
    with one pitch. ``last`` is the last axis (or nothing) of the tensor that lies there."""
    if not outer.pitch:
        return Place(outer.root, outer.offset + inner.offset, inner.pitch, inner.width)
    if not isinstance(inner.offset, int):
        return None
    row, column = divmod(inner.offset, outer.width)
    if inner.pitch:
        fits = inner.pitch == outer.width and column + inner.width <= outer.width
        return Place(outer.root, outer.offset + row * outer.pitch + column, outer.pitch, inner.width) if fits else None
    return Place(outer.root, outer.offset + row * outer.pitch, outer.pitch, outer.width) if not column and last == (outer.width,) else None


def view_layers(network: Network, host: Collection[int] = ()) -> frozenset[str]:
    """Names of the layers that are views; ``host`` as for :func:`share_memory`."""
    return share_memory(network, host).views


def with_missed_views(
    misses: Mapping[str, Sequence[Miss]], network: Network, sharing: Sharing | None = None
) -> dict[str, tuple[Miss, ...]]:
    """``misses`` per layer, led by why a concatenation or slice that moves bytes is no view."""
    refusals = (sharing or share_memory(network)).refusals
    producers = network.producers()
    found = {name: tuple(one) for name, one in misses.items()}
    for layer in network.layers:
        if layer.name in refusals:
            makers = dict.fromkeys(producers[name].name for name in layer.inputs if name in producers)
            rule, condition, detail = refusals[layer.name]
            miss = Miss(rule, (*makers, layer.name), condition, detail, layer.outputs)
            found[layer.name] = (miss, *found.get(layer.name, ()))
    return found


def intermediate_bytes(network: Network, sizes: Mapping[str, int], sharing: Sharing | None = None) -> int:
    """Bytes of all tensors between layers at the named ``sizes``: what is written, and neither a view nor a network output."""
    sharing, sizes = sharing or share_memory(network), typical_sizes(network, sizes)
    written = {sharing.places[name].root for layer in network.layers for name in layer.outputs}
    between = written - {*network.inputs, *network.outputs}
    return sum(tensor_bytes(bind_type(network.tensors[name], sizes)) for name in between)
