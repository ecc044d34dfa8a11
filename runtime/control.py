"""Layers that the host runs: branches, loops, and what has no kernel on the device.

A branch reads its condition, a loop (when its body decides) whether to go on: one copy of one byte to the host. Carried tensors alternate
between two buffers, so that an iteration reads where the one before wrote and nothing is copied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fusion.bind import bind_type
from fusion.dims import bind
from fusion.dtypes import DataType
from fusion.network import TensorType
from fusion.ops import If, Loop
from runtime.device import Device, Memory, Stream, Tensor, to_host
from runtime.engine import EngineError
from runtime.heap import Heap
from runtime.loaded import LoadedEngine, load_engine
from runtime.workloads import workload_of
from tactics.tactic import CpuCall, tensor_bytes

if TYPE_CHECKING:
    from runtime.runner import Run, Runner

_COUNTERS = 1024  # iteration numbers that are on the device at a time


@dataclass(frozen=True)
class Call:
    """One run of a layer on the host.

    Attributes:
        layer: its number in the network.
        inputs: where they are.
        sizes: all named sizes known so far.
        put: where output ``n`` of a type shall lie.
        wanted: per output, whether it must lie where ``put`` says; else the layer may leave it where it is, held once more on the heap.
        how: the streams and the heap of the inference.
    """

    layer: int
    inputs: tuple[Tensor, ...]
    sizes: Mapping[str, int]
    put: Callable[[int, TensorType], int]
    wanted: tuple[bool, ...]
    how: Run

    @property
    def stream(self) -> Stream:
        """The main stream of the inference."""
        return self.how.stream


class HostLayer(ABC):
    """A layer that the host runs."""

    memory_size: int = 0

    @abstractmethod
    def run(self, call: Call) -> Sequence[Tensor]:
        """Run it; returns the outputs."""


def host_layer(loaded: LoadedEngine, number: int, profile: int, runner: Callable[[LoadedEngine], Runner]) -> HostLayer:
    """The layer ``number`` of an engine, ready to run; ``runner`` makes what runs a body."""
    op = loaded.engine.network.layers[number].op
    bodies = [runner(load_engine(body, loaded.device)) for body in loaded.engine.decisions(profile)[number].bodies]
    if isinstance(op, If):
        return Branch(op, bodies, loaded.device)
    if isinstance(op, Loop):
        return Repeat(op, bodies[0], loaded.device)
    return OnHost(loaded, number, profile)


class Branch(HostLayer):
    """An If."""

    def __init__(self, op: If, bodies: Sequence[Runner], device: Device) -> None:
        self._op, self._bodies, self._device = op, bodies, device

    @property
    def memory_size(self) -> int:  # type: ignore[override]
        return sum(body.memory_size for body in self._bodies)

    def run(self, call: Call) -> Sequence[Tensor]:
        chosen = 0 if to_host(self._device, call.inputs[0], call.stream).any() else 1
        body = self._op.bodies[chosen]
        given = {name: call.inputs[number] for name, number in zip(body.inputs, self._op.takes[chosen], strict=True)}
        place = {name: index for index, name in enumerate(body.outputs)}
        made: dict[str, int] = {}

        def put(name: str, kind: TensorType) -> int:
            made[name] = call.put(place[name], kind)
            return made[name]

        found = self._bodies[chosen].run(given, put, call.how.inside(call.layer, chosen), call.sizes)
        return [found[name] if name in made else self._passed(index, found[name], call) for index, name in enumerate(body.outputs)]

    def _passed(self, index: int, tensor: Tensor, call: Call) -> Tensor:
        """An input that the branch returns as it is."""
        call.how.heap.share(tensor.address)
        return delivered(self._device, index, tensor, call)


class Repeat(HostLayer):
    """A Loop. Tensors of an iteration are held by the loop until the next one has been enqueued."""

    def __init__(self, op: Loop, body: Runner, device: Device) -> None:
        self._op, self._body, self._device = op, body, device
        self._counter, self._numbers, self._first = Memory(0, 0), Memory(0, 0), -1

    @property
    def memory_size(self) -> int:  # type: ignore[override]
        return self._body.memory_size + self._counter.size + self._numbers.size

    def run(self, call: Call) -> Sequence[Tensor]:
        op, stream, heap = self._op, call.stream, call.how.heap
        first = int(op.conditional)
        state, taken = list(call.inputs[first : op.arity]), call.inputs[op.arity :]
        for tensor in state:
            heap.share(tensor.address)
        stacks = [_Stack(heap, self._device) for _ in op.types[op.carried :]]
        trip = None if op.trip is None else bind(op.trip, call.sizes)
        goes_on = not first or bool(to_host(self._device, call.inputs[0], stream).any())
        number = 0
        while goes_on and (trip is None or number < trip):
            given = ([self._number(number, stream)] if op.counted else []) + [*state, *taken]
            results, blocks = self._iterate(dict(zip(op.body.inputs, given, strict=True)), number, call)
            if op.decides:
                goes_on = bool(to_host(self._device, results.pop(0), stream).any())
            old, state = state, results[: op.carried]
            for tensor in state:
                heap.share(tensor.address)
            number += 1
            for stack, value in zip(stacks, results[op.carried :], strict=True):
                stack.push(value, trip or 0, stream)
            for address in (*blocks, *(tensor.address for tensor in old)):
                heap.drop(address)
        found = [*state, *(stack.tensor(kind, call.sizes) for stack, kind in zip(stacks, op.types[op.carried :], strict=True))]
        return [delivered(self._device, index, tensor, call) for index, tensor in enumerate(found)]

    def _iterate(self, given: Mapping[str, Tensor], number: int, call: Call) -> tuple[list[Tensor], list[int]]:
        """The body's outputs, and the blocks that were taken for them."""
        blocks: list[int] = []

        def put(name: str, kind: TensorType) -> int:
            blocks.append(call.how.heap.take(tensor_bytes(kind)))
            return blocks[-1]

        found = self._body.run(given, put, call.how.inside(call.layer, 0, number), call.sizes)
        return [found[name] for name in self._op.body.outputs], blocks

    def _number(self, number: int, stream: Stream) -> Tensor:
        """The iteration's number on the device, always at the same address, so that programs stay bound."""
        chunk = number // _COUNTERS
        if chunk != self._first:
            stream.synchronize()
            if not self._numbers.size:
                self._numbers, self._counter = self._device.allocate(8 * _COUNTERS), self._device.allocate(8)
            self._device.upload(self._numbers.address, np.arange(chunk * _COUNTERS, (chunk + 1) * _COUNTERS, dtype=np.int64))
            self._first = chunk
        address = self._counter.address
        self._device.copy(address, self._numbers.address + 8 * (number % _COUNTERS), 8, stream)
        return Tensor(address, TensorType(DataType.INT64, ()))


