"""f(constants) -> constant: a layer whose inputs are all known at build is computed at build."""

from __future__ import annotations

from dataclasses import fields

from fusion.dims import is_static
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import OPS
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._expressions import static_size

# A result much larger than what it is made of (Expand, Tile) costs the engine file more than the computation costs.
GROWTH = 4
SMALL = 1 << 20  # bytes


def _match(graph: Graph, layer: Layer) -> Match | None:
    if not layer.inputs or any(graph.constant(name) is None for name in layer.inputs):
        return None
    if any(name in graph.outputs for name in layer.outputs):
        return None
    return Match((layer,))


def _near(graph: Graph, layer: Layer) -> Near | None:
    """Its result is known, but somebody wants it of the network."""
    if not layer.inputs or any(graph.constant(name) is None for name in layer.inputs):
        return None
    name = next(name for name in layer.outputs if name in graph.outputs)
    return Match((layer,)), Refusal("network output", f"{name} is a network output")


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    if not all(is_static(getattr(layer.op, item.name)) for item in fields(layer.op)) or not all(
        kind.is_static for kind in graph.types(layer.outputs)
    ):
        return Refusal("dynamic", f"an attribute of {layer.name} depends on run-time sizes")
    read = sum(graph.constants[name].nbytes for name in layer.inputs)
    written = sum((static_size(kind.shape) or 0) * kind.dtype.itemsize for kind in graph.types(layer.outputs))
    if written > max(SMALL, GROWTH * read):
        return Refusal("growth", f"the result has {written} bytes, its inputs {read}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    values = layer.op.evaluate([graph.constants[name] for name in layer.inputs])
    folded = {graph.fresh(f"{name}.folded"): value for name, value in zip(layer.outputs, values, strict=True)}
    return Replacement(constants=folded, aliases=dict(zip(layer.outputs, folded, strict=True)), fate="folded")


RULE = Rule("constant-fold", __doc__.splitlines()[0], tuple(OPS.values()), _match, _rewrite, _check, local=True, near=_near)
