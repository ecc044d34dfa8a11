"""Expression -> CUDA C++: one inlined device function per expression, made of the functions in ``include/functions.cuh``.

Values are computed in ``compute_type`` of their data type (float for fp16 and bf16), as fusion/expression.py says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import (
    FUNCTIONS,
    Apply,
    Convert,
    Expression,
    Literal,
    Operand,
    apply,
    compute_type,
    operands,
    type_of,
)

STORAGE_TYPES: dict[DataType, str] = {
    DataType.FLOAT: "float",
    DataType.HALF: "__half",
    DataType.BF16: "__nv_bfloat16",
    DataType.DOUBLE: "double",
    DataType.FP8: "fx::e4m3",
    DataType.FP8_E5M2: "fx::e5m2",
    DataType.INT8: "fx::i8",
    DataType.INT16: "fx::i16",
    DataType.INT32: "fx::i32",
    DataType.INT64: "fx::i64",
    DataType.UINT8: "fx::u8",
    DataType.UINT16: "fx::u16",
    DataType.UINT32: "fx::u32",
    DataType.UINT64: "fx::u64",
    DataType.BOOL: "bool",
    DataType.FP8_FNUZ: "fx::e4m3fnuz",
    DataType.FP8_E5M2_FNUZ: "fx::e5m2fnuz",
    DataType.FP8_E8M0: "fx::e8m0",
    DataType.FP4: "fx::e2m1",
    DataType.INT2: "fx::i2",
    DataType.INT4: "fx::i4",
    DataType.UINT2: "fx::u2",
    DataType.UINT4: "fx::u4",
}

# Names that differ from the function's name in C++ (keywords and alternative tokens).
_NAMES = {"and": "logical_and", "or": "logical_or", "xor": "logical_xor", "not": "logical_not"}

# With a version in fx::fast.
FAST_FUNCTIONS = frozenset(
    ("exp", "sigmoid", "tanh", "softplus", "softsign", "elu", "selu", "celu", "swish", "mish", "gelu", "gelu_tanh")
)

# Defined for real numbers only: integers go through double.
_REAL_FUNCTIONS = frozenset(
    (
        "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh",
        "atanh", "erf", "sigmoid", "softplus", "softsign", "elu", "celu", "selu", "hard_sigmoid", "hard_swish", "swish", "mish",
        "gelu", "gelu_tanh",
    )
)  # fmt: skip
_IDENTITY_ON_INTEGERS = frozenset(("floor", "ceil", "round"))

_NARROW = frozenset((DataType.HALF, DataType.BF16, DataType.FP8, DataType.FP8_E5M2))


class Unsupported(ValueError):
    """An expression that has no CUDA code; the text names the data type or function."""


def storage_type(dtype: DataType) -> str:
    """The C++ type that a tensor of ``dtype`` is stored as.

    Raises:
        Unsupported: no CUDA kernel here reads that type.
    """
    if dtype not in STORAGE_TYPES:
        raise Unsupported(f"no pointwise CUDA code for data type {dtype.value}")
    return STORAGE_TYPES[dtype]


def computed_type(dtype: DataType) -> str:
    """The C++ type that values of ``dtype`` are computed in."""
    return storage_type(compute_type(dtype))


def literal(value: float | bool, dtype: DataType) -> str:
    """``value`` as a C++ expression of ``computed_type(dtype)``."""
    cpp = computed_type(dtype)
    if dtype is DataType.BOOL:
        return "true" if value else "false"
    if compute_type(dtype).is_float:
        if dtype is DataType.DOUBLE:
            number = np.float64(value)
            special = f"__longlong_as_double({int(number.view(np.int64))}ll)"
            return f"double({float(number)!r})" if np.isfinite(number) else special
        with np.errstate(over="ignore"):
            single = np.float32(value)
        return f"float({float(single)!r})" if np.isfinite(single) else f"__int_as_float({int(single.view(np.int32))})"
    width = compute_type(dtype).itemsize * 8
    integer = int(value) & ((1 << width) - 1)
    if dtype.is_signed and integer >> (width - 1):
        return f"{cpp}({integer - (1 << width)}ll)" if integer != 1 << 63 else f"{cpp}(-9223372036854775807ll - 1)"
    return f"{cpp}({integer}{'ll' if integer < 1 << 63 else 'ull'})"


@dataclass
class _Writer:
    """Statements so far, and the name of every subtree already written (common subexpressions are computed once)."""

    types: Sequence[DataType]
    fast: bool
    lines: list[str] = field(default_factory=list)
    names: dict[Expression, str] = field(default_factory=dict)

    def value(self, expression: Expression) -> str:
        if isinstance(expression, Operand):
            return f"x{expression.index}"
        if isinstance(expression, Literal):
            return literal(expression.value, expression.dtype)
        if expression not in self.names:
            cpp = computed_type(type_of(expression, self.types))
            code = self.convert(expression) if isinstance(expression, Convert) else self.call(expression)
            name = f"t{len(self.lines)}"
            self.lines.append(f"const {cpp} {name} = {code};")
            self.names[expression] = name
        return self.names[expression]

    def convert(self, expression: Convert) -> str:
        quantised = self.quantised(expression)
        if quantised:
            return quantised
        source = self.value(expression.argument)
        if compute_type(expression.dtype) is not expression.dtype:
            return f"fx::widen(fx::narrow<{storage_type(expression.dtype)}>({source}))"
        return f"fx::cast<{computed_type(expression.dtype)}>({source})"

    def quantised(self, expression: Convert) -> str:
        """``int8(clip(round(x / s) + z, low, high))`` in a few instructions, or an empty text for anything else.

        A known scale divides as its reciprocal: a quotient within an ulp of half way between two steps may round to the other one."""
        clip, zero = expression.argument, 0
        if expression.dtype not in (DataType.INT8, DataType.UINT8) or not isinstance(clip, Apply) or clip.function != "clip":
            return ""
        inner, *limits = clip.arguments
        low, high = (one.value if isinstance(one, Literal) else None for one in limits)
        if isinstance(inner, Apply) and inner.function == "add":
            inner, offset = inner.arguments
            offset = offset.argument if isinstance(offset, Convert) else offset
            if not isinstance(offset, Literal) or offset.value != int(offset.value) or abs(offset.value) > 255:
                return ""
            zero = int(offset.value)
        least, most = (-128, 127) if expression.dtype is DataType.INT8 else (0, 255)
        if not isinstance(inner, Apply) or inner.function != "round" or low is None or high is None:
            return ""
        if not (least <= low <= high <= most and low == int(low) and high == int(high)):
            return ""
        value = _by_reciprocal(inner.arguments[0], self.types)
        if compute_type(type_of(value, self.types)) is not DataType.FLOAT:
            return ""
        bottom, top = low - zero, high - zero
        if isinstance(value, Apply) and value.function == "mul":
            limited, factor = value.arguments
            least_value, most_value = _limits(limited)
            if isinstance(factor, Literal) and factor.value > 0 and isinstance(limited, Apply) and (least_value, most_value) != (-math.inf, math.inf):
                scale = np.float32(factor.value)
                first, last = float(np.float32(least_value) * scale), float(np.float32(most_value) * scale)
                if first <= top and last >= bottom:  # one pair of limits serves for both: rounding and scaling keep the order
                    value, bottom, top = apply("mul", limited.arguments[0], factor), max(bottom, first), min(top, last)
        code = self.value(value)
        bounds = ", ".join(literal(float(one), DataType.FLOAT) for one in (bottom, top))
        return f"fx::quantize<{storage_type(expression.dtype)}>({code}, {bounds}, {zero})"

    def call(self, expression: Apply) -> str:
        name, arguments = expression.function, expression.arguments
        types = [compute_type(type_of(argument, self.types)) for argument in arguments]
        values = [self.value(argument) for argument in arguments]
        if name == "pow" and types[0].is_float and isinstance(arguments[1], Literal) and arguments[1].value in (1, 2, 3):
            return " * ".join([values[0]] * int(arguments[1].value))
        if name == "where":
            values[2] = _as(types[1], types[2], values[2])
            return f"fx::where({', '.join(values)})"
        if name in _IDENTITY_ON_INTEGERS and not types[0].is_float:
            return values[0]
        work = types[0]
        if name in _REAL_FUNCTIONS and not work.is_float:
            work = DataType.DOUBLE
        if name != "pow":
            values = [_as(work, dtype, value) for dtype, value in zip(types, values, strict=True)]
        scope = "fx::fast" if self.fast and work is DataType.FLOAT and name in FAST_FUNCTIONS else "fx"
        code = f"{scope}::{_NAMES.get(name, name)}({', '.join(values)})"
        if work is not types[0]:
            code = f"fx::cast<{storage_type(types[0])}>({code})"
        return code


def _limits(expression: Expression) -> tuple[float, float]:
    """The limits that a rectifier or a clip to known ones sets; infinite where it is neither."""
    if isinstance(expression, Apply) and expression.function == "relu":
        return 0.0, math.inf
    if isinstance(expression, Apply) and expression.function == "clip":
        low, high = expression.arguments[1:]
        if isinstance(low, Literal) and isinstance(high, Literal) and low.value <= high.value:
            return float(low.value), float(high.value)
    return -math.inf, math.inf


def _by_reciprocal(expression: Expression, types: Sequence[DataType]) -> Expression:
    """``x / s`` of a known float32 scale as ``x * (1 / s)``: within an ulp of the quotient, and a tenth of its instructions."""
    if not isinstance(expression, Apply) or expression.function != "div":
        return expression
    value, scale = expression.arguments
    if not isinstance(scale, Literal) or compute_type(type_of(value, types)) is not DataType.FLOAT or not 1e-30 < abs(scale.value) < 1e30:
        return expression
    return apply("mul", value, Literal(float(np.float32(1.0) / np.float32(scale.value)), DataType.FLOAT))


def _as(target: DataType, source: DataType, value: str) -> str:
    return value if target is source else f"fx::cast<{storage_type(target)}>({value})"


def is_fast(expression: Expression, types: Sequence[DataType]) -> bool:
    """Whether approximations may be used: result and floating-point operands are fp16 or bf16."""
    used = [types[index] for index in operands(expression)]
    real = [dtype for dtype in (*used, type_of(expression, types)) if dtype.is_float]
    return bool(real) and all(dtype in _NARROW for dtype in real)


def device_function(name: str, expression: Expression, types: Sequence[DataType], fast: bool | None = None, stored: bool = False) -> str:
    """A device function ``name(x0, x1, ...)`` from the computed values of all operands to that of ``expression``.

    Args:
        types: the data type of every operand.
        fast: whether the approximations in ``fx::fast`` may be used; by default when :func:`is_fast` allows it.
        stored: whether the caller does nothing with the value but round and store it; then it need not be rounded here too.

    Raises:
        Unsupported: a data type or function has no CUDA code.
    """
    return _device_function(name, expression, tuple(types), fast, stored)


@lru_cache(maxsize=4096)  # layers repeat themselves, and every change of shapes asks again
def _device_function(name: str, expression: Expression, types: tuple[DataType, ...], fast: bool | None, stored: bool) -> str:
    for dtype in types:
        storage_type(dtype)
    unknown = [function for function in _functions(expression) if function not in FUNCTIONS]
    if unknown:
        raise Unsupported(f"no CUDA code for function {unknown[0]!r}")
    writer = _Writer(types, is_fast(expression, types) if fast is None else fast)
    returned = computed_type(type_of(expression, types))
    if isinstance(expression, Convert) and expression.dtype in (DataType.FP8, DataType.FP8_E5M2):  # a quantisation, if it is limited
        clip = expression.argument
        if isinstance(clip, Apply) and clip.function == "clip":
            expression = Convert(expression.dtype, apply("clip", _by_reciprocal(clip.arguments[0], types), *clip.arguments[1:]))
    if stored and isinstance(expression, Convert) and expression.dtype in _NARROW and compute_type(type_of(expression.argument, types)) is DataType.FLOAT:
        expression = expression.argument
    result = writer.value(expression)
    parameters = ", ".join(f"{computed_type(dtype)} x{index}" for index, dtype in enumerate(types))
    body = "".join(f"    {line}\n" for line in (*writer.lines, f"return {result};"))
    return f"__device__ __forceinline__ {returned} {name}({parameters}) {{\n{body}}}\n"


def _functions(expression: Expression) -> tuple[str, ...]:
    if isinstance(expression, Convert):
        return _functions(expression.argument)
    if isinstance(expression, Apply):
        return (expression.function, *(name for child in expression.arguments for name in _functions(child)))
    return ()