def delivered(device: Device, index: int, tensor: Tensor, call: Call) -> Tensor:
    """Output ``index``, which is held: where it is, or a copy where it must lie."""
    if not call.wanted[index]:
        return tensor
    target = Tensor(call.put(index, tensor.type), tensor.type)
    device.copy(target.address, tensor.address, tensor_bytes(tensor.type), call.stream)
    call.how.heap.drop(tensor.address)
    return target


class _Stack:
    """A scan output in the making: slices of equal shape, one after the other."""

    def __init__(self, heap: Heap, device: Device) -> None:
        self._heap, self._device = heap, device
        self._memory = Memory(0, 0)
        self._kind: TensorType | None = None
        self._count = 0

    def push(self, value: Tensor, expected: int, stream: Stream) -> None:
        """Add ``value``; ``expected`` slices are likely to come, 0 when nobody knows."""
        if self._kind is None:
            self._kind = value.type
        elif self._kind != value.type:
            raise EngineError(f"the slices of a scan output must have one shape, they have {self._kind.shape} and {value.type.shape}")
        size = tensor_bytes(value.type)
        needed = (self._count + 1) * size
        if needed > self._memory.size:
            wanted = max(needed, 2 * self._memory.size, min(expected, 1 << 16) * size)
            larger = Memory(self._heap.take(wanted), wanted)
            self._device.copy(larger.address, self._memory.address, self._count * size, stream)
            self._heap.drop(self._memory.address)
            self._memory = larger
        self._device.copy(self._memory.address + self._count * size, value.address, size, stream)
        self._count += 1

    def tensor(self, declared: TensorType, sizes: Mapping[str, int]) -> Tensor:
        """All slices along a new first axis."""
        if self._kind is not None:
            return Tensor(self._memory.address, TensorType(self._kind.dtype, (self._count, *self._kind.shape)))
        shape = (0, *(dim if isinstance(dim, int) else sizes.get(str(dim), 0) for dim in declared.shape[1:]))
        return Tensor(0, TensorType(declared.dtype, shape))


class OnHost(HostLayer):
    """A layer without a kernel for the device: copied to the host, computed by NumPy, copied back."""

    def __init__(self, loaded: LoadedEngine, number: int, profile: int) -> None:
        self._loaded, self._number, self._outline = loaded, number, loaded.outlines[profile]

    def run(self, call: Call) -> Sequence[Tensor]:
        engine, device = self._loaded.engine, self._loaded.device
        layer, outline = engine.network.layers[self._number], self._outline
        workload = workload_of(engine.network, layer, call.sizes, outline.constants, engine.tf32, outline.fixed)
        tactic = outline.tactics[self._number]
        assert tactic is not None
        plan = tactic.plan(workload, outline.decisions[self._number].config, device.spec)
        arrays = [to_host(device, tensor, call.stream) for tensor in call.inputs]
        kinds = [bind_type(engine.network.tensors[name], call.sizes) for name in layer.outputs]
        results = [np.empty(_shape(kind), kind.dtype.numpy) for kind in kinds]
        for step in plan.steps:
            assert isinstance(step, CpuCall)
            step.function(arrays, results, (), np.empty(plan.workspace, np.uint8))
        outputs = [Tensor(call.put(index, kind), kind) for index, kind in enumerate(kinds)]
        for tensor, array in zip(outputs, results, strict=True):
            device.upload(tensor.address, array, call.stream)
        call.stream.synchronize()  # the arrays must live until they are copied
        return outputs


def _shape(kind: TensorType) -> tuple[int, ...]:
    return tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]
