"""reshape(a b) -> reshape(a) reshape(b), before and behind a softmax: heads that are folded into the batch for products only are not; softmax(reshape(x)) -> reshape(softmax(x))."""

from __future__ import annotations

from dataclasses import replace

from fusion.dims import Dim, Shape, product
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, Pointwise, Shuffle, Softmax
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    if isinstance(layer.op, Softmax):
        return _match_softmax(graph, layer)
    shape = graph.type(layer.outputs[0]).shape
    if len(shape) != 3 or len(graph.type(layer.inputs[1]).shape) < 3:
        return None  # without a batch of its own the second operand leaves rows alone: reshape-rows moves their reshapes, the other way
    after = graph.only_reader(layer.outputs[0])
    if after is not None and _splits(graph, after) and any(_is_softmax(graph, one) for one in graph.readers(after.outputs[0])):
        lead = graph.type(after.outputs[0]).shape[:-2]
        return Match((layer, after), (layer.outputs[0],), {"lead": lead, "after": after, "before": None})
    before = graph.producer(layer.inputs[0])
    if before is None or not _plain(before) or graph.only_reader(layer.inputs[0]) is None:
        return None
    source = graph.type(before.inputs[0]).shape
    if len(source) != 4 or source[-2:] != graph.type(layer.inputs[0]).shape[-2:] or not _made_by_softmax(graph, before.inputs[0]):
        return None
    return Match((before, layer), (layer.inputs[0],), {"lead": source[:-2], "after": None, "before": before})


def _near(graph: Graph, layer: Layer) -> Near | None:
    """The batch of the product is split for something else than a softmax."""
    after = graph.only_reader(layer.outputs[0])
    if isinstance(layer.op, Softmax) or len(graph.type(layer.outputs[0]).shape) != 3 or after is None or not _splits(graph, after):
        return None
    readers = ", ".join(one.name for one in graph.readers(after.outputs[0])) or "the network's caller"
    return Match((layer, after)), Refusal("reader", f"{after.name} is for {readers}, not for a softmax")


def _match_softmax(graph: Graph, layer: Layer) -> Match | None:
    before, rank = graph.producer(layer.inputs[0]), len(graph.type(layer.inputs[0]).shape)
    if before is None or not _plain(before) or rank != 3 or layer.op.axis != 2 or len(layer.inputs) > 1 or graph.only_reader(layer.inputs[0]) is None:
        return None
    if len(graph.type(before.inputs[0]).shape) != 4 or graph.type(before.inputs[0]).shape[-2:] != graph.type(layer.inputs[0]).shape[-2:]:
        return None
    return Match((before, layer), (layer.inputs[0],), {"softmax": before})


def _plain(layer: Layer) -> bool:
    return isinstance(layer.op, Shuffle) and layer.op.first is None and layer.op.second is None


def _splits(graph: Graph, layer: Layer) -> bool:
    shape, after = graph.type(layer.inputs[0]).shape, graph.type(layer.outputs[0]).shape
    return _plain(layer) and len(after) == 4 and after[-2:] == shape[-2:]


def _is_softmax(graph: Graph, layer: Layer) -> bool:
    """A softmax, or a mask before one."""
    readers = graph.readers(layer.outputs[0])
    if isinstance(layer.op, Pointwise):
        return any(_is_softmax(graph, one) for one in readers if isinstance(one.op, Softmax | Shuffle))
    if _plain(layer):  # heads are folded in again
        return any(isinstance(one.op, Softmax) for one in readers)
    return isinstance(layer.op, Softmax)


def _made_by_softmax(graph: Graph, tensor: str) -> bool:
    layer = graph.producer(tensor)
    if layer is not None and isinstance(layer.op, Pointwise) and len(layer.inputs) == 1:
        layer = graph.producer(layer.inputs[0])
    return layer is not None and isinstance(layer.op, Softmax)


def _check(graph: Graph, match: Match) -> Refusal | None:
    if "softmax" in match.found:
        return None
    layer = next(one for one in match.layers if isinstance(one.op, MatrixMultiply))
    lead = match.found["lead"]
    batch = graph.type(layer.outputs[0]).shape[0]
    if product(lead) != batch:
        return Refusal("batch", f"{layer.name} has a batch of {batch}, not of {lead[0]} times {lead[1]}")
    for name in layer.inputs:
        shape = graph.type(name).shape
        if _unfolded(shape, batch, lead) is None:
            return Refusal("operands", f"{name} of shape {shape} is no batch of {batch}")
    return None


def _unfolded(shape: Shape, batch: Dim, lead: Shape) -> Shape | None:
    """The shape of an operand when the batch has two axes; None when it has another batch."""
    if len(shape) < 3:
        return shape
    if len(shape) > 3 or shape[0] not in (batch, 1):
        return None
    return (*(lead if shape[0] == batch else (1, 1)), *shape[1:])


def _rewrite(graph: Graph, match: Match) -> Replacement:
    if "softmax" in match.found:
        before, softmax = match.layers
        unfolded = graph.fresh(f"{softmax.outputs[0]}.unfolded")
        fold = replace(before, inputs=(unfolded,), outputs=softmax.outputs)
        return Replacement((replace(softmax, op=replace(softmax.op, axis=3), inputs=before.inputs, outputs=(unfolded,)), fold))
    layer = next(one for one in match.layers if isinstance(one.op, MatrixMultiply))
    lead, after, before = (match.found[key] for key in ("lead", "after", "before"))
    batch = graph.type(layer.outputs[0]).shape[0]
    views, inputs = [], []
    for number, name in enumerate(layer.inputs):
        shape = graph.type(name).shape
        wide = _unfolded(shape, batch, lead)
        if before is not None and number == 0:
            inputs.append(before.inputs[0])
        elif wide == shape:
            inputs.append(name)
        else:
            view = graph.fresh(f"{name}.{layer.name}")
            views.append(Layer(f"{layer.name} operand {number}", Shuffle(reshape=wide), (name,), (view,)))
            inputs.append(view)
    if after is not None:
        return Replacement((*views, Layer("", layer.op, tuple(inputs), after.outputs)))
    result = graph.fresh(f"{layer.outputs[0]}.unfolded")
    folded = Layer(f"{layer.name} fold", Shuffle(reshape=graph.type(layer.outputs[0]).shape), (result,), layer.outputs)
    return Replacement((*views, Layer("", layer.op, tuple(inputs), (result,)), folded))


RULE = Rule("reshape-batch", __doc__.splitlines()[0], (MatrixMultiply, Softmax), _match, _rewrite, _check, near=_near)
