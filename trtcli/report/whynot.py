"""``--whyNot``: what became of a node, the rule that came nearest to fusing its layer further, and what that would save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fusion.bind import bind_type
from fusion.network import Fate, Layer, Network
from fusion.rewrite import Miss
from runtime.engine import Engine, LayerPlan, sizes_of
from tactics.tactic import tensor_bytes


def why_not_lines(engine: Engine, name: str) -> list[str]:
    """The answer about ONNX node or layer ``name`` of an engine, with times.

    Raises:
        ValueError: there is no such node or layer.
    """
    layer, fate = find(engine.network, name)
    if layer is None:
        return [f"{name}: {fate}"]
    plan = engine.layers[engine.network.layers.index(layer)]
    miss = recorded_misses(engine).get(layer.name)
    lines = [f"{name} {_place(name, layer)} ({_cost(plan)}).", *_miss_lines(layer, miss)]
    saved = _traffic(engine, miss.tensors) if miss else 0
    return [*lines, f"  {_gain(engine, saved)}"] if saved else lines


def why_not_in_network(network: Network, misses: Mapping[str, Miss], name: str) -> list[str]:
    """The answer about a node or layer of a network that has not been built.

    Raises:
        ValueError: there is no such node or layer.
    """
    layer, fate = find(network, name)
    if layer is None:
        return [f"{name}: {fate}"]
    return [f"{name} {_place(name, layer)}.", *_miss_lines(layer, misses.get(layer.name))]


def find(network: Network, name: str) -> tuple[Layer | None, str]:
    """The layer that computes node ``name`` (or is called so), or None and what became of the node.

    Raises:
        ValueError: there is no such node or layer.
    """
    layers = {layer.name: layer for layer in network.layers}
    fate = Fate("layer", name) if name in layers else network.fates.get(name)
    if fate is None:
        near = get_close_matches(name, [*network.fates, *layers], 3)
        advice = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"--whyNot={name}: no such ONNX node or layer{advice}")
    return layers.get(fate.layer) if fate.kind == "layer" else None, _FATES.get(fate.kind, fate.kind)


_FATES = {
    "folded": "computed at build time: it is part of the engine's constants",
    "no-op": "does nothing: what reads it reads its input",
    "dead": "removed: no output of the network needs it",
}


def recorded_misses(engine: Engine) -> dict[str, Miss]:
    """Per layer the nearest refusal that the build recorded."""
    found: Any = engine.record.get("misses", {})
    return {
        layer: Miss(
            rule=str(one["rule"]),
            layers=tuple(one["layers"]),
            condition=str(one["condition"]),
            detail=str(one["detail"]),
            tensors=tuple(one.get("tensors", ())),
        )
        for layer, one in (found.items() if isinstance(found, Mapping) else ())
    }


def _miss_lines(layer: Layer, miss: Miss | None) -> list[str]:
    if miss is None:
        return ["  no rule matched around it: nothing was refused"]
    others = ", ".join(one for one in miss.layers if one != layer.name)
    lines = [f"  nearest rule: {miss.rule} - refused: {miss.detail}"]
    return [*lines, f"  it would have joined it with {others}"] if others else lines


def _place(name: str, layer: Layer) -> str:
    if len(layer.origins) <= 1:
        return "is a layer of its own"
    return "is a fused layer" if name == layer.name else f"is one of {len(layer.origins)} nodes in layer {layer.name!r}"


def _cost(plan: LayerPlan) -> str:
    return "not timed" if math.isnan(plan.seconds) else f"{plan.seconds * 1e6:.1f} us, {plan.bound} bound"


def _traffic(engine: Engine, tensors: Sequence[str]) -> int:
    """Bytes of one write and one read of ``tensors`` at the optimal shapes."""
    types = engine.network.tensors
    sizes = sizes_of(engine.network, {name: one.opt for name, one in engine.profiles[0].items()})
    return sum(2 * tensor_bytes(bind_type(types[name], sizes)) for name in tensors if name in types)


def _gain(engine: Engine, saved: int) -> str:
    seconds = saved / engine.device.bandwidth
    total = sum(plan.seconds for plan in engine.layers if not math.isnan(plan.seconds))
    share = f" of {total * 1e6:.0f} ({100 * seconds / total:.1f} %)" if total else ""
    return f"it would save {saved / 1e6:.2g} MB of traffic, about {seconds * 1e6:.1f} us{share}"
