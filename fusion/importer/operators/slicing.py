"""Slice and Split, with symbolic bounds."""

from __future__ import annotations

from fusion.dims import Dim, Shape, Sym, ceil_div, dim_max, dim_min
from fusion.dtypes import DataType
from fusion.expression import Expression
from fusion.importer.builder import GUESS, X0, X1, X2, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.ratio import at_least, minimum
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Gather, Range, Slice

FAR = 2**31 - 1  # models write "to the end" as this or more


@operator("Slice", until=9)
def slice_by_attributes(b: Builder, node: Node) -> Value:
    starts, ends = node.required("starts"), node.required("ends")
    return _slice(b, node, starts, ends, node.attr("axes"), None)


@operator("Slice", since=10)
def slice_by_inputs(b: Builder, node: Node) -> Value:
    axes, steps = node.optional(3), node.optional(4)
    if steps is not None and None in b.items(steps, "steps"):
        return _by_computed_steps(b, node, steps)
    strides = None if steps is None else b.ints(steps, "steps")
    count = len(b.items(node.input(1), "starts"))
    forward = [step > 0 for step in strides or (1,) * count]
    # Bounds from data are guessed to keep all: tactics are chosen for that.
    starts = b.dims(node.input(1), "starts", guesses=[0 if ahead else FAR for ahead in forward])
    ends = b.dims(node.input(2), "ends", guesses=[FAR if ahead else -FAR for ahead in forward])
    return _slice(b, node, starts, ends, None if axes is None else b.ints(axes, "axes"), strides)


