"""Elementwise operators: arithmetic, activations, comparisons, logic, casts. Each becomes one pointwise expression."""

from __future__ import annotations

import numpy as np

from fusion.dims import product
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Operand
from fusion.graph import Limits
from fusion.importer.builder import X0, X1, X2, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.random import key_of
from fusion.importer.registry import operator
from fusion.importer.tensors import data_type_of
from fusion.importer.values import Value
from fusion.ops import Fill, Random, Reinterpret

UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan", "Atanh": "atanh",
    "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor", "HardSwish": "hard_swish",
    "IsNaN": "isnan", "Log": "log", "Mish": "mish", "Neg": "neg", "Not": "not", "Reciprocal": "reciprocal", "Relu": "relu",
    "Round": "round", "Sigmoid": "sigmoid", "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Softplus": "softplus",
    "Softsign": "softsign", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh", "BitwiseNot": "bitwise_not",
}  # fmt: skip

BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "And": "and", "Or": "or", "Xor": "xor", "Equal": "equal",
    "Less": "less", "LessOrEqual": "less_or_equal", "Greater": "greater", "GreaterOrEqual": "greater_or_equal",
    "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor",
}  # fmt: skip

# function, then (attribute, default) of its literal arguments
PARAMETRIC: dict[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "Elu": ("elu", (("alpha", 1.0),)),
    "Celu": ("celu", (("alpha", 1.0),)),
    "Selu": ("selu", (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))),
    "LeakyRelu": ("leaky_relu", (("alpha", 0.01),)),
    "ThresholdedRelu": ("thresholded_relu", (("alpha", 1.0),)),
    "HardSigmoid": ("hard_sigmoid", (("alpha", 0.2), ("beta", 0.5))),
    "Swish": ("swish", (("alpha", 1.0),)),
    "Shrink": ("shrink", (("lambd", 0.5), ("bias", 0.0))),
    "IsInf": ("isinf", (("detect_negative", 1.0), ("detect_positive", 1.0))),
}

FP8_LIMITS = {
    DataType.FP8: 448.0, DataType.FP8_E5M2: 57344.0, DataType.FP8_FNUZ: 240.0, DataType.FP8_E5M2_FNUZ: 57344.0
}  # fmt: skip


@operator(*UNARY)
def unary(b: Builder, node: Node) -> Value:
    x = node.input(0)
    if node.op in ("Ceil", "Floor", "Round") and x.dtype.is_integer:
        return x
    return b.pointwise(call(UNARY[node.op], X0), x)


@operator(*BINARY)
def binary(b: Builder, node: Node) -> Value:
    return b.pointwise(call(BINARY[node.op], X0, X1), node.input(0), aligned(b, node))


def aligned(b: Builder, node: Node) -> Value:
    """The second operand; before opset 7 its first axis may stand under ``axis`` of the first operand's shape."""
    x, y = node.input(0), node.input(1)
    if node.opset >= 7 or not node.attr("broadcast", 0) or "axis" not in node.attributes:
        return y
    behind = x.rank - node.axis(node.attr("axis"), x.rank) - y.rank
    return b.reshape(y, (*y.shape, *(1,) * behind), "align")


@operator(*PARAMETRIC)
def parametric(b: Builder, node: Node) -> Value:
    """Integers (of a Shrink) meet parameters that are none: they are compared and moved as real numbers, and cut off."""
    function, parameters = PARAMETRIC[node.op]
    x = node.input(0)
    wide = (DataType.DOUBLE if x.dtype.itemsize > 2 else DataType.FLOAT) if x.dtype.is_integer else x.dtype
    arguments = [literal(node.attr(name, default), wide) for name, default in parameters]
    if wide is x.dtype:
        return b.pointwise(call(function, X0, *arguments), x)
    return b.pointwise(Convert(x.dtype, call(function, Convert(wide, X0), *arguments)), x)


