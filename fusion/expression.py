"""Pointwise expression trees: what fused elementwise layers and epilogues compute.

An expression is a tree of operands, literals, conversions and calls of named functions. Every subtree has a data
type, found by :func:`type_of`. Meaning: types follow ONNX, except that floating-point types narrower than 32 bits are
computed in float32 and rounded once, at the end or at an explicit conversion. NumPy broadcasting applies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import is_
from typing import TypeAlias

import numpy as np

from fusion.dtypes import DataType


@dataclass(frozen=True)
class Operand:
    """The layer's input number ``index`` (in an epilogue, 0 is the layer's own result before it)."""

    index: int


@dataclass(frozen=True, eq=False)
class Literal:
    """A constant of one element. Zeros of different sign are different, NaN is like any other NaN: equal literals have the same code."""

    value: float | int | bool
    dtype: DataType

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Literal) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[object, ...]:
        value = self.value
        return (self.dtype, "nan") if value != value else (self.dtype, value, value == 0 and math.copysign(1.0, value))


class _Kept:
    """Hash, size and operands are computed once: expressions hold expressions, and rules look the same ones up all the time."""

    def __hash__(self) -> int:
        number = self.__dict__.get("_hash")
        if number is None:
            number = self.__dict__["_hash"] = hash(self._key())
        return number

    def _key(self) -> tuple:
        raise NotImplementedError


@dataclass(frozen=True)
class Convert(_Kept):
    """``argument`` converted to ``dtype`` (ONNX Cast: float to integer truncates, anything to bool is ``!= 0``)."""

    dtype: DataType
    argument: Expression

    __hash__ = _Kept.__hash__

    def _key(self) -> tuple:
        return self.dtype, self.argument


@dataclass(frozen=True)
class Apply(_Kept):
    """``function`` (a key of :data:`FUNCTIONS`) of ``arguments``."""

    function: str
    arguments: tuple[Expression, ...]

    __hash__ = _Kept.__hash__

    def _key(self) -> tuple:
        return self.function, self.arguments


Expression: TypeAlias = "Operand | Literal | Convert | Apply"


@dataclass(frozen=True)
class Function:
    """One pointwise function: argument count, NumPy meaning, and the rule for its result type.

    ``result`` is ``"same"`` (the type of the first argument), ``"bool"``, or ``"second"`` (where). ``activation`` marks
    those that reports call Activation.
    """

    arity: int
    numpy: Callable[..., np.ndarray]
    result: str = "same"
    activation: bool = False


def apply(function: str, *arguments: Expression) -> Apply:
    """``Apply`` with its arguments spelled out.

    Raises:
        ValueError: no such function, or a wrong argument count.
    """
    known = FUNCTIONS.get(function)
    if known is None or known.arity != len(arguments):
        raise ValueError(f"{function} with {len(arguments)} arguments is not a pointwise function")
    return Apply(function, arguments)


def type_of(expression: Expression, operands: Sequence[DataType]) -> DataType:
    """The data type of ``expression`` when operand ``i`` has type ``operands[i]``."""
    if isinstance(expression, Operand):
        return operands[expression.index]
    if isinstance(expression, Literal | Convert):
        return expression.dtype
    rule = FUNCTIONS[expression.function].result
    if rule == "bool":
        return DataType.BOOL
    return type_of(expression.arguments[1 if rule == "second" else 0], operands)


def operands(expression: Expression) -> tuple[int, ...]:
    """The operand numbers that ``expression`` reads, ascending, each once."""
    return tuple(sorted(reads(expression)))


def reads(expression: Expression) -> tuple[int, ...]:
    """The operand numbers that ``expression`` reads, in the order of reading, each once."""
    if isinstance(expression, Operand):
        return (expression.index,)
    if isinstance(expression, Literal):
        return ()
    found = expression.__dict__.get("_reads")
    if found is None:
        children = (expression.argument,) if isinstance(expression, Convert) else expression.arguments
        found = expression.__dict__["_reads"] = tuple(dict.fromkeys(index for child in children for index in reads(child)))
    return found


def substitute(expression: Expression, replacements: dict[int, Expression]) -> Expression:
    """``expression`` with operand ``i`` replaced by ``replacements[i]``; operands not named stay."""
    changed = {index: new for index, new in replacements.items() if new != Operand(index)}
    return _substitute(expression, changed) if changed else expression


def _substitute(expression: Expression, changed: dict[int, Expression]) -> Expression:
    if isinstance(expression, Operand):
        return changed.get(expression.index, expression)
    if changed.keys().isdisjoint(reads(expression)):
        return expression
    if isinstance(expression, Convert):
        return Convert(expression.dtype, _substitute(expression.argument, changed))
    if isinstance(expression, Apply):
        return Apply(expression.function, tuple([_substitute(child, changed) for child in expression.arguments]))
    return expression


def with_children(expression: Convert | Apply, children: tuple[Expression, ...]) -> Convert | Apply:
    """``expression`` of other ``children``: itself where they are the same objects, so that what is known of it and of them stays known."""
    if isinstance(expression, Convert):
        return expression if children[0] is expression.argument else Convert(expression.dtype, children[0])
    same = all(map(is_, children, expression.arguments))
    return expression if same else Apply(expression.function, children)


def size(expression: Expression) -> int:
    """How many functions and conversions ``expression`` holds."""
    if isinstance(expression, Operand | Literal):
        return 0
    found = expression.__dict__.get("_size")
    if found is None:
        children = (expression.argument,) if isinstance(expression, Convert) else expression.arguments
        found = expression.__dict__["_size"] = 1 + sum(size(child) for child in children)
    return found


def functions(expression: Expression) -> tuple[str, ...]:
    """The function names in ``expression``, innermost first, with repetitions (``cast`` for conversions)."""
    if isinstance(expression, Operand | Literal):
        return ()
    if isinstance(expression, Convert):
        return (*functions(expression.argument), "cast")
    return (*(name for child in expression.arguments for name in functions(child)), expression.function)


def vocabulary(expression: Expression) -> frozenset[str]:
    """The names of the functions in ``expression`` (``cast`` for conversions)."""
    if isinstance(expression, Operand | Literal):
        return frozenset()
    found = expression.__dict__.get("_vocabulary")
    if found is None:
        children = (expression.argument,) if isinstance(expression, Convert) else expression.arguments
        found = frozenset(("cast" if isinstance(expression, Convert) else expression.function,)).union(*map(vocabulary, children))
        expression.__dict__["_vocabulary"] = found
    return found


def text(expression: Expression, names: Sequence[str] | None = None) -> str:
    """``expression`` as people write it: ``relu(add(x, 1.0))``; operands are ``names[i]``, else ``x0, x1 ...``."""
    if isinstance(expression, Operand):
        return names[expression.index] if names else f"x{expression.index}"
    if isinstance(expression, Literal):
        return f"{expression.value!r}"
    if isinstance(expression, Convert):
        return f"{expression.dtype.value}({text(expression.argument, names)})"
    return f"{expression.function}({', '.join(text(child, names) for child in expression.arguments)})"


_NARROW_INTEGERS = {
    DataType.INT2: DataType.INT8, DataType.INT4: DataType.INT8, DataType.UINT2: DataType.UINT8, DataType.UINT4: DataType.UINT8
}  # fmt: skip


def compute_type(dtype: DataType) -> DataType:
    """The type in which values of ``dtype`` are computed: float32 for narrow floating-point types, 8 bits for narrow integers."""
    return DataType.FLOAT if dtype.is_float and dtype.itemsize < 4 else _NARROW_INTEGERS.get(dtype, dtype)


def evaluate(expression: Expression, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The value of ``expression``: broadcast over ``arrays``, in the type that :func:`type_of` gives."""
    types = [DataType(array.dtype.name) for array in arrays]
    wide = [array.astype(compute_type(dtype).numpy, copy=False) for array, dtype in zip(arrays, types, strict=True)]
    with np.errstate(all="ignore"):
        result = _evaluate(expression, wide)
    return np.asarray(result).astype(type_of(expression, types).numpy, copy=False)


