"""Why layers stand alone: ``--whyNot`` of one node, and the list of all missed fusions with what their bytes cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fusion.bind import bind_type
from fusion.network import ControlFlow, Fate, Layer, Network, typical_sizes
from fusion.rewrite import Miss
from runtime.engine import Engine, LayerPlan, sizes_of
from tactics.tactic import tensor_bytes


@dataclass(frozen=True)
class Missed:
    """A fusion that was refused: the bytes that it would have kept out of memory (None where sizes are known at run time only), and
    the seconds that they take (None without a device)."""

    miss: Miss
    bytes: int | None
    seconds: float | None = None


_NO_GAIN = ("no gain", "order")  # conditions under which a refused fusion would have saved nothing, or another rule has it
_STILL_WRITTEN = ("shared", "network output")  # under these the tensor is written anyway; fusing saves one read


def _crossings(network: Network, miss: Miss, tensor: str) -> int:
    """How often fusing would spare ``tensor`` the way through memory."""
    if miss.condition in _NO_GAIN:
        return 0
    return 1 if miss.condition in _STILL_WRITTEN or tensor in network.outputs else 2


def missed_fusions(engine: Engine) -> list[Missed]:
    """The fusions that the build refused, dearest first; those that would save no traffic are left out."""
    found = [(miss, _traffic(engine, miss)) for miss in _nearest(recorded_misses(engine))]
    missed = [Missed(miss, saved, saved / engine.device.bandwidth) for miss, saved in found if saved]
    return sorted(missed, key=lambda one: -(one.bytes or 0))


def missed_in_network(network: Network, misses: Mapping[str, Sequence[Miss]]) -> list[Missed]:
    """The same for a network that was not built, largest first, those of unknown size last."""
    found = []
    for miss in _nearest(misses):
        crossing = {name: _crossings(network, miss, name) for name in miss.tensors if name in network.tensors}
        if any(crossing.values()):
            known = all(network.tensors[name].is_static for name in crossing)
            saved = sum(times * tensor_bytes(network.tensors[name]) for name, times in crossing.items()) if known else None
            found.append(Missed(miss, saved))
    return sorted(found, key=lambda one: -1 if one.bytes is None else one.bytes, reverse=True)


def _nearest(misses: Mapping[str, Sequence[Miss]]) -> list[Miss]:
    """The nearest miss of each layer, each once: what would be saved is saved once."""
    return list(dict.fromkeys(one[0] for one in misses.values() if one))


def missed_json(missed: Iterable[Missed]) -> list[dict[str, Any]]:
    """For programs: ``Rule``, ``Layers``, ``Condition``, ``Detail``, ``Bytes``, ``TimeMs`` (null where unknown)."""
    return [
        {
            "Rule": one.miss.rule,
            "Layers": list(one.miss.layers),
            "Condition": one.miss.condition,
            "Detail": one.miss.detail,
            "Bytes": one.bytes,
            "TimeMs": None if one.seconds is None else one.seconds * 1e3,
        }
        for one in missed
    ]


def why_not_lines(engine: Engine, name: str) -> list[str]:
    """The answer about ONNX node or layer ``name`` of an engine, with times.

    Raises:
        ValueError: there is no such node or layer.
    """
    layer, fate = find(engine.network, name)
    if layer is None:
        return [f"{name}: {fate}"]
    plan = dict(zip((one.name for one in engine.network.layers), engine.layers, strict=True)).get(layer.name)
    misses = recorded_misses(engine).get(layer.name, ())
    saved = _traffic(engine, misses[0]) if misses else 0
    cost = _cost(plan) if plan is not None else "inside of a branch or loop"
    return [f"{name} {_place(name, layer)} ({cost}).", *_miss_lines(engine.network, layer, misses, _gain(engine, saved) if saved else "")]


def why_not_in_network(network: Network, misses: Mapping[str, Sequence[Miss]], name: str) -> list[str]:
    """The answer about a node or layer of a network that has not been built.

    Raises:
        ValueError: there is no such node or layer.
    """
    layer, fate = find(network, name)
    if layer is None:
        return [f"{name}: {fate}"]
    found = misses.get(layer.name, ())
    saved = [one.bytes for one in missed_in_network(network, {name: found}) if one.bytes]
    gain = f"it would save {megabytes(saved[0])} of traffic" if saved else ""
    return [f"{name} {_place(name, layer)}.", *_miss_lines(network, layer, found, gain)]


def find(network: Network, name: str) -> tuple[Layer | None, str]:
    """The layer that computes node ``name`` (or is called so), branches and bodies of loops included, or None and what became of the node.

    Raises:
        ValueError: there is no such node or layer.
    """
    fates = all_fates(network)
    layers = {layer.name: layer for one in _networks(network) for layer in one.layers}
    fate = Fate("layer", name) if name in layers else fates.get(name)
    if fate is None:
        near = get_close_matches(name, {**fates, **layers}, 3)
        advice = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"--whyNot={name}: no such ONNX node or layer{advice}")
    return layers.get(fate.layer) if fate.kind == "layer" else None, _FATES.get(fate.kind, fate.kind)


def all_fates(network: Network) -> dict[str, Fate]:
    """What became of every ONNX node, those of branches and loops included."""
    fates: dict[str, Fate] = {}
    for one in _networks(network):
        fates = {**one.fates, **fates}  # a body that the importer made for a node names that node, too
    return fates


def _networks(network: Network) -> Iterator[Network]:
    """``network`` and those inside of its layers."""
    yield network
    for layer in network.layers:
        for body in layer.op.bodies if isinstance(layer.op, ControlFlow) else ():
            yield from _networks(body)


_FATES = {
    "folded": "computed at build time: it is part of the engine's constants",
    "no-op": "does nothing: what reads it reads its input",
    "dead": "removed: no output of the network needs it, or it is in a branch that is never taken",
}


def recorded_misses(engine: Engine) -> dict[str, tuple[Miss, ...]]:
    """Per layer the refusals that the build recorded, the nearest first."""
    found: Any = engine.record.get("misses", {})
    return {
        layer: tuple(
            Miss(
                rule=str(one["rule"]),
                layers=tuple(one["layers"]),
                condition=str(one["condition"]),
                detail=str(one["detail"]),
                tensors=tuple(one.get("tensors", ())),
            )
            for one in (misses if isinstance(misses, list) else [misses])  # older engines recorded the nearest one alone
        )
        for layer, misses in (found.items() if isinstance(found, Mapping) else ())
    }


def _miss_lines(network: Network, layer: Layer, misses: Sequence[Miss], gain: str) -> list[str]:
    """The nearest miss, what it would gain, and the others in a line each; without any, between what the layer stands."""
    joined = [f"  made by {', '.join(layer.fusions)}"] if layer.fusions else []
    if not misses:
        return [*joined, "  no rule matched around it: nothing was refused", f"  {_surroundings(network, layer)}"]
    lines = list(joined)
    for place, miss in enumerate(misses):
        lines.append(f"  {'also near' if place else 'nearest rule'}: {miss.rule} - refused ({miss.condition}): {miss.detail}")
        others = ", ".join(one for one in miss.layers if one != layer.name)
        if not place:
            lines += [f"  it would have joined it with {others}"] if others else []
            lines += [f"  {gain}"] if gain else []
    return lines


def _surroundings(network: Network, layer: Layer) -> str:
    """What the layer reads from, and what reads from it."""
    around = next(one for one in _networks(network) if layer.name in {other.name for other in one.layers})
    makers, readers = around.producers(), around.readers()
    read = [_kind(makers[name]) if name in makers else f"{name} (input)" for name in layer.inputs if name in makers or name in around.inputs]
    by = [*(f"{name} (output)" for name in layer.outputs if name in around.outputs), *(_kind(one) for name in layer.outputs for one in readers.get(name, ()))]
    return f"it reads {', '.join(dict.fromkeys(read)) or 'constants'}; it is read by {', '.join(dict.fromkeys(by)) or 'nothing'}"


def _kind(layer: Layer) -> str:
    return f"{layer.name} ({layer.op.layer_type or type(layer.op).__name__})"


def _place(name: str, layer: Layer) -> str:
    if len(layer.origins) <= 1:
        return "is a layer of its own"
    return "is a fused layer" if name == layer.name else f"is one of {len(layer.origins)} nodes in layer {layer.name!r}"


def _cost(plan: LayerPlan) -> str:
    return "not timed" if math.isnan(plan.seconds) else f"{plan.seconds * 1e6:.1f} us, {plan.bound} bound"


def _traffic(engine: Engine, miss: Miss) -> int:
    """Bytes that would not cross memory at the optimal shapes."""
    types = engine.network.tensors
    sizes = typical_sizes(engine.network, sizes_of(engine.network, {name: one.opt for name, one in engine.profiles[0].items()}))
    return sum(_crossings(engine.network, miss, name) * tensor_bytes(bind_type(types[name], sizes)) for name in miss.tensors if name in types)


def _gain(engine: Engine, saved: int) -> str:
    seconds = saved / engine.device.bandwidth
    total = sum(plan.seconds for plan in engine.layers if not math.isnan(plan.seconds))
    share = f" of {total * 1e6:.0f} ({100 * seconds / total:.1f} %)" if total else ""
    return f"it would save {megabytes(saved)} of traffic, about {seconds * 1e6:.1f} us{share}"


def megabytes(count: int) -> str:
    """``count`` bytes in the unit that suits them."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.2f} kB" if count >= 1e3 else f"{count} bytes"
