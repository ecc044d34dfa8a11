"""softmax(q k^T * scale + mask) v -> Attention(q, k, v, mask): the scores never go through memory.

The result may be made transposed, as v^T p^T (detectors that attend with convolutions write it so). What scales the scores of a head (or of a query) by a number of its own scales its queries instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from fusion.dims import Shape
from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Literal, Operand, operands, substitute, type_of
from fusion.graph import Graph
from fusion.network import Layer, broadcast
from fusion.ops import Attention, MatrixMultiply, Pointwise, Shuffle, Softmax
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._expressions import join, number, show
from fusion.rules._scores import Scores, band, read_scores


def _match(graph: Graph, layer: Layer) -> Match | None:
    """``layer`` is the softmax."""
    op = layer.op
    rank = len(graph.type(layer.outputs[0]).shape)
    first = graph.producer(layer.inputs[0])
    if op.axis != rank - 1 or op.log or first is None:
        return None
    between: tuple[Layer, ...] = ()
    if isinstance(first.op, Pointwise):  # scale and mask that the product could not take
        between, first = (first,), _product_before(graph, first)
    if first is None or not isinstance(first.op, MatrixMultiply):
        return None
    after: tuple[Layer, ...] = ()
    second = graph.only_reader(layer.outputs[0]) or next(iter(graph.readers(layer.outputs[0])), None)
    if second is not None and isinstance(second.op, Pointwise) and _keeps_value(second.op.expression):
        after, second = (second,), next(iter(graph.readers(second.outputs[0])), None)
    probabilities = (after or (layer,))[-1].outputs[0]
    if second is None or not isinstance(second.op, MatrixMultiply) or probabilities not in second.inputs[:2] or second.inputs[0] == second.inputs[1]:
        return None
    turned = second.inputs[1] == probabilities
    if turned and not second.op.transpose_b:
        return None
    if not (_keeps_value(op.epilogue) or op.epilogue == IDENTITY):
        return None
    cast, values = _narrow_values(graph, first, second, second.inputs[0 if turned else 1])
    casts = (cast,) if cast is not None and graph.only_reader(cast.outputs[0]) is not None else ()
    layers = (first, *between, layer, *after, *casts, second)
    return Match(layers, tuple(item.outputs[0] for item in layers[:-1]), {"between": between, "values": values, "turned": turned, "wide": cast is not None})


def _near(graph: Graph, layer: Layer) -> Near | None:
    """A softmax between two products that is not along the scores' rows, or has a logarithm or a function behind it."""
    op, rank = layer.op, len(graph.type(layer.outputs[0]).shape)
    before = graph.producer(layer.inputs[0])
    first = _product_before(graph, before) if before is not None and isinstance(before.op, Pointwise) else before
    second = next((one for one in graph.readers(layer.outputs[0]) if isinstance(one.op, MatrixMultiply)), None)
    if before is None or first is None or not isinstance(first.op, MatrixMultiply) or second is None:
        return None
    layers = tuple(dict.fromkeys((first, before, layer, second)))
    match = Match(layers, tuple(one.outputs[0] for one in layers[:-1]))
    if op.axis != rank - 1:
        return match, Refusal("axis", f"{layer.name} is along axis {op.axis}; attention's is along the last, {rank - 1}")
    if op.log:
        return match, Refusal("logarithm", f"{layer.name} is a logarithm of probabilities")
    if second.inputs[0] != layer.outputs[0]:
        return match, Refusal("operands", f"{second.name} multiplies with the probabilities as they are; with values on the left they are transposed")
    return match, Refusal("epilogue", f"{layer.name} makes more of the probabilities than {second.name} multiplies")


def _narrow_values(graph: Graph, first: Layer, second: Layer, values: str) -> tuple[Layer | None, str]:
    """The values, and the cast that widens them to the float32 of the softmax (as torch's older exporter writes attention in float16)."""
    cast = graph.producer(values)
    if cast is None or not isinstance(cast.op, Pointwise) or cast.op.expression != Convert(DataType.FLOAT, Operand(0)):
        return None, values
    narrow = graph.type(cast.inputs[0]).dtype
    return (cast, cast.inputs[0]) if narrow.is_float and narrow is graph.type(first.inputs[0]).dtype else (None, values)


def _product_before(graph: Graph, layer: Layer) -> Layer | None:
    found = [graph.producer(name) for name in layer.inputs]
    products = [item for item in found if item is not None and isinstance(item.op, MatrixMultiply)]
    return products[0] if len(products) == 1 else None


def _keeps_value(expression: Expression) -> bool:
    """A cast between floating-point types, or the guard ``where(isnan(p), 0, p)``, which Attention has built in."""
    while isinstance(expression, Convert) and expression.dtype.is_float:
        expression = expression.argument
    if expression == Operand(0):
        return True
    if isinstance(expression, Apply) and expression.function == "where":
        condition, zero, value = expression.arguments
        guarded = Apply("isnan", (Operand(0),))
        return condition == guarded and isinstance(zero, Literal) and zero.value == 0 and value == Operand(0)
    return False


