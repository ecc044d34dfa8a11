"""f(x, Expand(y)) -> f(x, y): what broadcasts its operands anyway needs no expanded copy; also the mask of attention."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer, ShapeError
from fusion.ops import Attention, Expand, Pointwise
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._local import EXPRESSION_OPS


def _match(graph: Graph, layer: Layer) -> Match | None:
    for index in _broadcast_inputs(layer):
        expand = graph.producer(layer.inputs[index])
        if expand is not None and isinstance(expand.op, Expand):
            inputs = tuple(expand.inputs[0] if name == layer.inputs[index] else name for name in layer.inputs)
            found = {"inputs": inputs, "expand": expand}
            if graph.only_reader(layer.inputs[index]) is None:
                return Match((layer,), found=found)
            return Match((expand, layer), (layer.inputs[index],), found)
    return None


def _broadcast_inputs(layer: Layer) -> range:
    """The inputs that broadcast against the others or the result."""
    if isinstance(layer.op, Attention):
        return range(layer.op.arity - 1, layer.op.arity) if layer.op.masked else range(0)
    if not isinstance(layer.op, EXPRESSION_OPS):
        return range(0)
    return range(0 if isinstance(layer.op, Pointwise) else layer.op.arity, len(layer.inputs))


def _check(graph: Graph, match: Match) -> Refusal | None:
    layer, expand = match.layers[-1], match.found["expand"]
    if not isinstance(layer.op, Attention | Pointwise) and expand.outputs[0] in layer.inputs[: layer.op.arity]:
        return Refusal("operands", f"{layer.name} also reads {expand.outputs[0]} itself")
    try:
        made = layer.op.infer(graph.types(match.found["inputs"]))[0]
    except ShapeError as error:
        return Refusal("shape", str(error))
    if made.shape != graph.type(layer.outputs[0]).shape:
        return Refusal("shape", f"only {expand.name} gives {layer.name} its shape")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    return Replacement((replace(match.layers[-1], name="", inputs=match.found["inputs"]),), keep_name=len(match.layers) == 1)


def _near(graph: Graph, expand: Layer) -> Near | None:
    """Someone reads what is expanded as it is."""
    (tensor,) = expand.outputs
    for reader in graph.readers(tensor):
        if not any(reader.inputs[index] == tensor for index in _broadcast_inputs(reader)):
            return Match((expand, reader), (tensor,)), Refusal(
                "reader", f"{reader.name} reads all of {tensor}; pointwise layers, epilogues and the masks of attention broadcast"
            )
    return None


RULE = Rule(
    "expand-operand", __doc__.splitlines()[0], (*EXPRESSION_OPS, Attention), _match, _rewrite, _check, near=_near, near_anchors=(Expand,)
)