def _evaluate(expression: Expression, arrays: Sequence[np.ndarray]) -> np.ndarray:
    if isinstance(expression, Operand):
        return arrays[expression.index]
    if isinstance(expression, Literal):
        return np.asarray(expression.value, compute_type(expression.dtype).numpy)
    if isinstance(expression, Convert):
        value = _evaluate(expression.argument, arrays)
        rounded = convert(value, expression.dtype)
        return rounded.astype(compute_type(expression.dtype).numpy, copy=False)
    arguments = [_evaluate(child, arrays) for child in expression.arguments]
    function = FUNCTIONS[expression.function]
    result = np.asarray(function.numpy(*arguments))
    if function.result == "bool":
        return result.astype(bool, copy=False)
    return result.astype(arguments[1 if function.result == "second" else 0].dtype, copy=False)


def convert(value: np.ndarray, dtype: DataType) -> np.ndarray:
    """``value`` as ONNX Cast converts it to ``dtype``."""
    if dtype is DataType.BOOL:
        return np.asarray(value != 0)
    with np.errstate(all="ignore"):
        return np.asarray(value).astype(dtype.numpy, copy=False)


# --- the functions ---------------------------------------------------------------------------------------------------


@cache
def _erf_table() -> tuple[np.ndarray, np.ndarray]:
    points = np.arange(0, 6 * 256 + 2) / 256.0
    return np.array([math.erf(x) for x in points]), 2 / math.sqrt(math.pi) * np.exp(-points * points)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, by cubic Hermite interpolation of a table (absolute error under 1e-11)."""
    values, slopes = _erf_table()
    scaled = np.minimum(np.abs(x), 6.0).astype(np.float64) * 256.0
    scaled = np.where(np.isnan(scaled), 0.0, scaled)
    index = scaled.astype(np.int64)
    t = scaled - index
    h = 1 / 256.0
    left, right = values[index], values[index + 1]
    d0, d1 = slopes[index] * h, slopes[index + 1] * h
    result = left + t * (d0 + t * (3 * (right - left) - 2 * d0 - d1 + t * (2 * (left - right) + d0 + d1)))
    return np.where(np.isnan(x), np.nan, np.copysign(result, x)).astype(np.asarray(x).dtype, copy=False)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.issubdtype(a.dtype, np.integer):  # ONNX divides integers towards zero
        quotient = np.floor_divide(a, np.where(b == 0, 1, b))
        return quotient + ((quotient < 0) & (quotient * b != a))
    return np.divide(a, b)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.issubdtype(a.dtype, np.integer) and np.issubdtype(b.dtype, np.integer):
        return np.where(b >= 0, np.power(a, np.maximum(b, 0)), np.power(a.astype(np.float64), b).astype(a.dtype))
    return np.power(a, b)


FUNCTIONS: dict[str, Function] = {
    # binary arithmetic
    "add": Function(2, np.add),
    "sub": Function(2, np.subtract),
    "mul": Function(2, np.multiply),
    "div": Function(2, _divide),
    "pow": Function(2, _power),
    "mod": Function(2, np.mod),  # sign of the divisor
    "fmod": Function(2, np.fmod),  # sign of the dividend
    "min": Function(2, np.minimum),
    "max": Function(2, np.maximum),
    # unary arithmetic
    "neg": Function(1, np.negative),
    "abs": Function(1, np.abs),
    "sign": Function(1, np.sign),
    "exp": Function(1, np.exp),
    "log": Function(1, np.log),
    "sqrt": Function(1, np.sqrt),
    "rsqrt": Function(1, lambda x: 1 / np.sqrt(x)),
    "reciprocal": Function(1, np.reciprocal),
    "square": Function(1, np.square),
    "sin": Function(1, np.sin),
    "cos": Function(1, np.cos),
    "tan": Function(1, np.tan),
    "asin": Function(1, np.arcsin),
    "acos": Function(1, np.arccos),
    "atan": Function(1, np.arctan),
    "sinh": Function(1, np.sinh),
    "cosh": Function(1, np.cosh),
    "asinh": Function(1, np.arcsinh),
    "acosh": Function(1, np.arccosh),
    "atanh": Function(1, np.arctanh),
    "erf": Function(1, erf),
    "floor": Function(1, np.floor),
    "ceil": Function(1, np.ceil),
    "round": Function(1, np.rint),  # half to even
    # activations; further arguments are literals
    "relu": Function(1, lambda x: np.maximum(x, x.dtype.type(0)), activation=True),
    "sigmoid": Function(1, _sigmoid, activation=True),
    "tanh": Function(1, np.tanh, activation=True),
    "softplus": Function(1, _softplus, activation=True),
    "softsign": Function(1, lambda x: x / (1 + np.abs(x)), activation=True),
    "elu": Function(2, lambda x, a: np.where(x > 0, x, a * np.expm1(x)), activation=True),
    "celu": Function(2, lambda x, a: np.maximum(x, 0) + np.minimum(a * np.expm1(x / a), 0), activation=True),
    "selu": Function(3, lambda x, a, g: g * np.where(x > 0, x, a * np.expm1(x)), activation=True),
    "leaky_relu": Function(2, lambda x, a: np.where(x >= 0, x, a * x), activation=True),
    "prelu": Function(2, lambda x, a: np.where(x >= 0, x, a * x), activation=True),
    "thresholded_relu": Function(2, lambda x, a: np.where(x > a, x, 0), activation=True),
    "hard_sigmoid": Function(3, lambda x, a, b: np.clip(a * x + b, 0, 1), activation=True),
    "hard_swish": Function(1, lambda x: x * np.clip(x / 6 + 0.5, 0, 1), activation=True),
    "swish": Function(2, lambda x, a: x * _sigmoid(a * x), activation=True),
    "mish": Function(1, lambda x: x * np.tanh(_softplus(x)), activation=True),
    "gelu": Function(1, lambda x: 0.5 * x * (1 + erf(x * x.dtype.type(math.sqrt(0.5)))), activation=True),
    "gelu_tanh": Function(1, _gelu_tanh, activation=True),
    "shrink": Function(  # shrink(x, lambda, bias)
        3, lambda x, t, b: np.where(x < -t, x + b, np.where(x > t, x - b, 0)), activation=True
    ),
    "clip": Function(3, lambda x, low, high: np.minimum(np.maximum(x, low), high), activation=True),
    # comparison and logic
    "equal": Function(2, np.equal, "bool"),
    "less": Function(2, np.less, "bool"),
    "less_or_equal": Function(2, np.less_equal, "bool"),
    "greater": Function(2, np.greater, "bool"),
    "greater_or_equal": Function(2, np.greater_equal, "bool"),
    "and": Function(2, np.logical_and, "bool"),
    "or": Function(2, np.logical_or, "bool"),
    "xor": Function(2, np.logical_xor, "bool"),
    "not": Function(1, np.logical_not, "bool"),
    "isnan": Function(1, np.isnan, "bool"),
    "isinf": Function(3, lambda x, n, p: (np.isposinf(x) & (p != 0)) | (np.isneginf(x) & (n != 0)), "bool"),
    "where": Function(3, np.where, "second"),  # where(condition, a, b)
    # integers
    "bitwise_and": Function(2, np.bitwise_and),
    "bitwise_or": Function(2, np.bitwise_or),
    "bitwise_xor": Function(2, np.bitwise_xor),
    "bitwise_not": Function(1, np.bitwise_not),
    "shift_left": Function(2, np.left_shift),
    "shift_right": Function(2, np.right_shift),
}
