"""Which layers run beside each other: auxiliary streams, assigned where a simulated schedule becomes shorter.

The network is cut into chains, the longest path first; each further chain moves to the stream on which the simulated latency falls most,
or stays on the main one. In the simulation layers that run together share the device (each fills a part of it), and every edge between
streams costs the time of an event. Source of the idea: list scheduling of precedence graphs by critical path (Graham, 1969).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan

from runtime.engine import Engine
from runtime.resolution import outline, resolve
from tactics.tactic import DeviceSpec, Launch, Plan

EVENT_SECONDS = (
    1.2e-6  # one edge between streams inside a CUDA graph: about what a dependent tiny kernel costs there on an H100
)
MIN_GAIN = 0.02  # share of the latency that streams must save to be used at all
MAX_CHAINS = 64  # the longest chains are tried, the others stay
DEFAULT_AUX = 3  # auxiliary streams tried when the user leaves it to us


@dataclass(frozen=True)
class Work:
    """A layer to schedule: its seconds alone, the layers (numbers) whose results it needs, the share of the device that it fills."""

    seconds: float
    needs: tuple[int, ...] = ()
    occupancy: float = 1.0


def with_streams(engine: Engine, max_aux: int = -1) -> Engine:
    """``engine`` with the stream of every layer chosen, from the layers' measured times at the optimal shapes of profile 0.

    ``max_aux`` is the most auxiliary streams (``--maxAuxStreams``); -1 leaves it to us: none on the CPU, up to 3 on a GPU.

    Raises:
        EngineError: a layer cannot run at these shapes.
    """
    if max_aux < 0:
        max_aux = DEFAULT_AUX if engine.device.kind == "cuda" else 0
    serial = replace(engine, layers=tuple(replace(plan, stream=0) for plan in engine.layers))
    if not max_aux:
        return serial
    fixed = outline(serial)
    shapes = {name: item.opt for name, item in engine.profiles[0].items()}
    steps = resolve(serial, fixed, shapes, engine.device).steps
    writer: dict[str, int] = {}
    work = []
    for number, step in enumerate(steps):
        layer, decision = engine.network.layers[step.layer], engine.layers[step.layer]
        needs = sorted({writer[fixed.owner[name]] for name in layer.inputs if fixed.owner[name] in writer})
        seconds = 0.0 if isnan(decision.seconds) else decision.seconds
        work.append(Work(seconds, tuple(needs), occupancy(step.plan, engine.device)))
        writer.update((fixed.owner[name], number) for name in layer.outputs)
    streams = schedule(work, max_aux)
    of_layer = {step.layer: stream for step, stream in zip(steps, streams, strict=True)}
    plans = (replace(plan, stream=of_layer.get(number, 0)) for number, plan in enumerate(serial.layers))
    return replace(serial, layers=tuple(plans))


def occupancy(plan: Plan, device: DeviceSpec) -> float:
    """The share of the device that ``plan`` keeps busy: blocks of its largest launch over multiprocessors, at most 1."""
    blocks = [step.grid[0] * step.grid[1] * step.grid[2] for step in plan.steps if isinstance(step, Launch)]
    return min(1.0, max(blocks) / device.multiprocessors) if blocks else 1.0


def schedule(work: Sequence[Work], max_aux: int, event_seconds: float = EVENT_SECONDS) -> tuple[int, ...]:
    """The stream of each layer, 0 for the main one; all 0 when streams save less than 2 %.

    Layers stand in an order in which they can run one after another; each stream keeps it.
    """
    alone = latency = simulate(work, (0,) * len(work), event_seconds)
    streams = [0] * len(work)
    for chain in _chains(work)[1:]:
        best = streams
        for stream in range(1, min(max(streams) + 1, max_aux) + 1):
            trial = list(streams)
            for number in chain:
                trial[number] = stream
            found = simulate(work, trial, event_seconds)
            if found < latency:
                best, latency = trial, found
        streams = best
    return tuple(streams) if latency < alone * (1 - MIN_GAIN) else (0,) * len(work)


def simulate(work: Sequence[Work], streams: Sequence[int], event_seconds: float = EVENT_SECONDS) -> float:
    """Seconds until all layers have ended, when each stream runs its layers in order and running layers share the device.

    While the occupancies of running layers add up to more than 1, all of them slow down by that factor.
    """
    queues: dict[int, list[int]] = {}
    for number, stream in enumerate(streams):
        queues.setdefault(stream, []).append(number)
    ended: dict[int, float] = {}
    running: dict[int, float] = {}  # layer -> seconds left, alone
    now = 0.0
    while len(ended) < len(work):
        ready_later: list[float] = []
        for stream, queue in queues.items():
            if not queue or any(streams[number] == stream for number in running):
                continue
            at = _ready(queue[0], work, streams, ended, event_seconds)
            if at is None:
                continue
            if at <= now:
                running[queue[0]] = work[queue[0]].seconds
                queue.pop(0)
            else:
                ready_later.append(at)
        slowdown = max(1.0, sum(work[number].occupancy for number in running))
        steps = [left * slowdown for left in running.values()] + [at - now for at in ready_later]
        step = min(steps)
        now += step
        for number in list(running):
            running[number] -= step / slowdown
            if running[number] <= 1e-15:
                del running[number]
                ended[number] = now
    return now + (event_seconds if any(streams) else 0.0)


def _ready(
    number: int, work: Sequence[Work], streams: Sequence[int], ended: dict[int, float], event_seconds: float
) -> float | None:
    """When ``number`` may start, None while one of its inputs is not computed."""
    at = event_seconds if streams[number] and not work[number].needs else 0.0  # the fork from the main stream
    for other in work[number].needs:
        if other not in ended:
            return None
        at = max(at, ended[other] + (event_seconds if streams[other] != streams[number] else 0.0))
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
