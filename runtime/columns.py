"""Which layers can write and read columns of a wider tensor: those for which some tactic says so.

The answers decide which concatenations and slices along the last axis cost nothing (:mod:`runtime.views`). Where all parts of a concatenation
but one can take their places, that one is copied there by a layer of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import TypeAlias

from fusion.dims import symbols
from fusion.expression import Operand
from fusion.network import Layer, Network, typical_sizes
from fusion.ops import Pointwise
from runtime.views import Ask, Sharing
from runtime.workloads import workload_of
from tactics.registry import tactics
from tactics.tactic import DeviceSpec, Workload, refusal

# Devices to ask about where none is at hand: what tactics refuse depends on little more than the kind.
TYPICAL = {
    "cpu": DeviceSpec("cpu", "CPU"),
    "cuda": DeviceSpec("cuda", "GPU", "sm_90a", 90, multiprocessors=132, shared_memory=227 << 10, l2_bytes=50 << 20, bandwidth=3e12),
}
GUESS = 8  # a named size of which nothing is known

Part: TypeAlias = "tuple[str, int]"  # a concatenation, and the number of one of its inputs


def ask_tactics(
    network: Network, per_profile: Sequence[Sequence[Workload]], device: DeviceSpec, pinned: Mapping[str, str] = MappingProxyType({})
) -> Ask:
    """What ``share_memory`` asks, answered for layers whose workloads are those of ``per_profile`` (per profile, per layer). ``pinned`` are
    layers that must have a certain tactic (its id, or how that begins)."""

    def ask(number: int, pitches: Mapping[str, int]) -> str:
        layer = network.layers[number]
        for workloads in per_profile:
            workload = workloads[number]
            inputs, outputs = (
                tuple(replace(kind, pitch=pitches.get(name, 0)) for name, kind in zip(names, kinds, strict=True))
                for names, kinds in ((layer.inputs, workload.inputs), (layer.outputs, workload.outputs))
            )
            reason = _refusal(replace(workload, inputs=inputs, outputs=outputs), device, pinned.get(layer.name, ""))
            if reason:
                return f"{layer.name}: {reason}"
        return ""

    return ask


def ask_kind(network: Network, device: DeviceSpec, tf32: bool = True) -> Ask:
    """The same for a network that is not built, at sizes that named dimensions may have."""
    sizes = typical_sizes(network, dict.fromkeys(symbols(tuple(kind.shape for kind in network.tensors.values())), GUESS))
    return ask_tactics(network, [[workload_of(network, layer, sizes, network.constants, tf32) for layer in network.layers]], device)


@cache
def _refusal(workload: Workload, device: DeviceSpec, pinned: str) -> str:
    """Why no tactic serves ``workload``, or nothing: what the tactic says that comes nearest (all that compute the operation do)."""
    reasons = []
    for tactic in tactics(device.kind):
        if isinstance(workload.op, tactic.ops) and tactic.id.startswith(pinned) and not (device.kind == "cpu" and tactic.reference):
            found = refusal(tactic, workload, device)
            if found is None:
                return ""
            reasons.append(f"{tactic.id}: {found.reason}")
    return reasons[-1] if reasons else f"no tactic computes {type(workload.op).__name__}"


def parts_to_copy(network: Network, share: Callable[[Network], Sharing]) -> tuple[Part, ...]:
    """The parts without which a concatenation is no view, and with a copy of which it is; one of each concatenation at most."""
    parts = tuple((name, inputs[0]) for name, inputs in share(network).apart.items() if len(inputs) == 1)
    if not parts:
        return ()
    views = share(copy_parts(network, parts)).views
    return tuple(part for part in parts if part[0] in views)


def copy_parts(network: Network, parts: Collection[Part]) -> Network:
    """``network`` with a layer ``copy TENSOR for CONCATENATION`` before the input of each of ``parts``."""
    wanted, layers, tensors = dict(parts), [], dict(network.tensors)
    for layer in network.layers:
        if layer.name in wanted:
            number = wanted[layer.name]
            source = layer.inputs[number]
            name = f"copy {source} for {layer.name}"
            tensors[name] = tensors[source]
            layers.append(Layer(name, Pointwise(Operand(0)), (source,), (name,), (), ("concatenation-view",)))
            layer = replace(layer, inputs=(*layer.inputs[:number], name, *layer.inputs[number + 1 :]))
        layers.append(layer)
    return replace(network, layers=tuple(layers), tensors=tensors) if parts else network
