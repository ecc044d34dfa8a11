"""Recurrence(MatMul(transpose(x), w)) -> Recurrence(MatMul(x, w), batch first); a transpose of its states becomes its strides."""

from __future__ import annotations

from dataclasses import replace

from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, Recurrence, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule
from fusion.rules._shuffles import transpose_of

# Kernels read and write rows of h elements; where time, direction and batch stand is a matter of strides.
INNERMOST = "h"


def _match(graph: Graph, layer: Layer) -> Match | None:
    after = graph.only_reader(layer.outputs[0])
    if after is not None and isinstance(after.op, Shuffle):
        first = after.op.first if after.op.first is not None or after.op.reshape is not None else after.op.second
        if first is not None and first != tuple(range(4)):
            order = "".join(layer.op.output_order[axis] for axis in first)
            return Match((layer, after), (layer.outputs[0],), {"after": after, "order": order})
    product = graph.producer(layer.inputs[0])
    if product is None or not isinstance(product.op, MatrixMultiply) or product.op.transpose_a:
        return None
    shuffle = graph.producer(product.inputs[0])
    if shuffle is None or not isinstance(shuffle.op, Shuffle) or graph.only_reader(product.outputs[0]) is None:
        return None
    if transpose_of(graph.type(shuffle.inputs[0]).shape, shuffle.op) != (1, 0, 2) or len(graph.type(product.inputs[1]).shape) != 2:
        return None
    # The transpose may have other readers: then it stays for them.
    alone = graph.only_reader(shuffle.outputs[0]) is not None
    layers = (shuffle, product, layer) if alone else (product, layer)
    vanishing = (product.outputs[0], *((shuffle.outputs[0],) if alone else ()))
    return Match(layers, vanishing, {"product": product, "shuffle": shuffle, "alone": alone})


def _check(graph: Graph, match: Match) -> Refusal | None:
    if "order" in match.found:
        if match.found["order"][-1] != INNERMOST:
            return Refusal("innermost", f"{match.found['after'].name} moves the states' own axis")
        return None
    product = match.found["product"]
    for name in product.inputs[2:]:
        if any(dim != 1 for dim in graph.type(name).shape[:-1]):
            return Refusal("operands", f"{name} of {product.name} varies by row")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    layer = next(one for one in match.layers if isinstance(one.op, Recurrence))
    if "order" in match.found:
        after = match.found["after"]
        op = replace(layer.op, output_order=match.found["order"])
        rest = Shuffle(None, after.op.reshape, after.op.second) if after.op.first is not None else Shuffle()
        if rest == Shuffle():
            return Replacement((Layer("", op, layer.inputs, (after.outputs[0], *layer.outputs[1:])),))
        middle = graph.fresh(f"{layer.outputs[0]}.{op.output_order}")
        kept = _kept(layer, op, layer.inputs, (middle, *layer.outputs[1:]))
        return Replacement((kept, replace(after, op=rest, inputs=(middle,))))
    product, shuffle = match.found["product"], match.found["shuffle"]
    op = replace(layer.op, input_order=layer.op.input_order[::-1])
    middle = graph.fresh(f"{product.outputs[0]}.{op.input_order}")
    moved = _kept(product, product.op, (shuffle.inputs[0], *product.inputs[1:]), (middle,))
    # The transpose's own nodes are the recurrence's now: it is what reads in another order.
    origins = tuple(dict.fromkeys((*(shuffle.origins if match.found["alone"] else ()), *layer.origins)))
    reading = replace(_kept(layer, op, (middle, *layer.inputs[1:]), layer.outputs), origins=origins)
    return Replacement((moved, reading))


def _kept(layer: Layer, op: object, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Layer:
    fusions = tuple(dict.fromkeys((*layer.fusions, "recurrence-layout")))
    return Layer(layer.name, op, inputs, outputs, layer.origins, fusions)  # type: ignore[arg-type]


RULE = Rule("recurrence-layout", __doc__.splitlines()[0], (Recurrence,), _match, _rewrite, _check)
