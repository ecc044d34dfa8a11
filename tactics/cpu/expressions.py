"""Pointwise expressions as lists of in-place NumPy calls on given memory.

:func:`compile_expression` turns an expression into a :class:`Program`: instructions over operands, literals and a few
temporaries that are used again as soon as they are free. :meth:`Program.bind` makes the calls for one block of arrays.
Functions that NumPy has no ufunc for are first written as those it has (:func:`_lower`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeAlias

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import FUNCTIONS, Apply, Convert, Expression, Literal, Operand, compute_type, convert
from tactics.cpu.steps import BLOCK
from tactics.cpu.threads import Action

_BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "mod": np.mod,
    "fmod": np.fmod, "min": np.minimum, "max": np.maximum, "equal": np.equal, "less": np.less,
    "less_or_equal": np.less_equal, "greater": np.greater, "greater_or_equal": np.greater_equal,
    "copysign": np.copysign,
}  # fmt: skip
_UNARY = {
    "neg": np.negative, "abs": np.abs, "sign": np.sign, "exp": np.exp, "log": np.log, "sqrt": np.sqrt,
    "reciprocal": np.reciprocal, "square": np.square, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin,
    "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "floor": np.floor, "ceil": np.ceil, "round": np.rint, "tanh": np.tanh, "isnan": np.isnan,
    "expm1": np.expm1, "log1p": np.log1p,
}  # fmt: skip
_LOGIC = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}
_INTEGER = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum, "neg": np.negative,
    "abs": np.abs, "square": np.square, "sign": np.sign, "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor, "bitwise_not": np.bitwise_not, "equal": np.equal, "less": np.less,
    "less_or_equal": np.less_equal, "greater": np.greater, "greater_or_equal": np.greater_equal,
}  # fmt: skip
_TO_BOOL = {
    "equal",
    "less",
    "less_or_equal",
    "greater",
    "greater_or_equal",
    "isnan",
    "isinf",
    "and",
    "or",
    "xor",
    "not",
}


@dataclass(frozen=True)
class Place:
    """Where a value is: ``operand`` (number), ``temp`` (number), ``literal`` (number) or ``out``; and its type there."""

    kind: str
    index: int
    dtype: np.dtype


@dataclass(frozen=True)
class Instruction:
    """``kind`` is ``ufunc``, ``copy`` (with conversion), ``where`` or ``call`` (a NumPy function that allocates)."""

    kind: str
    function: str
    arguments: tuple[Place, ...]
    out: Place


@dataclass(frozen=True)
class Program:
    """Instructions in order. ``temps`` arrays of ``width`` bytes an element are needed besides operands and output."""

    instructions: tuple[Instruction, ...]
    literals: tuple[np.ndarray, ...]
    temps: int
    width: int

    def scratch_bytes(self, elements: int) -> int:
        """Bytes of temporaries for blocks of up to ``elements`` elements."""
        return self.temps * self._stride(elements)

    def _stride(self, elements: int) -> int:
        return -(-elements * self.width // 64) * 64

    def may_overwrite(self, operand: int) -> bool:
        """Whether the output may lie in the memory of this operand, element by element.

        A single instruction reads an element when it writes its place, but for ``where``: it writes the third argument
        everywhere before it reads the other two. Longer programs keep interim values in the output.
        """
        if len(self.instructions) != 1:
            return False
        (only,) = self.instructions
        late = only.arguments[:2] if only.kind == "where" else ()
        return not any(place.kind == "operand" and place.index == operand for place in late)

    def bind(self, operands: Sequence[np.ndarray], out: np.ndarray, scratch: np.ndarray) -> list[Action]:
        """The calls that compute one block: ``operands`` broadcast against ``out``; ``scratch`` (uint8) holds the
        temporaries. ``out`` may be operand 0 if the program was compiled ``in_place``."""
        stride = self._stride(out.size)

        def array(place: Place) -> np.ndarray:
            if place.kind == "operand":
                return operands[place.index]
            if place.kind == "literal":
                return self.literals[place.index]
            if place.kind == "out":
                return out
            start = place.index * stride
            return scratch[start : start + out.size * place.dtype.itemsize].view(place.dtype).reshape(out.shape)

        actions: list[Action] = []
        for one in self.instructions:
            target, arguments = array(one.out), [array(place) for place in one.arguments]
            if one.function in ("min", "max"):
                # NumPy's vector code for these wants whole arrays: a scalar operand makes them three times slower.
                arguments = [
                    _filled(item, out.size).reshape(out.shape) if place.kind == "literal" else item
                    for place, item in zip(one.arguments, arguments, strict=True)
                ]
            if one.kind == "ufunc":
                actions.append(partial(_ufunc(one.function, one.arguments[0].dtype), *arguments, out=target))
            elif one.kind == "copy":
                if one.function == "bool":
                    actions.append(partial(np.not_equal, arguments[0], 0, out=target))
                else:
                    actions.append(partial(np.copyto, target, arguments[0], casting="unsafe"))
            elif one.kind == "where":
                condition, yes, no = arguments
                actions.append(partial(np.copyto, target, no))
                actions.append(partial(np.copyto, target, yes, where=condition))
            else:
                actions.append(partial(_call, one.function, arguments, target))
        return actions


def compile_expression(
    expression: Expression, operands: Sequence[np.dtype], out: np.dtype, in_place: bool = False
) -> Program:
    """The program of ``expression`` over operands of the given types (operand 0 may be wider than the network says), with
    a result of type ``out``. ``in_place``: the output is operand 0's memory."""
    return _Compiler([np.dtype(one) for one in operands], np.dtype(out), in_place).program(expression)