@operator("Pow")
def power(b: Builder, node: Node) -> Value:
    """``x ** y`` in the type of x; small whole exponents become products, which kernels compute exactly."""
    x, y = node.input(0), aligned(b, node)
    if y.is_constant and product(y.shape) == 1 and y.rank <= x.rank:
        exponent = float(y.array.reshape(-1)[0])
        if exponent == 1.0:
            return x
        if exponent == 2.0:
            return b.pointwise(call("square", X0), x)
        if exponent == 3.0:
            return b.pointwise(call("mul", call("square", X0), X0), x)
        if x.dtype.is_float and exponent in (0.5, -0.5, -1.0):
            return b.pointwise(call({0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}[exponent], X0), x)
    if x.dtype is y.dtype:
        return b.pointwise(call("pow", X0, X1), x, y)
    if x.dtype.is_integer and y.dtype.is_float:
        return b.pointwise(Convert(x.dtype, call("pow", Convert(y.dtype, X0), X1)), x, y)
    return b.pointwise(call("pow", X0, Convert(x.dtype, X1)), x, y)


@operator("Mod")
def mod(b: Builder, node: Node) -> Value:
    return b.pointwise(call("fmod" if node.attr("fmod", 0) else "mod", X0, X1), node.input(0), node.input(1))


@operator("BitShift")
def bit_shift(b: Builder, node: Node) -> Value:
    function = "shift_left" if node.required("direction") == "LEFT" else "shift_right"
    return b.pointwise(call(function, X0, X1), node.input(0), node.input(1))


@operator("Sum", "Max", "Min", "Mean")
def variadic(b: Builder, node: Node) -> Value:
    """Any number of inputs, combined from left to right, in as many layers as their operands need."""
    values = [node.input(index) for index in range(len(node.inputs))]
    function = {"Sum": "add", "Mean": "add", "Max": "max", "Min": "min"}[node.op]
    scale = literal(1.0 / len(values), values[0].dtype)
    while True:
        count = min(len(values), Limits.operands)
        expression: Expression = X0
        for index in range(1, count):
            expression = call(function, expression, Operand(index))
        if node.op == "Mean" and count == len(values) > 1:
            expression = call("mul", expression, scale)
        values = [b.pointwise(expression, *values[:count]), *values[count:]]
        if len(values) == 1:
            return values[0]


@operator("Where")
def where(b: Builder, node: Node) -> Value:
    return b.pointwise(call("where", X0, X1, X2), node.input(0), node.input(1), node.input(2))


@operator("Clip", until=10)
def clip_by_attributes(b: Builder, node: Node) -> Value:
    x = node.input(0)
    return _clip(b, x, *(
        b.constant(np.asarray(node.attr(name), x.dtype.numpy), name) if name in node.attributes else None
        for name in ("min", "max")
    ))  # fmt: skip


@operator("Clip", since=11)
def clip(b: Builder, node: Node) -> Value:
    return _clip(b, node.input(0), node.optional(1), node.optional(2))


def _clip(b: Builder, x: Value, low: Value | None, high: Value | None) -> Value:
    """One ``clip`` (``relu`` from 0 up) for constant bounds, ``max`` and ``min`` else."""
    if low is not None and high is not None:
        return b.pointwise(call("clip", X0, X1, X2), x, low, high)
    if low is not None:
        if x.dtype.is_float and low.is_constant and not low.array.any():
            return b.pointwise(call("relu", X0), x)
        return b.pointwise(call("max", X0, X1), x, low)
    return x if high is None else b.pointwise(call("min", X0, X1), x, high)


@operator("PRelu")
def prelu(b: Builder, node: Node) -> Value:
    x, slope = node.input(0), node.input(1)
    if node.opset < 7 and slope.rank == 1 and x.rank > 2 and slope.shape != (1,):  # then one slope per channel
        slope = b.reshape(slope, (*slope.shape, *(1,) * (x.rank - 2)), "slope")
    return b.pointwise(call("prelu", X0, X1), x, slope)


@operator("Gelu")
def gelu(b: Builder, node: Node) -> Value:
    return b.pointwise(call("gelu_tanh" if node.attr("approximate") == "tanh" else "gelu", X0), node.input(0))


@operator("Cast", "CastLike")
def cast(b: Builder, node: Node) -> Value:
    x = node.input(0)
    dtype = data_type_of(node.required("to")) if node.op == "Cast" else node.input(1).dtype
    if dtype is DataType.FP8_E8M0 and x.dtype is not dtype:
        return power_of_two(b, x, node.attr("round_mode", "up"), bool(node.attr("saturate", 1)))
    return b.pointwise(conversion(x.dtype, dtype, bool(node.attr("saturate", 1))), x)


