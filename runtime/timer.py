"""Honest timing of candidate plans for one workload, and the check of their results.

A candidate is timed as many launches inside one graph (a lone pair of events around a short kernel reads several microseconds whatever the
kernel does), over several copies of all its data so that together they exceed the L2 cache, on random data. First every candidate gets an
estimate; those near the best are then timed again in turns, round after round, and the median counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fusion.dtypes import data_type
from fusion.expression import Apply, Convert, functions
from fusion.network import TensorType
from runtime.compare import difference
from runtime.device import (
    Binding,
    CaptureError,
    Device,
    DeviceError,
    DeviceLostError,
    Event,
    Graph,
    Memory,
    Program,
    Stream,
    Tensor,
)  # fmt: skip
from runtime.memory import ALIGNMENT
from runtime.parts import BoundPart, Part
from runtime.random_data import SEED, workload_inputs
from tactics.tactic import Plan, Workload, extent_bytes

if TYPE_CHECKING:
    pass

GRAPH_SECONDS = 1e-3  # a measured graph lasts at least about this
MAX_LAUNCHES = 256  # launches of the candidate in one graph
MAX_COPIES = 64
MAX_COPY_BYTES = 2 << 30
FINALIST_FACTOR = 1.5  # candidates within this of the best estimate are timed in turns
MAX_FINALISTS = 8
ROUND_SECONDS = 0.4  # budget of one finalist over all rounds
WARM_UP_SECONDS = 0.01
POISON = 0xFF  # every byte of outputs and workspace before a checked run: NaN in floating point, -1 in integers


class Runnable(Protocol):
    """A plan with what it needs: the arrays that ``Tactic.prepare`` returned, and cubins by ``Kernel.key``."""

    @property
    def plan(self) -> Plan: ...

    @property
    def packed(self) -> tuple[np.ndarray, ...]: ...

    @property
    def kernels(self) -> Mapping[str, bytes] | None: ...


@dataclass(frozen=True)
class Candidate:
    """The plainest :class:`Runnable`."""

    plan: Plan
    packed: tuple[np.ndarray, ...] = ()
    kernels: Mapping[str, bytes] | None = None


class Bench:
    """The data of one workload on a device, and the measuring of candidates on it.

    ``constants`` are the values of constant inputs, by input number; all other inputs are random (seeded).

    Raises:
        DeviceMemoryError: the workload's tensors do not fit.
    """

    def __init__(
        self,
        device: Device,
        workload: Workload,
        constants: Mapping[int, np.ndarray] | None = None,
        seed: int = SEED,
    ) -> None:
        self.device = device
        self.workload = workload
        self._constants = dict(constants or {})
        self._seed = seed
        self._stream = device.stream()
        self._warm = False
        self._rounded = rounds(workload)
        types = (*workload.inputs, *workload.outputs)
        self._offsets, self._bytes = _layout([extent_bytes(tensor) for tensor in types])
        self._copies = 0
        self._memory = Memory(0, 0)
        self._host = self._inputs(positive=False)
        self._provide(1)

    # --- time --------------------------------------------------------------------------------------------------------

    def time(self, candidates: Sequence[Runnable], rounds: int = 8) -> list[float | Exception]:
        """Seconds of each candidate, or the exception that says why it has none. ``rounds`` is how often finalists are timed.

        Raises:
            DeviceLostError: a candidate, named in the text, broke the device. Nothing can be timed any more.
        """
        results: list[float | Exception] = []
        for number, candidate in enumerate(candidates):
            try:
                results.append(_Run(self, candidate).estimate())
            except DeviceLostError as error:
                label = getattr(candidate, "label", f"candidate {number}")
                raise DeviceLostError(f"{label} broke the device: {error}") from error
            # Tactics are foreign code here, and a failure is a value: a row in the decision record.
            except Exception as error:
                results.append(error)
        self._play_off(candidates, results, rounds)
        return results

    def _play_off(self, candidates: Sequence[Runnable], results: list[float | Exception], rounds: int) -> None:
        timed = [(seconds, number) for number, seconds in enumerate(results) if isinstance(seconds, float)]
        if not timed:
            return
        timed.sort()
        near = [number for seconds, number in timed if seconds <= FINALIST_FACTOR * timed[0][0]][:MAX_FINALISTS]
        runs = [_Run(self, candidates[number]) for number in near]
        once = [run.graph(float(results[number])) for run, number in zip(runs, near, strict=True)]  # type: ignore[arg-type]
        longest = max(float(results[number]) * count for number, (_, count) in zip(near, once, strict=True))  # type: ignore[arg-type]
        turns = max(1, min(rounds, int(ROUND_SECONDS / max(longest, 1e-9))))
        for graph, _ in once if turns > 1 else ():
            graph.launch(self._stream)  # the first launch of a graph also uploads it
        marks = [[(self.device.event(), self.device.event()) for _ in near] for _ in range(turns)]
        for turn in range(turns):
            for place in range(len(near)):
                which = (place + turn) % len(near)
                _measured(marks[turn][which], once[which][0], self._stream)
        self._stream.synchronize()
        for which, number in enumerate(near):
            samples = [turn[which][1].seconds_since(turn[which][0]) for turn in marks]
            results[number] = median(samples) / once[which][1]

    # --- results -----------------------------------------------------------------------------------------------------

    def output(self, candidate: Runnable) -> list[np.ndarray]:
        """What ``candidate`` writes, when outputs and workspace held poison before.

        Raises:
            DeviceError: it cannot be launched.
        """
        run = _Run(self, candidate)
        for number, tensor in enumerate(self.workload.outputs, len(self.workload.inputs)):
            self.device.fill(self._address(0, number), POISON, extent_bytes(tensor), self._stream)
        run.poison()
        run.programs()[0].run(self._stream)
        self._stream.synchronize()
        arrays = []
        for number, tensor in enumerate(self.workload.outputs, len(self.workload.inputs)):
            memory = np.empty(_rows(tensor) or _shape(tensor), tensor.dtype.numpy)
            self.device.download(memory, self._address(0, number))
            if tensor.pitch and (np.ascontiguousarray(memory[:, tensor.shape[-1] :]).view(np.uint8) != POISON).any():  # type: ignore[misc]
                raise DeviceError(f"output {number - len(self.workload.inputs)}: writes beside its columns of a wider tensor")
            arrays.append(np.ascontiguousarray(memory[:, : tensor.shape[-1]]).reshape(_shape(tensor)) if tensor.pitch else memory)  # type: ignore[misc]
        return arrays

    def reference(self, candidate: Runnable) -> list[np.ndarray]:
        """As :meth:`output`, for the candidate that others are checked against.

        When its results hold NaN on inputs in [-1, 1) (a logarithm, a square root), all inputs are drawn again from [0.1, 1).

        Raises:
            DeviceError: it cannot be launched.
        """
        found = self.output(candidate)
        if any(array.dtype.kind in "fV" and np.isnan(array.astype(np.float32)).any() for array in found):
            self._host = self._inputs(positive=True)
            copies, self._copies = self._copies, 0
            self._provide(copies)
            found = self.output(candidate)
        return found

    def check(self, candidate: Runnable, reference: Sequence[np.ndarray], tolerance: float) -> str | None:
        """None when ``candidate`` computes ``reference`` within ``tolerance`` and writes every element, else what is wrong.

        Raises:
            DeviceLostError: it broke the device.
        """
        try:
            found = self.output(candidate)
        except DeviceLostError:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        for number, (array, wanted) in enumerate(zip(found, reference, strict=True)):
            problem = difference(array, wanted, tolerance, POISON, self._rounded)
            if problem:
                return f"output {number}: {problem}"
        return None

    # -----------------------------------------------------------------------------------------------------------------

    def _inputs(self, positive: bool) -> list[np.ndarray]:
        arrays = workload_inputs(self.workload, self._seed, positive)
        for number, value in self._constants.items():
            arrays[number] = value
        return [_in_memory(array, tensor) for array, tensor in zip(arrays, self.workload.inputs, strict=True)]

    def _provide(self, copies: int) -> None:
        """Have ``copies`` copies of all tensors on the device."""
        if copies <= self._copies:
            return
        if self._memory.size < copies * self._bytes:
            self._memory = Memory(0, 0)
            self._memory = self.device.allocate(copies * self._bytes)
        self._copies = copies
        for number, array in enumerate(self._host):
            self.device.upload(self._address(0, number), array)
            for copy in range(1, copies):
                self.device.copy(self._address(copy, number), self._address(0, number), array.nbytes, self._stream)
        self._stream.synchronize()

    def _address(self, copy: int, number: int) -> int:
        return self._memory.address + copy * self._bytes + self._offsets[number]

    def _wanted_copies(self, packed_bytes: int) -> int:
        """So many that all data together is twice the L2 cache, where memory allows."""
        once = max(1, self._bytes + packed_bytes)
        wanted = min(MAX_COPIES, ceil(2 * self.device.spec.l2_bytes / once))
        affordable = min(MAX_COPY_BYTES, self.device.free_memory() // 4) // once
        return max(1, min(wanted, affordable))


def rounds(workload: Workload) -> bool:
    """Whether an expression of the layer rounds to whole numbers (quantises): then a last bit may make a whole step's difference."""
    expressions = (value for value in vars(workload.op).values() if isinstance(value, Apply | Convert))
    return any(name in {"round", "floor", "ceil"} for one in expressions for name in functions(one))


