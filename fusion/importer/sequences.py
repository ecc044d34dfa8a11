"""Sequences and optionals: lists of values while a model is imported, nothing afterwards.

What is left are the tensors inside. Where a length or a position is computed, the elements (of one shape) are one tensor, stacked along axis 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.dtypes import DataType
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.slicing import cut
from fusion.importer.values import Value, from_elements
from fusion.ops import Concatenation, Gather

if TYPE_CHECKING:
    from fusion.importer.builder import Builder
    from fusion.importer.graph import Scope, Walk


@dataclass(frozen=True, eq=False)
class TensorSequence:
    """A sequence of known length."""

    items: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class StackedSequence:
    """A sequence of tensors of one shape: the slices of ``value`` along axis 0."""

    value: Value


@dataclass(frozen=True, eq=False)
class EmptyOptional:
    """An optional without content. (One with content is its content.)"""


def concerns(node: Node) -> bool:
    """Whether the node makes, reads or passes on a sequence or optional."""
    return not node.domain and (node.op in SEQUENCE_OPERATORS or any(isinstance(value, TensorSequence | StackedSequence | EmptyOptional) for value in node.inputs))


def import_sequence(walk: Walk, node: Node, scope: Scope) -> tuple[Any, ...]:
    """The results of a node that :func:`concerns` sequences.

    Raises:
        Unsupported: a length or position depends on data, or the operator takes no sequence.
    """
    if node.op == "SequenceMap":
        return _map(walk, node, scope)
    if node.op == "Identity":
        return (node.inputs[0],)
    if node.op in OPERATORS:
        return (OPERATORS[node.op](walk.builder, node),)
    if node.op == "Loop":
        from fusion.importer.sequence_loops import import_sequence_loop

        return import_sequence_loop(walk, node, scope)
    raise Unsupported("an input is a sequence or an empty optional, which this operator does not take")


def _any_sequence(node: Node) -> TensorSequence | StackedSequence:
    value: Any = node.inputs[0] if node.inputs else None
    if not isinstance(value, TensorSequence | StackedSequence):
        raise Unsupported("input 0 is no sequence")
    return value


def stacked(b: Builder, items: tuple[Value, ...], suffix: str) -> StackedSequence:
    """Tensors of one shape as a stacked sequence.

    Raises:
        Unsupported: there are none, or their shapes differ.
    """
    if len({(item.dtype, item.shape) for item in items}) != 1:
        found = sorted({str(item.shape) for item in items})
        raise Unsupported(f"a computed position or length in a sequence of {len(items)} tensors of shapes {', '.join(found)}; they must have one shape")
    rows = tuple(b.reshape(item, (1, *item.shape), f"{suffix}_row{number}") for number, item in enumerate(items))
    return StackedSequence(rows[0] if len(rows) == 1 else b.layer(Concatenation(0), *rows, suffix=suffix))


def joined(b: Builder, first: TensorSequence | StackedSequence, second: StackedSequence, suffix: str) -> StackedSequence:
    """The elements of both.

    Raises:
        Unsupported: they differ in shape.
    """
    if isinstance(first, TensorSequence):
        if not first.items:
            return second
        first = stacked(b, first.items, f"{suffix}_first")
    if first.value.shape[1:] != second.value.shape[1:]:
        raise Unsupported(f"a sequence with elements of shapes {first.value.shape[1:]} and {second.value.shape[1:]}; they must have one shape")
    return StackedSequence(b.layer(Concatenation(0), first.value, second.value, suffix=suffix))


def _position(b: Builder, node: Node, index: int, default: int, limit: int) -> int:
    """The position given by input ``index``, counted from the front; ``default`` when it is left out."""
    given = node.optional(index)
    if given is None:
        return default
    (position,) = b.ints(given, "position")
    if not -limit <= position < limit:
        raise Unsupported(f"position {position} of a sequence of {limit}")
    return position + limit if position < 0 else position


def _construct(b: Builder, node: Node) -> TensorSequence:
    return TensorSequence(tuple(node.input(index) for index in range(len(node.inputs))))


def _empty(b: Builder, node: Node) -> TensorSequence:
    return TensorSequence(())


def _insert(b: Builder, node: Node) -> TensorSequence | StackedSequence:
    sequence, given, item = _any_sequence(node), node.optional(2), node.input(1)
    if isinstance(sequence, StackedSequence):
        at = -1 if given is None else b.ints(given, "position")[0]
        if given is not None and at:
            raise Unsupported(f"position {at} of a sequence of computed length; an element joins at its front or its end")
        own = stacked(b, (item,), "item")
        return joined(b, own, sequence, "sequence") if given is not None else joined(b, sequence, own, "sequence")
    items = sequence.items
    count = len(items)
    at = count if given is None else b.ints(given, "position")[0]
    if not -count <= at <= count:
        raise Unsupported(f"position {at} of a sequence of {count}")
    at += count if at < 0 else 0
    return TensorSequence((*items[:at], item, *items[at:]))


def _erase(b: Builder, node: Node) -> TensorSequence:
    items = _known(node)
    at = _position(b, node, 1, len(items) - 1, len(items))
    return TensorSequence((*items[:at], *items[at + 1 :]))


def _known(node: Node) -> tuple[Value, ...]:
    sequence = _any_sequence(node)
    if isinstance(sequence, StackedSequence):
        raise Unsupported(f"its sequence has a computed length ({sequence.value.shape[0]})")
    return sequence.items


def _at(b: Builder, node: Node) -> Value:
    sequence, given = _any_sequence(node), node.input(1)
    if isinstance(sequence, TensorSequence) and (given.is_constant or len(sequence.items) < 2):
        return sequence.items[_position(b, node, 1, 0, len(sequence.items))]
    if isinstance(sequence, TensorSequence):
        sequence = stacked(b, sequence.items, "stacked")
    return b.layer(Gather(0), sequence.value, given)


def _length(b: Builder, node: Node) -> Value:
    sequence = _any_sequence(node)
    if isinstance(sequence, TensorSequence):
        return b.constant(np.array(len(sequence.items), np.int64), "length")
    length = np.empty((), object)
    length[()] = sequence.value.shape[0]
    return from_elements(length, DataType.INT64, b.origin)


def _split(b: Builder, node: Node) -> TensorSequence | StackedSequence:
    """Pieces of given sizes, of one size (the last may be smaller), or of one element, which loses the axis unless ``keepdims``."""
    x, given = node.input(0), node.optional(1)
    axis = node.axis(node.attr("axis", 0), x.rank)
    size = x.shape[axis]
    if not isinstance(size, int):
        if given is not None and (given.rank or b.ints(given, "split") != (1,)):
            raise Unsupported(f"its input has {size} elements along axis {axis}: then pieces must have one element")
        rows = b.transpose(x, (axis, *(other for other in range(x.rank) if other != axis)), "rows")
        if given is None and not node.attr("keepdims", 1):
            return StackedSequence(rows)
        return StackedSequence(b.reshape(rows, (size, *x.shape[:axis], 1, *x.shape[axis + 1 :]), "elements"))
    if given is None:
        sizes = [1] * size
    elif given.rank == 0:
        (each,) = b.ints(given, "split")
        if each <= 0:
            raise Unsupported(f"pieces of {each} elements")
        sizes = [min(each, size - start) for start in range(0, size, each)]
    else:
        sizes = list(b.ints(given, "split"))
    if sum(sizes) != size:
        raise Unsupported(f"pieces of {sizes} for {size} elements")
    items, start = [], 0
    for number, length in enumerate(sizes):
        starts = tuple(start if one == axis else 0 for one in range(x.rank))
        shape = tuple(length if one == axis else dim for one, dim in enumerate(x.shape))
        piece = cut(b, x, starts, shape, (1,) * x.rank, f"item{number}")
        if given is None and not node.attr("keepdims", 1):
            piece = b.reshape(piece, tuple(dim for one, dim in enumerate(shape) if one != axis), f"item{number}_squeezed")
        items.append(piece)
        start += length
    return TensorSequence(tuple(items))


def _concat(b: Builder, node: Node) -> Value:
    sequence, stack = _any_sequence(node), bool(node.attr("new_axis", 0))
    if isinstance(sequence, StackedSequence):
        count, *shape = sequence.value.shape
        axis = node.axis(node.required("axis"), len(shape) + stack)
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape) + 1)]
        placed = b.transpose(sequence.value, order, "placed")
        return placed if stack else b.reshape(placed, (*shape[:axis], count * shape[axis], *shape[axis + 1 :]), "joined")
    items = sequence.items
    if not items:
        raise Unsupported("an empty sequence has no type to give its concatenation")
    axis = node.axis(node.required("axis"), items[0].rank + stack)
    if stack:
        items = tuple(
            b.reshape(item, (*item.shape[:axis], 1, *item.shape[axis:]), f"item{number}") for number, item in enumerate(items)
        )
    return items[0] if len(items) == 1 else b.layers(Concatenation(axis), items)[0]


def _optional(b: Builder, node: Node) -> Any:
    return node.inputs[0] if node.inputs and node.inputs[0] is not None else EmptyOptional()


def _has_element(b: Builder, node: Node) -> Value:
    value: Any = node.inputs[0] if node.inputs else None
    return b.constant(np.array(value is not None and not isinstance(value, EmptyOptional)), "has_element")


def _get_element(b: Builder, node: Node) -> Any:
    value: Any = node.inputs[0] if node.inputs else None
    if value is None or isinstance(value, EmptyOptional):
        raise Unsupported("its optional is empty")
    return value


def _map(walk: Walk, node: Node, scope: Scope) -> tuple[TensorSequence, ...]:
    """The body once per element; inputs that are tensors are the same each time.

    Raises:
        Unsupported: the sequences differ in length.
    """
    inputs: tuple[Any, ...] = node.inputs
    if any(isinstance(value, StackedSequence) for value in inputs):
        raise Unsupported("its sequence has a computed length; write a Loop or Scan over the tensor that it is made of")
    lengths = {len(value.items) for value in inputs if isinstance(value, TensorSequence)}
    if len(lengths) != 1 or not isinstance(inputs[0], TensorSequence):
        raise Unsupported(f"sequences of {sorted(lengths)} elements; it takes sequences of one length")
    rows = []
    for step in range(lengths.pop()):
        given: Sequence[Any] = [value.items[step] if isinstance(value, TensorSequence) else value for value in inputs]
        rows.append(walk.subgraph(node.required("body"), given, scope, f"{node.name}/{step}/"))
    count = len(node.required("body").output)
    return tuple(TensorSequence(tuple(row[number] for row in rows)) for number in range(count))


OPERATORS: dict[str, Callable[[Builder, Node], Any]] = {
    "ConcatFromSequence": _concat,
    "Optional": _optional,
    "OptionalGetElement": _get_element,
    "OptionalHasElement": _has_element,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SplitToSequence": _split,
}
SEQUENCE_OPERATORS = (*OPERATORS, "SequenceMap")
