"""Runs a network segment by segment: enqueue, let the host read sizes or decide, resolve what follows, go on.

One mechanism for all that an inference only tells in its middle. A :class:`Runner` runs the network of an engine, and for each body of a
branch or loop there is one too. Resolved shapes and bound programs are kept per segment, so an inference that meets known sizes and
addresses again only enqueues.

Memory: all segments and bodies of an inference share one :class:`runtime.heap.Heap`. What a segment needs for itself is one block, planned as for
a whole network, and free again when the segment is enqueued; a tensor that crosses to another segment is a block of its own, until its last reader is enqueued.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from fusion.bind import bind_type
from fusion.dims import bind, symbols
from fusion.network import ControlFlow, Network, TensorType, check_holds
from fusion.reference import decided_sizes
from runtime.control import Call, HostLayer, host_layer
from runtime.device import Graph, Stream, Tensor
from runtime.engine import EngineError, sizes_of
from runtime.enqueue import Action, bind_step, locate, schedule
from runtime.heap import Heap
from runtime.loaded import LoadedEngine
from runtime.resolution import Resolution, resolve_segment
from runtime.segments import Segment, segments_of
from runtime.views import Place
from runtime.watch import Watch
from tactics.tactic import tensor_bytes

_KEPT = 32  # resolutions, and bindings, per segment

Put: TypeAlias = "Callable[[str, TensorType], int]"  # (output, its type) -> where it shall lie
Streams: TypeAlias = Sequence[Stream]  # the main one, then the auxiliary ones
Launch: TypeAlias = "Callable[[Bound, Streams, Callable[[Streams], None]], None]"


@dataclass(frozen=True)
class Run:
    """What all networks of one inference share.

    Attributes:
        streams: the main one, then the auxiliary ones.
        heap: where everything lies whose place nobody else chooses.
        launch: puts a bound segment on the streams by the function that it gets, or by the graph that it made of that.
        watch: sees every layer; segments are then enqueued layer by layer.
    """

    streams: Streams
    heap: Heap
    launch: Launch | None = None
    watch: Watch | None = None

    @property
    def stream(self) -> Stream:
        """The main stream."""
        return self.streams[0]

    def inside(self, layer: int, body: int, iteration: int = 0) -> Run:
        """The same for a body of control-flow ``layer``."""
        return self if self.watch is None else replace(self, watch=self.watch.inside(layer, body, iteration))


@dataclass
class Bound:
    """A segment bound to shapes and addresses. ``graph`` and ``runs`` belong to whoever captures it."""

    actions: list[Action]
    located: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)  # all that its layers write
    graph: Graph | None = None
    runs: int = 0

    def enqueue(self, streams: Streams) -> None:
        """Put its programs on ``streams``."""
        for action, number, _ in self.actions:
            action(streams[number])

    def enqueue_watched(self, watch: Watch, known: Mapping[str, Tensor], streams: Streams) -> None:
        """The same, shown to ``watch`` layer by layer."""
        for action, number, layer in self.actions:
            if layer >= 0:
                watch.before(layer, streams[number])
            action(streams[number])
            if layer >= 0:
                watch.after(layer, streams[number], lambda name: self.tensors.get(name) or known.get(name))


class Runner:
    """Runs the network of a loaded engine, one inference at a time."""

    def __init__(self, loaded: LoadedEngine, profile: int = 0) -> None:
        self._loaded, self._device = loaded, loaded.device
        self._network: Network = loaded.engine.network
        self._outline = loaded.outlines[profile]
        self.segments: tuple[Segment, ...] = self._outline.segments or segments_of(self._network)
        self._resolutions: list[OrderedDict[tuple[int, ...], Resolution]] = [OrderedDict() for _ in self.segments]
        self._bindings: list[OrderedDict[tuple[object, ...], Bound]] = [OrderedDict() for _ in self.segments]
        self._hosts: dict[int, HostLayer] = {
            index: host_layer(loaded, segment.layers[0], profile, Runner)
            for index, segment in enumerate(self.segments)
            if segment.host
        }
        self._made = [self._made_by(segment) for segment in self.segments]
        self._given = [
            tuple(dict.fromkeys(root for root in map(self._root, segment.outside) if root not in made))
            for segment, made in zip(self.segments, self._made, strict=True)
        ]
        self._placed = [  # roots that a segment makes and others read, and outputs: each has a place of its own
            tuple(dict.fromkeys(root for root in map(self._root, segment.outside) if root in made))
            for segment, made in zip(self.segments, self._made, strict=True)
        ]
        self._ends = self._last_uses()

    @property
    def memory_size(self) -> int:
        """Bytes of device memory beside the heap, in bodies and host layers."""
        return sum(host.memory_size for host in self._hosts.values())

    def run(self, inputs: Mapping[str, Tensor], put: Put, how: Run, outer: Mapping[str, int] | None = None) -> dict[str, Tensor]:
        """One inference; returns the outputs where they lie, with the shapes that they came out with.

        ``put`` says where an output shall lie, once its shape is known; ``outer`` are the sizes of the network around.

        Raises:
            ValueError, EngineError: shapes do not fit.
            DeviceError: the device fails.
        """
        formats = self._network.formats
        kinds = {name: tensor.type.shape for name, tensor in inputs.items()}  # concrete: numbers only
        shapes = {name: formats[name].known_as(shape) if name in formats else shape for name, shape in kinds.items()}
        sizes = {**(outer or {}), **sizes_of(self._network, shapes)}  # type: ignore[arg-type]
        check_holds(self._network, sizes)
        tensors = dict(inputs)
        held: dict[str, int] = {}  # roots on the heap that are still to be read
        for index, segment in enumerate(self.segments):
            if segment.reads:
                self._read(segment, tensors, sizes, how.stream)
            if segment.host:
                self._host(index, tensors, sizes, put, held, how)
            else:
                self._enqueue(index, tensors, sizes, put, held, how)
            for root in self._ends[index]:
                if root in held:
                    how.heap.drop(held.pop(root))
        for name in self._network.outputs:
            if name in self._outline.constants:
                tensors[name] = self._constant(name, put, how.stream)
        return {name: tensors[name] for name in self._network.outputs}

    def _enqueue(
        self, index: int, tensors: dict[str, Tensor], sizes: Mapping[str, int], put: Put, held: dict[str, int], how: Run
    ) -> None:
        bound, scratch = self._bind(index, tensors, sizes, put, held, how.heap)
        tensors.update(bound.located)
        enqueue = bound.enqueue if how.watch is None else partial(bound.enqueue_watched, how.watch, tensors)
        if how.launch is not None:
            how.launch(bound, how.streams, enqueue)
        else:
            enqueue(how.streams)
        how.heap.drop(scratch)

    # --- the host's part ---------------------------------------------------------------------------------------------

    def _read(self, segment: Segment, tensors: Mapping[str, Tensor], sizes: dict[str, int], stream: Stream) -> None:
        readings = [(size, self._network.sizes[size]) for size in segment.reads]
        arrays: dict[str, np.ndarray] = {}
        for _, reading in readings:
            if reading.tensor not in arrays:
                tensor = self._tensor(reading.tensor, tensors, sizes)
                arrays[reading.tensor] = array = np.empty(_shape(tensor.type), tensor.type.dtype.numpy)
                self._device.download(array, tensor.address, stream)
        stream.synchronize()
        sizes.update((size, int(arrays[one.tensor].reshape(-1)[one.element])) for size, one in readings)

    def _host(
        self, index: int, tensors: dict[str, Tensor], sizes: dict[str, int], put: Put, held: dict[str, int], how: Run
    ) -> None:
        (number,) = self.segments[index].layers
        layer, outputs = self._network.layers[number], self._network.outputs
        inputs = tuple(self._tensor(name, tensors, sizes) for name in layer.inputs)

        def place(output: int, kind: TensorType) -> int:
            name = layer.outputs[output]
            return put(name, kind) if name in outputs else how.heap.take(tensor_bytes(kind))

        wanted = tuple(name in outputs for name in layer.outputs)
        if how.watch is not None:
            how.watch.before(number, how.stream)
        found = self._hosts[index].run(Call(number, inputs, sizes, place, wanted, how))
        for name, tensor in zip(layer.outputs, found, strict=True):
            tensors[name] = tensor
            if name not in outputs:
                held[name] = tensor.address
            if isinstance(layer.op, ControlFlow):
                sizes.update(decided_sizes(self._network.tensors[name].shape, _shape(tensor.type), sizes))
        if how.watch is not None:
            how.watch.after(number, how.stream, tensors.get)

    def _constant(self, name: str, put: Put, stream: Stream) -> Tensor:
        source = self._loaded.weights[name]
        target = Tensor(put(name, source.type), source.type)
        self._device.copy(target.address, source.address, tensor_bytes(source.type), stream)
        return target

    # --- segments ----------------------------------------------------------------------------------------------------

    def _bind(
        self, index: int, tensors: Mapping[str, Tensor], sizes: Mapping[str, int], put: Put, held: dict[str, int], heap: Heap
    ) -> tuple[Bound, int]:
        """The segment bound to where its tensors lie, and the block that it needs for itself."""
        segment = self.segments[index]
        values = tuple(sizes[name] if name in sizes else _missing(name) for name in segment.needs)
        resolution = self._resolve(index, values, sizes)
        placed = {}
        for root in self._placed[index]:
            kind = resolution.types[root]
            if root in self._network.outputs:
                placed[root] = put(root, kind)
            else:
                placed[root] = held[root] = heap.take(tensor_bytes(kind))
        arena = heap.take(resolution.memory.size)
        around = tuple(tensors[name].address for name in self._given[index] if name in tensors)
        key = (values, around, tuple(placed.values()), arena)
        bindings = self._bindings[index]
        bound = bindings.get(key)
        if bound is None:
            known = {name: tensor.address for name, tensor in tensors.items()} | placed

            def located(names: Iterable[str]) -> dict[str, Tensor]:
                return {name: locate(self._loaded, resolution, name, arena, known.get) for name in names if name in resolution.types}

            programs = [bind_step(self._loaded, resolution, step, arena, known.get) for step in resolution.steps]
            bound = bindings[key] = Bound(
                schedule(self._device, resolution.steps, programs),
                located((*segment.outside, *map(self._root, segment.outside))),
                located(self._made[index]),
            )
            if len(bindings) > _KEPT:
                bindings.popitem(last=False)
        bindings.move_to_end(key)
        return bound, arena

    def _resolve(self, index: int, values: tuple[int, ...], sizes: Mapping[str, int]) -> Resolution:
        kept = self._resolutions[index]
        if values not in kept:
            kept[values] = resolve_segment(self._loaded.engine, self._outline, self.segments[index], sizes, self._device.spec)
            if len(kept) > _KEPT:
                kept.popitem(last=False)
        kept.move_to_end(values)
        return kept[values]

    def _tensor(self, name: str, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Tensor:
        """A tensor that is there already."""
        if name in tensors:
            return tensors[name]
        kind = bind_type(self._network.tensors[name], sizes)
        place = self._outline.places.get(name, Place(name))
        start = bind(place.offset, sizes) * kind.dtype.itemsize
        if place.root in tensors:
            return Tensor(tensors[place.root].address + start, kind)
        if place.root in self._loaded.weights:
            return Tensor(self._loaded.weights[place.root].address + start, kind)
        if tensor_bytes(kind):
            raise EngineError(f"tensor {name!r} is read before it is computed")
        return Tensor(0, kind)

    def _root(self, name: str) -> str:
        return self._outline.places[name].root if name in self._outline.places else name

    def _made_by(self, segment: Segment) -> tuple[str, ...]:
        return tuple(name for number in segment.layers for name in self._network.layers[number].outputs)

    def _last_uses(self) -> list[list[str]]:
        """Per segment, the roots that nothing reads after it."""
        last: dict[str, int] = {}
        for index, segment in enumerate(self.segments):
            read = [self._network.sizes[size].tensor for size in segment.reads]
            layers = [self._network.layers[number] for number in segment.layers]
            used = [name for layer in layers for name in (*layer.inputs, *layer.outputs)]
            last.update(dict.fromkeys(map(self._root, (*read, *used)), index))
        ends: list[list[str]] = [[] for _ in self.segments]
        for root, index in last.items():
            ends[index].append(root)
        return ends


def _missing(name: str) -> int:
    raise EngineError(f"size {name!r} is not known when it is needed")


def _shape(kind: TensorType) -> tuple[int, ...]:
    return tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]


def unknown_outputs(network: Network) -> tuple[str, ...]:
    """Outputs whose shape the inputs' shapes do not tell."""
    known = symbols(tuple(network.tensors[name].shape for name in network.inputs))
    return tuple(name for name in network.outputs if symbols(network.tensors[name].shape) - known)

