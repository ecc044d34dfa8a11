"""Operators that only move data: reshape, transpose, concatenate, expand, tile, pad, depth and space."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.dims import Dim, Shape, dim_max, dim_min, product
from fusion.dtypes import DataType
from fusion.importer.builder import X0, X1, X2, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.ratio import Ratio
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.layout import back_for, order_for
from fusion.network import ShapeError, broadcast
from fusion.ops import Concatenation, Expand, Fill, GatherElements, Padding, Range, Shuffle, Tile


@operator("Reshape")
def reshape(b: Builder, node: Node) -> Value:
    x = node.input(0)
    target = node.attr("shape") or b.items(node.input(1), "shape")
    allow_zero = bool(node.attr("allowzero", 0))
    if sum(item is None for item in target) + (-1 in target) > 1:
        open_ = next(index for index, item in enumerate(target) if item is None)
        guesses = [-1 if index == open_ and -1 not in target else 1 for index in range(len(target))]
        return b.reshape(x, read_target(b, x.shape, b.dims(node.input(1), "shape", guesses=guesses), allow_zero))
    return b.reshape(x, resolve(x.shape, target, allow_zero))


def read_target(b: Builder, shape: Shape, target: Sequence[Dim], allow_zero: bool) -> Shape:
    """The final dimensions of a reshape whose target is read during the inference: any of its numbers may turn out 0 or -1."""
    sizes: list[Dim] = []  # with 1 for -1
    open_: list[Dim] = []  # 1 for -1, else 0
    for axis, item in enumerate(target):
        size = dim_max(item, item * -1) if b.is_read(item) else 1 if item == -1 else item
        if (b.is_read(item) or item == 0) and not allow_zero and axis < len(shape):
            size = size + (1 - dim_min(size, 1)) * shape[axis]
        sizes.append(size)
        open_.append(dim_max(item * -1, 0) if b.is_read(item) else int(item == -1))
    rest = product(shape) // dim_max(product(tuple(sizes)), 1)
    return tuple(size + (rest - 1) * one for size, one in zip(sizes, open_, strict=True))


def resolve(shape: Shape, target: Sequence[object], allow_zero: bool) -> Shape:
    """The final dimensions of a reshape: 0 copies, one -1 (or one size that depends on data) takes what is left.

    Raises:
        Unsupported: more than one size is open.
    """
    result: list[Dim] = []
    open_axes = []
    for axis, item in enumerate(target):
        if item is None or isinstance(item, Ratio) or (isinstance(item, int) and item == -1):
            open_axes.append(axis)
            result.append(1)
        elif isinstance(item, int) and item == 0 and not allow_zero:
            if axis >= len(shape):
                raise Unsupported(f"shape {tuple(target)} copies dimension {axis} of {len(shape)}")
            result.append(shape[axis])
        else:
            result.append(item)  # type: ignore[arg-type]
    if len(open_axes) > 1:
        raise Unsupported("more than one size of its target shape is open or depends on data")
    if open_axes:
        left, right = _without_common(list(shape), [dim for axis, dim in enumerate(result) if axis not in open_axes])
        total, rest = product(tuple(left)), product(tuple(right))
        if rest == 0 or (isinstance(total, int) and isinstance(rest, int) and total % rest):
            raise Unsupported(f"{shape} does not reshape to {tuple(map(str, target))}")
        result[open_axes[0]] = total // rest
    return tuple(result)


def _without_common(left: list[Dim], right: list[Dim]) -> tuple[list[Dim], list[Dim]]:
    """Both lists without the symbolic dimensions that stand in both."""
    for dim in list(right):
        if not isinstance(dim, int) and dim in left:
            left.remove(dim)
            right.remove(dim)
    return left, right


@operator("Flatten")
def flatten(b: Builder, node: Node) -> Value:
    x, axis = node.input(0), node.attr("axis", 1)
    axis += x.rank if axis < 0 else 0
    return b.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


def axes_of(b: Builder, node: Node, index: int = 1) -> tuple[int, ...] | None:
    """Axes from the attribute (older opsets) or input ``index``; None when neither is given."""
    given = node.optional(index)
    if given is not None:
        return b.ints(given, "axes")
    return tuple(node.attr("axes")) if "axes" in node.attributes else None


@operator("Squeeze")
def squeeze(b: Builder, node: Node) -> Value:
    x, axes = node.input(0), axes_of(b, node)
    if axes is None:
        dropped = {axis for axis, dim in enumerate(x.shape) if dim == 1}
    else:
        dropped = {node.axis(axis, x.rank) for axis in axes}
        wrong = [x.shape[axis] for axis in dropped if isinstance(x.shape[axis], int) and x.shape[axis] != 1]
        if wrong:
            raise Unsupported(f"axes {axes} of shape {x.shape} are not all 1")
    return b.reshape(x, tuple(dim for axis, dim in enumerate(x.shape) if axis not in dropped))


@operator("Unsqueeze")
def unsqueeze(b: Builder, node: Node) -> Value:
    x, axes = node.input(0), axes_of(b, node)
    if axes is None:
        raise Unsupported("axes are missing")
    rank = x.rank + len(axes)
    added = {node.axis(axis, rank) for axis in axes}
    rest = iter(x.shape)
    return b.reshape(x, tuple(1 if axis in added else next(rest) for axis in range(rank)))


@operator("Transpose")
def transpose(b: Builder, node: Node) -> Value:
    x = node.input(0)
    order = node.attr("perm", tuple(reversed(range(x.rank))))
    if sorted(order) != list(range(x.rank)):
        raise Unsupported(f"perm {order} of a tensor with {x.rank} dimensions")
    return b.transpose(x, order)


@operator("Concat")
def concat(b: Builder, node: Node) -> Value:
    values = [node.input(index) for index in range(len(node.inputs))]
    axis = node.axis(node.required("axis"), values[0].rank)
    # ONNX lets empty tensors of one dimension take part; they add nothing.
    kept = [value for value in values if value.shape[axis] != 0] or values[:1]
    return kept[0] if len(kept) == 1 else b.layers(Concatenation(axis), kept)[0]


@operator("Expand")
def expand(b: Builder, node: Node) -> Value:
    x = node.input(0)
    try:
        shape = _broadcast_to(b, x.shape, b.dims(node.input(1), "shape"))
    except ShapeError as error:
        raise Unsupported(str(error)) from error
    return expand_to(b, x, shape)


def _broadcast_to(b: Builder, shape: Shape, target: Shape) -> Shape:
    """The shape of both broadcast; a size that is read may turn out 1, then the other one counts."""
    found = list(broadcast([shape, target]))
    for back in range(1, min(len(shape), len(target)) + 1):
        if b.is_read(target[-back]) and not isinstance(shape[-back], int):
            found[-back] = dim_max(shape[-back], target[-back])
    return tuple(found)


def channels_first(b: Builder, x: Value, suffix: str = "channels_first") -> Value:
    """``[N, *spatial, C]`` as ``[N, C, *spatial]``."""
    return b.transpose(x, back_for(x.rank), suffix)


def channels_last(b: Builder, x: Value, suffix: str = "channels_last") -> Value:
    """``[N, C, *spatial]`` as ``[N, *spatial, C]``."""
    return b.transpose(x, order_for(x.rank), suffix)


def expand_to(b: Builder, x: Value, shape: Shape, suffix: str = "") -> Value:
    """``x`` broadcast to ``shape``; ``x`` itself when it has that shape."""
    return x if x.shape == tuple(shape) else b.layer(Expand(tuple(shape)), x, suffix=suffix)


@operator("Tile")
def tile(b: Builder, node: Node) -> Value:
    x, repeats = node.input(0), b.dims(node.input(1), "repeats")
    if len(repeats) != x.rank:
        raise Unsupported(f"{len(repeats)} repeats for {x.rank} dimensions")
    return x if all(times == 1 for times in repeats) else b.layer(Tile(repeats), x)


@operator("Pad")
def pad(b: Builder, node: Node) -> Value:
    """Attributes before opset 11, inputs since; axes since 18."""
    x = node.input(0)
    amounts: Shape = node.attributes["pads"] if "pads" in node.attributes else b.dims(node.input(1), "pads")
    value = node.attr("value", 0.0)
    given = node.optional(2) if node.attr("mode", "constant") == "constant" else None
    if given is not None and given.is_constant:
        value, given = b.scalar(given, "constant_value"), None
    axes = axes_of(b, node, 3)
    axes = tuple(range(x.rank)) if axes is None else tuple(node.axis(axis, x.rank) for axis in axes)
    if len(amounts) != 2 * len(axes):
        raise Unsupported(f"{len(amounts)} pads for {len(axes)} axes")
    pre: list[Dim] = [0] * x.rank
    post: list[Dim] = [0] * x.rank
    for position, axis in enumerate(axes):
        pre[axis], post[axis] = amounts[position], amounts[position + len(axes)]
    if not any(dim != 0 for dim in (*pre, *post)):
        return x
    padding = Padding(tuple(pre), tuple(post), node.attr("mode", "constant"), value)
    if given is None:
        return b.layer(padding, x)
    inside = b.layer(Fill(x.shape, DataType.BOOL, True), suffix="inside", fold=False)
    outside = b.reshape(given, (1,), "value")
    return b.pointwise(call("where", X1, X0, X2), b.layer(padding, x, suffix="padded"), b.layer(padding, inside, suffix="mask"), outside)


@operator("DepthToSpace")
def depth_to_space(b: Builder, node: Node) -> Value:
    x, block = node.input(0), node.required("blocksize")
    batch, channels, height, width = _image(x)
    depth = channels // (block * block)
    column_first = node.attr("mode", "DCR") == "CRD"
    split = (batch, depth, block, block, height, width) if column_first else (batch, block, block, depth, height, width)
    order = (0, 1, 4, 2, 5, 3) if column_first else (0, 3, 4, 1, 5, 2)
    spread = b.layer(Shuffle(reshape=split, second=order), x, suffix="split")
    return b.reshape(spread, (batch, depth, height * block, width * block))


@operator("SpaceToDepth")
def space_to_depth(b: Builder, node: Node) -> Value:
    x, block = node.input(0), node.required("blocksize")
    batch, channels, height, width = _image(x)
    split = (batch, channels, height // block, block, width // block, block)
    order = (0, 1, 3, 5, 2, 4) if node.attr("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    spread = b.layer(Shuffle(reshape=split, second=order), x, suffix="split")
    return b.reshape(spread, (batch, channels * (block * block), height // block, width // block))


def _image(x: Value) -> Shape:
    if x.rank != 4:
        raise Unsupported(f"a tensor with {x.rank} dimensions; it takes 4")
    return x.shape


@operator("ReverseSequence")
def reverse_sequence(b: Builder, node: Node) -> Value:
    """Element t of sequence i comes from ``length[i] - 1 - t`` while t is below the length, else from t."""
    x, lengths = node.input(0), node.input(1)
    batch_axis, time_axis = node.attr("batch_axis", 1), node.attr("time_axis", 0)
    times = b.layer(Range(0, 1, x.shape[time_axis], DataType.INT64), suffix="times")
    times = b.reshape(times, tuple(x.shape[time_axis] if axis == time_axis else 1 for axis in range(x.rank)), "time_axis")
    lengths = b.reshape(lengths, tuple(x.shape[batch_axis] if axis == batch_axis else 1 for axis in range(x.rank)), "lengths")
    mirrored = call("sub", call("sub", X1, literal(1, DataType.INT64)), X0)
    index = b.pointwise(call("where", call("less", X0, X1), mirrored, X0), times, lengths, suffix="index")
    return b.layer(GatherElements(time_axis), x, expand_to(b, index, x.shape, "spread"))
