"""What rules share that join projections of one tensor: when products can be one product, and that product.

Between a projection and attention its result is seen as heads, which may be normalised (each, or all of a position together) and turned by a
rotary embedding. Both then work on the heads of the joined projection that they are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusion.dims import Shape
from fusion.dims import product as count_of
from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Literal, Operand, apply, evaluate, operands
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import MatrixMultiply, Normalization, RotaryEmbedding, Shuffle
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Refusal
from fusion.rules._expressions import as_double
from fusion.rules._shuffles import is_view, movement, reshape_before

_BIAS: Expression = apply("add", Operand(0), Operand(1))
_SWAP = (0, 2, 1, 3)  # between [b, s, h, d] and [b, h, s, d]
_LONGEST = 8  # layers from a product to attention


@dataclass(frozen=True)
class Side:
    """What makes q, k or v.

    Attributes:
        product: of the tensor that a reshape may have given other rows before (one head alone is ``[b, 1, s, d]`` from the start).
        layers: from the product on, as they are in the graph.
        norm, turn: what normalises and turns heads, or None. ``norm_axis``: the axis of heads where it normalises, None where these are rows.
        heads_first: the order of axes in which it turns: ``[b, h, s, d]`` or ``[b, s, h, d]``.
        positions: ``b`` and ``s``.
        heads, size: of the result.
    """

    product: Layer
    layers: tuple[Layer, ...]
    norm: Layer | None
    norm_axis: int | None
    turn: Layer | None
    heads_first: bool
    positions: Shape
    heads: int
    size: int

    def together(self, graph: Graph) -> bool:
        """Whether all heads of a position have one norm."""
        return self.norm is not None and graph.type(self.norm.inputs[0]).shape[-1] != self.size


def side_of(graph: Graph, tensor: str, heads_first: bool) -> Side | None:
    """What makes ``tensor``, ``[b, h, s, d]`` (``heads_first``) or ``[b, s, h, d]``; None when it is more than a projection to heads."""
    found: list[Layer] = []
    name = tensor
    while (layer := graph.producer(name)) is not None and len(found) < _LONGEST and isinstance(layer.op, MatrixMultiply | Normalization | RotaryEmbedding | Shuffle):
        found.insert(0, layer)
        name = layer.inputs[0]
        if isinstance(layer.op, MatrixMultiply):
            break
    shape = graph.type(tensor).shape
    if not found or not isinstance(found[0].op, MatrixMultiply) or len(shape) != 4:
        return None
    heads, size = shape[1 if heads_first else 2], shape[3]
    turns = [layer for layer in found if isinstance(layer.op, RotaryEmbedding)]
    norms = [layer for layer in found if isinstance(layer.op, Normalization)]
    if len(turns) > 1 or len(norms) > 1 or not isinstance(heads, int) or not isinstance(size, int):
        return None
    if turns and norms and found.index(turns[0]) < found.index(norms[0]):
        return None
    positions: Shape = (shape[0], shape[2 if heads_first else 1])
    rows: Shape = (*positions, heads * size)
    made = graph.type(found[0].outputs[0]).shape
    if made[-1] != rows[-1] or count_of(made[:-1]) != count_of(positions):
        return None
    # All that moves must be the transpose of heads and positions, before the turn or behind it.
    split: Shape = (*rows[:2], heads, size)
    whole = movement(rows, Shuffle(reshape=split, second=_SWAP) if heads_first else Shuffle(reshape=split))
    moves = {layer: movement(graph.type(layer.inputs[0]).shape, layer.op) for layer in found[1:] if isinstance(layer.op, Shuffle)}
    if whole is None or any(move is None for move in moves.values()):
        return None
    moving = [layer for layer, move in moves.items() if move is not None and not move.is_view]
    if [moves[layer] for layer in moving] != ([] if whole.is_view else [whole]):
        return None
    norm_axis = None
    if norms and len(graph.type(norms[0].inputs[0]).shape) == 4:
        before = found.index(moving[0]) < found.index(norms[0]) if moving else graph.type(norms[0].inputs[0]).shape != split
        norm_axis = 1 if before else 2
    first = heads_first
    if turns:
        at = graph.type(turns[0].inputs[0]).shape
        first = found.index(moving[0]) < found.index(turns[0]) if moving else at != split
        if at != ((rows[0], heads, rows[1], size) if first else split):
            return None
    return Side(_of_rows(graph, found[0]), tuple(found), norms[0] if norms else None, norm_axis, turns[0] if turns else None, first, positions, heads, size)


def _of_rows(graph: Graph, product: Layer) -> Layer:
    """``product`` of what a reshape gave other rows, where one did."""
    view = reshape_before(graph, product.inputs[0])
    if product.op.transpose_a or view is None:
        return product
    if graph.type(view.inputs[0]).shape[-1] != graph.type(view.outputs[0]).shape[-1]:
        return product
    return replace(product, inputs=(view.inputs[0], *product.inputs[1:]))


def refuse_heads(graph: Graph, sides: Sequence[Side]) -> Refusal | None:
    """Why ``sides``, of q, k and v (or of two of them), cannot be heads of one projection."""
    if refusal := refuse_products(graph, [side.product for side in sides]):
        return refusal
    if len({side.size for side in sides}) > 1:
        return Refusal("shapes", f"heads of one projection would have {', '.join(str(side.size) for side in sides)} elements")
    return _refuse_norms(graph, sides) or _refuse_turns(graph, sides)


def _refuse_norms(graph: Graph, sides: Sequence[Side]) -> Refusal | None:
    """Normalisations can be one layer when they do the same; those of all heads together stay two."""
    norms = [side.norm for side in sides]
    if not any(norms):
        return None
    q, k = norms[0], norms[1]
    if any(norms[2:]) or q is None or k is None:
        return Refusal("normalisation", "only some of what would be one tensor is normalised")
    for norm in (q, k):
        shape = graph.type(norm.inputs[0]).shape
        if norm.op.axes != (len(shape) - 1,) or norm.op.heads is not None:
            return Refusal("normalisation", f"{norm.name} normalises over axes {norm.op.axes} of {len(shape)}")
    if _scales(graph, sides) is not None:
        return None
    for norm in (q, k):
        shape = graph.type(norm.inputs[0]).shape
        for name in norm.inputs[1:]:
            value = graph.constant(name)
            if value is None or value.size not in (1, shape[-1]) or (value.size > 1 and value.shape[-1] != shape[-1]):
                return Refusal("normalisation", f"{name} of {norm.name} is no constant with one value for each element of a row")
    together = [side.together(graph) for side in sides[:2]]
    if together[0] != together[1] or (replace(q.op, axes=()) != replace(k.op, axes=()) and not together[0]):
        return Refusal("normalisation", f"{q.name} and {k.name} normalise differently")
    return None


def _scales(graph: Graph, sides: Sequence[Side]) -> list[np.ndarray] | None:
    """What each normalisation multiplies the rows of its heads with, ``[heads, size]`` in float64, where one does the same as the other and no more."""
    norms = [side.norm for side in sides[:2]]
    if any(norm is None or side.together(graph) for norm, side in zip(norms, sides, strict=False)):
        return None
    if len({replace(norm.op, axes=(), epilogue=IDENTITY) for norm in norms if norm is not None}) > 1:
        return None
    found = [_scale(graph, side) for side in sides[:2]]
    return [one for one in found if one is not None] if all(one is not None for one in found) else None


def _scale(graph: Graph, side: Side) -> np.ndarray | None:
    norm = side.norm
    assert norm is not None
    rank = len(graph.type(norm.inputs[0]).shape)
    values = [np.ones((side.heads, side.size))]
    for name in norm.inputs[1:]:
        value = graph.constant(name)
        if value is None or value.ndim > rank:
            return None
        value = value.reshape((1,) * (rank - value.ndim) + value.shape)
        if any(dim != 1 for axis, dim in enumerate(value.shape[:-1]) if axis != side.norm_axis):
            return None
        values.append(value.reshape(value.shape[side.norm_axis] if side.norm_axis is not None else 1, -1).astype(np.float64))
    return np.asarray(evaluate(as_double(norm.op.epilogue), values)) if _multiplies(norm.op.epilogue) else None


def _multiplies(expression: Expression) -> bool:
    """Whether ``expression`` is operand 0 times what does not depend on it."""
    if isinstance(expression, Convert):
        return expression.dtype.is_float and _multiplies(expression.argument)
    if not isinstance(expression, Apply):
        return expression == Operand(0)
    inside = [0 in operands(argument) for argument in expression.arguments]
    return expression.function in ("mul", "div") and inside.count(True) == 1 and (inside[0] or expression.function == "mul") and _multiplies(expression.arguments[inside.index(True)])


def _refuse_turns(graph: Graph, sides: Sequence[Side]) -> Refusal | None:
    """Rotary embeddings can be one layer when queries and keys turn alike, and values do not turn."""
    turns = [side.turn for side in sides]
    if not any(turns):
        return None
    q, k = turns[0], turns[1]
    if any(turns[2:]) or q is None or k is None:
        return Refusal("rotary embedding", "only some of what would be one tensor turns")
    angles = [_angles(graph, side) for side in sides[:2]]
    if angles[0] is None or angles[1] is None or q.op != k.op or q.op.heads:
        return Refusal("rotary embedding", f"{q.name} and {k.name} turn by angles of their own for every head, or differently")
    alike = all(a[1] == b[1] and same_value(graph, a[0], b[0]) for a, b in zip(*angles, strict=True))
    return None if alike else Refusal("rotary embedding", f"{q.name} and {k.name} turn by different angles")


def _angles(graph: Graph, side: Side) -> list[tuple[str, Shape]] | None:
    """Per table of angles: the tensor that holds it, and its shape as ``[b, s, 1, d]``; None when heads have angles of their own."""
    assert side.turn is not None
    found = []
    for name in side.turn.inputs[1:]:
        shape = graph.type(name).shape
        shape = (*(1,) * (4 - len(shape)), *shape)
        if shape[1 if side.heads_first else 2] != 1:
            return None
        view = graph.producer(name)
        while view is not None and isinstance(view.op, Shuffle) and is_view(graph.type(view.inputs[0]).shape, view.op):
            name = view.inputs[0]
            view = graph.producer(name)
        found.append((name, (shape[0], shape[2], 1, shape[3]) if side.heads_first else shape))
    return found


@dataclass(frozen=True)
class Joined:
    """``layers`` that make all heads of one projection, the ``constants`` they need, and for each side the tensor ``[b, s, heads, d]`` that holds
    its heads, and the first of them there."""

    layers: tuple[Layer, ...]
    constants: dict[str, np.ndarray]
    places: tuple[tuple[str, int], ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors that hold heads, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.places))


def join_heads(graph: Graph, sides: Sequence[Side], base: str, label: str, rule: str) -> Joined:
    """The layers from one product on, named after ``base``; ``label`` says what is joined. :func:`refuse_heads` has nothing against it."""
    product, constants = joined_product(graph, [side.product for side in sides], f"{base}.{label}", rule)
    size, counts = sides[0].size, [side.heads for side in sides]
    packed = graph.fresh(f"{base}.packed")
    layers = [product, Layer(f"{base} packed", Shuffle(reshape=(*sides[0].positions, sum(counts), size)), product.outputs, (packed,))]
    places = [(packed, sum(counts[:number])) for number in range(len(sides))]
    norms, turns = ([layer for side in sides[:2] if (layer := one(side)) is not None] for one in (lambda side: side.norm, lambda side: side.turn))
    if sides[0].together(graph):  # q and k apart
        for number, norm in enumerate(norms):
            name = graph.fresh(f"{base}.normalised.{number}")
            extras = []
            for operand in norm.inputs[1:]:
                extras.append(graph.fresh(f"{operand}.{base}.heads"))
                value = graph.constants[operand]
                constants[extras[-1]] = value.reshape(counts[number], size) if value.size > 1 else value.reshape(())
            op = replace(norm.op, axes=(2, 3), heads=(places[number][1], counts[number]))
            layers.append(_after([norm], op, (packed, *extras), name, rule))
            places[number] = name, 0
    elif norms and (scales := _scales(graph, sides)) is not None:
        name, scale, kind = graph.fresh(f"{base}.normalised"), graph.fresh(f"{norms[0].outputs[0]}.{base}.scale"), graph.type(norms[0].outputs[0]).dtype
        stacked = np.concatenate(scales)
        stacked = stacked[0] if np.all(stacked == stacked[0]) else stacked
        exact = kind.itemsize >= 4 or np.array_equal(stacked.astype(kind.numpy), stacked)
        wide = kind if exact else DataType.FLOAT
        constants[scale] = stacked.astype(wide.numpy)
        scaled: Expression = apply("mul", Operand(0) if exact else Convert(wide, Operand(0)), Operand(1))
        op = replace(norms[0].op, axes=(3,), heads=(0, sum(counts[:2])), epilogue=scaled if exact else Convert(kind, scaled))
        layers.append(_after(norms, op, (packed, scale), name, rule))
        places[:2] = [(name, first) for _, first in places[:2]]
    elif norms:
        name = graph.fresh(f"{base}.normalised")
        extras = []
        for pair in zip(*(norm.inputs[1:] for norm in norms), strict=True):
            extras.append(graph.fresh(f"{pair[0]}.{base}.heads"))
            constants[extras[-1]] = _stacked([graph.constants[one] for one in pair], counts, size)
        layers.append(_after(norms, replace(norms[0].op, axes=(3,), heads=(0, sum(counts[:2]))), (packed, *extras), name, rule))
        places[:2] = [(name, first) for _, first in places[:2]]
    if turns:
        tables = []
        for number, (name, shape) in enumerate(_angles(graph, sides[0]) or ()):
            known = graph.type(name).shape
            if (*(1,) * (4 - len(known)), *known) != shape:
                table = graph.fresh(f"{name}.{base}.{number}")
                layers.append(Layer(f"{base} angles {number}", Shuffle(reshape=shape), (name,), (table,)))
                name = table
            tables.append(name)
        together = [turns] if places[0][0] == places[1][0] else [[turn] for turn in turns]
        for number, group in enumerate(together):
            source, name = places[number][0], graph.fresh(f"{base}.turned{'' if len(group) > 1 else f'.{number}'}")
            op = replace(group[0].op, heads=sum(counts[:2]) if source == packed else 0)
            layers.append(_after(group, op, (source, *tables), name, rule))
            places[:2] = [(name if place == source else place, first) for place, first in places[:2]]
    return Joined(tuple(layers), constants, tuple(places))


def _after(parts: Sequence[Layer], op: Normalization | RotaryEmbedding, inputs: tuple[str, ...], output: str, rule: str) -> Layer:
    """The layer that does for the heads of the joined projection what ``parts`` did."""
    fusions = union((*(part.fusions for part in parts), (rule,)))
    return Layer(" + ".join(part.name for part in parts), op, inputs, (output,), union(part.origins for part in parts), fusions)


def _stacked(values: Sequence[np.ndarray], counts: Sequence[int], size: int) -> np.ndarray:
    """What each head's rows are scaled with (shifted by): one row where all agree."""
    rows = [np.broadcast_to(value.reshape(-1), (size,)) for value in values]
    if all(np.array_equal(rows[0], row) for row in rows[1:]):
        return rows[0]
    return np.concatenate([np.broadcast_to(row, (count, size)) for row, count in zip(rows, counts, strict=False)])