@dataclass(frozen=True)
class _Whole:
    """The scores' expression over ``names`` (0 is the product), read."""

    names: tuple[str, ...]
    scores: Scores | None


def _whole(match: Match) -> _Whole:
    first = match.layers[0]
    softmax = next(item for item in match.layers if isinstance(item.op, Softmax))
    product = first.outputs[0]
    expression: Expression = first.op.epilogue
    names: tuple[str, ...] = (product, *first.inputs[first.op.arity :])
    for layer in match.found["between"]:
        expression, names = join(layer.op.expression, layer.inputs, product, expression, names)
        expression, names = number(expression, names, fixed=1)
    expression = substitute(softmax.op.prologue, {0: expression})
    return _Whole(names, read_scores(expression))


def _check(graph: Graph, match: Match) -> Refusal | None:
    first, second = match.layers[0], match.layers[-1]
    q, k, v = (graph.type(name) for name in (*first.inputs[:2], match.found["values"]))
    turned = match.found["turned"]
    if (second.op.transpose_a and not turned) or operands(second.op.epilogue) != (0,):
        return Refusal("pattern", f"{second.name} does more than probabilities times values")
    if not (q.dtype is k.dtype is v.dtype) or not q.dtype.is_float:
        return Refusal("data type", f"q, k and v are {q.dtype.value}, {k.dtype.value}, {v.dtype.value}")
    ranks = {len(kind.shape) for kind in (q, k, v)}
    if len(ranks) != 1 or not ranks <= {2, 3, 4}:
        return Refusal(
            "rank", f"q, k and v have shapes {show(q.shape)}, {show(k.shape)}, {show(v.shape)}; 2 to 4 axes are allowed"
        )
    if k.shape[:-2] != v.shape[:-2] or (q.shape[:-2] != k.shape[:-2] and (*q.shape[:-3], 1) != k.shape[:-2]):  # 1: one head serves all
        return Refusal("batch", f"q, k and v have shapes {show(q.shape)}, {show(k.shape)}, {show(v.shape)}")
    whole = _whole(match)
    if whole.scores is None:
        return Refusal("scores", f"between {first.name} and the softmax stands more than a scale, a cap and a mask")
    if whole.scores.factors:
        shape = _factor(graph, first, whole)[2]
        shape = (*(1,) * (len(q.shape) - len(shape)), *shape)
        if shape[-1] != 1 or len(shape) != len(q.shape) or any(dim not in (1, size) for dim, size in zip(shape, q.shape, strict=True)):
            return Refusal("scale", f"scores are multiplied with a tensor of shape {show(shape)}; queries have {show(q.shape)}")
        if first.op.transpose_a:
            return Refusal("scale", f"{first.name} reads its queries transposed, and scores are multiplied with a tensor")
    return None


def _factor(graph: Graph, first: Layer, whole: _Whole) -> tuple[Expression, tuple[str, ...], Shape]:
    """The queries (operand 0, of ``first``) times what their scores are multiplied with; the tensors; the shape of all factors together."""
    assert whole.scores is not None
    names = (first.inputs[0], *whole.names[1:])
    dtype = graph.type(names[0]).dtype
    result: Expression = Operand(0)
    for factor, inverse in whole.scores.factors:
        wide = type_of(factor, [graph.type(name).dtype for name in names])
        value = result if type_of(result, [graph.type(name).dtype for name in names]) is wide else Convert(wide, result)
        result = Apply("div" if inverse else "mul", (value, factor))
    shape = broadcast([graph.type(names[index]).shape for index in operands(result) if index])
    result, used = number(result if type_of(result, [graph.type(name).dtype for name in names]) is dtype else Convert(dtype, result), names)
    return result, used, shape


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    first, second = match.layers[0], match.layers[-1]
    whole = _whole(match)
    assert whole.scores is not None
    layers: list[Layer] = []
    queries, turned = first.inputs[0], match.found["turned"]
    if whole.scores.factors:
        expression, names, _ = _factor(graph, first, whole)
        queries = graph.fresh(f"{queries}.scaled")
        layers.append(Layer(f"{first.name} scale", Pointwise(expression), names, (queries,)))
    stored = [
        _as_bhsd(graph, layers, queries, graph.type(first.inputs[0]).shape, first.op.transpose_a),
        _as_bhsd(graph, layers, first.inputs[1], graph.type(first.inputs[1]).shape, not first.op.transpose_b),
        _as_bhsd(graph, layers, match.found["values"], graph.type(match.found["values"]).shape, not second.op.transpose_a if turned else second.op.transpose_b),
    ]
    kept: tuple[bool, int] = (False, 0)
    mask, scores = "", whole.scores
    if scores.masks:
        kept, mask = _mask(graph, layers, whole, match)
    out = graph.type(second.outputs[0]).shape
    causal, window = kept
    op = Attention(scores.scale * (scores.cap or 1), causal, bool(mask), softcap=scores.cap, window=window, epilogue=Convert(DataType.FLOAT, Operand(0)) if match.found["wide"] else IDENTITY)
    inputs = (*stored, *((mask,) if mask else ()))
    (made,) = second.outputs
    behind: list[Layer] = []
    if second.op.epilogue != IDENTITY:  # a quantisation that the product had taken: a layer of its own again
        made = graph.fresh(f"{made}.real")
        behind.append(Layer(f"{second.name} epilogue", Pointwise(second.op.epilogue), (made,), second.outputs))
    if len(out) == 4 and not turned:
        return Replacement((*layers, Layer("", op, inputs, (made,)), *behind))
    result = graph.fresh(f"{second.outputs[0]}.bhsd")
    view = Layer(f"{second.name} reshape", Shuffle((0, 1, 3, 2) if turned else None, None if len(out) == 4 else out), (result,), (made,))
    return Replacement((*layers, Layer("", op, inputs, (result,)), view, *behind))


