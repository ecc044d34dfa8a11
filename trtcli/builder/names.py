"""Layers and nodes that flags name: what a fused one holds, and where there are none of that name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from fusion.network import Network
from fusion.passes import FusionResult
from runtime.segments import parts_of
from trtcli.config import BuildConfig


def unknown_pins(networks: Sequence[Network], config: BuildConfig) -> list[str]:
    """A line for each name of ``--pinTactic`` that no layer of ``networks`` has: the fused one, and what measured fusions made of it."""
    after = {name for network in networks for name in _names(network, fates=False)}
    return [f"--pinTactic: no layer is named {name!r} after fusion{_near(name, after)}" for name, _ in config.pin_tactic if name not in after]


def by_nodes(imported: Network, fused: FusionResult, config: BuildConfig) -> BuildConfig:
    """``config`` with each layer that fusion made, and that ``--disableFusion=rule@layer`` names, in terms of its ONNX nodes: where these are fused
    again, the rule must not make it.

    Raises:
        ValueError: neither a node nor a layer, nor one on the way, has that name; the text has the nearest one.
    """
    if not config.disable_fusion:
        return config
    before = _names(imported, fates=True)
    nodes = {layer.name: layer.origins for part, _ in parts_of(imported) for layer in part.layers}
    for one in fused.applied:
        nodes[one.result] = tuple(dict.fromkeys(node for name in one.layers for node in nodes.get(name, ())))
    nodes.update({layer.name: layer.origins for part, _ in parts_of(fused.network) for layer in part.layers})
    pairs: dict[tuple[str, str], None] = {}
    for rule, name in config.disable_fusion:
        if name and name not in before and name not in nodes:
            raise ValueError(f"--disableFusion={rule}@{name}: no node or layer is named {name!r}{_near(name, before | set(nodes))}")
        made = () if name in before else nodes.get(name, ())
        pairs.update(dict.fromkeys((rule, node) for node in made or (name,)))
    return replace(config, disable_fusion=tuple(pairs))


def _names(network: Network, fates: bool) -> set[str]:
    """The names of all layers, those inside of branches and loops included; with ``fates`` those of ONNX nodes too."""
    parts = [one for one, _ in parts_of(network)]
    return {layer.name for part in parts for layer in part.layers} | {name for part in parts for name in (part.fates if fates else ())}


def _near(name: str, known: set[str]) -> str:
    near = get_close_matches(name, sorted(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