def refuse_products(graph: Graph, products: Sequence[Layer]) -> Refusal | None:
    """Why ``products`` cannot be one with their weights side by side."""
    if len({product.inputs[0] for product in products}) > 1:
        return Refusal("inputs", f"the products read {', '.join(product.inputs[0] for product in products)}")
    if len({(product.op.transpose_a, product.op.transpose_b) for product in products}) > 1:
        flags = ", ".join(f"{product.name} ({product.op.transpose_a}, {product.op.transpose_b})" for product in products)
        return Refusal("transpose", f"the products transpose their operands differently: {flags}")
    for product in products:
        weights = graph.constant(product.inputs[1])
        if weights is None or weights.ndim != 2:
            return Refusal("weights", f"{product.inputs[1]} is no constant matrix")
    if _together(graph, products) is None:
        odd = next((product for product in products if row_added(graph, product) is None), products[0])
        return Refusal("epilogue", f"{odd.name} does more than add a constant row, and the others do not do the same with constants of their columns")
    if len({graph.type(product.outputs[0]).dtype for product in products}) > 1:
        types = ", ".join(graph.type(product.outputs[0]).dtype.value for product in products)
        return Refusal("data type", f"the results of the products are {types}")
    return None


def joined_product(graph: Graph, products: Sequence[Layer], result: str, rule: str) -> tuple[Layer, dict[str, np.ndarray]]:
    """One product whose columns are those of ``products``, and its constants. Its result is named after ``result``."""
    op = products[0].op
    weights = [graph.constants[product.inputs[1]] for product in products]
    base = f"{products[0].inputs[1]}.{result.rsplit('.', 1)[-1]}"
    names = graph.fresh(base), graph.fresh(f"{base}.bias")
    constants = {names[0]: np.ascontiguousarray(np.concatenate(weights, axis=0 if op.transpose_b else 1))}
    inputs = [products[0].inputs[0], names[0]]
    together = _together(graph, products)
    assert together is not None
    epilogue, rows = together
    for number, row in enumerate(rows):
        name = names[1] if len(rows) == 1 else f"{names[1]}.{number}"
        constants[name] = row
        inputs.append(name)
    layer = Layer(
        " + ".join(product.name for product in products), replace(op, epilogue=epilogue), tuple(inputs), (graph.fresh(result),),
        union(product.origins for product in products), union((*(product.fusions for product in products), (rule,))),
    )  # fmt: skip
    return layer, constants


