"""What only a measurement of the whole network decides: layouts, and fusions that do not always pay.

Both go the same way: the network is changed, tactics are chosen for it again (what it has in common with the one before, the timing cache
knows), and it stays where it is faster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusion.network import Layer, Network
from fusion.ops import Concatenation
from fusion.passes import OPTIONAL, FusionOptions, FusionResult, with_optional
from fusion.rewrite import Applied, Miss
from runtime.engine import ON_HOST, fixed_sizes
from runtime.workloads import workload_of
from tactics.select import Decision
from tactics.tactic import DeviceSpec, Workload, tensor_bytes
from trtcli.builder.choose import Choices, choose
from trtcli.builder.fuse import Parts
from trtcli.builder.layouts import chosen_layouts, layout_record, measured_times
from trtcli.builder.search import Ask, decide
from trtcli.builder.setting import BuildError, Log, Setting
from trtcli.builder.workloads import Profile, named_sizes
from trtcli.log import Silent

MEASURED_LEVEL = 3  # the builder optimisation level from which on layouts and optional fusions are tried
MIN_GAIN = 0.02  # share of the time of what it changes that a change must save

FuseAgain = Callable[[Log, tuple[str, ...]], tuple[FusionResult, Parts]]  # the network with these layers channels-last


@dataclass(frozen=True)
class Chosen:
    """A fused network, the parts of concatenations that are copied in it, and the tactic of every layer."""

    fused: FusionResult
    copied: Parts
    choices: Choices

    @property
    def network(self) -> Network:
        """The fused network."""
        return self.fused.network


def measured_layouts(now: Chosen, fuse_again: FuseAgain, profiles: Sequence[Profile], setting: Setting) -> tuple[Chosen, dict[str, Any]]:
    """``now`` with the layouts that measured times ask for, where the whole network is faster with them than with the estimated ones; and
    what the engine's record says of it.

    Raises:
        BuildError: a cache miss was forbidden, or the device was lost.
    """
    planar = now.fused.planar
    if planar is None or not may_measure(setting):
        return now, layout_record(None, None)
    sizes, fixed, constants = named_sizes(planar, profiles[0], "opt", {}), fixed_sizes(planar, profiles[0]), set(planar.constants)

    def workload(network: Network, layer: Layer) -> Workload:
        return workload_of(network, layer, sizes, constants | set(network.constants), setting.config.tf32, fixed)

    times = measured_times(planar, workload, lambda asks: seconds_alone(asks, setting), setting.config.disabled_fusions)
    if times is None or setting.timings.untimed:
        return now, layout_record(None, None)
    log, count = setting.log, len(times.layers)
    wanted = chosen_layouts(planar, times)
    if wanted is None:
        log.info(f"Layouts: the estimate is the fastest by measured times, too ({count} layers timed in both)")
        return now, layout_record(times, None)
    fused, copied = fuse_again(Silent(), wanted)
    changed = tried("Layouts by measured times", fused, copied, profiles, setting)
    if changed is None:
        return now, layout_record(times, None)
    before, after = different_seconds(now.choices, changed.choices)
    log.verbose(f"Layouts by measured times: {before * 1e6:.1f} us before, {after * 1e6:.1f} us after")
    if not pays(before, after):
        log.info(f"Layouts: as estimated; by single layers' times another choice ({count} layers timed in both) looked faster, and was not")
        return now, layout_record(times, None)
    log.info(f"Layouts: measured times save {(before - after) * 1e6:.1f} us against the estimate ({count} layers timed in both)")
    return changed, layout_record(times, wanted)


def measured_fusions(now: Chosen, profiles: Sequence[Profile], setting: Setting) -> tuple[Chosen, FusionOptions | None]:
    """``now`` after those optional rules that make the layers which they touch faster; and what :func:`with_optional` was told, None when all
    stayed as it was."""
    if not may_measure(setting):
        return now, None
    log = setting.log
    all_of_them = _optional_fusions(now, setting)
    losers: dict[str, str] = {}
    lost = 0
    while True:  # where one fusion loses, another rule's may take its place, and is measured then
        options = replace(all_of_them, disabled=(*all_of_them.disabled, *losers))
        fused = _with_times(with_optional(now.fused, options), losers)
        if fused.network is now.network:
            return replace(now, fused=fused), None
        changed = tried("Optional fusions", fused, now.copied, profiles, setting)
        if changed is None:
            return now, None
        found = _losers(now, changed, setting.device.spec, log)
        if not found:
            break
        lost += len(found)
        for site, times in found:
            losers |= {f"{site.rule}@{node}": times for node in _nodes_of(now.network, site.layers)}
    kept = changed.fused.applied[len(now.fused.applied) :]
    counts = ", ".join(f"{count} {rule}" for rule, count in Counter(one.rule for one in kept).items())
    before = seconds_of(now)
    saved = before - seconds_of(changed)
    if saved <= min(0.0, MIN_GAIN * before):  # a concatenation may have lost its place
        log.info(f"Measured fusions: none; what {len(kept)} would save, other layers lose")
        times = f"all layers together {before * 1e6:.1f} us before, {(before - saved) * 1e6:.1f} us after"
        losers |= {f"{site.rule}@{node}": times for site in kept for node in _nodes_of(now.network, site.layers)}
        fused = _with_times(with_optional(now.fused, replace(options, disabled=(*all_of_them.disabled, *losers))), losers)
        return (replace(now, fused=fused) if fused.network is now.network else now), None
    slower = f"; {lost} more would be no faster" if lost else ""
    log.info(f"Measured fusions: {counts}: {saved * 1e6:.1f} us saved{slower}")
    for one in kept:
        log.verbose(f"{one.rule}: {', '.join(one.layers)} -> {one.result}")
    return changed, options


def _losers(now: Chosen, changed: Chosen, device: DeviceSpec, log: Log) -> list[tuple[Applied, str]]:
    """The optional fusions of ``changed`` that do not pay against ``now``, each with its times in words."""
    found = []
    for site in changed.fused.applied[len(now.fused.applied) :]:
        nodes = _nodes_of(now.network, site.layers)
        before = seconds_of(now, nodes, site.layers) - cached_seconds(now, changed, nodes, device, site.layers)
        after = seconds_of(changed, nodes)
        times = f"{before * 1e6:.1f} us before, {after * 1e6:.1f} us after"
        log.verbose(f"{site.rule}: {', '.join(site.layers)}: {times}")
        if not pays(before, after):
            found.append((site, times))
    return found


def cached_seconds(now: Chosen, changed: Chosen, nodes: Sequence[str], device: DeviceSpec, names: Sequence[str] = ()) -> float:
    """How much less the layers of ``now`` that compute ``nodes``, or have one of the ``names``, take one after the other than alone: what one of them makes and the next one reads is in
    the L2 cache then (if half of it is enough), while a layer alone reads all from memory. Of tensors that ``changed`` has no more."""
    inside: list[tuple[Layer, Workload]] = []
    wanted = set(nodes)
    for layer, workload in zip(now.network.layers, now.choices.workloads[0], strict=True):
        if wanted & set(layer.origins) or layer.name in names:
            inside.append((layer, workload))
    made = {name for layer, _ in inside for name in layer.outputs} - set(changed.network.tensors)
    sizes = [tensor_bytes(tensor) for layer, workload in inside for name, tensor in zip(layer.inputs, workload.inputs, strict=True) if name in made]
    return sum(size for size in sizes if size <= device.l2_bytes // 2) / device.bandwidth


def seconds_alone(asks: Sequence[Ask], setting: Setting) -> list[float]:
    """The best seconds of each layer by itself, infinite where nothing can compute it.

    Raises:
        BuildError: a cache miss was forbidden, or the device was lost.
    """
    return [math.inf if one is None else one.seconds for one in decide(asks, setting.quiet, optional=True)]


def different_seconds(a: Choices, b: Choices) -> tuple[float, float]:
    """The seconds of the layers that only one of two choices for a network has, at the optimal shapes of profile 0; infinite where the host
    computes one of them."""
    counts = [Counter(one.workloads[0]) for one in (a, b)]
    totals = []
    for choices, other in zip((a, b), reversed(counts), strict=True):
        left, total = Counter(other), 0.0
        for workload, decision in zip(choices.workloads[0], choices.decisions[0], strict=True):
            if left[workload]:
                left[workload] -= 1
            else:
                total += cost_of_layer(decision)
        totals.append(total)
    return totals[0], totals[1]


def seconds_of(chosen: Chosen, nodes: Sequence[str] | None = None, names: Sequence[str] = ()) -> float:
    """The seconds at the optimal shapes of profile 0: of the layers that compute any of ``nodes``, or have one of the ``names`` (a reformat
    computes no node), infinite where the host computes one of them; or of all that the device computes."""
    pairs = zip(chosen.network.layers, chosen.choices.decisions[0], strict=True)
    if nodes is None:
        return sum(cost_of_layer(decision) for _, decision in pairs if decision.tactic != ON_HOST)
    wanted = set(nodes)
    return sum(cost_of_layer(decision) for layer, decision in pairs if wanted & set(layer.origins) or layer.name in names)


def cost_of_layer(decision: Decision) -> float:
    """What a layer counts for; branches and loops, whose bodies stay as they are, for nothing."""
    return math.inf if decision.tactic == ON_HOST else 0.0 if math.isnan(decision.seconds) else decision.seconds


def may_measure(setting: Setting) -> bool:
    """Whether what only measurements decide may be tried."""
    return setting.config.optimization_level >= MEASURED_LEVEL and setting.config.builder_cache and not setting.timings.untimed


def pays(before: float, after: float) -> bool:
    """Whether the seconds saved are worth a change."""
    return after < before * (1 - MIN_GAIN)


def tried(what: str, fused: FusionResult, copied: Parts, profiles: Sequence[Profile], setting: Setting) -> Chosen | None:
    """A changed network with its tactics; None where some layer has none, or ``--buildBudget`` left some without times."""
    try:
        choices = choose(fused.network, profiles, setting)
    except BuildError as error:
        setting.log.verbose(f"{what} were not tried: {error}")
        return None
    return None if setting.timings.untimed else Chosen(fused, copied, choices)


def _optional_fusions(now: Chosen, setting: Setting) -> FusionOptions:
    """All optional rules, but for concatenations that cost nothing as they are."""
    free = [layer.name for layer in now.network.layers if isinstance(layer.op, Concatenation) and layer.name in now.choices.sharing.elided]
    disabled = (*setting.config.disabled_fusions, *(f"convolution-concatenation@{name}" for name in free))
    return FusionOptions(disabled=disabled, enabled=tuple(rule.name for rule in OPTIONAL), device=setting.device.spec.kind)


def _with_times(result: FusionResult, losers: Mapping[str, str]) -> FusionResult:
    """``result`` whose measured fusions that did not pay (``losers``: rule@node -> its times) say so, rather than that they are switched off."""
    nodes = {layer.name: layer.origins for layer in result.network.layers}

    def said(miss: Miss) -> Miss:
        places = (f"{miss.rule}@{node}" for name in miss.layers for node in nodes.get(name, ()))
        times = next((losers[place] for place in places if place in losers), "") if miss.condition == "disabled" else ""
        return replace(miss, condition="measured", detail=times) if times else miss

    return replace(result, misses={name: tuple(map(said, misses)) for name, misses in result.misses.items()})


def _nodes_of(network: Network, layers: Sequence[str]) -> tuple[str, ...]:
    """The ONNX nodes that ``layers`` compute."""
    return tuple(dict.fromkeys(node for layer in network.layers if layer.name in layers for node in layer.origins))
