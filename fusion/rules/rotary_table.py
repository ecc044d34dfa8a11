"""RotaryEmbedding(x, f(Concat(t, t))) -> RotaryEmbedding(x, f(t)): the two halves of a row turn by the same angles, which one value for both tells."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusion.dims import Shape
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Pointwise, RotaryEmbedding, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import reshape_before


@dataclass(frozen=True)
class _Table:
    """``joined`` repeats the angles, ``function`` computes from them (None: nothing), ``shape`` is that of the table."""

    joined: Layer
    function: Layer | None
    shape: Shape


def _table(graph: Graph, tensor: str) -> _Table | None:
    shape = graph.type(tensor).shape
    view = reshape_before(graph, tensor)
    if view is not None:
        if graph.type(view.inputs[0]).shape[-1:] != shape[-1:]:
            return None
        tensor = view.inputs[0]
    function = graph.producer(tensor)
    if function is not None and isinstance(function.op, Pointwise) and len(function.inputs) == 1:
        tensor = function.inputs[0]
    else:
        function = None
    joined = graph.producer(tensor)
    if joined is None or not isinstance(joined.op, Concatenation) or len(joined.inputs) != 2 or joined.op.axis != len(graph.type(tensor).shape) - 1:
        return None
    return _Table(joined, function, shape)


def _match(graph: Graph, layer: Layer) -> Match | None:
    tables = [_table(graph, name) for name in layer.inputs[1:3]]
    return Match((layer,), found={"tables": tables}) if any(tables) and not layer.op.interleaved else None


def _check(graph: Graph, match: Match) -> Refusal | None:
    for table in match.found["tables"]:
        if table is not None and table.joined.inputs[0] != table.joined.inputs[1]:
            return Refusal("halves", f"{table.joined.name} joins {table.joined.inputs[0]} and {table.joined.inputs[1]}, by which the halves turn differently")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    layers: list[Layer] = []
    inputs = list(layer.inputs)
    for number, table in enumerate(match.found["tables"], 1):
        if table is None:
            continue
        tensor = table.joined.inputs[0]
        if table.function is not None:
            made = graph.fresh(f"{table.function.outputs[0]}.{layer.name}")
            layers.append(replace(table.function, inputs=(tensor,), outputs=(made,)))
            tensor = made
        half = graph.type(table.joined.inputs[0]).shape[-1]
        view = graph.fresh(f"{inputs[number]}.{layer.name}.half")
        layers.append(Layer(f"{inputs[number]} half", Shuffle(reshape=(*table.shape[:-1], half)), (tensor,), (view,)))
        inputs[number] = view
    return Replacement((*layers, Layer("", layer.op, tuple(inputs), layer.outputs)), keep_name=True)


RULE = Rule("rotary-table", __doc__.splitlines()[0], (RotaryEmbedding,), _match, _rewrite, _check)
