"""Opportunistic batching: requests arrive at random, wait a moment for others, and run together as one batch.

Arrivals are a Poisson process (exponential gaps), drawn once from a seed, so that runs can be compared. A batch leaves when the largest
size is reached or when its oldest request has waited long enough; while a batch runs, requests gather behind it. Each context serves one
batch at a time, several contexts share the queue. A batch of ``n`` requests runs as an inference of batch ``n`` (the smallest batch that
the engine takes, if that is more), as a CUDA graph per size.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from threading import Lock, Thread

import numpy as np

from fusion.dims import Sym
from fusion.network import Network
from runtime.benchmark import BenchmarkOptions
from runtime.context import ExecutionContext
from runtime.engine import Engine, InputRange
from runtime.graph import GraphRunner
from runtime.random_data import SEED

PREPARE_SECONDS = 10.0  # batch sizes are prepared ahead as long as this lasts, the others when they are first met
_SPIN_SECONDS = 5e-4  # the end of a wait is polled, since sleeping is not exact


@dataclass(frozen=True)
class BatchingOptions:
    """``rate``: requests per second on average (``--requestRate``); ``max_delay``: milliseconds that a request may wait for others
    (``--maxQueueDelay``); ``max_batch``: most requests in a batch (``--maxBatch``)."""

    rate: float
    max_delay: float
    max_batch: int
    seed: int = SEED


@dataclass(frozen=True)
class Request:
    """One request: when it came, when its batch was launched, when its results were there (ms from the start), and the batch's size."""

    arrival: float
    start: float
    end: float
    batch: int

    @property
    def queue(self) -> float:
        """Waiting for the batch to leave."""
        return self.start - self.arrival

    @property
    def compute(self) -> float:
        """The batch's inference, with its transfers and the host's part."""
        return self.end - self.start

    @property
    def latency(self) -> float:
        """From the arrival to the results."""
        return self.end - self.arrival


@dataclass(frozen=True)
class BatchingResult:
    """What a run gave.

    Attributes:
        requests: those that arrived after the warm-up and were served, by arrival.
        warm_up_requests: how many were left out.
        unserved: how many had arrived and were still waiting at the end.
        batches: per number of requests in a batch, how many batches ran after the warm-up.
        graphs: captured graphs of the first context (of segments, where the host steps in); ``late``: batch sizes that were met before they could be prepared.
        warnings: why there are no graphs, though they were wanted.
    """

    requests: tuple[Request, ...]
    warm_up_requests: int
    unserved: int
    batches: Mapping[int, int]
    graphs: int
    late: int
    warnings: tuple[str, ...]

    @property
    def walltime(self) -> float:
        """Seconds from the first arrival to the last result."""
        if not self.requests:
            return 0.0
        return (max(one.end for one in self.requests) - self.requests[0].arrival) * 1e-3

    @property
    def throughput(self) -> float:
        """Requests per second."""
        return len(self.requests) / self.walltime if self.walltime > 0 else 0.0


def batch_range(engine: Engine, profile: int = 0) -> tuple[int, int]:
    """The smallest and largest batch (first dimension of the inputs that share a dynamic one) of an optimization profile; of a network
    without, the fixed first dimension twice.

    Raises:
        ValueError: the inputs have no common first dimension.
    """
    return batches_of(engine.network, engine.profiles[profile])


def batches_of(network: Network, ranges: Mapping[str, InputRange]) -> tuple[int, int]:
    """As :func:`batch_range`, of a network with the ranges of its inputs.

    Raises:
        ValueError: the inputs have no common first dimension.
    """
    first = ranges[batched_inputs(network)[0]]
    return first.min[0], first.max[0]


def batched_inputs(network: Network) -> list[str]:
    """The inputs whose first dimension is the batch.

    Raises:
        ValueError: there is no such dimension, or inputs disagree on it.
    """
    shapes = {name: network.tensors[name].shape for name in network.inputs}
    dynamic = [name for name, shape in shapes.items() if shape and isinstance(shape[0], Sym)]
    found = dynamic or [name for name, shape in shapes.items() if shape]
    axes = {str(shapes[name][0]) for name in found}
    if len(axes) != 1:
        listed = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items())
        raise ValueError(f"the inputs have no common batch as their first dimension: {listed or 'there are none'}")
    return found


