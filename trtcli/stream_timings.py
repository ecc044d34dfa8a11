"""Measured latencies of whole engines in the timing cache, so that a second build chooses its auxiliary streams without measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusion.serial import to_json
from runtime.device import Device
from runtime.engine import Engine
from runtime.streams import Measured, Timings
from tactics.cache import ENGINE, STREAM_EVENT, Entry, Timing, TimingCache, key_of
from tactics.select import Decision, identity


class NotCachedError(RuntimeError):
    """A measurement that would have been needed was forbidden."""


@dataclass
class CachedTimings:
    """``measured`` behind a timing cache: what was asked before is answered from it, the rest is measured and added to ``cache``.

    Attributes:
        code: says what the layers run, for the keys: see :func:`code_of`.
        versions: what times depend on beside the code and the device.
        level: the builder optimisation level of this build.
        forbidden: a miss raises :class:`NotCachedError` instead of measuring.
        misses: measurements taken.
    """

    cache: TimingCache
    code: Callable[[], str]
    versions: Mapping[str, str]
    level: int
    forbidden: bool = False
    measured: Timings = field(default_factory=Measured)
    misses: int = 0

    def event(self, device: Device) -> float:
        """See :class:`runtime.streams.Timings`."""
        return self._find(device, [{"op": {"is": "StreamEvent"}}], STREAM_EVENT, lambda: [self.measured.event(device)])[0]

    def engines(self, device: Device, engines: Sequence[Engine]) -> list[float]:
        """See :class:`runtime.streams.Timings`; all are measured when one is unknown, for only times taken in turns compare."""
        return self._find(device, [self._workload(one) for one in engines], ENGINE, lambda: self.measured.engines(device, engines))

    def _find(self, device: Device, workloads: Sequence[Mapping[str, Any]], what: str, measure: Callable[[], Sequence[float]]) -> list[float]:
        asked = [{"workload": one, "device": identity(device.spec), "versions": dict(sorted(self.versions.items()))} for one in workloads]
        known = [entry.timings[0].seconds for one in asked if (entry := self.cache.find(one, self.level)) is not None and entry.timings]
        found = [seconds for seconds in known if seconds is not None]
        if len(found) == len(asked):
            return found
        if self.forbidden:
            raise NotCachedError(what)
        self.misses += 1
        found = list(measure())
        for one, seconds in zip(asked, found, strict=True):
            self.cache = self.cache.with_entry(Entry(one, (Timing(what, (), seconds),), self.level), {})
        return found

    def _workload(self, engine: Engine) -> dict[str, Any]:
        network, ranges = engine.network, engine.profiles[0]
        return {
            "op": {"is": "Engine"},
            "inputs": [{**to_json(network.tensors[name]), "shape": list(ranges[name].opt)} for name in network.inputs],
            "outputs": [to_json(network.tensors[name]) for name in network.outputs],
            "code": self.code(),
            "streams": [[plan.stream for plan in plans] for plans in (engine.layers, *engine.more_layers)],
        }


def code_of(engine: Engine, questions: Sequence[Mapping[str, Any]], decisions: Sequence[Decision]) -> str:
    """A digest of the layers that run, how they are joined, and the code of their tactics; names do not count."""
    numbers: dict[str, int] = {}
    wiring = [
        [[numbers.setdefault(name, len(numbers)) for name in names] for names in (layer.inputs, layer.outputs)]
        for layer in engine.network.layers
    ]
    ends = [[numbers.get(name, -1) for name in names] for names in (engine.network.inputs, engine.network.outputs)]
    code = [[one.tactic, list(one.config), one.timings[0].fingerprint if one.timings else ""] for one in decisions]
    return key_of({"wiring": wiring, "ends": ends, "questions": list(questions), "code": code})
