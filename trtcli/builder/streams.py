"""Auxiliary streams, what they measure kept in the timing cache, so that a second build chooses its streams without measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from fusion.bind import bind_type
from fusion.serial import to_json
from runtime import streams
from runtime.device import Device
from runtime.engine import Engine
from runtime.parts import Part
from runtime.streams import Measured, Timings
from tactics.cache import ENGINE, STREAM_EVENT, Entry, Timing, key_of
from tactics.select import Decision, identity, question
from trtcli.builder.choose import Choices
from trtcli.builder.setting import BuildError, Setting
from trtcli.builder.workloads import Outer
from trtcli.report.building import stream_lines


def with_streams(engine: Engine, choices: Choices, setting: Setting, outer: Outer = MappingProxyType({})) -> tuple[Engine, dict[str, Any]]:
    """``engine`` with its layers on the streams where they are the fastest, and the record of that choice. It is a body where there are
    ``outer`` sizes.

    Raises:
        BuildError: a measurement was needed, and a cache miss forbidden.
    """

    @cache
    def asked(profile: int) -> list[dict[str, Any]]:
        layers = zip(engine.network.layers, choices.workloads[profile], strict=True)
        return [question(workload, setting.device.spec, setting.select_options(layer.name), setting.versions) for layer, workload in layers]

    def code(part: Part) -> str:
        return code_of(part, asked(part.profile), choices.decisions[part.profile])

    timings = CachedTimings(setting, code)
    most = -1 if setting.config.max_aux_streams is None else setting.config.max_aux_streams
    found, record = streams.with_streams(engine, setting.device, most, timings, outer.get("opt", {}))
    setting.timings.save()
    record = {**record, "timingCacheMisses": timings.misses}
    for line in stream_lines(record, setting.log.verbose):
        setting.log.info(line)
    return found, record


@dataclass
class CachedTimings:
    """``measured`` behind the build's timing cache: what was asked before is answered from it, the rest is measured and added to it.

    Attributes:
        code: says what the layers of a part run, for the keys: see :func:`code_of`.
        misses: measurements taken.
    """

    setting: Setting
    code: Callable[[Part], str]
    measured: Timings = field(default_factory=Measured)
    misses: int = 0

    def event(self, device: Device) -> float:
        """See :class:`runtime.streams.Timings`."""
        return self._find(device, [{"op": {"is": "StreamEvent"}}], STREAM_EVENT, lambda: [self.measured.event(device)])[0]

    def parts(self, device: Device, parts: Sequence[Part]) -> list[float]:
        """See :class:`runtime.streams.Timings`; all are measured when one is unknown, for only times taken in turns compare."""
        return self._find(device, [self._workload(one) for one in parts], ENGINE, lambda: self.measured.parts(device, parts))

    def _find(self, device: Device, workloads: Sequence[Mapping[str, Any]], what: str, measure: Callable[[], Sequence[float]]) -> list[float]:
        versions, config, kept = dict(sorted(self.setting.versions.items())), self.setting.config, self.setting.timings
        asked = [{"workload": one, "device": identity(device.spec), "versions": versions} for one in workloads]
        known = [entry.timings[0].seconds for one in asked if (entry := kept.find(one, config.optimization_level)) is not None and entry.timings]
        found = [seconds for seconds in known if seconds is not None]
        if len(found) == len(asked):
            return found
        if config.error_on_timing_cache_miss:
            raise BuildError(
                "the latency with auxiliary streams is not in the timing cache and --errorOnTimingCacheMiss is set; --maxAuxStreams=0 needs none"
            )
        self.misses += 1
        found = list(measure())
        for one, seconds in zip(asked, found, strict=True):
            kept.add(Entry(one, (Timing(what, (), seconds),), config.optimization_level), {})
        return found

    def _workload(self, part: Part) -> dict[str, Any]:
        tensors, plans = part.engine.network.tensors, part.engine.decisions(part.profile)
        given, made = ends_of(part)
        return {
            "op": {"is": "Engine"},
            "inputs": [to_json(bind_type(tensors[name], part.sizes)) for name in given],
            "outputs": [to_json(bind_type(tensors[name], part.sizes)) for name in made],
            "code": self.code(part),
            "streams": [plans[number].stream for number in part.segment.layers],
        }


def ends_of(part: Part) -> tuple[list[str], list[str]]:
    """The tensors that a part reads and no layer of it writes, constants left out; and those that it writes for others."""
    network = part.engine.network
    layers = [network.layers[number] for number in part.segment.layers]
    made = {name for layer in layers for name in layer.outputs}
    known = {*network.inputs, *(name for layer in network.layers for name in layer.outputs)}
    read = dict.fromkeys((*(name for name in part.segment.outside if name in network.inputs), *(name for layer in layers for name in layer.inputs)))
    return [name for name in read if name in known - made], [name for name in part.segment.outside if name in made]


def code_of(part: Part, questions: Sequence[Mapping[str, Any]], decisions: Sequence[Decision]) -> str:
    """A digest of the layers that run, how they are joined, and the code of their tactics; names do not count. There is a question and a
    decision per layer of the network."""
    numbers: dict[str, int] = {}
    layers = [part.engine.network.layers[number] for number in part.segment.layers]
    wiring = [[[numbers.setdefault(name, len(numbers)) for name in names] for names in (layer.inputs, layer.outputs)] for layer in layers]
    ends = [[numbers.get(name, -1) for name in names] for names in ends_of(part)]
    own = [decisions[number] for number in part.segment.layers]
    code = [[one.tactic, list(one.config), one.timings[0].fingerprint if one.timings else ""] for one in own]
    return key_of({"wiring": wiring, "ends": ends, "questions": [questions[number] for number in part.segment.layers], "code": code})