def serve(
    contexts: Sequence[ExecutionContext],
    inputs: Mapping[str, np.ndarray],
    options: BenchmarkOptions,
    batching: BatchingOptions,
) -> BatchingResult:
    """Serve random requests with ``contexts`` for the warm-up and the duration of ``options``, at least ``iterations`` of them.

    ``inputs`` are of the largest batch; a smaller batch takes their beginning.

    Raises:
        ValueError: no dynamic batch, ``max_batch`` outside of the profile, an endless duration.
        EngineError, DeviceError: an inference fails.
    """
    if options.duration < 0:
        raise ValueError("--requestRate needs an end: give --duration in seconds")
    low, high = batch_range(contexts[0].engine, contexts[0].profile)
    if not 1 <= batching.max_batch <= high:
        raise ValueError(f"--maxBatch={batching.max_batch}: the engine takes batches of {low} to {high}; build with --maxShapes that hold it")
    servers = [_Server(context, inputs, options, low, batching.max_batch) for context in contexts]
    arrivals = poisson(batching, options)
    until = max(float(arrivals[-1]), (options.warm_up * 1e-3) + options.duration)
    queue = _Queue(arrivals, batching, until, options.spin)
    rows = _work_off(servers, queue)
    warm = options.warm_up * 1e-3
    batches: Counter[int] = Counter()
    requests = []
    for first, count, start, end in rows:
        if arrivals[first + count - 1] >= warm:
            batches[count] += 1
        times = [arrivals[number] for number in range(first, first + count)]
        requests += [Request(1e3 * float(one), 1e3 * start, 1e3 * end, count) for one in times]
    requests.sort(key=lambda one: one.arrival)
    kept = tuple(one for one in requests if one.arrival >= options.warm_up)
    runner = servers[0].runner
    return BatchingResult(
        requests=kept,
        warm_up_requests=len(requests) - len(kept),
        unserved=len(arrivals) - len(requests),
        batches=dict(sorted(batches.items())),
        graphs=servers[0].captured if runner else 0,
        late=sum(server.late for server in servers),
        warnings=runner.warnings if runner else (),
    )


def _work_off(servers: Sequence[_Server], queue: _Queue) -> list[tuple[int, int, float, float]]:
    """Runs the batches of ``queue``, each server in a thread of its own (the first in this one): per batch its first request, how many, start and end
    in seconds.

    Raises:
        EngineError, DeviceError: an inference failed.
    """
    rows: list[list[tuple[int, int, float, float]]] = [[] for _ in servers]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with servers[number].context.device.current():
                while (taken := queue.take()) is not None:
                    start = queue.now()
                    servers[number].run(taken[1])
                    rows[number].append((*taken, start, queue.now()))
        except BaseException as error:  # raised again in the caller's thread
            failures.append(error)
            queue.close()

    queue.begin()
    threads = [Thread(target=work, args=(number,), daemon=True) for number in range(1, len(servers))]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [row for server in rows for row in server]


def poisson(batching: BatchingOptions, options: BenchmarkOptions) -> np.ndarray:
    """Arrival times in seconds, ascending: all of the warm-up and the duration, and on until there are ``iterations`` after the warm-up."""
    random = np.random.default_rng(batching.seed)
    horizon, warm = options.warm_up * 1e-3 + options.duration, options.warm_up * 1e-3
    times = np.empty(0)
    while not len(times) or times[-1] < horizon or np.count_nonzero(times >= warm) < options.iterations:
        start = times[-1] if len(times) else 0.0
        times = np.concatenate([times, start + np.cumsum(random.exponential(1 / batching.rate, 1024))])
    enough = int(np.searchsorted(times, warm)) + options.iterations
    return times[: max(int(np.searchsorted(times, horizon)), enough)]