def _ufunc(function: str, dtype: np.dtype) -> np.ufunc:
    if function in _LOGIC and dtype.kind == "b":
        return _LOGIC[function]
    return _BINARY[function] if function in _BINARY else _UNARY[function] if function in _UNARY else _INTEGER[function]


@lru_cache(maxsize=64)
def _filled_memory(value: bytes, dtype: np.dtype, size: int) -> np.ndarray:
    memory = np.full(size, np.frombuffer(value, dtype)[0])
    memory.flags.writeable = False
    return memory


def _filled(value: np.ndarray, size: int) -> np.ndarray:
    """``size`` elements of one value; blocks of like size share the memory."""
    return _filled_memory(value.tobytes(), value.dtype, max(BLOCK, 1 << max(size - 1, 0).bit_length()))[:size]


def _call(function: str, arguments: Sequence[np.ndarray], out: np.ndarray) -> None:
    np.copyto(out, FUNCTIONS[function].numpy(*arguments), casting="unsafe")


class _Compiler:
    """Walks an expression once, innermost first, and gives temporaries out and takes them back."""

    def __init__(self, operands: list[np.dtype], out: np.dtype, in_place: bool) -> None:
        self.operands, self.out, self.in_place = operands, out, in_place
        self.instructions: list[Instruction] = []
        self.literals: list[np.ndarray] = []
        self.free: list[int] = []
        self.out_free = not in_place  # the output's own memory serves as a temporary until the end
        self.count = 0
        self.width = 1
        self.known: dict[Expression, Place] = {}
        self.uses: dict[Expression, int] = {}

    def program(self, expression: Expression) -> Program:
        root = _lower_all(expression, self.operands)
        self._count(root)
        last = self._value(root)
        target = Place("out", 0, self.out)
        if self._may_write_out(last):
            # The last instruction writes the output itself.
            done = self.instructions.pop()
            self.instructions.append(Instruction(done.kind, done.function, done.arguments, target))
        elif last.kind != "out":
            self._convert(last, target)
        return Program(tuple(self.instructions), tuple(self.literals), self.count, self.width)

    def _may_write_out(self, last: Place) -> bool:
        if last.kind != "temp" or last.dtype != self.out:
            return False
        done = self.instructions[-1]
        assert done.out == last
        # Steps in several parts must not destroy what they still read.
        return done.kind in ("ufunc", "copy") or not any(self._is_output(place) for place in done.arguments)

    def _is_output(self, place: Place) -> bool:
        return place.kind == "out" or (self.in_place and place.kind == "operand" and place.index == 0)

    def _count(self, node: Expression) -> None:
        self.uses[node] = self.uses.get(node, 0) + 1
        if self.uses[node] == 1:
            for child in _children(node):
                self._count(child)

    def _take(self, dtype: np.dtype) -> Place:
        if self.out_free and dtype == self.out:
            self.out_free = False
            return Place("out", 0, dtype)
        self.width = max(self.width, dtype.itemsize)
        if self.free:
            return Place("temp", self.free.pop(), dtype)
        self.count += 1
        return Place("temp", self.count - 1, dtype)

    def _release(self, node: Expression) -> None:
        self.uses[node] -= 1
        place = self.known[node]
        if self.uses[node] == 0 and not self._shared(node, place):
            if place.kind == "temp":
                self.free.append(place.index)
            elif self._is_output(place):
                self.out_free = True

    def _shared(self, node: Expression, place: Place) -> bool:
        """Whether another node that is still wanted stands in the same memory (a conversion that changes nothing)."""
        return any(other is not node and self.uses[other] > 0 and where == place for other, where in self.known.items())

    def _value(self, node: Expression) -> Place:
        if node in self.known:
            return self.known[node]
        place = self._compute(node)
        self.known[node] = place
        return place

    def _compute(self, node: Expression) -> Place:
        if isinstance(node, Operand):
            dtype = self.operands[node.index]
            wide = _wide(dtype)
            source = Place("operand", node.index, dtype)
            return source if wide == dtype else self._convert(source, self._take(wide))
        if isinstance(node, Literal):
            self.literals.append(np.asarray(node.value).astype(_wide(node.dtype.numpy)))
            return Place("literal", len(self.literals) - 1, self.literals[-1].dtype)
        if isinstance(node, Convert):
            source = self._value(node.argument)
            narrow = node.dtype.numpy
            wide = _wide(narrow)
            if source.dtype == narrow:
                self.uses[node.argument] -= 1
                return source
            if source.kind == "literal":
                value = convert(self.literals[source.index], node.dtype).astype(wide)
                self.literals.append(value)
                self.uses[node.argument] -= 1
                return Place("literal", len(self.literals) - 1, wide)
            result = self._convert(source, self._take(narrow))
            if wide != narrow:  # rounded, then wide again
                rounded, result = result, self._take(wide)
                self._convert(rounded, result)
                if rounded.kind == "temp":
                    self.free.append(rounded.index)
                else:
                    self.out_free = True
            self._release(node.argument)
            return result
        return self._apply(node)

    def _apply(self, node: Apply) -> Place:
        places = tuple(self._value(child) for child in node.arguments)
        function = node.function
        first = places[0].dtype
        if function in _TO_BOOL:
            dtype = np.dtype(bool)
        else:
            dtype = places[1].dtype if function == "where" else first
        kind = _kind(function, [place.dtype for place in places])
        if kind == "ufunc" and all(place.dtype == dtype for place in places):
            for child in node.arguments:  # its own arguments' memory may take the result
                self._release(child)
            target = self._take(dtype)
        else:
            target = self._take(dtype)
            for child in node.arguments:
                self._release(child)
        self.instructions.append(Instruction(kind, function, places, target))
        return target

    def _convert(self, source: Place, target: Place) -> Place:
        self.instructions.append(Instruction("copy", "bool" if target.dtype.kind == "b" else "", (source,), target))
        return target


