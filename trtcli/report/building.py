"""What a build tells while it goes on: the lines of its log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.network import Network
from fusion.passes import FusionResult
from runtime.engine import Engine, InputRange, sizes_of
from runtime.most_memory import UnboundedError
from runtime.resolution import largest
from runtime.segments import layer_count, parts_of
from runtime.views import Sharing, intermediate_bytes, view_layers
from tactics.cache import Timing
from tactics.select import Decision
from tactics.tactic import tactic_label
from trtcli.shapes import text as shape_text


def parsed_line(model: Path | bytes, network: Network, seconds: float) -> str:
    """What was read: nodes, weights, inputs."""
    name = model.name if isinstance(model, Path) else network.name
    parts = [part for part, _ in parts_of(network)]
    count = sum(value.size for part in parts for value in part.constants.values())
    nodes = sum(len(part.fates) for part in parts)
    inputs = ", ".join(f"{one} {'x'.join(map(str, network.tensors[one].shape)) or 'scalar'}" for one in network.inputs)
    return f"Parsed {name} in {seconds:.2f} s: {nodes} nodes, {count / 1e6:.1f} M weights, input {inputs}"


def saved_bytes(imported: Network, network: Network, sharing: Sharing, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of tensors between layers that fusion and views have no need of, at the optimal shapes."""
    return intermediate_bytes(imported, sizes_of(imported, shapes)) - intermediate_bytes(network, sizes_of(network, shapes), sharing)


def profile_lines(network: Network, profiles: Sequence[Mapping[str, InputRange]]) -> list[str]:
    """A line per dynamic input and optimization profile."""
    return [
        f"Set shape of input tensor {name} for optimization profile {number} to: "
        f"MIN={shape_text(one.min)} OPT={shape_text(one.opt)} MAX={shape_text(one.max)}"
        for number, profile in enumerate(profiles)
        for name, one in profile.items()
        if not network.tensors[name].is_static
    ]


def fused_line(imported: Network, fused: FusionResult, sharing: Sharing, saved: int, seconds: float) -> str:
    """How many layers became how many, what that saved, and by which rules most."""
    most = sorted(fused.counts.items(), key=lambda item: -item[1])
    shown = most if len(most) <= 7 else most[:6]
    rest = [f"{sum(count for _, count in most[6:])} by {len(most) - 6} other rules"] if len(shown) < len(most) else []
    rules = ", ".join([*(f"{count} {rule}" for rule, count in shown), *rest])
    before = layer_count(imported)
    inside = [part for part, _ in parts_of(fused.network)[1:]]
    count, views = layer_count(fused.network), len(sharing.views) + sum(len(view_layers(part)) for part in inside)
    layers = f"{count - views} and {counted(views, 'view')}" if views else f"{count}"
    spared = f", {saved / 1e6:.3g} MB of intermediate tensors saved" if saved > 0 else ""
    return f"Fused {counted(before, 'layer')} into {layers} in {seconds:.2f} s{spared}: {rules or 'no rule applied'}"


def counted(count: int, noun: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def fusion_lines(fused: FusionResult) -> list[str]:
    """A line per fusion, in order."""
    return [f"{one.rule}: {', '.join(one.layers)}" + (f" -> {one.result}" if one.result else "") for one in fused.applied]


def host_lines(engine: Engine) -> list[str]:
    """What the user should know of layers that a GPU's host computes."""
    inner = [line for plan in engine.layers for body in plan.bodies for line in host_lines(body)]
    names = [engine.network.layers[number].name for number in sorted(engine.host_layers)]
    if not names:
        return inner
    what = "layers have" if len(names) > 1 else "layer has"
    return [f"{len(names)} {what} no kernel for this GPU and will be computed on the host: {', '.join(names)}", *inner]


def stream_lines(streams: Mapping[str, Any], verbose: Callable[[str], None]) -> list[str]:
    """What the choice of streams came to, where it was measured; every branch that stayed on the main stream goes to ``verbose``."""
    how = "measured" if streams.get("timingCacheMisses", 1) else "from the timing cache"
    lines = []
    for number, found in enumerate(streams.get("profiles", (streams,))):
        where = f" (profile {number})" if "profiles" in streams else ""
        for branch in found.get("branches", ()):
            if not branch["stream"]:
                verbose(f"Stays on the main stream{where}: {', '.join(branch['layers'])}: {branch['reason']}")
        if "measuredMs" in found:
            beside, alone = found["measuredMs"] * 1e3, found["measuredSerialMs"] * 1e3
            what = f"{found['used']} used" if found["used"] else "none used"
            lines.append(f"Auxiliary streams{where}: {what}: {beside:.1f} us with them, {alone:.1f} us on one stream ({how})")
    return lines


def timing_line(layer: str, timing: Timing, decision: Decision) -> str:
    """One row of the decision: a tactic with its time, or why it was not timed."""
    label = tactic_label(timing.tactic, timing.config)
    if timing.seconds is None:
        return f"  {layer}: {label}: {timing.reason or 'taken without timing'}"
    ratio = timing.seconds / decision.seconds if decision.seconds else 1.0
    return f"  {layer}: {label}: {timing.seconds * 1e6:.2f} us ({ratio:.2f}x)"


def activations(engine: Engine) -> str:
    """The largest arena over all profiles, beside what no plan can do without."""
    if engine.is_segmented:
        try:
            return f"activations up to {engine.device_memory_size / 2**20:.1f} MiB"
        except UnboundedError as error:
            return f"activations as large as the data makes them ({error.why})"
    plans = [largest(engine, number).memory for number in range(len(engine.profiles))]
    most = max(plans, key=lambda plan: plan.size)
    return f"activations {most.size / 2**20:.1f} MiB (lower bound {most.lower_bound / 2**20:.1f})"


def weight_bytes(engine: Engine) -> int:
    """Bytes of all weights, those of bodies included."""
    inner = sum(weight_bytes(body) for plan in engine.layers for body in plan.bodies)
    return inner + sum(array.nbytes for array in engine.weights.values())