class _Run:
    """One candidate on a bench: its packed arrays and workspace on the device, its programs for each copy of the data."""

    def __init__(self, bench: Bench, candidate: Runnable) -> None:
        self._bench = bench
        self._plan = candidate.plan
        device = bench.device
        self._offsets, size = _layout([array.nbytes for array in candidate.packed])
        self._copies = bench._wanted_copies(size)
        bench._provide(self._copies)
        self._packed_bytes = size
        self._packed = device.allocate(size * self._copies)
        self._types = [TensorType(data_type(array.dtype), array.shape) for array in candidate.packed]
        for array, offset in zip(candidate.packed, self._offsets, strict=True):
            first = self._packed.address + offset
            device.upload(first, np.ascontiguousarray(array))
            for copy in range(1, self._copies):
                device.copy(first + copy * size, first, array.nbytes, bench._stream)
        self._workspace = device.allocate(self._plan.workspace)
        bench._stream.synchronize()
        self._modules = device.load(candidate.kernels or {})
        self._programs: list[Program] = []

    def programs(self) -> list[Program]:
        """One program per copy of the data."""
        if not self._programs:
            bench, workload = self._bench, self._bench.workload
            for copy in range(self._copies):
                tensors = [
                    Tensor(bench._address(copy, number), kind)
                    for number, kind in enumerate((*workload.inputs, *workload.outputs))
                ]
                packed = [
                    Tensor(self._packed.address + copy * self._packed_bytes + offset, kind)
                    for offset, kind in zip(self._offsets, self._types, strict=True)
                ]
                split = len(workload.inputs)
                binding = Binding(
                    tuple(tensors[:split]),
                    tuple(tensors[split:]),
                    tuple(packed),
                    self._workspace.address,
                    self._plan.workspace,
                )
                self._programs.append(bench.device.program(self._plan, binding, self._modules))
        return self._programs

    def poison(self) -> None:
        """Fill the workspace with poison."""
        self._bench.device.fill(self._workspace.address, POISON, self._plan.workspace, self._bench._stream)

    def graph(self, seconds: float) -> tuple[Graph, int]:
        """A graph of so many launches, of ``seconds`` each, that it lasts long enough; and their number."""
        count = max(1, min(MAX_LAUNCHES, ceil(GRAPH_SECONDS / max(seconds, 1e-9))))
        if count < MAX_LAUNCHES:  # whole rotations, or each launch may find its data in the cache
            count = min(MAX_LAUNCHES, ceil(count / self._copies) * self._copies) if count > 1 else 1
        programs, stream = self.programs(), self._bench._stream

        def enqueue() -> None:
            for number in range(count):
                programs[number % len(programs)].run(stream)

        return self._bench.device.capture(stream, enqueue), count

    def estimate(self) -> float:
        """Seconds of one launch, roughly.

        Raises:
            DeviceError: it cannot be launched or captured.
        """
        bench = self._bench
        device, stream = bench.device, bench._stream
        marks = (device.event(), device.event())
        programs = self.programs()
        programs[0].run(stream)  # the first launch loads the kernel
        stream.synchronize()
        marks[0].record(stream)
        programs[-1].run(stream)
        marks[1].record(stream)
        stream.synchronize()
        first = marks[1].seconds_since(marks[0])
        if first > 20 * GRAPH_SECONDS:
            return first
        graph, count = self.graph(first)
        begin = perf_counter()
        graph.launch(stream)
        stream.synchronize()
        while not bench._warm and perf_counter() - begin < WARM_UP_SECONDS:  # clocks rise under load
            graph.launch(stream)
            stream.synchronize()
        bench._warm = True
        again = (device.event(), device.event())
        for pair in (marks, again):
            _measured(pair, graph, stream)
        stream.synchronize()
        return min(pair[1].seconds_since(pair[0]) for pair in (marks, again)) / count


