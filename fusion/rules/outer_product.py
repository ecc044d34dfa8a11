"""MatMul(x, y) -> x * y, for x of one column and y of one row: an outer product is pointwise. So models make the angles of positions."""

from __future__ import annotations

from fusion.dims import Dim
from fusion.expression import Apply, Expression, Operand, substitute
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, Pointwise, Shuffle
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule


def _depth(graph: Graph, layer: Layer) -> Dim | None:
    shapes = [graph.type(name).shape for name in layer.inputs[:2]]
    return shapes[0][-2 if layer.op.transpose_a else -1] if all(len(shape) >= 2 for shape in shapes) else None


def _match(graph: Graph, layer: Layer) -> Match | None:
    return Match((layer,)) if _depth(graph, layer) == 1 else None


def _near(graph: Graph, layer: Layer) -> Near | None:
    depth = _depth(graph, layer)
    return (Match((layer,)), Refusal("depth", f"{layer.name} multiplies rows of {depth}; an outer product has 1")) if depth == 2 else None


def _check(graph: Graph, match: Match) -> Refusal | None:
    (layer,) = match.layers
    x, y = (graph.type(name).dtype for name in layer.inputs[:2])
    if x is not y or not x.is_float or x.itemsize < 2:
        return Refusal("data type", f"{layer.name} multiplies {x.value} and {y.value}")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    views: list[Layer] = []
    factors = []
    for name, swapped in zip(layer.inputs, (layer.op.transpose_a, layer.op.transpose_b), strict=False):
        if swapped:  # a column as a row, or a row as a column: nothing moves
            *outer, rows, columns = graph.type(name).shape
            view = graph.fresh(f"{name}.{layer.name}")
            views.append(Layer(f"{name} of {layer.name}", Shuffle(reshape=(*outer, columns, rows)), (name,), (view,)))
            name = view
        factors.append(name)
    product: Expression = Apply("mul", (Operand(0), Operand(1)))
    extras = {index: Operand(index + 1) for index in range(1, len(layer.inputs) - 1)}
    expression = substitute(layer.op.epilogue, {0: product, **extras})
    return Replacement((*views, Layer("", Pointwise(expression), (*factors, *layer.inputs[2:]), layer.outputs)))


RULE = Rule("outer-product", __doc__.splitlines()[0], (MatrixMultiply,), _match, _rewrite, _check, near=_near)
