"""The check that every ONNX node of a network has exactly one fate."""

from __future__ import annotations

from collections import Counter

from fusion.network import Network


def check_fates(before: Network, after: Network) -> None:
    """Every node is in a layer, folded, a no-op or dead; layers hold exactly the nodes whose fate names a layer."""
    assert set(after.fates) == set(before.fates)
    layers = {layer.name: layer for layer in after.layers}
    counts = Counter(fate.kind for fate in after.fates.values())
    assert sum(counts[kind] for kind in ("layer", "folded", "no-op", "dead")) == len(before.fates)
    for node, fate in after.fates.items():
        assert (fate.kind == "layer") == bool(fate.layer)
        assert not fate.layer or any(one == node or one.startswith(f"{node}/") for one in layers[fate.layer].origins)  # or a node of its body
    computed = {node for layer in after.layers for node in layer.origins}
    calls = {node for node, fate in after.fates.items() if fate.kind == "layer" and node not in layers[fate.layer].origins}
    assert computed == {node for node, fate in after.fates.items() if fate.kind == "layer"} - calls
    assert before.outputs == after.outputs
