"""f(x) -> x where f does nothing: an identity expression, slice, pad, reshape, expand, tile, resize or concat of one tensor."""

from __future__ import annotations

from fusion.dims import is_static
from fusion.expression import Operand
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Concatenation, Expand, Padding, Pointwise, Resize, Shuffle, Slice, Tile
from fusion.rewrite import Match, Replacement, Rule


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


RULE = Rule(
    "no-op",
    __doc__.splitlines()[0],
    (Pointwise, Concatenation, Slice, Padding, Tile, Resize, Shuffle, Expand),
    _match,
    _rewrite,
    local=True,
)