def _as_bhsd(graph: Graph, layers: list[Layer], tensor: str, shape: Shape, swapped: bool) -> str:
    """The name of ``tensor``, of ``shape``, as ``[b, h, s, d]``: heads that were folded into the batch stay there, with h = 1."""
    rank = len(shape)
    if rank == 4 and not swapped:
        return tensor
    first = (*range(rank - 2), rank - 1, rank - 2) if swapped else None
    moved = tuple(shape[axis] for axis in first) if first else shape
    full = moved if rank == 4 else ((moved[0] if rank == 3 else 1), 1, *moved[-2:])
    name = graph.fresh(f"{tensor}.bhsd")
    taken = {output for layer in layers for output in layer.outputs}
    while name in taken:
        name += "'"
    layers.append(Layer(f"{tensor} to bhsd", Shuffle(first, None if full == moved else full), (tensor,), (name,)))
    return name


def _mask(graph: Graph, layers: list[Layer], whole: _Whole, match: Match) -> tuple[tuple[bool, int], str]:
    """((causal, window), name of the mask tensor or "")."""
    assert whole.scores is not None
    kind, expression = _one_mask(graph, whole)
    rank = len(graph.type(match.layers[0].outputs[0]).shape)
    if isinstance(expression, Operand):
        tensor = whole.names[expression.index]
        value = graph.constant(tensor)
        found = band(value, kind) if value is not None and _full_size(graph, match, value) else None
        if found is not None:
            return found, ""
        shape = graph.type(tensor).shape
    else:
        expression, names = number(expression, whole.names)
        tensor = graph.fresh(f"{match.layers[0].name}.mask")
        op = Pointwise(expression)
        layers.append(Layer(f"{match.layers[0].name} mask", op, names, (tensor,)))
        shape = op.infer(graph.types(names))[0].shape
    if rank == 3 and len(shape) == 3:  # [b, s, t] of scores without heads
        wide = graph.fresh(f"{tensor}.bhst")
        layers.append(Layer(f"{tensor} to bhst", Shuffle(reshape=(shape[0], 1, *shape[1:])), (tensor,), (wide,)))
        tensor = wide
    return (False, 0), tensor


def _one_mask(graph: Graph, whole: _Whole) -> tuple[str, Expression]:
    """All masks as one: boolean when all are, else additive."""
    assert whole.scores is not None
    added = [mask for kind, mask in whole.scores.masks if kind == "add"]
    keeps = [mask for kind, mask in whole.scores.masks if kind == "keep"]
    keep = reduce(lambda a, b: Apply("and", (a, b)), keeps) if keeps else None
    if not added:
        assert keep is not None
        return "keep", keep
    total = reduce(lambda a, b: Apply("add", (a, b)), added)
    if keep is None:
        return "add", total
    dtype = type_of(total, [graph.type(name).dtype for name in whole.names])
    # What the model puts there, so that rows of which everything is hidden come out alike.
    with np.errstate(over="ignore"):
        hidden = float(np.asarray(whole.scores.hidden).astype(dtype.numpy))
    return "add", Apply("where", (keep, total, Literal(hidden, dtype)))


def _full_size(graph: Graph, match: Match, mask: np.ndarray) -> bool:
    scores = graph.type(match.layers[0].outputs[0]).shape
    return tuple(mask.shape[-2:]) == tuple(scores[-2:])


RULE = Rule("attention", __doc__.splitlines()[0], (Softmax,), _match, _rewrite, _check, near=_near)
