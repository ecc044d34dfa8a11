"""CUDA graphs of whole inferences: capture one enqueue, launch it for ever after; and what stands in the way of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from runtime.context import ExecutionContext
from runtime.device import CaptureError, Graph, Stream
from runtime.engine import Engine
from runtime.runner import Bound, Streams
from runtime.segments import Part, captured_layers, obstacles_of, segments_of

CAPTURE_FAILED = (
    "The CUDA graph capture on the stream has failed.",
    "The built engine contains operations that are not permitted under CUDA graph capture mode.",
    "CUDA graph capture failed. The inference will be launched without using CUDA graph.",
)
SEGMENTED = ("The built engine contains operations that are not permitted under CUDA graph capture mode.",)
_KEPT_GRAPHS = 16
_MOST_RUNS = 4  # of segments before all have graphs: one finds how much memory they need, one where all lies, one captures


def engine_parts(engine: Engine) -> tuple[Part, ...]:
    """The engine's network and those inside its layers, each with the layers that the host computes."""
    inner = (part for plan in engine.layers for body in plan.bodies for part in engine_parts(body))
    return ((engine.network, engine.host_layers), *inner)


def capture_obstacles(engine: Engine) -> list[tuple[str, str]]:
    """(layer, reason) for every layer that a CUDA graph cannot hold together with what follows. Static: it needs no GPU."""
    return [(network.layers[one.layer].name, one.reason) for network, host in engine_parts(engine) for one in obstacles_of(network, host)]


def segments_line(engine: Engine) -> str:
    """``2 segments (212 layers) captured around nms_0: the host waits for the device at least once in every inference``"""
    names, segments = [name for name, _ in capture_obstacles(engine)], captured_layers(engine_parts(engine))
    around = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "sizes that are read"
    waits = sum(bool(one.host or one.reads) for one in segments_of(engine.network, engine.host_layers))
    times = "once" if waits == 1 else f"{waits} times"
    layers = sum(map(len, segments))
    return (
        f"{len(segments)} segment{'s' if len(segments) != 1 else ''} ({layers} layer{'s' if layers != 1 else ''}) captured around {around}: "
        f"the host waits for the device {times} or more in every inference"
    )


class GraphRunner:
    """Enqueues inferences of a context as CUDA graphs, one per state (shapes and addresses), captured when first met.

    Where the host steps in during an inference, each segment between its steps is a graph of its own, captured when it meets sizes and
    addresses for the second time. After a failed capture it enqueues layer by layer. ``warnings`` says what a user should know.
    ``captures`` and ``hits`` count the graphs made, and the launches of graphs that were there already; ``plain`` the segments that
    ran without one.
    """

    def __init__(self, context: ExecutionContext, kept: int = _KEPT_GRAPHS) -> None:
        """``kept``: how many states have a graph at a time."""
        self.context = context
        self._kept = kept
        self.warnings: tuple[str, ...] = ()
        self.captures = self.hits = self.plain = 0
        self._prepared: set[tuple[object, ...]] = set()  # states of a segmented network that were met
        self._graphs: dict[tuple[object, ...], Graph] = {}
        self._current: Graph | None = None
        self._revision = -1
        self._stream = context.device.stream()
        self._refused = False
        self._parts: list[Graph] = []  # of the last inference, segment by segment

    @property
    def nodes(self) -> int:
        """Operations in the present graph, or in those of the last inference's segments; 0 when there is none."""
        return sum(graph.nodes for graph in self._parts) if self.context.is_segmented else self._current.nodes if self._current else 0

    def prepare(self) -> bool:
        """Have a graph for the present state, after one plain inference (which also loads kernels lazily). Whether there is one.

        Raises:
            ValueError, EngineError, DeviceError: the plain inference fails.
        """
        if self._revision == self.context.revision:
            return bool(self.nodes)
        if self.context.is_segmented:
            return self._prepare_segments()
        state = self.context.state()
        graph = self._graphs.get(state)
        if graph is not None:
            self.hits += 1
        elif not self._refused:
            self.context.prepare()
            self.context.execute_async_v3(self._stream)
            self._stream.synchronize()
            graph = self._capture(lambda: self.context.execute_async_v3(self._stream))
            if graph is not None:
                if len(self._graphs) >= self._kept:
                    del self._graphs[next(iter(self._graphs))]
                self._graphs[self.context.state()] = graph
        if graph is None:
            self.context.prepare()
        self._current = graph
        self._revision = self.context.revision
        return graph is not None

    def enqueue(self, stream: Stream) -> None:
        """One inference on ``stream``. It waits for the device where the host steps in."""
        if self.context.is_segmented:  # graphs of new sizes are captured as they are met again
            self._parts = []
            self.context.run_segments(stream, self._launch)
            return
        if self._revision != self.context.revision:
            self.prepare()
        if self._current is not None:
            self._current.launch(stream)
        else:
            self.context.execute_async_v3(stream)

    def _prepare_segments(self) -> bool:
        self._revision = self.context.revision
        if self.context.state() in self._prepared:
            return bool(self.captures)
        for _ in range(_MOST_RUNS):
            self._parts, plain = [], self.plain
            self.context.run_segments(self._stream, self._launch)
            if self.plain == plain or self._refused:
                break
        self._stream.synchronize()
        self._prepared.add(self.context.state())
        if not self._refused:
            self.warnings = (*SEGMENTED, segments_line(self.context.engine))
        return bool(self.nodes)

    def _launch(self, bound: Bound, streams: Streams, enqueue: Callable[[Streams], None]) -> None:
        bound.runs += 1
        if bound.graph is not None:
            self.hits += 1
        elif bound.runs > 1 and bound.actions and not self._refused:
            bound.graph = self._capture(lambda: enqueue((self._stream, *streams[1:])))
        if bound.graph is None:
            self.plain += bool(bound.actions)
            enqueue(streams)
            return
        self._parts.append(bound.graph)
        bound.graph.launch(streams[0])

    def _capture(self, enqueue: Callable[[], None]) -> Graph | None:
        try:
            graph = self.context.device.capture(self._stream, enqueue)
        except CaptureError as error:
            self._refused = True
            self.warnings = (*CAPTURE_FAILED[:1], f"{CAPTURE_FAILED[1]} ({error})", *CAPTURE_FAILED[2:])
            return None
        self.captures += 1
        return graph


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
