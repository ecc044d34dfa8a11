"""Which layers run beside each other: auxiliary streams, kept where the simulated and then the measured latency falls.

The network is cut into chains, the longest path first; each further chain moves to the stream on which the simulated latency falls most,
or stays on the main one. In the simulation layers that run together share the device (each fills a part of it), and every edge between
streams costs the time of an event, as measured on the device. Source of the idea: list scheduling of precedence graphs by critical path
(Graham, 1969). How much of a GPU a layer fills is guessed twice, by its blocks (few gaps are left) and by its distance from the hardware's
limit (kernels that wait leave room for others). Schedules that look shorter are then timed on the device beside the serial one, and the
fastest of all is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import isnan
from statistics import median
from types import MappingProxyType
from typing import Any, Protocol

from runtime.device import CaptureError, Device, DeviceError, DeviceLostError
from runtime.engine import Engine, EngineError
from runtime.parts import Part, parts_at_optimum
from runtime.timer import time_parts
from tactics.tactic import CpuCall, DeviceSpec, Launch, Plan

EVENT_SECONDS = 1.2e-6  # one edge between streams, where none was measured: about what a dependent tiny kernel costs in a graph on an H100
MIN_GAIN = 0.02  # share of the latency that streams must save in the simulation to be tried
MIN_MEASURED_GAIN = 0.01  # and on the device to be kept: less is noise, and streams cost memory
MAX_CHAINS = 64  # the longest chains are tried, the others stay
NEVER = float("inf")
DEFAULT_AUX = 3  # auxiliary streams tried when the user leaves it to us


@dataclass(frozen=True)
class Work:
    """A layer to schedule: its seconds alone, the layers (numbers) whose results it needs, and the share of the device that it fills:
    ``occupancy`` by its blocks, ``use`` by what it asks of the hardware."""

    seconds: float
    needs: tuple[int, ...] = ()
    occupancy: float = 1.0
    use: float = 1.0


_GUESSES: tuple[Callable[[Work], float], ...] = (lambda work: work.occupancy, lambda work: work.use)


@dataclass(frozen=True)
class Branch:
    """A chain of layers (numbers) beside the longest path: the stream that it got, and why it stayed when that is 0."""

    layers: tuple[int, ...]
    stream: int
    reason: str = ""


@dataclass(frozen=True)
class Schedule:
    """The stream of each layer, 0 for the main one; the simulated seconds on one stream and on these; every branch."""

    streams: tuple[int, ...]
    alone: float
    latency: float
    branches: tuple[Branch, ...]


class Timings(Protocol):
    """Where the measured seconds come from: the device, or an earlier build that asked the same (a timing cache)."""

    def event(self, device: Device) -> float:
        """What an edge between streams costs, as :func:`event_cost`."""
        ...

    def parts(self, device: Device, parts: Sequence[Part]) -> list[float]:
        """One run of each part, as :func:`runtime.timer.time_parts`."""
        ...


class Measured:
    """Seconds measured now."""

    def event(self, device: Device) -> float:
        """See :class:`Timings`."""
        return event_cost(device)

    def parts(self, device: Device, parts: Sequence[Part]) -> list[float]:
        """See :class:`Timings`."""
        return time_parts(device, parts)


def with_streams(
    engine: Engine,
    device: Device,
    max_aux: int = -1,
    timings: Timings | None = None,
    around: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Engine, dict[str, Any]]:
    """``engine`` with the stream of every layer chosen from the layers' measured times at the optimal shapes of each profile, and what was
    found (JSON): the event's cost, simulated and measured latencies in ms, and every branch with its reason; for profile 0, and where there are
    several, for each in ``profiles``. ``timings`` are measured unless given.

    Where the host steps in, each segment is a part of its own; latencies are sums over those parts. Bodies are engines of their own: theirs are
    chosen apart, with the sizes ``around`` them.

    ``max_aux`` is the most auxiliary streams (``--maxAuxStreams``); -1 leaves it to us: none on the CPU, up to 3 on a GPU.

    Raises:
        EngineError: a layer cannot run at these shapes.
        DeviceError: the device fails.
    """
    if max_aux < 0:
        max_aux = DEFAULT_AUX if engine.device.kind == "cuda" else 0
    serial = _on_streams(engine, [{} for _ in engine.profiles])
    record: dict[str, Any] = {"maxAuxStreams": max_aux, "used": 0}
    if not max_aux:
        return serial, record
    timings = timings or Measured()
    streams: list[dict[int, int]] = []
    summaries: list[dict[str, Any]] = []
    for profile in range(len(engine.profiles)):
        found = [_choose(part, device, max_aux, timings) for part in parts_at_optimum(serial, profile, around)]
        streams.append({layer: stream for choice in found for layer, stream in choice.streams.items()})
        summaries.append({"used": max(streams[-1].values(), default=0), **_summary(engine, found)})
    chosen = _on_streams(serial, streams) if any(map(any, (one.values() for one in streams))) else serial
    record |= summaries[0]
    record["used"] = max(one["used"] for one in summaries)
    if len(summaries) > 1:
        record["profiles"] = summaries
    return chosen, record


@dataclass(frozen=True)
class _Choice:
    """What was found for a part: per layer (number in the network) its stream where that is not 0; latencies in seconds, and every branch."""

    streams: Mapping[int, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()


def _choose(serial: Part, device: Device, max_aux: int, timings: Timings) -> _Choice:
    try:
        work, layers = workload_graph(serial, device.spec)
    except EngineError as error:
        if not serial.guessed:
            raise
        return _Choice(branches=(Branch(serial.segment.layers, 0, f"cannot run at the sizes that were guessed: {error}"),))
    if len(_chains(work)) < 2:  # one path: nothing to ask the device
        return _Choice()
    event_seconds = timings.event(device)
    tried = [schedule([replace(one, occupancy=min(1.0, fills(one))) for one in work], max_aux, event_seconds) for fills in _GUESSES]
    useful = list({found.streams: found for found in tried if any(found.streams)}.values())
    refusal, kept, found, seconds = "", False, tried[0], {}
    if useful:
        parts = [_part_on_streams(serial, dict(zip(layers, one.streams, strict=True))) for one in useful]
        try:
            alone, *beside = timings.parts(device, (serial, *parts))
        except DeviceLostError:
            raise
        except DeviceError as error:  # too little memory for both, above all: the part on one stream is as good as before
            refusal = f"streams could not be timed: {error}"
            found = useful[0]
        else:
            best = min(range(len(beside)), key=beside.__getitem__)
            found = useful[best]
            seconds = {"measuredSerialMs": alone, "measuredMs": beside[best]}
            kept = beside[best] < alone * (1 - MIN_MEASURED_GAIN)
            if not kept:
                refusal = f"measured {beside[best] * 1e6:.1f} us with streams, {alone * 1e6:.1f} us on one"
    streams = {layer: stream for layer, stream in zip(layers, found.streams, strict=True) if kept and stream}
    branches = tuple(
        Branch(
            tuple(layers[number] for number in branch.layers),
            branch.stream if kept else 0,
            refusal if branch.stream and not kept else branch.reason,
        )
        for branch in found.branches
    )
    seconds |= {"simulatedSerialMs": found.alone, "simulatedMs": found.latency, "eventMs": event_seconds}
    return _Choice(streams, seconds, branches)


def _summary(engine: Engine, choices: Sequence[_Choice]) -> dict[str, Any]:
    """The parts of a profile together, as the record has it."""
    names = [layer.name for layer in engine.network.layers]
    summary: dict[str, Any] = {}
    for choice in choices:
        for what, seconds in choice.seconds.items():
            summary[what] = seconds * 1e3 + (summary.get(what, 0.0) if what != "eventMs" else 0.0)
    summary["branches"] = [
        {"layers": [names[number] for number in branch.layers], "stream": branch.stream, "reason": branch.reason}
        for choice in choices
        for branch in choice.branches
    ]
    return summary


def workload_graph(part: Part, device: DeviceSpec) -> tuple[list[Work], list[int]]:
    """The layers of ``part`` that run, as work to schedule, and their numbers in the network."""
    steps, decisions = part.resolution(device).steps, part.engine.decisions(part.profile)
    work = []
    for step in steps:
        decision = decisions[step.layer]
        seconds = 0.0 if isnan(decision.seconds) else decision.seconds
        used = decision.floor / seconds if seconds else 0.0
        work.append(Work(seconds, step.needs, occupancy(step.plan, device), max(used, occupancy(step.plan, device, resident=True))))
    return work, [step.layer for step in steps]


def _part_on_streams(part: Part, of_layer: Mapping[int, int]) -> Part:
    others = [of_layer if number == part.profile else {} for number in range(len(part.engine.profiles))]
    return replace(part, engine=_on_streams(part.engine, others))


def _on_streams(engine: Engine, of_layer: Sequence[Mapping[int, int]]) -> Engine:
    """``engine`` with layer ``n`` on stream ``of_layer[profile][n]`` (0 where it is not named)."""
    first, *more = (
        tuple(replace(plan, stream=streams.get(number, 0)) for number, plan in enumerate(engine.decisions(profile)))
        for profile, streams in enumerate(of_layer)
    )
    return replace(engine, layers=first, more_layers=tuple(more) if engine.more_layers or any(of_layer) else ())


def occupancy(plan: Plan, device: DeviceSpec, resident: bool = False) -> float:
    """The share of the device that ``plan`` keeps busy: blocks of its largest launch over multiprocessors, at most 1; with ``resident``
    over all blocks that the multiprocessors can hold at a time.

    A NumPy step is taken for the work of one thread; the measurement corrects it.
    """
    shares = []
    for step in plan.steps:
        if isinstance(step, Launch):
            held = _resident(step, device) if resident else 1
            shares.append(step.grid[0] * step.grid[1] * step.grid[2] / (device.multiprocessors * held))
    if not shares and any(isinstance(step, CpuCall) for step in plan.steps):
        shares = [1 / device.multiprocessors]
    return min(1.0, max(shares)) if shares else 1.0


def _resident(launch: Launch, device: DeviceSpec) -> int:
    """How many blocks of ``launch`` a multiprocessor holds at least, by threads (every GPU holds 1024) and shared memory."""
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    by_memory = device.shared_memory // launch.shared_memory if launch.shared_memory and device.shared_memory else 1024
    return max(1, min(1024 // max(1, threads), by_memory))


@cache
def event_cost(device: Device) -> float:
    """Seconds that an edge between two streams adds inside a graph, measured once per device: forks that join again at once, against the
    same tiny operations in a row; :data:`EVENT_SECONDS` where nothing can be captured."""
    count = 16
    memory, main, aux = device.allocate(1024), device.stream(), device.stream(concurrent=True)
    fork, join = device.event(timing=False), device.event(timing=False)

    def in_a_row() -> None:
        for number in range(4 * count):
            device.fill(memory.address + number % 4 * 256, 0, 4, main)

    def forked() -> None:
        for _ in range(count):
            device.fill(memory.address, 0, 4, main)
            fork.record(main)
            aux.wait(fork)
            device.fill(memory.address + 256, 0, 4, aux)
            device.fill(memory.address + 512, 0, 4, main)
            join.record(aux)
            main.wait(join)
            device.fill(memory.address + 768, 0, 4, main)

    seconds = []
    for enqueue in (in_a_row, forked):
        try:
            graph = device.capture(main, enqueue)
        except CaptureError:
            return EVENT_SECONDS
        marks = [(device.event(), device.event()) for _ in range(7)]
        for before, after in marks:
            before.record(main)
            graph.launch(main)
            after.record(main)
        main.synchronize()
        seconds.append(median(after.seconds_since(before) for before, after in marks[2:]))
    return max(0.0, seconds[1] - 0.75 * seconds[0]) / (2 * count)  # a fork and a join on the way of three operations


def schedule(work: Sequence[Work], max_aux: int, event_seconds: float = EVENT_SECONDS) -> Schedule:
    """The stream of each layer; all 0 when streams save less than 2 % in the simulation.

    Layers stand in an order in which they can run one after another; each stream keeps it.
    """
    alone = latency = simulate(work, (0,) * len(work), event_seconds)
    streams = [0] * len(work)
    branches = []
    for chain in _chains(work)[1:]:
        best, nearest = streams, NEVER
        full = all(work[number].occupancy >= 1.0 for number in chain)  # it would only share the device, and pay for events
        for stream in range(1, 0 if full else min(max(streams) + 1, max_aux) + 1):
            trial = list(streams)
            for number in chain:
                trial[number] = stream
            found = simulate(work, trial, event_seconds)
            nearest = min(nearest, found - latency) if best is streams else nearest
            if found < latency:
                best, latency = trial, found
        branches.append(Branch(tuple(chain), best[chain[0]], "" if best is not streams else _why(work, chain, nearest, event_seconds)))
        streams = best
    if latency < alone * (1 - MIN_GAIN):
        return Schedule(tuple(streams), alone, latency, tuple(branches))
    little = f"all streams together save {(alone - latency) * 1e6:.1f} of {alone * 1e6:.1f} us in the simulation, less than {MIN_GAIN:.0%}"
    return Schedule(
        (0,) * len(work), alone, alone,
        tuple(replace(branch, stream=0, reason=branch.reason or little) for branch in branches),
    )  # fmt: skip


def _why(work: Sequence[Work], chain: Sequence[int], longer: float, event_seconds: float) -> str:
    """Why ``chain`` stays on the main stream, when another would make the inference so much longer (seconds)."""
    seconds = sum(work[number].seconds for number in chain)
    fills = max(work[number].occupancy for number in chain)
    simulated = f" (simulated {longer * 1e6:+.1f} us)" if longer < NEVER else ""
    return (
        f"another stream would not help{simulated}: {seconds * 1e6:.1f} us of work that fills {fills:.0%} of the "
        f"device, an edge between streams costs {event_seconds * 1e6:.1f} us"
    )


def simulate(work: Sequence[Work], streams: Sequence[int], event_seconds: float = EVENT_SECONDS) -> float:
    """Seconds until all layers have ended, when each stream runs its layers in order and running layers share the device.

    While the occupancies of running layers add up to more than 1, all of them slow down by that factor.
    """
    queues: list[list[int]] = [[] for _ in range(max(streams, default=0) + 1)]
    for number in reversed(range(len(work))):
        queues[streams[number]].append(number)  # a stream's next layer stands last
    ended = [NEVER] * len(work)
    running: dict[int, int] = {}  # stream -> layer
    left: dict[int, float] = {}  # stream -> seconds left of its layer, alone
    now, busy = 0.0, 0.0
    while running or any(queues):
        nearest = NEVER  # when a stream that waits for an event may go on
        for stream, queue in enumerate(queues):
            if not queue or stream in running:
                continue
            at = _ready(queue[-1], work, streams, ended, event_seconds)
            if at <= now:
                number = queue.pop()
                running[stream], left[stream] = number, work[number].seconds
                busy += work[number].occupancy
            elif at < nearest:
                nearest = at
        slowdown = busy if busy > 1.0 else 1.0
        step = min(left.values()) * slowdown if left else NEVER
        if nearest - now < step:
            step = nearest - now
        now += step
        for stream, number in list(running.items()):
            left[stream] -= step / slowdown
            if left[stream] <= 1e-15:
                busy -= work[number].occupancy
                ended[number] = now
                del running[stream], left[stream]
        if not running:
            busy = 0.0  # no rounding errors add up
    return now + (event_seconds if any(streams) else 0.0)


def _ready(number: int, work: Sequence[Work], streams: Sequence[int], ended: Sequence[float], event_seconds: float) -> float:
    """When ``number`` may start, :data:`NEVER` (yet) while one of its inputs is not computed."""
    stream, needs = streams[number], work[number].needs
    at = event_seconds if stream and not needs else 0.0  # the fork from the main stream
    for other in needs:
        then = ended[other] if streams[other] == stream else ended[other] + event_seconds
        if then > at:
            at = then
    return at


def _chains(work: Sequence[Work]) -> list[list[int]]:
    """The layers cut into paths: the longest path (in seconds), then the longest among what is left, and so on."""
    left = set(range(len(work)))
    chains = []
    while left:
        length: dict[int, float] = {}
        before: dict[int, int] = {}
        for number in sorted(left):
            inputs = [other for other in work[number].needs if other in left]
            longest = max(inputs, key=lambda other: length[other], default=None)
            length[number] = work[number].seconds + (length[longest] if longest is not None else 0.0)
            if longest is not None:
                before[number] = longest
        last = max(sorted(left), key=lambda number: length[number])
        chain = [last]
        while chain[-1] in before:
            chain.append(before[chain[-1]])
        chains.append(chain[::-1])
        left -= set(chain)
        if len(chains) == MAX_CHAINS:
            break
    return chains
