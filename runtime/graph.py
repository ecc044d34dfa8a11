"""CUDA graphs of whole inferences: capture one enqueue, launch it for ever after; and what stands in the way of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusion.dims import symbols
from runtime.context import ExecutionContext
from runtime.device import CaptureError, Graph, Stream
from runtime.engine import Engine

CAPTURE_FAILED = (
    "The CUDA graph capture on the stream has failed.",
    "The built engine contains operations that are not permitted under CUDA graph capture mode.",
    "CUDA graph capture failed. The inference will be launched without using CUDA graph.",
)
_KEPT_GRAPHS = 16


def capture_obstacles(engine: Engine) -> list[tuple[str, str]]:
    """(layer, reason) for every layer that a CUDA graph cannot hold. Static: it needs no GPU.

    A graph bakes in every launch, so shapes must follow from the inputs' shapes alone.
    """
    network = engine.network
    known = symbols(tuple(network.tensors[name].shape for name in network.inputs))
    obstacles = []
    for layer in network.layers:
        unknown = sorted(symbols(tuple(network.tensors[name].shape for name in layer.outputs)) - known)
        if unknown:
            obstacles.append((layer.name, f"its output's shape depends on data ({', '.join(unknown)})"))
    return obstacles


def capture_segments(engine: Engine, obstacles: list[tuple[str, str]]) -> list[tuple[int, int]]:
    """Runs of layers [first, end) that can be captured around the obstacles."""
    stopped = {name for name, _ in obstacles}
    segments: list[tuple[int, int]] = []
    start: int | None = None
    for number, layer in enumerate(engine.network.layers):
        if layer.name in stopped:
            if start is not None:
                segments.append((start, number))
            start = None
        elif start is None:
            start = number
    if start is not None:
        segments.append((start, len(engine.network.layers)))
    return segments


class GraphRunner:
    """Enqueues inferences of a context as CUDA graphs, one per state (shapes and addresses), captured when first met.

    After a failed capture it enqueues layer by layer; ``warnings`` says so.
    """

    def __init__(self, context: ExecutionContext, kept: int = _KEPT_GRAPHS) -> None:
        """``kept``: how many states have a graph at a time."""
        self.context = context
        self._kept = kept
        self.warnings: tuple[str, ...] = ()
        self._graphs: dict[tuple[object, ...], Graph] = {}
        self._current: Graph | None = None
        self._revision = -1
        self._stream = context.device.stream()

    @property
    def nodes(self) -> int:
        """Operations in the present graph, 0 when there is none."""
        return self._current.nodes if self._current else 0

    def prepare(self) -> bool:
        """Have a graph for the present state, after one plain inference (which also loads kernels lazily). Whether there is one.

        Raises:
            ValueError, EngineError, DeviceError: the plain inference fails.
        """
        if self._revision == self.context.revision:
            return self._current is not None
        graph = self._graphs.get(self.context.state())
        if graph is None and not self.warnings:
            self.context.prepare()
            self.context.execute_async_v3(self._stream)
            self._stream.synchronize()
            try:
                graph = self.context.device.capture(self._stream, lambda: self.context.execute_async_v3(self._stream))
            except CaptureError as error:
                self.warnings = (*CAPTURE_FAILED[:1], f"{CAPTURE_FAILED[1]} ({error})", *CAPTURE_FAILED[2:])
            else:
                if len(self._graphs) >= self._kept:
                    del self._graphs[next(iter(self._graphs))]
                self._graphs[self.context.state()] = graph
        if graph is None:
            self.context.prepare()
        self._current = graph
        self._revision = self.context.revision
        return graph is not None

    def enqueue(self, stream: Stream) -> None:
        """One inference on ``stream``."""
        if self._revision != self.context.revision:
            self.prepare()
        if self._current is not None:
            self._current.launch(stream)
        else:
            self.context.execute_async_v3(stream)


@dataclass(frozen=True)
class Replay:
    """Whether a captured graph computes what the plain enqueue computes.

    ``nodes`` is 0 when nothing could be captured (``warnings`` say why); ``differing`` are the outputs whose bytes differ.
    """

    nodes: int
    warnings: tuple[str, ...]
    differing: tuple[str, ...]


def compare_replay(context: ExecutionContext, inputs: Mapping[str, np.ndarray]) -> Replay:
    """Run plainly, capture, clear the outputs, replay, compare.

    Raises:
        ValueError, EngineError, DeviceError: the plain inference fails.
    """
    plain = context.execute(inputs)
    runner = GraphRunner(context)
    if not runner.prepare():
        return Replay(0, runner.warnings, ())
    stream = context.device.stream()
    for name, array in plain.items():
        if name not in inputs:
            context.device.fill(context.get_tensor_address(name), 0xFF, array.nbytes, stream)
    runner.enqueue(stream)
    stream.synchronize()
    differing = tuple(name for name, array in plain.items() if context.read_tensor(name).tobytes() != array.tobytes())
    return Replay(runner.nodes, (), differing)
