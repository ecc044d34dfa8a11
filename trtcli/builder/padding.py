"""Padded channels by measurement: which tensors are held with more channels than they have (:mod:`fusion.padded_channels`).

All that may be are padded at once, tactics are chosen for the network so, and what is no faster is taken back: groups of padded tensors that
layers connect, and within a group the tensors whose own layers lose most. What padding and cutting it off cost counts as any other layer does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, TypeAlias

from fusion.layout import REFORMAT
from fusion.network import Layer, Network
from fusion.padded_channels import RULE, PaddedNetwork, is_product, pad_channels, paddable
from fusion.regions import Regions
from fusion.rewrite import Miss, disabled_by
from tactics.tactic import workload_bytes
from trtcli.builder.measured import Chosen, cost_of_layer, may_measure, pays, tried
from trtcli.builder.setting import Setting
from trtcli.builder.workloads import Profile

LEAST_BYTES = 32 << 10  # of a layer's tensors: what moves less is launch and latency, as in squeeze-and-excitation blocks
ROUNDS = 8  # how often single tensors are taken back

_Layers: TypeAlias = "tuple[str, ...]"  # their names


@dataclass(frozen=True)
class _Group:
    """Padded tensors that layers connect, as the padded network names them, with the seconds of all these layers."""

    tensors: frozenset[str]
    before: float
    after: float


@dataclass(frozen=True)
class PaddedChannels:
    """What was decided: ``wanted`` is what :func:`fusion.padded_channels.pad_channels` was told, ``channels`` what came of it (per tensor its
    real and its held channels), ``seconds`` those of the layers around these tensors before and after, ``slower`` the tensors where padding
    was measured and lost, with the times in words."""

    wanted: tuple[str, ...] = ()
    channels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    seconds: tuple[float, float] = (0.0, 0.0)
    slower: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """For the engine's record; times in milliseconds."""
        before, after = (None if math.isinf(one) else one * 1e3 for one in self.seconds)
        held = {name: list(pair) for name, pair in self.channels.items()}
        return {"wanted": list(self.wanted), "channels": held, "beforeMs": before, "afterMs": after, "slower": dict(self.slower)}

    def misses(self, network: Network) -> dict[str, tuple[Miss, ...]]:
        """For ``--whyNot``: per layer of the built ``network`` the tensors around it where padding lost."""
        found: dict[str, tuple[Miss, ...]] = {}
        for name, times in self.slower.items():
            for layer in network.layers:
                if name in (*layer.inputs, *layer.outputs):
                    found[layer.name] = (*found.get(layer.name, ()), Miss(RULE, (layer.name,), "measured", f"{name}: {times}"))
        return found


def measured_padding(now: Chosen, profiles: Sequence[Profile], setting: Setting) -> tuple[Chosen, PaddedChannels]:
    """``now`` with those tensors padded that make the layers around them faster."""
    network = now.network
    every = _worth_trying(now, setting.config.disabled_fusions)
    if not every or not may_measure(setting):
        return now, PaddedChannels()
    wanted, slower, before = every, dict[str, str](), _layer_seconds(now)
    for turn in count():
        padded = pad_channels(network, wanted)
        if padded.network is network:
            return _said(now, PaddedChannels(slower=slower), setting)
        changed = tried("Padded channels", replace(now.fused, network=padded.network), now.copied, profiles, setting)
        if changed is None:
            return now, PaddedChannels()
        times, around = _Times(before, _layer_seconds(changed)), _Surroundings(padded)
        groups = [_Group(one, *times.of(around.layers(one))) for one in _connected(padded.network, padded.held)]
        for one in groups:
            setting.log.verbose(f"{RULE}: {', '.join(sorted(one.tensors))}: {one.before * 1e6:.1f} us before, {one.after * 1e6:.1f} us after")
        losers = _losers(groups, padded, times, around, single=turn < ROUNDS)
        if not losers:
            seconds = sum(one.before for one in groups), sum(one.after for one in groups)
            channels = {name: (len(one.places), one.size) for name, one in padded.held.items()}
            return _said(changed, PaddedChannels(wanted, channels, seconds, slower), setting)
        slower |= losers
        wanted = tuple(name for name in wanted if name not in losers)
    raise AssertionError("every turn but the last leaves fewer tensors")


def _worth_trying(now: Chosen, disabled: Sequence[str]) -> tuple[str, ...]:
    """The tensors that may be padded where ``--disableFusion`` does not name the rule, or a layer around them, and some product around moves
    enough for padding to matter."""
    around: dict[str, list[Layer]] = {}
    large: set[str] = set()
    for layer, workload in zip(now.network.layers, now.choices.workloads[0], strict=True):
        names = (*layer.inputs, *layer.outputs)
        for name in names:
            around.setdefault(name, []).append(layer)
        large.update(names if is_product(layer) and workload_bytes(workload) >= LEAST_BYTES else ())
    return tuple(name for name in paddable(now.network) if name in large and not disabled_by(RULE, around[name], frozenset(disabled)))


