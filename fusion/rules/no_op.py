"""f(x) -> x where f does nothing: an identity expression, slice, pad, reshape, expand, tile, resize or concat of one tensor."""

from __future__ import annotations

from fusion.dims import is_static
from fusion.expression import Apply, Expression, Literal, Operand, text
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Expand, Padding, Pointwise, Resize, Shuffle, Slice, Tile
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._expressions import show
from fusion.rules._shuffles import transpose_of


def _does_nothing(graph: Graph, layer: Layer) -> bool:
    op = layer.op
    shape, out = graph.type(layer.inputs[0]).shape, graph.type(layer.outputs[0]).shape
    if shape != out:
        return False
    if isinstance(op, Pointwise):
        return op.expression == Operand(0) and len(layer.inputs) == 1
    if isinstance(op, Concatenation):
        return len(layer.inputs) == 1
    if isinstance(op, Slice):
        return all(
            step == 1 and (start == 0 or size == 1)
            for start, step, size in zip(op.starts, op.steps, shape, strict=True)
        )
    if isinstance(op, Padding):
        return not any(op.pre) and not any(op.post)
    if isinstance(op, Tile):
        return all(times == 1 for times in op.repeats)
    if isinstance(op, Resize):
        # Equal sizes with a scale other than 1 (sizes are rounded down) still move samples, as does a region of interest.
        return (
            is_static(op.shape) and all(s in (None, 1.0) for s in op.scales) and op.coordinates != "tf_crop_and_resize"
        )
    if isinstance(op, Shuffle):
        middle = op.reshape or (shape if op.first is None else tuple(shape[axis] for axis in op.first))
        return op.reshape in (None, shape) and _identity(op.first, shape) and _identity(op.second, middle)
    return isinstance(op, Expand)


def _identity(permutation: tuple[int, ...] | None, shape: tuple) -> bool:
    return permutation is None or [a for a in permutation if shape[a] != 1] == [
        a for a in range(len(shape)) if shape[a] != 1
    ]


def _match(graph: Graph, layer: Layer) -> Match | None:
    return Match((layer,)) if layer.inputs and _does_nothing(graph, layer) else None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    (layer,) = match.layers
    return Replacement(aliases={layer.outputs[0]: layer.inputs[0]}, fate="no-op")


_SCALES = frozenset({"add", "sub", "mul", "div", "pow", "square", "neg", "reciprocal", "sqrt", "rsqrt"})


def _is_scale(expression: Expression) -> bool:
    """Whether ``expression`` only scales, shifts and raises operand 0."""
    if isinstance(expression, Apply):
        return expression.function in _SCALES and all(map(_is_scale, expression.arguments))
    return expression == Operand(0) or isinstance(expression, Literal)


def _near(graph: Graph, layer: Layer) -> Near | None:
    """What keeps the shape but not the values."""
    op, shape = layer.op, graph.type(layer.inputs[0]).shape if layer.inputs else ()
    if not layer.inputs or shape != graph.type(layer.outputs[0]).shape:
        return None
    found = ""
    if isinstance(op, Pointwise) and len(layer.inputs) == 1 and _is_scale(op.expression):
        found = f"it makes {text(op.expression, ['x'])} of x; only x + 0, x * 1 and x ** 1 do nothing"
    elif isinstance(op, Shuffle) and layer.origins:  # a reformat of ours is there to move
        moved = transpose_of(shape, op)
        found = f"it moves elements of {show(shape)}" + (f": axes are read in the order {', '.join(map(str, moved))}" if moved else "")
    elif isinstance(op, Slice):
        found = f"it reads {show(shape)} in steps of {', '.join(map(str, op.steps))}"
    elif isinstance(op, Padding):
        found = f"it adds {', '.join(map(str, op.pre))} before and {', '.join(map(str, op.post))} behind the axes of {show(shape)}"
    elif isinstance(op, Resize):
        found = f"it moves samples: scales {', '.join(map(str, op.scales))}, coordinates {op.coordinates}"
    return (Match((layer,)), Refusal("values", found)) if found else None


RULE = Rule(
    "no-op",
    __doc__.splitlines()[0],
    (Pointwise, Concatenation, Slice, Padding, Tile, Resize, Shuffle, Expand),
    _match,
    _rewrite,
    local=True,
    near=_near,
)