def _kind(function: str, dtypes: Sequence[np.dtype]) -> str:
    first = dtypes[0]
    same = all(dtype == first for dtype in dtypes)
    if function == "where" and first.kind == "b" and dtypes[1] == dtypes[2]:
        return "where"
    if not same:
        return "call"
    if first.kind == "f":
        return "ufunc" if function in _BINARY or function in _UNARY else "call"
    if first.kind == "b":
        return "ufunc" if function in _LOGIC or function == "equal" else "call"
    return "ufunc" if function in _INTEGER else "call"


def _wide(dtype: np.dtype) -> np.dtype:
    return compute_type(DataType(dtype.name)).numpy


def _children(node: Expression) -> tuple[Expression, ...]:
    if isinstance(node, Apply):
        return node.arguments
    return (node.argument,) if isinstance(node, Convert) else ()


# --- functions in terms of ufuncs ------------------------------------------------------------------------------------


Number: TypeAlias = "float | Expression"


def _lower_all(node: Expression, operands: Sequence[np.dtype]) -> Expression:
    if isinstance(node, Convert):
        return Convert(node.dtype, _lower_all(node.argument, operands))
    if not isinstance(node, Apply):
        return node
    arguments = tuple(_lower_all(child, operands) for child in node.arguments)
    dtype = _type(arguments[0], operands)
    if dtype.kind != "f" or any(_type(argument, operands) != dtype for argument in arguments):
        return Apply(node.function, arguments)
    return _lower(node.function, arguments, DataType(dtype.name)) or Apply(node.function, arguments)


