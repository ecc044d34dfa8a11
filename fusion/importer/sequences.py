"""Sequences and optionals: lists of values while a model is imported, nothing afterwards.

Lengths and positions must be known at import, which they nearly always are. What is left are the tensors inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.slicing import cut
from fusion.importer.values import Value
from fusion.ops import Concatenation

if TYPE_CHECKING:
    from fusion.importer.builder import Builder
    from fusion.importer.graph import Scope, Walk


@dataclass(frozen=True, eq=False)
class TensorSequence:
    """A sequence of known length."""

    items: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class EmptyOptional:
    """An optional without content. (One with content is its content.)"""


def concerns(node: Node) -> bool:
    """Whether the node makes, reads or passes on a sequence or optional."""
    return not node.domain and (node.op in SEQUENCE_OPERATORS or any(isinstance(value, TensorSequence | EmptyOptional) for value in node.inputs))


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
    if node.op in ("Loop", "Scan"):
        raise Unsupported("it carries a sequence from step to step; only tensors can be carried (write a Concat, or unroll the loop)")
    raise Unsupported("an input is a sequence or an empty optional, which this operator does not take")


def _sequence(node: Node, index: int = 0) -> tuple[Value, ...]:
    value: Any = node.inputs[index] if index < len(node.inputs) else None
    if not isinstance(value, TensorSequence):
        raise Unsupported(f"input {index} is no sequence")
    return value.items


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


def _insert(b: Builder, node: Node) -> TensorSequence:
    items = _sequence(node)
    count = len(items)
    given = node.optional(2)
    at = count if given is None else b.ints(given, "position")[0]
    if not -count <= at <= count:
        raise Unsupported(f"position {at} of a sequence of {count}")
    at += count if at < 0 else 0
    return TensorSequence((*items[:at], node.input(1), *items[at:]))


def _erase(b: Builder, node: Node) -> TensorSequence:
    items = _sequence(node)
    at = _position(b, node, 1, len(items) - 1, len(items))
    return TensorSequence((*items[:at], *items[at + 1 :]))


def _at(b: Builder, node: Node) -> Value:
    items = _sequence(node)
    return items[_position(b, node, 1, 0, len(items))]


def _length(b: Builder, node: Node) -> Value:
    return b.constant(np.array(len(_sequence(node)), np.int64), "length")


def _split(b: Builder, node: Node) -> TensorSequence:
    """Pieces of given sizes, of one size (the last may be smaller), or of one element, which loses the axis unless ``keepdims``."""
    x, given = node.input(0), node.optional(1)
    axis = node.axis(node.attr("axis", 0), x.rank)
    size = x.shape[axis]
    if not isinstance(size, int):
        raise Unsupported(f"its input has {size} elements along axis {axis}: the length of the sequence must be known")
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
    items = _sequence(node)
    if not items:
        raise Unsupported("an empty sequence has no type to give its concatenation")
    stack = bool(node.attr("new_axis", 0))
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