def _slice(
    b: Builder, node: Node, starts: Shape, ends: Shape, axes: tuple[int, ...] | None, steps: tuple[int, ...] | None
) -> Value:
    x = node.input(0)
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise Unsupported(f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps")
    first: list[Dim] = [0] * x.rank
    sizes = list(x.shape)
    strides = [1] * x.rank
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = node.axis(given, x.rank)
        if step == 0:
            raise Unsupported("a step of 0")
        first[axis], sizes[axis] = bounds(x.shape[axis], start, end, step, b.is_told(x.shape[axis]))
        strides[axis] = step
    return cut(b, x, tuple(first), tuple(sizes), tuple(strides))


def _by_computed_steps(b: Builder, node: Node, steps: Value) -> Value:
    """Elements gathered at ``start + n * step``: how many, and where they begin, is computed on the device."""
    x, axes = node.input(0), node.optional(3)
    count = len(b.items(steps, "steps"))
    places = [node.axis(axis, x.rank) for axis in (range(count) if axes is None else b.ints(axes, "axes"))]
    lengths = b.lengths([x.shape[axis] for axis in places])
    start, end, step = (b.convert(b.data(one), DataType.INT64, name) for one, name in
                        ((node.input(1), "starts"), (node.input(2), "ends"), (steps, "steps")))  # fmt: skip
    zero, one = literal(0, DataType.INT64), literal(1, DataType.INT64)
    back = call("less", X2, zero)

    def clamped(least: Expression) -> Expression:
        """Operand 0 counted from the front of operand 1, between ``least`` and the last place (that behind it, going forward)."""
        placed = call("where", call("less", X0, zero), call("add", X0, X1), X0)
        return call("max", call("min", placed, call("where", back, call("sub", X1, one), X1)), least)

    first = b.pointwise(clamped(zero), start, lengths, step, suffix="first")
    last = b.pointwise(clamped(call("where", back, literal(-1, DataType.INT64), zero)), end, lengths, step, suffix="last")
    span, size = call("where", back, call("sub", X0, X1), call("sub", X1, X0)), call("abs", X2)
    number = call("max", call("div", call("sub", call("add", span, size), one), size), zero)
    numbers = b.pointwise(number, first, last, step, suffix="numbers")
    counts = b.dims(numbers, "count", guesses=[dim if isinstance(dim := x.shape[axis], int) else GUESS for axis in places])
    for place, (axis, length) in enumerate(zip(places, counts, strict=True)):
        positions = b.layer(Range(0, 1, length, DataType.INT64), suffix=f"positions{axis}")
        begin, each = (b.layer(Slice((place,), (1,), (1,)), one, suffix=f"{name}{axis}") if count > 1 else one
                       for one, name in ((first, "first"), (step, "step")))  # fmt: skip
        indices = b.pointwise(call("add", call("mul", X0, X1), X2), positions, each, begin, suffix=f"indices{axis}")
        x = b.layer(Gather(axis), x, indices, suffix="" if place == count - 1 else f"axis{axis}")
    return x


def cut(b: Builder, x: Value, starts: Shape, sizes: Shape, steps: tuple[int, ...], suffix: str = "") -> Value:
    """A slice layer, or ``x`` itself when all of it is kept."""
    if tuple(sizes) == x.shape and all(step == 1 for step in steps):
        return x
    return b.layer(Slice(starts, sizes, steps), x, suffix=suffix)


def bounds(size: Dim, start: Dim, end: Dim, step: int, told: bool = False) -> tuple[Dim, Dim]:
    """(start, element count) of a slice along an axis of ``size``, by ONNX's rules of clamping.

    Sizes that follow from the inputs' shapes are taken to hold the start (where they do not, the runtime refuses the shapes), so that they
    stay simple; sizes that an inference tells (``told``) may be any.
    """
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return _known_bounds(size, start, end, step)
    # Ends that lie before the axis for some of its sizes: counted from the start after a start counted from the end, and the reverse, backwards.
    crossing = isinstance(start, int) and isinstance(end, int) and (start < 0 <= end < FAR if step > 0 else -FAR < end < 0)
    if told or crossing or Builder.is_read(start) or Builder.is_read(end):
        return _read_bounds(size, start, end, step)
    if step > 0:
        low, high = _place(size, start), _end(size, end)
        span = high - low
        count = span if step == 1 else ceil_div(span, step)
        return low, dim_max(count, 0) if isinstance(count, int) else count
    low = size - 1 if isinstance(start, int) and start >= FAR or start == size - 1 else minimum(_place(size, start), size - 1)  # type: ignore[assignment]
    high = -1 if isinstance(end, int) and end <= -FAR else _place(size, end)
    return low, ceil_div(low - high, -step)


def _read_bounds(size: Dim, start: Dim, end: Dim, step: int) -> tuple[Dim, Dim]:
    """As :func:`_known_bounds`, for numbers that are known during the inference only."""

    def place(position: Dim, least: Dim, most: Dim) -> Dim:
        if isinstance(position, int) and position >= FAR:
            return most
        if position == 0 and step > 0:
            return 0
        negative = dim_min(dim_max(position * -1, 0), 1)
        return dim_max(dim_min(position + size * negative, most), least)

    if step > 0:
        low, high = place(start, 0, size), place(end, 0, size)
        return low, dim_max(ceil_div(high - low, step), 0)
    low, high = place(start, 0, size - 1), place(end, -1, size - 1)
    return low, dim_max(ceil_div(low - high, -step), 0)


def _known_bounds(size: int, start: int, end: int, step: int) -> tuple[int, int]:
    least, most = (0, size) if step > 0 else (-1, size - 1)
    low = min(max(start + size if start < 0 else start, 0), most)
    high = min(max(end + size if end < 0 else end, least), most)
    count = max(0, -((low - high) // step)) if size else 0
    return low if count else 0, count


def _place(size: Dim, position: Dim) -> Dim:
    """A position counted from the front."""
    return position + size if _is_negative(position) else position


def _is_negative(position: Dim) -> bool:
    return position < 0 if isinstance(position, int) else at_least(-1, position) or at_least(0, position)


def _end(size: Dim, end: Dim) -> Dim:
    if isinstance(end, int) and end >= FAR:
        return size
    placed = _place(size, end)
    if isinstance(end, int) and end < 0:
        return placed
    limited = minimum(placed, size)
    assert isinstance(limited, int | Sym)
    return limited


@operator("Split")
def split(b: Builder, node: Node) -> tuple[Value, ...]:
    """One slice per output that is read. Sizes are an attribute, since opset 13 an input, else even chunks."""
    x = node.input(0)
    axis = node.axis(node.attr("axis", 0), x.rank)
    given = node.optional(1)
    total = x.shape[axis]
    count = node.attr("num_outputs", len(node.outputs))
    if count != len(node.outputs):
        raise Unsupported(f"num_outputs is {count}, and it has {len(node.outputs)} outputs")
    if given is not None:
        sizes: Shape = b.dims(given, "split")
    elif "split" in node.attributes:
        sizes = node.attributes["split"]
    elif isinstance(total, int):
        chunk = -(-total // count)
        sizes = (*(chunk for _ in range(count - 1)), total - chunk * (count - 1))
    else:
        chunk = ceil_div(total, count)
        sizes = (*(chunk for _ in range(count - 1)), total - chunk * (count - 1))
    if len(sizes) != len(node.outputs):
        raise Unsupported(f"{len(sizes)} sizes for {len(node.outputs)} outputs")
    results: list[Value] = []
    start: Dim = 0
    for index, size in enumerate(sizes):
        starts = tuple(start if position == axis else 0 for position in range(x.rank))
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        suffix = str(index) if len(sizes) > 1 else ""
        results.append(cut(b, x, starts, shape, (1,) * x.rank, suffix) if node.wants(index) else x)
        start = size + start
    return tuple(results)
