"""Time per layer: a second run, in which every layer stands between two events.

On a GPU the events are nodes of the captured graph, so that launching costs no time between layers; what an event itself costs is
measured in the same graph (two events with nothing between) and taken off each layer. What is left of a layer includes the gap to its
predecessor, so the sum comes close to the latency, a little above it; layers that run beside each other on several streams are counted in full.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from runtime.benchmark import BenchmarkOptions
from runtime.context import ExecutionContext
from runtime.device import CaptureError, Event, Stream


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
        layers: in the network's order.
        event_overhead: what an event costs, in ms (median); it was taken off each sample.
        in_graph: whether the layers ran as a CUDA graph.
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
    device, stream = context.device, context.device.stream()
    observer = _Observer(context)
    context.execute_async_v3(stream)
    stream.synchronize()
    graph = None
    if options.graph and not context.is_segmented:
        try:
            graph = device.capture(stream, lambda: observer.enqueue(stream))
        except CaptureError:
            graph = None  # the benchmark has already said so

    rows: list[list[float]] = []
    begin = time.perf_counter()
    while True:
        if graph is not None:
            graph.launch(stream)
        else:
            observer.enqueue(stream)
        stream.synchronize()
        elapsed = time.perf_counter() - begin
        if elapsed * 1e3 >= options.warm_up:
            rows.append(observer.seconds())
            if len(rows) >= options.iterations and elapsed >= options.warm_up * 1e-3 + max(0.0, options.duration):
                break
    table = np.asarray(rows) * 1e3
    overhead = float(np.median(table[:, -1]))
    names = [layer.name for layer in context.engine.network.layers]
    samples = {number: np.maximum(table[:, column] - overhead, 0.0) for column, number in enumerate(observer.layers)}
    layers = tuple(LayerTime(name, samples.get(number, np.empty(0))) for number, name in enumerate(names))
    return Profile(len(rows), layers, overhead, graph is not None, context.engine.num_aux_streams)


class _Observer:
    """Events around each layer of an enqueue."""

    def __init__(self, context: ExecutionContext) -> None:
        self._context = context
        context.prepare()
        self.layers = context.layers()
        self._ran: set[int] = set()
        event = context.device.event
        self._before = {number: event() for number in self.layers}
        self._after = {number: event() for number in self.layers}
        self._empty = (event(), event())

    def enqueue(self, stream: Stream) -> None:
        """One inference with events."""
        for mark in self._empty:
            mark.mark(stream)
        self._ran.clear()
        self._context.enqueue_observed(stream, self._start, lambda number, where: self._after[number].mark(where))

    def _start(self, number: int, stream: Stream) -> None:
        self._ran.add(number)
        self._before[number].mark(stream)

    def seconds(self) -> list[float]:
        """Per layer that runs, its time; last the time between two events with nothing between."""
        pairs: list[tuple[Event, Event]] = [(self._before[number], self._after[number]) for number in self.layers]
        times = [after.seconds_since(before) if number in self._ran else 0.0 for number, (before, after) in zip(self.layers, pairs, strict=True)]
        return [*times, self._empty[1].seconds_since(self._empty[0])]
