"""What operator importers build with: layers, constants, and questions about values.

Layers whose inputs are all constants are folded here, lazily: the constant is computed when something reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from fusion.dims import Dim, Sym, product, symbol, symbols
from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Literal, Operand, apply, operands, substitute
from fusion.importer.errors import Unsupported
from fusion.importer.ratio import Ratio
from fusion.importer.values import Step, Value, constant, elements_of, from_elements
from fusion.network import ControlFlow, Op, ShapeError, TensorType
from fusion.ops import Fill, Pointwise, Random, Range, ShapeValue, Shuffle

SIGNED = ":int"  # ends the names of sizes that may be negative: numbers read from tensors
GUESS = 4  # for a size of which nothing is known before
READ_LIMIT = 64  # elements: the host reads no larger tensors to know sizes
FOLD_LIMIT = 64 << 20  # bytes: a layer that makes a larger constant out of smaller ones stays a layer


@dataclass(frozen=True)
class Reading:
    """Where a named size is read (see :class:`fusion.network.Reading`)."""

    tensor: Value
    element: int
    limit: Dim | None
    guess: int


class Builder:
    """The layers made so far. ``origin`` (an ONNX node) and ``prefix`` (a name) belong to the node being imported; ``outer`` builds the
    network around this one, if any."""

    def __init__(self, outer: Builder | None = None) -> None:
        self._outer = outer
        self.steps: list[Step] = []
        self.origin = ""
        self.prefix = ""
        self._names: set[str] = set()
        self._read: dict[int, tuple[Value, tuple[Dim, ...]]] = {}
        self.readings: dict[str, Reading] = {}
        self.holds: list[tuple[Dim, Dim]] = []  # see fusion.network.Network.holds
        self.own_sizes: set[str] = set()  # sizes that exist in this network only

    # --- making ------------------------------------------------------------------------------------------------------

    def layer(self, op: Op, *inputs: Value, suffix: str = "", fold: bool = True) -> Value:
        """One layer with one output. ``suffix`` names it when it is not the node's main layer."""
        return self.layers(op, inputs, suffix, fold)[0]

    def layers(self, op: Op, inputs: Sequence[Value], suffix: str = "", fold: bool = True) -> tuple[Value, ...]:
        """One layer with all its outputs. Without ``fold`` it stays a layer even where all inputs are constants.

        Raises:
            Unsupported: the operation does not take inputs of these types.
        """
        try:
            types = op.infer([value.type for value in inputs])
        except ShapeError as error:
            raise Unsupported(str(error)) from error
        name = f"{self.prefix}/{suffix}" if suffix else self.prefix
        if fold and all(value.is_constant for value in inputs) and self._may_fold(op, inputs, types):
            return _folded(op, tuple(inputs), types, name, self.origin)
        step = Step(self.unique(name), op, tuple(self.data(value) for value in inputs), self.origin)
        step.outputs = tuple(Value("", type_, step=step, origin=self.origin) for type_ in types)
        self.steps.append(step)
        return step.outputs

    def constant(self, array: np.ndarray, suffix: str) -> Value:
        """A constant that belongs to the node being imported."""
        return constant(array, f"{self.prefix}/{suffix}", self.origin)

    def pointwise(self, expression: Expression, *inputs: Value, suffix: str = "", fold: bool = True) -> Value:
        """An elementwise layer; constants of one element become literals. The input itself when nothing is computed."""
        inputs, expression = self._compact(inputs, expression)
        if expression == Operand(0) and len(inputs) == 1:
            return inputs[0]
        if isinstance(expression, Convert) and expression.argument == Operand(0) and inputs[0].dtype is expression.dtype:
            return inputs[0]
        return self.layer(Pointwise(expression), *inputs, suffix=suffix, fold=fold)

    def epilogue(self, expression: Expression, *extras: Value) -> tuple[Expression, tuple[Value, ...]]:
        """An epilogue with its operands (operand ``k >= 1`` is ``extras[k - 1]``); constants of one element become literals."""
        replacements: dict[int, Expression] = {0: Operand(0)}
        kept: list[Value] = []
        for index, extra in enumerate(extras, 1):
            literal = _literal(extra)
            if literal is None:
                kept.append(extra)
            replacements[index] = literal or Operand(len(kept))
        return substitute(expression, replacements), tuple(kept)

    def reshape(self, x: Value, shape: Sequence[Dim], suffix: str = "") -> Value:
        """``x`` in another shape; ``x`` itself when it has that shape already."""
        shape = tuple(shape)
        return x if x.shape == shape else self.layer(Shuffle(reshape=shape), x, suffix=suffix)

    def transpose(self, x: Value, order: Sequence[int], suffix: str = "") -> Value:
        """``x`` with its axes permuted; ``x`` itself when they keep their places."""
        order = tuple(map(int, order))
        return x if order == tuple(range(x.rank)) else self.layer(Shuffle(first=order), x, suffix=suffix)

    def convert(self, x: Value, dtype: DataType, suffix: str = "") -> Value:
        """``x`` in another data type; ``x`` itself when it has that type already."""
        return self.pointwise(Convert(dtype, Operand(0)), x, suffix=suffix)

    def data(self, value: Value) -> Value:
        """``value``, after making a layer for it when only its dimensions are known."""
        if not value.is_symbolic:
            return value
        assert value.elements is not None
        items = list(value.elements.reshape(-1))
        shape = tuple(int(dim) for dim in value.shape)
        name = f"{value.origin or self.prefix}/shape"
        if not any(isinstance(item, Ratio) for item in items):
            op: Op = ShapeValue(tuple(items), shape, value.dtype)
            inputs: tuple[Value, ...] = ()
        else:
            parts = [tuple(item.num if isinstance(item, Ratio) else item for item in items),
                     tuple(item.den if isinstance(item, Ratio) else 1 for item in items)]  # fmt: skip
            inputs = tuple(self.layer(ShapeValue(part, shape, DataType.INT64), suffix="shape") for part in parts)
            op = Pointwise(apply("div", *(Convert(value.dtype, Operand(index)) for index in (0, 1))))
        step = Step(self.unique(name), op, inputs, value.origin or self.origin)
        step.outputs = (value,)
        value.step = step
        self.steps.append(step)
        return value

    def lengths(self, dims: Sequence[Dim]) -> Value:
        """Dimensions as a tensor (int64, one-dimensional), for arithmetic on the device."""
        elements = np.empty(len(dims), object)
        elements[:] = dims
        return self.data(from_elements(elements, DataType.INT64, self.origin))

    # --- asking ------------------------------------------------------------------------------------------------------

    def dims(self, value: Value, what: str, limit: Dim | None = None, guesses: Sequence[int] = ()) -> tuple[Dim, ...]:
        """The elements of a one-dimensional integer value, or of a scalar, as dimensions.

        Elements that depend on data become named sizes, which the host reads when the layer that computes them has run
        (:meth:`is_read` tells them; they may be negative). ``limit`` is the most that they can be, ``guesses`` what they may well be.

        Raises:
            Unsupported: there are too many, or they are no whole numbers.
        """
        items = self.items(value, what)
        if any(isinstance(item, Ratio) for item in items):
            raise Unsupported(f"its {what} ({', '.join(map(str, items))}) must be whole numbers")
        if None not in items:
            return items
        if id(value) not in self._read:
            data = self.data(value)
            if not value.dtype.is_integer:
                data = self.convert(data, DataType.INT64, f"{what}_integer")
            found = []
            for index, item in enumerate(items):
                if item is None:
                    item = self.size(f"{what}{index}" if len(items) > 1 else what, signed=limit is None)
                    self.readings[str(item)] = Reading(data, index, limit, guesses[index] if guesses else GUESS)
                found.append(item)
            self._read[id(value)] = (value, tuple(found))
        return self._read[id(value)][1]

    def size(self, what: str, signed: bool = False) -> Sym:
        """A new named size of the node being imported, known in the middle of an inference; ``signed``: it may be negative."""
        base = f"{self.prefix}.{what}" + (SIGNED if signed else "")
        found, number = symbol(base), 1
        while str(found) in self.own_sizes:
            number += 1
            found = symbol(f"{self.prefix}.{what}.{number}" + (SIGNED if signed else ""))
        self.own_sizes.add(str(found))
        return found

    @staticmethod
    def is_read(dim: object) -> bool:
        """Whether ``dim`` is a number read during the inference, of any sign."""
        return isinstance(dim, Sym) and any(name.endswith(SIGNED) for name in symbols(dim))

    def is_told(self, dim: Dim) -> bool:
        """Whether ``dim`` is known in the middle of an inference only: it does not follow from the shapes of the inputs alone."""
        return bool(symbols(dim) & self.own_sizes) or (self._outer is not None and self._outer.is_told(dim))

    def items(self, value: Value, what: str) -> tuple:
        """Like :meth:`dims`, but elements may be ratios, or None when they depend on data."""
        elements = elements_of(value)
        if elements is None:
            count = product(value.shape)
            if not isinstance(count, int) or count > READ_LIMIT or value.is_constant:
                raise Unsupported(f"its {what} has {count} elements; sizes are read from at most {READ_LIMIT}")
            return (None,) * count
        return tuple(elements.reshape(-1))

    def ints(self, value: Value, what: str) -> tuple[int, ...]:
        """The elements of an integer constant.

        Raises:
            Unsupported: they depend on data or on dynamic sizes.
        """
        found = self.items(value, what)
        if None in found:
            raise Unsupported(f"data tell its {what}, which must be known when the engine is built")
        if any(not isinstance(item, int) for item in found):
            raise Unsupported(f"its {what} ({', '.join(map(str, found))}) must be known numbers")
        return tuple(int(item) for item in found)

    def array(self, value: Value, what: str) -> np.ndarray:
        """The content of a constant.

        Raises:
            Unsupported: it is none.
        """
        if not value.is_constant:
            raise Unsupported(f"its {what} must be a constant")
        return value.array

    def scalar(self, value: Value, what: str) -> float | int | bool:
        """The content of a constant of one element.

        Raises:
            Unsupported: it is none.
        """
        array = self.array(value, what)
        if array.size != 1:
            raise Unsupported(f"its {what} must have one element, not {array.size}")
        return _number(array, value.dtype)

    # -----------------------------------------------------------------------------------------------------------------

    def unique(self, name: str) -> str:
        """``name``, with a number behind it where a layer has that name already; it is taken from now on."""
        unique, count = name, 0
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique

    @staticmethod
    def _may_fold(op: Op, inputs: Sequence[Value], types: Sequence[TensorType]) -> bool:
        if isinstance(op, Random | ControlFlow) or not all(type_.is_static for type_ in types):
            return False
        if isinstance(op, Range | ShapeValue | Fill) and not _plain(op):
            return False
        made, read = sum(map(_bytes, types)), sum(_bytes(value.type) for value in inputs)
        return made <= max(FOLD_LIMIT, 2 * read)

    @staticmethod
    def _compact(inputs: tuple[Value, ...], expression: Expression) -> tuple[tuple[Value, ...], Expression]:
        """Literals for constants of one element, one operand per distinct value, none that is not read."""
        used = operands(expression)
        all_constant = all(inputs[index].is_constant for index in used)
        rank = max((inputs[index].rank for index in used if _literal(inputs[index]) is None), default=-1)
        replacements: dict[int, Expression] = {}
        kept: list[Value] = []
        for index in used:
            literal = None if all_constant or inputs[index].rank > rank else _literal(inputs[index])
            if literal is not None:
                replacements[index] = literal
                continue
            if not any(inputs[index] is other for other in kept):
                kept.append(inputs[index])
            replacements[index] = Operand(next(i for i, other in enumerate(kept) if other is inputs[index]))
        return tuple(kept), substitute(expression, replacements)


