"""f(Expand(x)) -> Expand(f(x)), for f of one tensor: each element is computed once."""

from __future__ import annotations

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Expand, Pointwise, Reduce, Softmax
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Near, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    expand = graph.producer(layer.inputs[0]) if len(layer.inputs) == 1 else None
    if expand is None or not isinstance(expand.op, Expand):
        return None
    return Match((expand, layer), (expand.outputs[0],))


def _rewrite(graph: Graph, match: Match) -> Replacement:
    expand, layer = match.layers
    middle = graph.fresh(f"{layer.outputs[0]}.before")
    return Replacement(
        (
            Layer(layer.name, layer.op, expand.inputs, (middle,), layer.origins, (*layer.fusions, RULE.name)),
            Layer(expand.name, expand.op, (middle,), layer.outputs, expand.origins, expand.fusions),
        )
    )


def _near(graph: Graph, layer: Layer) -> Near | None:
    """The function became a prologue, because others read what is expanded."""
    expand = graph.producer(layer.inputs[0])
    if layer.op.prologue == IDENTITY or expand is None or not isinstance(expand.op, Expand):
        return None
    return Match((expand, layer), expand.outputs), None


RULE = Rule("pointwise-expand", __doc__.splitlines()[0], (Pointwise,), _match, _rewrite, near=_near, near_anchors=(Reduce, Softmax))