def power_of_two(b: Builder, x: Value, mode: str, saturate: bool) -> Value:
    """``x`` as an 8-bit exponent, as ONNX casts it: the exponent bits of float32, one more where ``mode`` rounds up; 255 is NaN.

    Raises:
        Unsupported: an unknown mode.
    """
    dtype = DataType.UINT32
    bits = b.layer(Reinterpret(dtype), b.convert(x, DataType.FLOAT, "wide"), suffix="bits")
    exponent = call("bitwise_and", call("shift_right", X0, literal(23, dtype)), literal(255, dtype))
    fraction = call("bitwise_and", X0, literal((1 << 23) - 1, dtype))
    half = literal(1 << 22, dtype)
    if mode == "down":
        up: Expression = literal(False, DataType.BOOL)
    elif mode == "up":
        up = call("greater", fraction, literal(0, dtype))
    elif mode == "nearest":  # ties go up, except from the smallest exponent
        tie = call("and", call("equal", fraction, half), call("greater", exponent, literal(0, dtype)))
        up = call("or", call("greater", fraction, half), tie)
    else:
        raise Unsupported(f"round_mode {mode!r}; it takes up, down or nearest")
    last = call("less", exponent, literal(254 if saturate else 255, dtype))
    rounded = call("where", call("and", up, last), call("add", exponent, literal(1, dtype)), exponent)
    return b.layer(Reinterpret(DataType.FP8_E8M0), b.pointwise(Convert(DataType.UINT8, rounded), bits, suffix="exponent"))


@operator("BitCast")
def bit_cast(b: Builder, node: Node) -> Value:
    x, dtype = node.input(0), data_type_of(node.required("to"))
    return x if x.dtype is dtype else b.layer(Reinterpret(dtype), x)


def conversion(source: DataType, target: DataType, saturate: bool) -> Expression:
    """Operand 0, of type ``source``, as ONNX casts it to ``target``: 8-bit floats saturate unless told otherwise."""
    if source is target:
        return X0
    limit = FP8_LIMITS.get(target)
    if limit is None:
        return Convert(target, X0)
    wide: Expression = X0 if source.is_float else Convert(DataType.FLOAT, X0)
    wide_type = source if source.is_float else DataType.FLOAT
    if saturate and not (wide_type is DataType.FP8 and limit >= 448.0):
        wide = call("clip", wide, literal(-limit, wide_type), literal(limit, wide_type))
    return Convert(target, wide)


@operator("Identity")
def identity(b: Builder, node: Node) -> Value:
    return node.input(0)


@operator("Dropout")
def dropout(b: Builder, node: Node) -> tuple[Value, ...]:
    """Inference: the input itself, and a mask that is all true. With ``training_mode`` what a uniform number below ``ratio`` hits becomes 0."""
    x, given, training = node.input(0), node.optional(1), node.optional(2)
    dtype = DataType.BOOL if node.opset >= 10 else x.dtype
    ratio = 0.0
    if training is not None and (not training.is_constant or bool(training.array.any())):
        # A network that is sometimes trained needs no numbers where nothing is dropped.
        ratio = float(b.scalar(given, "ratio")) if given is not None else 0.5
        if ratio and not training.is_constant:
            raise Unsupported("its training_mode depends on data; only a constant one is supported")
    if not ratio:
        return (x, b.layer(Fill(x.shape, dtype, True if dtype is DataType.BOOL else 1.0), suffix="mask")) if node.wants(1) else (x,)
    wide = DataType.DOUBLE if x.dtype is DataType.DOUBLE else DataType.FLOAT
    uniform = b.layer(Random(x.shape, wide, "uniform", 0.0, 1.0, key_of(node)), suffix="uniform")
    mask = b.pointwise(call("greater_or_equal", X0, literal(ratio, wide)), uniform, suffix="mask")
    scaled = call("mul", X0, literal(1 / (1 - ratio), x.dtype)) if ratio < 1 else X0
    return b.pointwise(call("where", X1, scaled, literal(0, x.dtype)), x, mask), b.convert(mask, dtype, "mask")