def measure(
    device: Device,
    workload: Workload,
    candidates: Sequence[Runnable],
    constants: Mapping[int, np.ndarray] | None = None,
    rounds: int = 8,
) -> list[float | Exception]:
    """Seconds of each candidate for ``workload``, or why it has none; see :class:`Bench`.

    Raises:
        DeviceLostError: a candidate broke the device.
        DeviceMemoryError: the workload's tensors do not fit.
    """
    return Bench(device, workload, constants).time(candidates, rounds)


def time_parts(device: Device, parts: Sequence[Part], rounds: int = 9) -> list[float]:
    """Seconds of one run of each part: random inputs, replays of a graph (plain enqueues where none can be captured), in turns; the median.

    Raises:
        EngineError: a part cannot run here.
        DeviceError: memory is short, or the device fails.
    """
    stream = device.stream(concurrent=True)
    aux: list[Stream] = []
    runs: list[Callable[[], None]] = []
    for part in parts:
        bound = BoundPart(part, device, aux)
        enqueue = partial(bound.enqueue, stream)
        enqueue()
        stream.synchronize()
        try:
            runs.append(partial(_launch_kept, device.capture(stream, enqueue), stream, bound))
        except CaptureError:
            runs.append(enqueue)
    samples: list[list[float]] = [[] for _ in runs]
    counts = [1] * len(runs)
    for turn in range(rounds + 1):  # the first turn warms up and says how many launches last long enough
        for number, run in enumerate(runs):
            marks = (device.event(), device.event())
            marks[0].record(stream)
            for _ in range(counts[number]):
                run()
            marks[1].record(stream)
            stream.synchronize()
            seconds = marks[1].seconds_since(marks[0]) / counts[number]
            if turn:
                samples[number].append(seconds)
            else:
                counts[number] = max(1, min(64, ceil(GRAPH_SECONDS / max(seconds, 1e-9))))
    return [median(one) for one in samples]


