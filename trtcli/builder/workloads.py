"""What the layers of a network compute at the shapes of an optimization profile."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fusion.network import Network, typical_sizes
from runtime.engine import InputRange, fixed_sizes, sizes_of
from runtime.workloads import workload_of
from tactics.tactic import Workload, tensor_bytes
from trtcli.config import BuildConfig

DOUBLINGS = 12  # how often sizes are guessed twice as large as the largest, until a layer makes something

Profile = Mapping[str, InputRange]  # an optimization profile: the range of every input
Outer = Mapping[str, Mapping[str, int]]  # "min", "opt", "max" -> the named sizes around a body


def named_sizes(network: Network, profile: Profile, which: str, outer: Outer) -> dict[str, int]:
    """All named sizes at the smallest (``min``), optimal (``opt``) or largest (``max``) shapes of ``profile``."""
    given = sizes_of(network, {name: getattr(one, which) for name, one in profile.items()})
    return typical_sizes(network, {**outer.get(which, {}), **given}, which)


def workloads_at(
    network: Network, profile: Profile, which: str, config: BuildConfig, outer: Outer, pitches: Mapping[str, int] = MappingProxyType({})
) -> tuple[Workload, ...]:
    """What every layer computes at the smallest (``min``), optimal (``opt``) or largest (``max``) shapes of ``profile``; ``pitches`` are
    those of tensors that lie in wider ones.

    A layer that makes nothing at the optimal shapes stands there at the largest, the smallest, or (sizes that an inference tells have no end)
    the first of doubled sizes at which it makes something: it needs kernels for other sizes.
    """
    sizes = named_sizes(network, profile, which, outer)
    constants, fixed = set(network.constants), fixed_sizes(network, profile)
    found = [workload_of(network, layer, sizes, constants, config.tf32, fixed, pitches) for layer in network.layers]
    empty = [number for number, one in enumerate(found) if which == "opt" and not one.is_static and makes_nothing(one)]
    if empty:
        largest = named_sizes(network, profile, "max", outer)
        doubled = ({name: size if name in fixed else size << times for name, size in largest.items()} for times in range(1, DOUBLINGS))
        for sizes in (largest, named_sizes(network, profile, "min", outer), *doubled):
            for number in empty:
                other = workload_of(network, network.layers[number], sizes, constants, config.tf32, fixed, pitches)
                found[number] = found[number] if makes_nothing(other) else other
            empty = [number for number in empty if makes_nothing(found[number])]
    return tuple(found)


def makes_nothing(workload: Workload) -> bool:
    """Whether all outputs are empty."""
    return not any(all(int(dim) > 0 for dim in one.shape) for one in workload.outputs)  # type: ignore[arg-type]


def extremes(
    network: Network, profile: Profile, config: BuildConfig, outer: Outer, pitches: Mapping[str, int]
) -> list[tuple[Workload, ...]]:
    """Per layer, its workloads at the ends of ``profile`` where they are others than at the optimum; empty outputs need no tactic."""
    smallest, optimal, largest = (workloads_at(network, profile, which, config, outer, pitches) for which in ("min", "opt", "max"))
    return [
        tuple(dict.fromkeys(end for end in ends if end != best and all(tensor_bytes(one) > 0 for one in end.outputs)))
        for best, *ends in zip(optimal, smallest, largest, strict=True)
    ]