def _connected(network: Network, padded: Collection[str]) -> list[frozenset[str]]:
    """``padded`` tensors in groups, a layer of which reads or writes two."""
    regions = Regions(padded)
    for layer in network.layers:
        around = [name for name in (*layer.inputs, *layer.outputs) if name in padded]
        for name in around[1:]:
            regions.join(name, around[0])
    groups: dict[str, set[str]] = {}
    for name in padded:
        groups.setdefault(regions.of(name), set()).add(name)
    return [frozenset(one) for one in groups.values()]


class _Surroundings:
    """The layers around the padded tensors of a network."""

    def __init__(self, padded: PaddedNetwork) -> None:
        self._padded, self._layers = padded, padded.network.layers
        self._touching: dict[str, list[int]] = {}  # per padded tensor, and per slice of one, the layers (numbers) that read or write it
        followed = {*padded.held, *(name for layer in self._layers if _cuts(layer) for name in layer.outputs)}
        for number, layer in enumerate(self._layers):
            for name in followed.intersection((*layer.inputs, *layer.outputs)):
                self._touching.setdefault(name, []).append(number)

    def layers(self, tensors: Collection[str]) -> _Layers:
        """Those that read or write ``tensors``, what inherits its padding from them, or real channels cut out of them."""
        reached, found, waiting = set(tensors), set[int](), list(tensors)
        while waiting:
            name = waiting.pop()
            for number in self._touching.get(name, ()):
                layer = self._layers[number]
                found.add(number)
                inherits = all(one in self._padded.held and one not in self._padded.born for one in layer.outputs)
                if name in layer.inputs and (inherits or _cuts(layer)):
                    waiting += set(layer.outputs) - reached
                    reached.update(layer.outputs)
        return tuple(self._layers[number].name for number in sorted(found))


def _cuts(layer: Layer) -> bool:
    """Whether the layer takes real channels out of a padded tensor, or pads one."""
    return {REFORMAT, RULE} <= set(layer.fusions)


@dataclass(frozen=True)
class _Times:
    """Per layer its seconds, before and after."""

    before: Mapping[str, float]
    after: Mapping[str, float]

    def of(self, layers: _Layers) -> tuple[float, float]:
        """The sums of some."""
        first, second = (sum(times.get(name, 0.0) for name in layers) for times in (self.before, self.after))
        return first, second


def _layer_seconds(chosen: Chosen) -> dict[str, float]:
    return {layer.name: cost_of_layer(decision) for layer, decision in zip(chosen.network.layers, chosen.choices.decisions[0], strict=True)}


def _losers(groups: Sequence[_Group], padded: PaddedNetwork, seconds: _Times, around: _Surroundings, single: bool) -> dict[str, str]:
    """Of the tensors that were to be padded (values of ``padded.born``) all in groups that do not pay; where ``single``, of each other group those
    around which most is lost, no two that share a layer. Each with its times in words."""
    lost: dict[str, str] = {}
    for group in groups:
        roots = sorted(group.tensors & padded.born.keys())
        if not pays(group.before, group.after):
            lost |= dict.fromkeys((padded.born[name] for name in roots), _times(group.before, group.after))
        elif single and len(roots) > 1:
            layers = {name: around.layers((name,)) for name in roots}
            times = {name: seconds.of(one) for name, one in layers.items()}
            touched: set[str] = set()
            for name in sorted(roots, key=lambda name: times[name][1] - times[name][0], reverse=True):
                before, after = times[name]
                if after > before and touched.isdisjoint(layers[name]):
                    lost[padded.born[name]] = _times(before, after)
                    touched.update(layers[name])
    return lost


def _times(before: float, after: float) -> str:
    return f"the layers around it take {before * 1e6:.1f} us, {after * 1e6:.1f} us with padded channels"


def _said(chosen: Chosen, found: PaddedChannels, setting: Setting) -> tuple[Chosen, PaddedChannels]:
    counts = Counter(f"{real} as {held}" for real, held in found.channels.values())
    before, after = (one * 1e6 for one in found.seconds)
    if counts:
        what = ", ".join(text if number == 1 else f"{text} ({number} tensors)" for text, number in counts.items())
        setting.log.info(f"Padded channels: {what}: {before - after:.1f} us of {before:.1f} us saved")
    else:
        setting.log.info(f"Padded channels: none; {len(found.slower)} tensor{'s' if len(found.slower) != 1 else ''} tried, no faster")
    return chosen, found