def _launch_kept(graph: Graph, stream: Stream, _part: object) -> None:
    """Launch ``graph``, whose part (memory, programs) lives as long as whoever holds this call."""
    graph.launch(stream)


def _measured(marks: tuple[Event, Event], graph: Graph, stream: Stream) -> None:
    marks[0].record(stream)
    graph.launch(stream)
    marks[1].record(stream)


def _layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Aligned offsets of tensors one after another, and where they end."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _rows(tensor: TensorType) -> tuple[int, ...]:
    """The memory of a tensor with a pitch: rows x pitch."""
    return (int(np.prod(_shape(tensor)[:-1], dtype=np.int64)), tensor.pitch) if tensor.pitch else ()


def _in_memory(array: np.ndarray, tensor: TensorType) -> np.ndarray:
    """A tensor's values as they lie in memory: where it has a pitch, with poison beside its columns."""
    if not tensor.pitch:
        return np.ascontiguousarray(array)
    memory = np.empty(_rows(tensor), array.dtype)
    memory.view(np.uint8)[:] = POISON
    memory[:, : array.shape[-1]] = array.reshape(-1, array.shape[-1])
    return memory


def _shape(tensor: TensorType) -> tuple[int, ...]:
    return tuple(int(dim) for dim in tensor.shape)  # type: ignore[arg-type]


__all__ = ["Bench", "Candidate", "DeviceError", "measure", "time_parts"]
