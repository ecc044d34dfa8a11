"""Layers and nodes that flags name, where there are none of that name."""

from __future__ import annotations

from difflib import get_close_matches

from fusion.network import Network
from fusion.passes import FusionResult
from runtime.segments import parts_of
from trtcli.config import BuildConfig


def unknown_pins(fused: Network, config: BuildConfig) -> list[str]:
    """A line for each name of ``--pinTactic`` that no fused layer has (a layer that a measured fusion makes later may still have it)."""
    after = _names(fused, fates=False)
    return [f"--pinTactic: no layer is named {name!r} after fusion{_near(name, after)}" for name, _ in config.pin_tactic if name not in after]


def check_disabled(imported: Network, fused: FusionResult, config: BuildConfig) -> None:
    """Refuses ``--disableFusion=rule@name`` where neither a node nor a layer, nor one on the way, has that name.

    Raises:
        ValueError: naming it and the nearest one.
    """
    known = _names(imported, fates=True) | _names(fused.network, fates=False) | {one.result for one in fused.applied}
    for rule, name in config.disable_fusion:
        if name and name not in known:
            raise ValueError(f"--disableFusion={rule}@{name}: no node or layer is named {name!r}{_near(name, known)}")


def _names(network: Network, fates: bool) -> set[str]:
    """The names of all layers, those inside of branches and loops included; with ``fates`` those of ONNX nodes too."""
    parts = [one for one, _ in parts_of(network)]
    return {layer.name for part in parts for layer in part.layers} | {name for part in parts for name in (part.fates if fates else ())}


def _near(name: str, known: set[str]) -> str:
    near = get_close_matches(name, sorted(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
