"""Runs a network segment by segment: enqueue, let the host read sizes or decide, resolve what follows, go on.

One mechanism for all that an inference only tells in its middle. A :class:`Runner` runs the network of an engine, and for each body of a
branch or loop there is one too. Resolved shapes and bound programs are kept per segment, so an inference that meets known sizes and
addresses again only enqueues.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from fusion.bind import bind_type
from fusion.dims import bind, symbols
from fusion.network import ControlFlow, Network, TensorType, check_holds
from fusion.reference import decided_sizes
from runtime.control import Call, HostLayer, Slot, host_layer
from runtime.device import Graph, Program, Stream, Tensor
from runtime.engine import EngineError, sizes_of
from runtime.enqueue import bind_step, locate
from runtime.loaded import LoadedEngine
from runtime.resolution import Resolution, resolve_segment
from runtime.segments import Segment, segments_of
from runtime.views import Place
from tactics.tactic import tensor_bytes

_KEPT = 32  # resolutions, and bindings, per segment

Where: TypeAlias = "Callable[[str, TensorType], int]"  # (output, its type) -> where it shall lie
Launch: TypeAlias = "Callable[[Bound, Stream], None]"
Show: TypeAlias = "Callable[[int, Mapping[str, Tensor]], None]"
Observe: TypeAlias = "tuple[Callable[[int, Stream], None], Callable[[int, Stream], None]]"


@dataclass
class Bound:
    """A segment bound to shapes and addresses. ``graph`` and ``runs`` belong to whoever captures it."""

    programs: list[tuple[Program, int]]
    located: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)  # all that its layers write
    graph: Graph | None = None
    runs: int = 0

    def enqueue(self, stream: Stream) -> None:
        """Put its programs on ``stream``."""
        for program, _ in self.programs:
            program.run(stream)


class Runner:
    """Runs the network of a loaded engine, one inference at a time."""

    def __init__(self, loaded: LoadedEngine, profile: int = 0) -> None:
        self._loaded, self._device = loaded, loaded.device
        self._network: Network = loaded.engine.network
        self._outline = loaded.outlines[profile]
        self.segments: tuple[Segment, ...] = self._outline.segments or segments_of(self._network)
        self._arenas = [Slot(self._device) for _ in self.segments]
        self._resolutions: list[OrderedDict[tuple[int, ...], Resolution]] = [OrderedDict() for _ in self.segments]
        self._bindings: list[OrderedDict[tuple[object, ...], Bound]] = [OrderedDict() for _ in self.segments]
        self._slots: dict[str, Slot] = {}
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

    @property
    def memory_size(self) -> int:
        """Bytes of device memory for activations, bodies included."""
        own = sum(slot.size for slot in (*self._arenas, *self._slots.values()))
        return own + sum(host.memory_size for host in self._hosts.values())

    def run(
        self,
        inputs: Mapping[str, Tensor],
        place: Where,
        stream: Stream,
        outer: Mapping[str, int] | None = None,
        launch: Launch | None = None,
        observe: Observe | None = None,
        show: Show | None = None,
    ) -> dict[str, Tensor]:
        """One inference; returns the outputs where they lie, with the shapes that they came out with.

        ``place`` says where an output shall lie, once its shape is known; ``outer`` are the sizes of the network around; ``launch``
        enqueues a bound segment in place of its own ``enqueue``; ``observe`` is called before and after each layer,
        ``show`` after each layer with its number and the tensors known by then.

        Raises:
            ValueError, EngineError: shapes do not fit.
            DeviceError: the device fails.
        """
        shapes = {name: tuple(int(dim) for dim in tensor.type.shape) for name, tensor in inputs.items()}  # type: ignore[arg-type]
        sizes = {**(outer or {}), **sizes_of(self._network, shapes)}
        check_holds(self._network, sizes)
        tensors = dict(inputs)
        for index, segment in enumerate(self.segments):
            if segment.reads:
                self._read(segment, tensors, sizes, stream)
            if segment.host:
                self._host(index, tensors, sizes, place, stream, launch, observe)
                if show is not None:
                    show(segment.layers[0], tensors)
                continue
            bound = self._bind(index, tensors, sizes, place, stream)
            tensors.update(bound.located)
            if observe is not None or show is not None:
                before, after = observe or (_nothing, _nothing)
                for program, layer in bound.programs:
                    before(layer, stream)
                    program.run(stream)
                    after(layer, stream)
                    if show is not None:
                        show(layer, bound.tensors)
            elif launch is not None:
                launch(bound, stream)
            else:
                bound.enqueue(stream)
        for name in self._network.outputs:
            if name in self._outline.constants:
                tensors[name] = self._constant(name, place, stream)
        return {name: tensors[name] for name in self._network.outputs}

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
        self,
        index: int,
        tensors: dict[str, Tensor],
        sizes: dict[str, int],
        place: Where,
        stream: Stream,
        launch: Launch | None,
        observe: Observe | None,
    ) -> None:
        (number,) = self.segments[index].layers
        layer = self._network.layers[number]
        inputs = tuple(self._tensor(name, tensors, sizes) for name in layer.inputs)

        def put(output: int, kind: TensorType) -> int:
            name = layer.outputs[output]
            if name in self._network.outputs:
                return place(name, kind)
            if name not in self._slots:
                self._slots[name] = Slot(self._device)
            return self._slots[name].address(tensor_bytes(kind), stream)

        wanted = tuple(name in self._network.outputs for name in layer.outputs)
        if observe is not None:
            observe[0](number, stream)
        found = self._hosts[index].run(Call(inputs, sizes, put, wanted, stream, launch))
        if observe is not None:
            observe[1](number, stream)
        for name, tensor in zip(layer.outputs, found, strict=True):
            tensors[name] = tensor
            if isinstance(layer.op, ControlFlow):
                sizes.update(decided_sizes(self._network.tensors[name].shape, _shape(tensor.type), sizes))

    def _constant(self, name: str, place: Where, stream: Stream) -> Tensor:
        source = self._loaded.weights[name]
        target = Tensor(place(name, source.type), source.type)
        self._device.copy(target.address, source.address, tensor_bytes(source.type), stream)
        return target

    # --- segments ----------------------------------------------------------------------------------------------------

    def _bind(
        self, index: int, tensors: Mapping[str, Tensor], sizes: Mapping[str, int], place: Where, stream: Stream
    ) -> Bound:
        segment = self.segments[index]
        values = tuple(sizes[name] if name in sizes else _missing(name) for name in segment.needs)
        resolution = self._resolve(index, values, sizes)
        if resolution.memory.size > self._arenas[index].size:
            self._bindings[index].clear()
        arena = self._arenas[index].address(resolution.memory.size, stream)
        placed = {
            name: Tensor(place(name, resolution.types[name]), resolution.types[name])
            for name in self._made[index]
            if name in self._network.outputs
        }
        around = tuple(tensors[name].address for name in self._given[index] if name in tensors)
        key = (values, around, tuple(one.address for one in placed.values()))
        bindings = self._bindings[index]
        bound = bindings.get(key)
        if bound is None:
            known = {**tensors, **placed}

            def address(root: str) -> int | None:
                return known[root].address if root in known else None

            def located(names: Iterable[str]) -> dict[str, Tensor]:
                return {name: locate(self._loaded, resolution, name, arena, address) for name in names if name in resolution.types}

            bound = bindings[key] = Bound(
                [(bind_step(self._loaded, resolution, step, arena, address), step.layer) for step in resolution.steps],
                located((*segment.outside, *map(self._root, segment.outside))),
                located(self._made[index]),
            )
            if len(bindings) > _KEPT:
                bindings.popitem(last=False)
        bindings.move_to_end(key)
        return bound

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


def _nothing(layer: int, stream: Stream) -> None:
    pass


def _missing(name: str) -> int:
    raise EngineError(f"size {name!r} is not known when it is needed")


def _shape(kind: TensorType) -> tuple[int, ...]:
    return tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]


def unknown_outputs(network: Network) -> tuple[str, ...]:
    """Outputs whose shape the inputs' shapes do not tell."""
    known = symbols(tuple(network.tensors[name].shape for name in network.inputs))
    return tuple(name for name in network.outputs if symbols(network.tensors[name].shape) - known)

