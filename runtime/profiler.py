"""Time per layer: a second run, in which every layer stands between two events.

On a GPU the events are nodes of the captured graph, so that launching costs no time between layers; what an event itself costs is
measured in the same graph (two events with nothing between) and taken off each layer. What is left of a layer includes the gap to its
predecessor, so the sum comes close to the latency, a little above it; layers that run beside each other on several streams are counted in full.
Layers inside of branches and loops have rows of their own, with the time of all iterations; what is left to the branch or loop is the host's part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from runtime.benchmark import BenchmarkOptions
from runtime.context import ExecutionContext
from runtime.device import CaptureError, Device, Event, Stream
from runtime.engine import Engine
from runtime.runner import Bound, Streams
from runtime.watch import Watch, Where


@dataclass(frozen=True)
class LayerTime:
    """Samples of one layer, in ms: one per iteration, none when it never runs (a view, an empty tensor)."""

    name: str
    samples: np.ndarray

    @property
    def total(self) -> float:
        """Sum of all samples."""
        return float(self.samples.sum())

    @property
    def average(self) -> float:
        """Mean, 0 when it never ran."""
        return float(self.samples.mean()) if self.samples.size else 0.0

    @property
    def median(self) -> float:
        """Median, 0 when it never ran."""
        return float(np.median(self.samples)) if self.samples.size else 0.0


@dataclass(frozen=True)
class Profile:
    """Times of all layers over ``count`` iterations.

    Attributes:
        layers: in the network's order, those inside of a branch or loop after it.
        event_overhead: what an event costs, in ms (median); it was taken off each sample.
        in_graph: whether the layers ran in CUDA graphs.
        aux_streams: how many streams ran beside the main one; then the sum is more than the latency.
    """

    count: int
    layers: tuple[LayerTime, ...]
    event_overhead: float
    in_graph: bool
    aux_streams: int

    @property
    def iteration_totals(self) -> np.ndarray:
        """The sum over layers of each iteration, ms."""
        ran = [layer.samples for layer in self.layers if layer.samples.size]
        return np.sum(ran, axis=0) if ran else np.zeros(self.count)

    def percentage(self, layer: LayerTime) -> float:
        """The share of ``layer`` in the total time."""
        total = sum(one.total for one in self.layers)
        return 100.0 * layer.total / total if total else 0.0


def profile_layers(context: ExecutionContext, inputs: Mapping[str, np.ndarray], options: BenchmarkOptions) -> Profile:
    """Run ``context`` on ``inputs`` for warm-up, iterations and duration as ``options`` say, one query at a time.

    Raises:
        ValueError, EngineError: the inputs do not fit.
        DeviceError: the device fails.
    """
    for name, array in inputs.items():
        context.set_input_shape(name, array.shape)
    context.use_own_memory(options.managed)
    for name, array in inputs.items():
        context.write_tensor(name, array)
    stream = context.device.stream()
    recorder = _Recorder(context.device)
    once = _in_graphs(context, recorder, stream) if options.graph else None
    in_graph = once is not None
    once = once or partial(context.enqueue_watched, stream, _Observer(recorder))
    rows: list[dict[_Path, tuple[float, int]]] = []
    begin = time.perf_counter()
    while True:
        recorder.empty(stream)
        once()
        stream.synchronize()
        found = recorder.collect()
        elapsed = time.perf_counter() - begin
        if elapsed * 1e3 >= options.warm_up:
            rows.append(found)
            if len(rows) >= options.iterations and elapsed >= options.warm_up * 1e-3 + max(0.0, options.duration):
                break
    overhead = float(np.median([row[()][0] for row in rows]))
    layers = tuple(_layer_times(context.engine, rows, overhead))
    return Profile(len(rows), layers, overhead * 1e3, in_graph, context.engine.num_aux_streams)


def _layer_times(engine: Engine, rows: Sequence[Mapping[_Path, tuple[float, int]]], overhead: float, around: _Path = ()) -> Iterator[LayerTime]:
    """The layers of ``engine`` (the body at path ``around``), each followed by those of the networks in it, whose time is not its own."""
    for number, (layer, plan) in enumerate(zip(engine.network.layers, engine.layers, strict=True)):
        path = (*around, number)
        inner = [one for index, body in enumerate(plan.bodies) for one in _layer_times(body, rows, overhead, (*path, index))]
        samples = np.empty(0)
        if any(path in row for row in rows):
            times = [row.get(path, (0.0, 0)) for row in rows]
            samples = np.array([1e3 * max(0.0, seconds - count * overhead) for seconds, count in times])
            samples = np.maximum(samples - sum(one.samples for one in inner if one.samples.size), 0.0)
        yield LayerTime(layer.name, samples)
        yield from inner


_Path = tuple[int, ...]  # a layer's number, for one in a body after those of the layer and the body around it; () is an empty span


class _Recorder:
    """Events around layers; a layer that runs several times in an inference has its times added up."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: dict[_Path, tuple[Event, Event]] = {}
        self._pending: dict[_Path, None] = {}  # whose events are not read yet
        self._times: dict[_Path, tuple[float, int]] = {}
        self._captured: dict[_Path, None] | None = None  # while a graph is made: whose events it holds

    def empty(self, stream: Stream) -> None:
        """A span of nothing: what events cost."""
        self.start((), stream)
        self.stop((), stream)

    def start(self, path: _Path, stream: Stream) -> None:
        """Layer ``path`` begins."""
        if self._captured is None:
            self._settle(path)
            self._pending[path] = None
        else:
            self._captured[path] = None
        if path not in self._marks:
            self._marks[path] = (self._device.event(), self._device.event())
        self._marks[path][0].mark(stream)

    def stop(self, path: _Path, stream: Stream) -> None:
        """It ends."""
        self._marks[path][1].mark(stream)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Callable[[Stream], None]:
        """A graph of what ``enqueue`` puts on ``stream``, with its events; to be launched on any stream.

        Raises:
            CaptureError: it cannot be captured.
        """
        self._captured = {}
        try:
            graph, paths = self._device.capture(stream, enqueue), self._captured
        finally:
            self._captured = None

        def launch(target: Stream) -> None:
            for path in paths:
                self._settle(path)
            self._pending.update(paths)
            graph.launch(target)

        return launch

    def collect(self) -> dict[_Path, tuple[float, int]]:
        """Seconds, and how often it ran, of every layer that ran since the last call; the device has ended."""
        for path in list(self._pending):
            self._settle(path)
        found, self._times = self._times, {}
        return found

    def _settle(self, path: _Path) -> None:
        if path in self._pending:
            before, after = self._marks[path]
            after.synchronize()
            seconds, count = self._times.get(path, (0.0, 0))
            self._times[path] = seconds + after.seconds_since(before), count + 1
            del self._pending[path]


