"""The inference loop, with trtexec's meaning of every option and metric.

Each lane (``--infStreams``) has a context, three streams (input, compute, output) and two queries in flight: the next query is enqueued
before the previous one is waited for; ``expose_dma`` keeps one in flight. Both share the lane's tensors, so with transfers on a query's
inputs may be copied while its predecessor computes: harmless, as all queries carry the same data.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Thread

import numpy as np

from runtime.context import ExecutionContext
from runtime.device import Event, Stream
from runtime.graph import GraphRunner
from runtime.nvtx import LayerRanges


@dataclass(frozen=True)
class BenchmarkOptions:
    """How to run (trtexec's flag in parentheses).

    Attributes:
        iterations: at least so many measured queries per lane (``--iterations``).
        duration: at least so many seconds after the warm-up; -1 runs until interrupted (``--duration``).
        warm_up: milliseconds of the device's time line that are not counted (``--warmUp``).
        sleep_time: milliseconds between the first launch and the start of computing (``--sleepTime``).
        idle_time: milliseconds to sleep between iterations after the warm-up (``--idleTime``).
        threads: a host thread per lane (``--threads``).
        transfers: copy inputs and outputs for every query (``--includeDataTransfers``).
        expose_dma: one query in flight, so that copies and computing take turns (``--exposeDMA``).
        graph: run a captured CUDA graph where possible (off: ``--noCudaGraph``).
        spin: poll while waiting (off: ``--noSpinWait``).
        managed: tensors in memory that host and device share (``--useManagedMemory``).
        ranges: NVTX ranges around layers (plain enqueues) or the graph's launch, or None.
    """

    iterations: int = 10
    duration: float = 3.0
    warm_up: float = 200.0
    sleep_time: float = 0.0
    idle_time: float = 0.0
    threads: bool = False
    transfers: bool = False
    expose_dma: bool = False
    graph: bool = True
    spin: bool = True
    managed: bool = False
    ranges: LayerRanges | None = None


@dataclass(frozen=True)
class FirstInference:
    """What a change of shapes cost the host, in ms: ``resolve`` shapes, memory and launches; ``run`` the first inference until its end;
    ``capture`` it as a graph (0 without one)."""

    resolve: float
    run: float
    capture: float


@dataclass(frozen=True)
class Query:
    """One inference: when its parts started and ended, in ms; enqueue times from the host's start, the others from the device's."""

    start_enqueue: float
    end_enqueue: float
    start_h2d: float
    end_h2d: float
    start_compute: float
    end_compute: float
    start_d2h: float
    end_d2h: float

    @property
    def enqueue(self) -> float:
        """Host time of the enqueue call."""
        return self.end_enqueue - self.start_enqueue

    @property
    def h2d(self) -> float:
        """Copying the inputs."""
        return self.end_h2d - self.start_h2d

    @property
    def compute(self) -> float:
        """Computing on the device."""
        return self.end_compute - self.start_compute

    @property
    def d2h(self) -> float:
        """Copying the outputs."""
        return self.end_d2h - self.start_d2h

    @property
    def latency(self) -> float:
        """The sum of copies and computing."""
        return self.h2d + self.compute + self.d2h


@dataclass(frozen=True)
class BenchmarkResult:
    """What a run gave.

    Attributes:
        queries: those after the warm-up, of all lanes, by the start of their input copy.
        warm_up_queries: how many were left out.
        graph_nodes: operations in the first lane's CUDA graph, 0 without one.
        segments: of a network in which the host steps in, over all lanes: graphs that were captured, segments that a graph ran, and segments
            that ran without one; None for others.
        warnings: why there is none, though it was wanted.
        outputs: of the last query of the first lane.
        first: the first inference of the first lane, before all others and in none of the figures.
    """

    queries: tuple[Query, ...]
    warm_up_queries: int
    graph_nodes: int
    warnings: tuple[str, ...]
    outputs: Mapping[str, np.ndarray]
    first: FirstInference | None = None
    segments: tuple[int, int, int] | None = None

    @property
    def walltime(self) -> float:
        """Seconds from the first query's input copy to the last query's output copy."""
        if not self.queries:
            return 0.0
        return (max(query.end_d2h for query in self.queries) - self.queries[0].start_h2d) * 1e-3

    @property
    def throughput(self) -> float:
        """Queries per second."""
        return len(self.queries) / self.walltime if self.walltime > 0 else 0.0


def run_benchmark(
    contexts: Sequence[ExecutionContext], inputs: Mapping[str, np.ndarray], options: BenchmarkOptions
) -> BenchmarkResult:
    """Run ``inputs`` through each context (a lane each) as ``options`` say.

    Raises:
        ValueError, EngineError: the inputs do not fit.
        DeviceError: the device fails.
    """
    device = contexts[0].device
    # Where one host thread drives several lanes or streams, none of them may hold it up.
    concurrent = contexts[0].engine.num_aux_streams > 0 or (len(contexts) > 1 and not options.threads)
    lanes = [_Lane(context, inputs, options, concurrent) for context in contexts]
    main = device.stream()
    start = device.event(spin=options.spin)
    device.synchronize()
    device.profiler(start=True)
    if options.sleep_time > 0:
        main.sleep(options.sleep_time * 1e-3)
    start.record(main)
    clock = time.perf_counter()
    for lane in lanes:
        lane.begin(start, clock)
    if options.threads:
        _run_threads(lanes, options)
    else:
        _loop(lanes, options)
    device.profiler(start=False)
    queries = sorted((query for lane in lanes for query in lane.queries), key=lambda query: query.start_h2d)
    kept = [query for query in queries if query.start_compute >= options.warm_up]
    runner = lanes[0].runner
    return BenchmarkResult(
        queries=tuple(kept),
        warm_up_queries=len(queries) - len(kept),
        graph_nodes=runner.nodes if runner else 0,
        warnings=runner.warnings if runner else (),
        outputs={name: contexts[0].read_tensor(name) for name in contexts[0].engine.network.outputs},
        first=lanes[0].first,
        segments=_segments(lanes),
    )


def _segments(lanes: Sequence[_Lane]) -> tuple[int, int, int] | None:
    runners = [lane.runner for lane in lanes if lane.runner is not None and lane.context.is_segmented]
    counts = [(one.captures, one.hits, one.plain) for one in runners]
    return (sum(one[0] for one in counts), sum(one[1] for one in counts), sum(one[2] for one in counts)) if counts else None


def _run_threads(lanes: Sequence[_Lane], options: BenchmarkOptions) -> None:
    failures: list[BaseException] = []

    def work(lane: _Lane) -> None:
        try:
            with lane.context.device.current():
                _loop([lane], options)
        except BaseException as error:  # raised again in the caller's thread
            failures.append(error)

    threads = [
        Thread(target=work, args=(lane,), name=f"lane {number}", daemon=True) for number, lane in enumerate(lanes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _loop(lanes: Sequence[_Lane], options: BenchmarkOptions) -> None:
    """Query all lanes in turns until there are enough queries after the warm-up and the time is over."""
    until = options.warm_up + options.duration * 1e3 if options.duration >= 0 else float("inf")
    idle = options.idle_time * 1e-3
    reached = 0.0  # on the device's time line, ms
    done = skipped = 0
    while done < options.iterations + skipped or reached < until:
        for lane in lanes:
            lane.enqueue()
        reached = max(reached, *(lane.collect() for lane in lanes))
        if reached < options.warm_up:
            skipped += 1
        elif idle > 0:
            time.sleep(idle)
        done += 1
    for lane in lanes:
        lane.drain()


class _Slot:
    """Events of one query in flight."""

    def __init__(self, lane: _Lane) -> None:
        device, spin = lane.context.device, lane.options.spin
        count = 6 if lane.options.transfers else 2
        self.events: list[Event] = [device.event(spin=spin) for _ in range(count)]
        self.active = False
        self.start_enqueue = self.end_enqueue = 0.0


class _Lane:
    """A context with its streams and the queries that it has run."""

    def __init__(
        self, context: ExecutionContext, inputs: Mapping[str, np.ndarray], options: BenchmarkOptions, concurrent: bool
    ) -> None:
        self.context = context
        self.options = options
        device = context.device
        self.input, self.compute, self.output = (device.stream(concurrent=concurrent) for _ in range(3))
        self.runner = GraphRunner(context) if options.graph else None
        self.first = self._first(inputs)
        self._slots = [_Slot(self) for _ in range(1 if options.expose_dma else 2)]
        self._next = 0
        self._host_inputs: dict[str, np.ndarray] = {}
        self._host_outputs: dict[str, np.ndarray] = {}
        if options.transfers:
            for name, array in inputs.items():
                self._host_inputs[name] = device.host_array(context.memory_shape(name), array.dtype)
                np.copyto(self._host_inputs[name], context.packed(name, array))
            for name in context.engine.network.outputs:
                kind = context.engine.get_tensor_dtype(name).numpy
                self._host_outputs[name] = device.host_array(context.memory_shape(name), kind)
        self.queries: list[Query] = []
        self._start: Event | None = None
        self._clock = 0.0

    def _first(self, inputs: Mapping[str, np.ndarray]) -> FirstInference:
        """Set shapes, give memory, run once plainly, capture."""
        context, marks = self.context, [time.perf_counter()]
        for name, array in inputs.items():
            context.set_input_shape(name, array.shape)
        context.use_own_memory(self.options.managed)
        context.prepare()
        marks.append(time.perf_counter())
        for name, array in inputs.items():
            context.write_tensor(name, array)
        began = time.perf_counter()
        context.execute_async_v3(self.compute)
        self.compute.synchronize()
        marks.append(time.perf_counter())
        captured = self.runner.prepare() if self.runner else False
        capture = time.perf_counter() - marks[2] if captured else 0.0
        return FirstInference((marks[1] - marks[0]) * 1e3, (marks[2] - began) * 1e3, capture * 1e3)

    def begin(self, start: Event, clock: float) -> None:
        """All work of the lane waits for ``start``, from which times count; ``clock`` is the host's time of it."""
        self._start, self._clock = start, clock
        for stream in (self.input, self.compute, self.output):
            stream.wait(start)

    def enqueue(self) -> None:
        """Put one query on the streams."""
        slot = self._slots[self._next]
        events = slot.events
        device, context = self.context.device, self.context
        if self._host_outputs:
            events[2].record(self.input)
            for name, array in self._host_inputs.items():
                device.upload(context.get_tensor_address(name), array, self.input)
            events[3].record(self.input)
            self.compute.wait(events[3])
        events[0].record(self.compute)
        begin = time.perf_counter()
        self._launch(self.compute)
        end = time.perf_counter()
        events[1].record(self.compute)
        if self._host_outputs:
            self.output.wait(events[1])
            events[4].record(self.output)
            for name, array in self._host_outputs.items():
                device.download(array, context.get_tensor_address(name), self.output)
            events[5].record(self.output)
            if self.options.expose_dma:
                self.input.wait(events[5])
        slot.start_enqueue, slot.end_enqueue = begin - self._clock, end - self._clock
        slot.active = True
        self._next = (self._next + 1) % len(self._slots)

    def _launch(self, stream: Stream) -> None:
        ranges = self.options.ranges
        if ranges is not None and not (self.runner and self.runner.nodes):
            self.context.enqueue_watched(stream, ranges)
            return
        if ranges is not None:
            ranges.push(ranges.inference)
        if self.runner is not None:
            self.runner.enqueue(stream)
        else:
            self.context.execute_async_v3(stream)
        if ranges is not None:
            ranges.pop()

    def collect(self) -> float:
        """Wait for the oldest query if its place is needed; returns the start of its computing in ms (0 when there was none)."""
        slot = self._slots[self._next]
        return self._finish(slot) if slot.active else 0.0

    def drain(self) -> None:
        """Wait for all queries in flight."""
        for offset in range(len(self._slots)):
            slot = self._slots[(self._next + offset) % len(self._slots)]
            if slot.active:
                self._finish(slot)

    def _finish(self, slot: _Slot) -> float:
        events, start = slot.events, self._start
        assert start is not None
        events[-1].synchronize()
        slot.active = False
        # Starts count from the common start; lengths are read directly, since long times are coarse (32-bit milliseconds).
        compute = events[0].seconds_since(start)
        computed = compute + events[1].seconds_since(events[0])
        h2d = h2d_end = compute
        d2h = d2h_end = computed
        if len(events) > 2:
            h2d = events[2].seconds_since(start)
            h2d_end = h2d + events[3].seconds_since(events[2])
            d2h = events[4].seconds_since(start)
            d2h_end = d2h + events[5].seconds_since(events[4])
        times = (slot.start_enqueue, slot.end_enqueue, h2d, h2d_end, compute, computed, d2h, d2h_end)
        if self.options.duration >= 0:  # an endless run has no report, and would fill the memory
            self.queries.append(Query(*(1e3 * seconds for seconds in times)))
        return compute * 1e3
