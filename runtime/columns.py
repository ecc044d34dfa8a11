"""Which layers can write and read columns of a wider tensor: those for which some tactic says so.

The answers decide which concatenations and slices along the last axis cost nothing (:mod:`runtime.views`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from fusion.dims import symbols
from fusion.network import Network, typical_sizes
from runtime.views import Ask
from runtime.workloads import workload_of
from tactics.registry import tactics
from tactics.tactic import DeviceSpec, Workload, refusal

# Devices to ask about where none is at hand: what tactics refuse depends on little more than the kind.
TYPICAL = {
    "cpu": DeviceSpec("cpu", "CPU"),
    "cuda": DeviceSpec("cuda", "GPU", "sm_90a", 90, multiprocessors=132, shared_memory=227 << 10, l2_bytes=50 << 20, bandwidth=3e12),
}
GUESS = 8  # a named size of which nothing is known


def ask_tactics(network: Network, per_profile: Sequence[Sequence[Workload]], device: DeviceSpec) -> Ask:
    """What ``share_memory`` asks, answered for layers whose workloads are those of ``per_profile`` (per profile, per layer)."""

    def ask(number: int, pitches: Mapping[str, int]) -> str:
        layer = network.layers[number]
        for workloads in per_profile:
            workload = workloads[number]
            inputs, outputs = (
                tuple(replace(kind, pitch=pitches.get(name, 0)) for name, kind in zip(names, kinds, strict=True))
                for names, kinds in ((layer.inputs, workload.inputs), (layer.outputs, workload.outputs))
            )
            reason = _refusal(replace(workload, inputs=inputs, outputs=outputs), device)
            if reason:
                return f"{layer.name}: {reason}"
        return ""

    return ask


def ask_kind(network: Network, device: DeviceSpec, tf32: bool = True) -> Ask:
    """The same for a network that is not built, at sizes that named dimensions may have."""
    sizes = typical_sizes(network, dict.fromkeys(symbols(tuple(kind.shape for kind in network.tensors.values())), GUESS))
    return ask_tactics(network, [[workload_of(network, layer, sizes, network.constants, tf32) for layer in network.layers]], device)


@cache
def _refusal(workload: Workload, device: DeviceSpec) -> str:
    """Why no tactic serves ``workload``, or nothing: what the tactic says that comes nearest (all that compute the operation do)."""
    reasons = []
    for tactic in tactics(device.kind):
        if isinstance(workload.op, tactic.ops) and not (device.kind == "cpu" and tactic.reference):
            found = refusal(tactic, workload, device)
            if found is None:
                return ""
            reasons.append(f"{tactic.id}: {found.reason}")
    return reasons[-1] if reasons else f"no tactic computes {type(workload.op).__name__}"
