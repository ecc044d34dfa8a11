"""What rules share about expressions: joining two, numbering operands, canonical order, affine parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fusion.dims import is_static
from fusion.dtypes import DataType
from fusion.expression import (
    Apply,
    Convert,
    Expression,
    Literal,
    Operand,
    compute_type,
    evaluate,
    operands,
    reads,
    size,
    substitute,
    type_of,
    with_children,
)
from fusion.graph import Graph, Limits
from fusion.network import Layer, ShapeError, TensorType, broadcast
from fusion.ops import Pointwise
from fusion.rewrite import Refusal

NOT_NEGATIVE = frozenset({"relu", "sigmoid", "exp", "abs", "square", "sqrt", "softplus", "hard_sigmoid"})  # functions that give no negative numbers
COMMUTATIVE = frozenset({"add", "mul", "min", "max", "and", "or", "xor", "equal"})


def subtrees(expression: Expression) -> Iterator[Expression]:
    """Every node of ``expression``, parents before children, with repetitions."""
    rest = [expression]
    while rest:
        node = rest.pop()
        yield node
        if isinstance(node, Convert):
            rest.append(node.argument)
        elif isinstance(node, Apply):
            rest.extend(reversed(node.arguments))


def distinct(expression: Expression) -> int:
    """How many different functions and conversions ``expression`` holds: what a kernel computes."""
    found: set[Expression] = set()
    rest = [expression]
    while rest:
        node = rest.pop()
        if isinstance(node, Operand | Literal) or node in found:
            continue
        found.add(node)
        rest.extend((node.argument,) if isinstance(node, Convert) else node.arguments)
    return len(found)


def swap(expression: Expression, old: Expression, new: Expression) -> Expression:
    """``expression`` with every subtree equal to ``old`` replaced by ``new``."""
    if expression == old:
        return new
    if isinstance(expression, Convert):
        return Convert(expression.dtype, swap(expression.argument, old, new))
    if isinstance(expression, Apply):
        return Apply(expression.function, tuple(swap(child, old, new) for child in expression.arguments))
    return expression


def without_logarithm(expression: Expression) -> Expression | None:
    """``expression`` with operand 0 in place of its logarithm; None where it reads operand 0 otherwise, or not at all."""
    rest = swap(expression, Apply("log", (Operand(0),)), Operand(-1))
    return None if rest == expression or 0 in operands(rest) else substitute(rest, {-1: Operand(0)})


def number(expression: Expression, names: Sequence[str], fixed: int = 0) -> tuple[Expression, tuple[str, ...]]:
    """``expression`` over ``names`` with unused names dropped, each name once, numbered in the order of reading.

    The first ``fixed`` operands stay where they are (an epilogue's operand 0 has no name: pass one in ``names`` for it).
    Equal fused layers thus get equal expressions, so that one timing serves them all.
    """
    order: list[str] = list(names[:fixed])
    replacements: dict[int, Expression] = {}
    for index in reads(expression):
        if index >= fixed:
            name = names[index]
            if name not in order[fixed:]:
                order.append(name)
            replacements[index] = Operand(order.index(name, fixed))
    return substitute(expression, replacements), tuple(order)


def join(
    outer: Expression, outer_names: Sequence[str], tensor: str, inner: Expression, inner_names: Sequence[str]
) -> tuple[Expression, tuple[str, ...]]:
    """``outer`` with the operands named ``tensor`` replaced by ``inner``; expression and names are not yet numbered."""
    shift = len(inner_names)
    replacements: dict[int, Expression] = {
        index: inner if name == tensor else Operand(index + shift) for index, name in enumerate(outer_names)
    }
    return substitute(outer, replacements), (*inner_names, *outer_names)


def joins_too_large(
    outer: Expression, outer_names: Sequence[str], tensor: str, inner: Expression, limits: Limits
) -> Refusal | None:
    """A refusal when :func:`join` of these would be too large, found without making it."""
    uses = sum(1 for node in subtrees(outer) if isinstance(node, Operand) and outer_names[node.index] == tensor)
    steps = size(outer) + uses * size(inner)
    # The tree repeats shared parts (x * tanh(x) of a long x); kernels compute them once, but passes walk the tree.
    if steps > 4 * limits.functions:
        return Refusal("size", f"the expression would have {steps} steps, {4 * limits.functions} are allowed")
    return None


def too_large(expression: Expression, inputs: int, limits: Limits) -> Refusal | None:
    """A refusal when one kernel should not compute this much."""
    # Counting what is distinct takes a walk through the tree, and is rarely needed.
    if size(expression) > limits.functions and (count := distinct(expression)) > limits.functions:
        return Refusal("size", f"{count} different functions, {limits.functions} are allowed")
    if inputs > limits.operands:
        return Refusal("operands", f"it would read {inputs} tensors, {limits.operands} are allowed")
    return None


def order_arguments(expression: Expression, types: Sequence[DataType]) -> Expression:
    """``expression`` with literals last, and low operand numbers first, in commutative functions of equal argument types.

    So ``bias + x`` and ``x + bias`` are one workload to the tactics."""
    if isinstance(expression, Convert):
        return with_children(expression, (order_arguments(expression.argument, types),))
    if not isinstance(expression, Apply):
        return expression
    arguments = tuple([order_arguments(child, types) for child in expression.arguments])
    if expression.function in COMMUTATIVE:
        a, b = arguments
        if _rank(b) < _rank(a) and type_of(a, types) is type_of(b, types):
            arguments = (b, a)
    return with_children(expression, arguments)


def _rank(expression: Expression) -> int:
    return min(operands(expression), default=1 << 30)


# --- pointwise readers of a layer ------------------------------------------------------------------------------------


def pointwise_reader(graph: Graph, layer: Layer) -> Layer | None:
    """The pointwise layer next to ``layer``: the only reader of its only output, or, when there are several readers, the
    first pointwise one (so that the engine can say who the others are)."""
    if len(layer.outputs) != 1:
        return None
    return next((reader for reader in graph.readers(layer.outputs[0]) if isinstance(reader.op, Pointwise)), None)


def fits_epilogue(graph: Graph, layer: Layer, reader: Layer) -> Refusal | None:
    """Why the pointwise ``reader`` cannot be computed on the results of ``layer`` as they are stored."""
    made, out = graph.type(layer.outputs[0]), graph.type(reader.outputs[0])
    if not equal_shape(made.shape, out.shape):
        return Refusal("shape", f"{reader.name} broadcasts {show(made.shape)} to {show(out.shape)}")
    for name in reader.inputs:
        other = graph.type(name)
        if len(other.shape) > len(made.shape):
            return Refusal("shape", f"{name} of shape {show(other.shape)} has more axes than {show(made.shape)}")
    return None


def equal_shape(a: Sequence, b: Sequence) -> bool:
    """Whether two shapes are known to be equal."""
    return tuple(a) == tuple(b)


def show(shape: Sequence) -> str:
    """``8x128x768``, or ``scalar``."""
    return "x".join(str(dim) for dim in shape) or "scalar"


def with_epilogue(graph: Graph, layer: Layer, reader: Layer) -> Layer | Refusal:
    """``layer`` with the pointwise ``reader`` in its epilogue; its name is left to the engine."""
    arity = layer.op.arity
    result = layer.outputs[0]
    refusal = joins_too_large(reader.op.expression, reader.inputs, result, layer.op.epilogue, graph.limits)
    if refusal is not None:
        return refusal
    expression, names = join(
        reader.op.expression, reader.inputs, result, layer.op.epilogue, (result, *layer.inputs[arity:])
    )
    expression, names = number(expression, names, fixed=1)
    refusal = too_large(expression, arity + len(names) - 1, graph.limits)
    if refusal is not None:
        return refusal
    op = replace(layer.op, epilogue=expression)
    return Layer("", op, (*layer.inputs[:arity], *names[1:]), reader.outputs)


# --- constants -------------------------------------------------------------------------------------------------------


def value_of(expression: Expression, constants: Mapping[int, np.ndarray]) -> np.ndarray | None:
    """The value of ``expression`` in float64 when it reads only ``constants`` (by operand number), else None."""
    if isinstance(expression, Operand):
        found = constants.get(expression.index)
        return None if found is None else np.asarray(found, np.float64)
    if not all(index in constants for index in operands(expression)):
        return None
    count = max(operands(expression), default=-1) + 1
    arrays = [np.asarray(constants[i], np.float64) if i in constants else np.zeros(()) for i in range(count)]
    return evaluate(as_double(expression), arrays)


def as_double(expression: Expression) -> Expression:
    """``expression`` with float64 literals and without conversions between floating-point types."""
    if isinstance(expression, Literal):
        return Literal(float(expression.value), DataType.DOUBLE)
    if isinstance(expression, Convert):
        return as_double(expression.argument) if expression.dtype.is_float else expression
    if isinstance(expression, Apply):
        return Apply(expression.function, tuple(as_double(child) for child in expression.arguments))
    return expression


def removable(types: Sequence[TensorType], index: int) -> bool:
    """Whether broadcasting gives the same shape without operand ``index``."""
    others = [kind.shape for position, kind in enumerate(types) if position != index]
    if not others:
        return False
    try:
        return broadcast(others) == broadcast([kind.shape for kind in types])
    except ShapeError:
        return False


def static_size(shape: Sequence) -> int | None:
    """The number of elements, when it is a number."""
    if not is_static(tuple(shape)):
        return None
    return int(np.prod([int(dim) for dim in shape], dtype=np.int64))


def literal_value(value: np.ndarray) -> float | int | bool:
    """The one value of ``value`` as Python has it."""
    item = value.reshape(-1)[0]
    if value.dtype.kind == "b":
        return bool(item)
    return int(item) if value.dtype.kind in "iu" else float(item)


def is_narrow(dtype: DataType) -> bool:
    """Whether values of ``dtype`` are computed in a wider type."""
    return compute_type(dtype) is not dtype