def _plain(op: Op) -> bool:
    return not any(isinstance(item, Sym) for item in (*getattr(op, "values", ()), getattr(op, "start", 0), getattr(op, "delta", 0)))


def _folded(
    op: Op, inputs: tuple[Value, ...], types: tuple[TensorType, ...], name: str, origin: str
) -> tuple[Value, ...]:
    @cache
    def compute() -> tuple[np.ndarray, ...]:
        return op.evaluate([value.array for value in inputs])

    def result(index: int) -> Callable[[], np.ndarray]:
        return lambda: compute()[index]

    return tuple(
        Value(f"{name}.{index}" if len(types) > 1 else name, type_, load=result(index), origin=origin)
        for index, type_ in enumerate(types)
    )


def _bytes(type_: TensorType) -> int:
    count = product(type_.shape)
    return count * type_.dtype.itemsize if isinstance(count, int) else 0


def _literal(value: Value) -> Literal | None:
    """A constant of one element as a literal. (Its rank must not exceed that of what it meets.)"""
    if not value.is_constant or any(dim != 1 for dim in value.shape):
        return None
    return Literal(_number(value.array, value.dtype), value.dtype)


def _number(array: np.ndarray, dtype: DataType) -> float | int | bool:
    item = array.reshape(-1)[0]
    return float(item) if dtype.is_float else bool(item) if dtype is DataType.BOOL else int(item)


def literal(value: float | int | bool, dtype: DataType) -> Literal:
    """A literal whose Python type fits ``dtype``."""
    return Literal(float(value) if dtype.is_float else bool(value) if dtype is DataType.BOOL else int(value), dtype)


def call(function: str, *arguments: Expression) -> Apply:
    """Shorthand for an application of a pointwise function."""
    return apply(function, *arguments)


X0, X1, X2, X3, X4 = (Operand(index) for index in range(5))
