"""Time per layer: a second run, in which every layer stands between two events.

On a GPU the events are nodes of the captured graph, so that launching costs no time between layers; what an event itself costs is
measured in the same graph (two events with nothing between) and taken off each layer. What is left of a layer includes the gap to its
predecessor, so the sum comes close to the latency, a little above it; layers that run beside each other on several streams are counted in full.
Layers inside of branches and loops have rows of their own, with the time of all iterations; what is left to the branch or loop is the host's part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from runtime.benchmark import BenchmarkOptions
from runtime.context import ExecutionContext
from runtime.device import CaptureError, Stream
from runtime.recorder import Observer, Recorder, Spans, own_seconds, span_cost
from runtime.runner import Bound, Streams


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
    recorder = Recorder(context.device)
    once = _in_graphs(context, recorder, stream) if options.graph else None
    in_graph = once is not None
    once = once or partial(_plainly, context, recorder, stream)
    rows: list[Spans] = []
    begin = time.perf_counter()
    while True:
        once()
        stream.synchronize()
        found = recorder.collect()
        elapsed = time.perf_counter() - begin
        if elapsed * 1e3 >= options.warm_up:
            rows.append(found)
            if len(rows) >= options.iterations and elapsed >= options.warm_up * 1e-3 + max(0.0, options.duration):
                break
    overhead = span_cost(rows)
    columns = zip(*(own_seconds(context.engine, row, overhead, context.profile) for row in rows), strict=True)
    layers = tuple(_layer_time(column) for column in columns)
    return Profile(len(rows), layers, overhead * 1e3, in_graph, context.engine.num_aux_streams)


def _layer_time(column: Sequence[tuple[str, float | None]]) -> LayerTime:
    """One layer's samples; it may run in some inferences only."""
    seconds = [0.0 if one is None else one for _, one in column]
    ran = any(one is not None for _, one in column)
    return LayerTime(column[0][0], 1e3 * np.array(seconds) if ran else np.empty(0))


def _plainly(context: ExecutionContext, recorder: Recorder, stream: Stream) -> None:
    recorder.empty(stream)
    context.enqueue_watched(stream, Observer(recorder))


def _in_graphs(context: ExecutionContext, recorder: Recorder, stream: Stream) -> Callable[[], None] | None:
    """An inference whose layers run in CUDA graphs, one for all or one per segment; None where nothing can be captured."""
    observer = Observer(recorder)
    context.execute_async_v3(stream)
    stream.synchronize()
    if not context.is_segmented:
        try:
            return partial(recorder.capture(stream, partial(_plainly, context, recorder, stream)), stream)
        except CaptureError:
            return None  # the benchmark has already said so
    graphs: dict[int, tuple[Bound, Callable[[Stream], None]]] = {}  # by identity of what was captured, which is kept for that
    origin = context.device.stream()

    def launch(bound: Bound, streams: Streams, enqueue: Callable[[Streams], None]) -> None:
        if not bound.actions:
            return
        if id(bound) not in graphs:

            def with_empty() -> None:
                recorder.empty(origin)
                enqueue((origin, *streams[1:]))

            graphs[id(bound)] = bound, recorder.capture(origin, with_empty)
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
