"""Which tactics, in which configurations, are worth compiling and timing for a workload, in which order; and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tactics.cache import Timing
from tactics.compilers import kernels_of
from tactics.registry import tactics
from tactics.tactic import Config, DeviceSpec, Launch, Plan, Tactic, Workload, refusal, tactic_label


@dataclass(frozen=True)
class Candidate:
    """A tactic with a configuration, ready to be compiled."""

    tactic: Tactic
    config: Config
    plan: Plan
    packed: tuple[np.ndarray, ...] = ()
    kernels: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``id[name=value,...]``"""
        return tactic_label(self.tactic.id, self.config)


@dataclass(frozen=True)
class SelectOptions:
    """How much to search. ``level`` is trtexec's builderOptimizationLevel 0..5."""

    level: int = 3
    workspace_limit: int | None = None  # bytes
    shared_memory_limit: int | None = None  # bytes
    max_tactics: int | None = None
    pinned: str = ""  # a tactic id (or a prefix of one), or one with its configuration as reports show it, that must be used
    rounds: int = 8  # how many timings a finalist's time is the median of
    sources: tuple[str, ...] = ()  # libraries that compete with our own kernels (Tactic.source)


class NoTacticError(RuntimeError):
    """No tactic can compute a workload; the text lists each with its reason."""


# (tactics considered, configurations each)
_BREADTH = {0: (1, 1), 1: (3, 1), 2: (4, 2), 3: (6, 10), 4: (8, 24), 5: (99, 999)}


def candidates(
    workload: Workload, device: DeviceSpec, options: SelectOptions
) -> tuple[list[tuple[Tactic, Config]], list[Timing]]:
    """What is worth timing, the most promising first, and the refusals."""
    found: list[tuple[float, Tactic, tuple[Config, ...]]] = []
    refused: list[Timing] = []
    for tactic in tactics(device.kind):
        if not isinstance(workload.op, tactic.ops) or not may_serve(tactic, options):
            continue
        reason = refusal(tactic, workload, device)
        if reason is not None:
            refused.append(Timing(tactic.id, (), None, reason.reason))
            continue
        configs = tuple(tactic.configs(workload, device))
        if configs:
            found.append((tactic.estimate(workload, configs[0], device), tactic, configs))
    if options.pinned:
        kept = [(estimate, tactic, _of_pin(options.pinned, tactic, configs)) for estimate, tactic, configs in found]
        kept = [item for item in kept if item[2]]
        if not kept:
            one = next((item for item in found if options.pinned.startswith(f"{item[1].id}[")), None)
            listed = ", ".join(tactic_label(one[1].id, config) for config in one[2][:8]) if one else ", ".join(item[1].id for item in found) or "none"
            raise NoTacticError(f"pinned tactic {options.pinned!r} cannot serve this layer; those that can: {listed}")
        found = kept
    # On the CPU a reference tactic is the bare NumPy meaning: it competes only where nothing else can serve.
    if device.kind == "cpu" and options.level < 5 and any(not tactic.reference for _, tactic, _ in found):
        found = [item for item in found if not item[1].reference]
    # The plainest come last: their estimate is the floor of the workload, which they are the furthest from.
    found.sort(key=lambda item: (item[1].reference, item[0], item[1].id))
    width, depth = _BREADTH[max(0, min(5, options.level))]
    own = [item for item in found if not item[1].source][:width]
    # A library that is asked for takes no kernel's place; untimed (level 0) it is no choice.
    found = [item for item in found if item in own or (item[1].source and (options.level or not own))]
    ranks = range(max((len(configs[:depth]) for _, _, configs in found), default=0))
    chosen = [
        (tactic, configs[rank]) for rank in ranks for _, tactic, configs in found if rank < len(configs[:depth])
    ]
    if options.max_tactics:
        chosen = chosen[: options.max_tactics]
    return chosen, refused


def _of_pin(pinned: str, tactic: Tactic, configs: tuple[Config, ...]) -> tuple[Config, ...]:
    """Those of ``configs`` that ``pinned`` allows."""
    return configs if tactic.id.startswith(pinned) else tuple(config for config in configs if tactic_label(tactic.id, config) == pinned)


def may_serve(tactic: Tactic, options: SelectOptions) -> bool:
    """Whether ``tactic`` is one of our own, or of a library that was asked for."""
    return not tactic.source or tactic.source in options.sources


def plainest(workload: Workload, device: DeviceSpec) -> list[tuple[Tactic, Config]]:
    """The reference tactics that serve ``workload``, each with its first configuration."""
    return [
        (tactic, config)
        for tactic in tactics(device.kind)
        if tactic.reference and refusal(tactic, workload, device) is None
        for config in tuple(tactic.configs(workload, device))[:1]
    ]


def out_of_range(
    tactic: Tactic,
    config: Config,
    plan: Plan,
    extremes: Sequence[Workload],
    device: DeviceSpec,
    options: SelectOptions,
) -> str:
    """Why the candidate cannot serve one of the ``extremes``, or nothing."""
    for other in extremes:
        shapes = ", ".join("x".join(map(str, tensor.shape)) or "scalar" for tensor in other.inputs)
        where = f"at {shapes}, within the optimization profile"
        try:
            reason = refusal(tactic, other, device)
            if reason is not None:
                return f"{where}: {reason.reason}"
            there = tactic.plan(other, config, device)
        except (ValueError, AssertionError, KeyError, ArithmeticError) as error:
            return f"{where}: no plan: {type(error).__name__}: {error}"
        if set(kernels_of(there)) - set(kernels_of(plan)):
            return f"{where}: it would need other kernels"
        if limit := over_limit(there, device, options):
            return f"{where}: {limit}"
    return ""


def over_limit(plan: Plan, device: DeviceSpec, options: SelectOptions) -> str:
    """Which limit of memory the plan does not keep, or nothing."""
    if options.workspace_limit is not None and plan.workspace > options.workspace_limit:
        return f"needs {plan.workspace} bytes of workspace, {options.workspace_limit} are allowed (--memPoolSize)"
    shared = max((step.shared_memory for step in plan.steps if isinstance(step, Launch)), default=0)
    limit = min(device.shared_memory or 1 << 40, options.shared_memory_limit or 1 << 40)
    if shared > limit:
        return f"needs {shared} bytes of shared memory a block, {limit} are allowed"
    return ""