def _together(graph: Graph, products: Sequence[Layer]) -> tuple[Expression, list[np.ndarray]] | None:
    """The epilogue of one product with the columns of all, and its operands, one value a column; None where the products do different things.

    Some may add a row where others add nothing. Otherwise all are one expression of constants, as quantised products are, whose scales differ."""
    added = [row_added(graph, product) for product in products]
    if all(product.op.epilogue == IDENTITY for product in products):
        return IDENTITY, []
    if all(row is not None for row in added):
        return _BIAS, [np.concatenate([row for row in added if row is not None])]
    rows: list[np.ndarray] = []

    def merged(parts: tuple[Expression, ...]) -> Expression | None:
        first = parts[0]
        if all(part == first for part in parts) and (first == Operand(0) or isinstance(first, Literal)):
            return first
        if isinstance(first, Convert):
            if not all(isinstance(part, Convert) and part.dtype is first.dtype for part in parts):
                return None
            inner = merged(tuple(part.argument for part in parts if isinstance(part, Convert)))
            return None if inner is None else Convert(first.dtype, inner)
        if isinstance(first, Apply):
            if not all(isinstance(part, Apply) and part.function == first.function for part in parts):
                return None
            children = [merged(group) for group in zip(*(part.arguments for part in parts if isinstance(part, Apply)), strict=True)]
            return None if None in children else Apply(first.function, tuple(one for one in children if one is not None))
        values = [_row(graph, product, part) for product, part in zip(products, parts, strict=True)]
        if any(value is None for value in values) or len({value.dtype for value in values if value is not None}) > 1:
            return None
        rows.append(np.concatenate([value for value in values if value is not None]))
        return Operand(len(rows))

    epilogue = merged(tuple(product.op.epilogue for product in products))
    return None if epilogue is None else (epilogue, rows)


