"""Times of layers: events around each of them, and what they tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import TypeAlias

from runtime.device import Device, Event, Stream
from runtime.engine import Engine
from runtime.watch import Watch, Where

Path: TypeAlias = tuple[int, ...]  # a layer's number, for one in a body after those of the layer and the body around it; () is an empty span


Spans: TypeAlias = Mapping[Path, Sequence[float]]  # the seconds of every run


class Recorder:
    """Events around layers, which may run several times in an inference."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: dict[Path, tuple[Event, Event]] = {}
        self._pending: dict[Path, None] = {}  # whose events are not read yet
        self._times: dict[Path, list[float]] = {}
        self._captured: dict[Path, None] | None = None  # while a graph is made: whose events it holds

    def empty(self, stream: Stream) -> None:
        """A span of nothing: what events cost where this stands, in a graph or not."""
        self.start((), stream)
        self.stop((), stream)

    def start(self, path: Path, stream: Stream) -> None:
        """Layer ``path`` begins."""
        if self._captured is None:
            self._settle(path)
            self._pending[path] = None
        else:
            self._captured[path] = None
        if path not in self._marks:
            self._marks[path] = (self._device.event(), self._device.event())
        self._marks[path][0].mark(stream)

    def stop(self, path: Path, stream: Stream) -> None:
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
            if not self._pending.keys().isdisjoint(paths):
                target.synchronize()  # an event inside of a graph says nothing of a launch that has not got there
                for path in paths:
                    self._settle(path)
            self._pending.update(paths)
            graph.launch(target)

        return launch

    def collect(self) -> Spans:
        """The spans of every layer that ran since the last call, and the empty ones; waits for the device."""
        for path in list(self._pending):
            self._settle(path)
        found, self._times = self._times, {}
        return found

    def _settle(self, path: Path) -> None:
        if path in self._pending:
            before, after = self._marks[path]
            after.synchronize()
            self._times.setdefault(path, []).append(after.seconds_since(before))
            del self._pending[path]


class Observer(Watch):
    """Has a recorder time every layer."""

    def __init__(self, recorder: Recorder, around: Path = ()) -> None:
        self._recorder, self._around = recorder, around

    def before(self, layer: int, stream: Stream) -> None:
        self._recorder.start((*self._around, layer), stream)

    def after(self, layer: int, stream: Stream, where: Where) -> None:
        self._recorder.stop((*self._around, layer), stream)

    def inside(self, layer: int, body: int, iteration: int) -> Observer:
        return Observer(self._recorder, (*self._around, layer, body))


def span_cost(spans: Sequence[Spans]) -> float:
    """Seconds that a span of nothing took: the median of all, for any of them may hold the time slice of another program."""
    return median([seconds for one in spans for seconds in one.get((), ())] or [0.0])


def own_seconds(
    engine: Engine, spans: Spans, cost: float, profile: int = 0, around: Path = ()
) -> Iterator[tuple[str, float | None]]:
    """Every layer of ``engine`` (the body at path ``around``) with the seconds that it took in an inference, the ``cost`` of its events taken off
    each run; None when it did not run. Layers inside of a branch or loop follow it, and their time is not its own."""
    for number, (layer, plan) in enumerate(zip(engine.network.layers, engine.decisions(profile), strict=True)):
        path = (*around, number)
        inner = [one for index, body in enumerate(plan.bodies) for one in own_seconds(body, spans, cost, 0, (*path, index))]
        if path in spans:
            yield layer.name, max(0.0, sum(spans[path]) - len(spans[path]) * cost - sum(one or 0.0 for _, one in inner))
        else:
            yield layer.name, None
        yield from inner
