"""A network -> the tactic of every layer, per optimization profile, and which tensors are one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fusion.network import ControlFlow, Network
from runtime.columns import ask_tactics
from runtime.device import Device
from runtime.engine import CONTROL, IDLE, ON_HOST
from runtime.views import VIEW, Sharing, share_memory, view_layers
from tactics.registry import tactics
from tactics.select import Decision
from tactics.tactic import Workload, refusal
from trtcli.builder.search import Ask, decide
from trtcli.builder.setting import Setting
from trtcli.builder.workloads import Outer, Profile, extremes, makes_nothing, workloads_at
from trtcli.config import BuildConfig


@dataclass(frozen=True)
class Choices:
    """Per profile, the workload and the decision of every layer."""

    workloads: tuple[tuple[Workload, ...], ...]
    decisions: tuple[tuple[Decision, ...], ...]
    sharing: Sharing


VIEW_DECISION = Decision(VIEW, (), 0.0, (), False, {})  # of a layer whose output is its input's memory
_CONTROL = Decision(CONTROL, (), math.nan, (), False, {})  # of a branch or loop: its bodies have decisions of their own
_IDLE = Decision(IDLE, (), 0.0, (), False, {})  # of a layer that makes nothing, and for which the GPU has no kernel
_HOST = Decision(ON_HOST, (), math.nan, (), False, {})  # of a layer for which the GPU has no kernel


def choose(network: Network, profiles: Sequence[Profile], setting: Setting, outer: Outer = MappingProxyType({})) -> Choices:
    """The tactic of every layer; ``outer`` are the sizes around a body.

    Raises:
        BuildError: no tactic can compute some layer, or a cache miss was forbidden.
    """
    config = setting.config
    sharing, host = shared_memory(network, profiles, config, setting.device, outer)
    per_profile = tuple(workloads_at(network, profile, "opt", config, outer, sharing.pitches) for profile in profiles)
    given = given_decisions(network, sharing, host, per_profile, setting.device)
    asks = [
        Ask(
            layer.name,
            workload,
            {number: network.constants[name] for number, name in enumerate(layer.inputs) if name in network.constants},
            limits,
        )
        for profile, workloads in zip(profiles, per_profile, strict=True)
        for layer, workload, limits, known in zip(
            network.layers, workloads, extremes(network, profile, config, outer, sharing.pitches), given, strict=True
        )
        if known is None
    ]
    decided = (one for one in decide(asks, setting) if one is not None)  # in the order of the asks; none of them is optional
    return Choices(per_profile, tuple(tuple(known or next(decided) for known in given) for _ in profiles), sharing)


def shared_memory(
    network: Network, profiles: Sequence[Profile], config: BuildConfig, device: Device, outer: Outer = MappingProxyType({})
) -> tuple[Sharing, tuple[int, ...]]:
    """Which tensors are one piece of memory, and the layers (numbers) that the host computes: on a GPU those without a kernel in any profile."""
    per_profile = [workloads_at(network, profile, "opt", config, outer) for profile in profiles]
    plain = view_layers(network)
    host = [
        number
        for number, layer in enumerate(network.layers)
        if device.spec.kind == "cuda"
        and not isinstance(layer.op, ControlFlow)
        and layer.name not in plain
        and not all(_has_kernel(workloads[number], device) for workloads in per_profile)
        and not all(makes_nothing(workloads[number]) for workloads in per_profile)
    ]
    ask = ask_tactics(network, per_profile, device.spec, dict(config.pin_tactic))
    return share_memory(network, host, ask=ask, disabled=config.disabled_fusions), tuple(host)


def given_decisions(
    network: Network, sharing: Sharing, host: Sequence[int], per_profile: Sequence[Sequence[Workload]], device: Device
) -> list[Decision | None]:
    """Per layer the decision where there is nothing to choose. What makes nothing at any guess needs no kernel: such a layer does not run."""
    found: list[Decision | None] = []
    for number, layer in enumerate(network.layers):
        given = _CONTROL if isinstance(layer.op, ControlFlow) else _HOST if number in host else VIEW_DECISION if layer.name in sharing.views else None
        workloads = [one[number] for one in per_profile]
        if given is None and device.spec.kind == "cuda" and all(map(makes_nothing, workloads)) and not all(_has_kernel(one, device) for one in workloads):
            given = _IDLE
        found.append(given)
    return found


def _has_kernel(workload: Workload, device: Device) -> bool:
    return any(refusal(one, workload, device.spec) is None for one in tactics("cuda"))