def _type(node: Expression, operands: Sequence[np.dtype]) -> np.dtype:
    """The type in which a lowered node's value is held."""
    if isinstance(node, Operand):
        return _wide(operands[node.index])
    if isinstance(node, Literal | Convert):
        return _wide(node.dtype.numpy)
    if node.function in _TO_BOOL:
        return np.dtype(bool)
    return _type(node.arguments[1 if node.function == "where" else 0], operands)


def _lower(function: str, arguments: tuple[Expression, ...], dtype: DataType) -> Expression | None:
    """``function`` written with ufuncs (for floating-point arguments of one type), or None when it is one, or has none."""

    def number(value: Number) -> Expression:
        return Literal(value, dtype) if isinstance(value, int | float) else value

    def call(name: str, *values: Number) -> Apply:
        return Apply(name, tuple(number(value) for value in values))

    x = arguments[0]
    if function == "relu":
        return call("max", x, 0.0)
    if function == "rsqrt":
        return call("reciprocal", call("sqrt", x))
    if function == "sigmoid":
        return call("reciprocal", call("add", call("exp", call("neg", x)), 1.0))
    if function == "softplus":
        return call("add", call("max", x, 0.0), call("log1p", call("exp", call("neg", call("abs", x)))))
    if function == "softsign":
        return call("div", x, call("add", call("abs", x), 1.0))
    if function in ("elu", "selu"):
        bent = call("add", call("max", x, 0.0), call("mul", call("expm1", call("min", x, 0.0)), arguments[1]))
        return bent if function == "elu" else call("mul", bent, arguments[2])
    if function == "celu":
        a = arguments[1]
        low = call("min", call("mul", call("expm1", call("div", x, a)), a), 0.0)
        return call("add", call("max", x, 0.0), low)
    if function in ("leaky_relu", "prelu"):
        slope = arguments[1]
        if isinstance(slope, Literal) and 0 < slope.value <= 1:
            return call("max", x, call("mul", x, slope))
        return call("add", call("max", x, 0.0), call("mul", call("min", x, 0.0), slope))
    if function == "thresholded_relu":
        return call("where", call("greater", x, arguments[1]), x, 0.0)
    if function == "hard_sigmoid":
        return call("max", call("min", call("add", call("mul", x, arguments[1]), arguments[2]), 1.0), 0.0)
    if function == "hard_swish":
        gate = call("max", call("min", call("add", call("mul", x, 1 / 6), 0.5), 1.0), 0.0)
        return call("mul", x, gate)
    if function == "swish":
        a = arguments[1]
        scaled = x if isinstance(a, Literal) and a.value == 1 else call("mul", x, a)
        return call("div", x, call("add", call("exp", call("neg", scaled)), 1.0))
    if function == "mish":
        return call("mul", x, call("tanh", _lower("softplus", (x,), dtype) or x))
    if function == "gelu_tanh":
        cube = call("mul", call("add", call("mul", call("square", x), 0.044715), 1.0), x)
        return call(
            "mul", call("mul", x, 0.5), call("add", call("tanh", call("mul", cube, math.sqrt(2 / math.pi))), 1.0)
        )
    if function == "gelu" and dtype is DataType.FLOAT:
        return call("mul", call("mul", x, 0.5), call("add", _erf(call, call("mul", x, math.sqrt(0.5))), 1.0))
    if function == "erf" and dtype is DataType.FLOAT:
        return _erf(call, x)
    if function == "clip":
        return call("min", call("max", x, arguments[1]), arguments[2])
    if function == "shrink":
        limit, bias = arguments[1:]
        above = call("where", call("greater", x, limit), call("sub", x, bias), 0.0)
        return call("where", call("less", x, call("neg", limit)), call("add", x, bias), above)
    return None


def _erf(call: Callable[..., Apply], x: Expression) -> Expression:
    """The error function to 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26)."""
    size = call("abs", x)
    t = call("reciprocal", call("add", call("mul", size, 0.3275911), 1.0))
    total: Expression = call("mul", t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        total = call("mul", call("add", total, coefficient), t)
    decay = call("exp", call("neg", call("square", x)))
    return call("copysign", call("sub", 1.0, call("mul", total, decay)), x)