class _Observer(Watch):
    """Has a recorder time every layer."""

    def __init__(self, recorder: _Recorder, around: _Path = ()) -> None:
        self._recorder, self._around = recorder, around

    def before(self, layer: int, stream: Stream) -> None:
        self._recorder.start((*self._around, layer), stream)

    def after(self, layer: int, stream: Stream, where: Where) -> None:
        self._recorder.stop((*self._around, layer), stream)

    def inside(self, layer: int, body: int, iteration: int) -> _Observer:
        return _Observer(self._recorder, (*self._around, layer, body))


def _in_graphs(context: ExecutionContext, recorder: _Recorder, stream: Stream) -> Callable[[], None] | None:
    """An inference whose layers run in CUDA graphs, one for all or one per segment; None where nothing can be captured."""
    observer = _Observer(recorder)
    context.execute_async_v3(stream)
    stream.synchronize()
    if not context.is_segmented:
        try:
            return partial(recorder.capture(stream, lambda: context.enqueue_watched(stream, observer)), stream)
        except CaptureError:
            return None  # the benchmark has already said so
    graphs: dict[int, tuple[Bound, Callable[[Stream], None]]] = {}  # by identity of what was captured, which is kept for that
    origin = context.device.stream()

    def launch(bound: Bound, streams: Streams, enqueue: Callable[[Streams], None]) -> None:
        if not bound.actions:
            return
        if id(bound) not in graphs:
            graphs[id(bound)] = bound, recorder.capture(origin, lambda: enqueue((origin, *streams[1:])))
        graphs[id(bound)][1](streams[0])

    once = partial(context.run_segments, stream, launch, observer)
    try:
        once()
    except CaptureError:
        return None
    finally:
        stream.synchronize()
        recorder.collect()
    return once