class _Queue:
    """Requests by their arrival times, handed out in batches; any number of threads may take."""

    def __init__(self, arrivals: np.ndarray, batching: BatchingOptions, until: float, spin: bool) -> None:
        self._arrivals = arrivals
        self._delay = batching.max_delay * 1e-3
        self._most = batching.max_batch
        self._until = until + self._delay
        self._spin = spin
        self._next = 0
        self._lock = Lock()
        self._start = 0.0

    def begin(self) -> None:
        """Time starts to run."""
        self._start = time.perf_counter()

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def close(self) -> None:
        """Hand out nothing more."""
        self._until = -1.0

    def take(self) -> tuple[int, int] | None:
        """Wait for the next batch: the number of its first request and how many they are. None when the run is over."""
        with self._lock:
            first = self._next
            if first >= len(self._arrivals) or self.now() > self._until:
                return None
            full = self._arrivals[first + self._most - 1] if first + self._most <= len(self._arrivals) else float("inf")
            self._wait(min(float(self._arrivals[first]) + self._delay, float(full)))
            there = int(np.searchsorted(self._arrivals, self.now(), "right")) - first
            count = max(1, min(self._most, there))
            self._next += count
            return first, count

    def _wait(self, moment: float) -> None:
        while (left := moment - self.now()) > 0:
            if left > _SPIN_SECONDS or not self._spin:
                time.sleep(max(left - _SPIN_SECONDS, 1e-5))
            else:
                time.sleep(0)  # lets other threads of this process run


class _Server:
    """A context that runs one batch at a time."""

    def __init__(
        self, context: ExecutionContext, inputs: Mapping[str, np.ndarray], options: BenchmarkOptions, low: int, most: int
    ) -> None:
        self.context = context
        self.late = 0
        self._low = low
        self._batched = batched_inputs(context.engine.network)
        self._rest = {name: array.shape[1:] for name, array in inputs.items()}
        self._size = 0
        for name, array in inputs.items():
            context.set_input_shape(name, array.shape)
        context.use_own_memory(options.managed)
        for name, array in inputs.items():
            context.write_tensor(name, array)
        self._open: list[str] = []
        self._stream, self._done = context.device.stream(), context.device.event(spin=options.spin)
        self._inputs, self._outputs = self._host(inputs) if options.transfers else ({}, {})
        sizes = range(low, max(low, most) + 1)
        self.runner = GraphRunner(context, kept=len(sizes)) if options.graph else None
        self._counts: dict[int, dict[str, int]] = {}  # of a batch size that was prepared: elements of each output that is copied
        self._prepare(sizes)

    @property
    def captured(self) -> int:
        """Graphs: one per batch size, or those of segments where the host steps in."""
        if self.runner is None or self.context.is_segmented:
            return 0 if self.runner is None else self.runner.captures
        return len(self._counts) if not self.runner.warnings else 0

    def _host(self, inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        context = self.context
        sources = {name: context.device.host_array(context.memory_shape(name), array.dtype) for name, array in inputs.items()}
        for name, array in inputs.items():
            np.copyto(sources[name], context.packed(name, array))
        shapes = {name: context.memory_shape(name) for name in context.engine.network.outputs}
        self._open = [name for name, shape in shapes.items() if min(shape, default=0) < 0]  # as large as the data makes them
        targets = {
            name: context.device.host_array((prod(shape),), context.engine.get_tensor_dtype(name).numpy)
            for name, shape in shapes.items() if name not in self._open
        }  # fmt: skip
        return sources, targets

    def _prepare(self, sizes: range) -> None:
        """Prepare batch sizes, powers of two and the largest first, while the time allows."""
        began = time.perf_counter()
        wanted = [size for size in sizes if size & (size - 1) == 0 or size == sizes[-1]]
        for size in dict.fromkeys((*reversed(wanted), *sizes)):
            if time.perf_counter() - began > PREPARE_SECONDS:
                break
            self._set(size)

    def _set(self, size: int) -> None:
        if size == self._size:
            return
        for name in self._batched:
            self.context.set_input_shape(name, (size, *self._rest[name]))
        if self.runner:
            self.runner.prepare()
        else:
            self.context.prepare()
        if size not in self._counts:
            self._counts[size] = {name: prod(self.context.memory_shape(name)) for name in self._outputs}
        self._size = size

    def run(self, count: int) -> None:
        """One inference for ``count`` requests; returns when the results are there."""
        size = max(count, self._low)
        self.late += size not in self._counts
        self._set(size)
        device, context, stream = self.context.device, self.context, self._stream
        for name, array in self._inputs.items():
            device.upload(context.get_tensor_address(name), array[:size] if name in self._batched else array, stream)
        if self.runner:
            self.runner.enqueue(stream)
        else:
            context.execute_async_v3(stream)
        for name, array in self._outputs.items():
            device.download(array[: self._counts[size][name]], context.get_tensor_address(name), stream)
        self._done.record(stream)
        self._done.synchronize()
        for name in self._open:
            context.read_tensor(name)