def _row(graph: Graph, product: Layer, part: Expression) -> np.ndarray | None:
    """A constant of the epilogue of ``product`` as one value a column; None when it is something else."""
    columns = int(graph.type(product.outputs[0]).shape[-1])  # type: ignore[arg-type]
    if isinstance(part, Literal):
        return np.full(columns, part.value, part.dtype.numpy)
    if not isinstance(part, Operand) or part.index == 0:
        return None
    value = graph.constant(product.inputs[product.op.arity + part.index - 1])
    if value is None or value.size not in (1, columns) or (value.size > 1 and value.shape[-1] != columns):
        return None
    return np.broadcast_to(value.reshape(-1), (columns,))


def union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """All members of ``groups``, each once."""
    return tuple(dict.fromkeys(one for group in groups for one in group))


def same_value(graph: Graph, one: str, other: str) -> bool:
    """Whether two tensors have the same elements, in whatever shape."""
    a, b = graph.constant(one), graph.constant(other)
    return one == other or (a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a.reshape(-1), b.reshape(-1)))


def row_added(graph: Graph, product: Layer) -> np.ndarray | None:
    """The row that ``product`` adds to its result (zeros for none), None when its epilogue is anything else."""
    columns = int(graph.type(product.outputs[0]).shape[-1])  # type: ignore[arg-type]
    dtype = graph.type(product.outputs[0]).dtype.numpy
    if product.op.epilogue == IDENTITY:
        return np.zeros(columns, dtype)
    row = _row(graph, product, Operand(1)) if product.op.epilogue == _BIAS else None
    return None if row is None else row.astype(dtype)
