"""Generated expressions against their NumPy meaning, compiled for the CPU: edge values and random ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import FUNCTIONS, Apply, Convert, Expression, Literal, Operand, apply, evaluate, type_of
from fusion.network import TensorType
from tactics.compiler import compile_cubin
from tactics.cuda.codegen import Unsupported, device_function, is_fast, literal, storage_type
from tactics.tactic import Buffer, Kernel, Launch, Plan, Scalar
from tests.harness.fiber import available, run_plan

needs_compiler = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")

X, Y, Z = Operand(0), Operand(1), Operand(2)
FLOATS = [DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.DOUBLE]
INTEGERS = [DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64, DataType.UINT8, DataType.UINT32, DataType.UINT64]
INTEGER_FUNCTIONS = [
    "add", "sub", "mul", "div", "mod", "fmod", "min", "max", "neg", "abs", "sign", "square", "relu", "equal", "less",
    "less_or_equal", "greater", "greater_or_equal", "and", "or", "xor", "not", "where", "clip", "floor", "round", "pow",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "shift_left", "shift_right", "leaky_relu",
]  # fmt: skip
BOOL_FUNCTIONS = ["equal", "and", "or", "xor", "not", "where", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not",
                  "min", "max"]  # fmt: skip
# Results of these are many times smaller than intermediate values, in NumPy too: their error is absolute, in ulps of 1.
ABSOLUTE = {"gelu": 4, "gelu_tanh": 4, "asinh": 4, "acosh": 8, "atanh": 4, "mish": 4, "swish": 4}


def cases(dtype: DataType) -> list[tuple[str, Expression]]:
    """Every function on operands (or the literals that layers give it)."""
    real = dtype.is_float
    names = list(FUNCTIONS) if real else BOOL_FUNCTIONS if dtype is DataType.BOOL else INTEGER_FUNCTIONS
    names = [name for name in names if not (real and name.startswith(("bitwise", "shift")))]
    found = []
    for name in names:
        literals = {
            "elu": [0.7], "celu": [0.7], "selu": [1.67, 1.05], "thresholded_relu": [0.5], "hard_sigmoid": [0.2, 0.5],
            "swish": [1.3], "shrink": [0.5, 0.1], "isinf": [1, 0],
        }.get(name)  # fmt: skip
        operands: list[Expression] = [X, Y, Z][: FUNCTIONS[name].arity]
        if literals:
            operands = [X, *(Literal(value, dtype) for value in literals)]
        found.append((name, apply(name, *operands)))
    if real:
        found.append(("square by pow", apply("pow", X, Literal(2, dtype))))
        found.append(("rounded", apply("mul", Convert(DataType.HALF, X), Convert(DataType.BF16, Y))))
        found.append(("to bool", Convert(DataType.BOOL, X)))
        found.append(("shared", apply("mul", apply("exp", X), apply("mul", apply("exp", X), Y))))
    return found


def operand_values(dtype: DataType) -> np.ndarray:
    generator = np.random.default_rng(3)
    if dtype is DataType.BOOL:
        return np.array([False, True])
    if dtype.is_float:
        edges = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.5, 3.0, 1e-3, -1e-3, 20.5, -20.0, 80.0, np.inf, -np.inf, np.nan, 6e4]
        return np.concatenate([edges, generator.normal(size=14) * 3]).astype(dtype.numpy)
    low = -5 if dtype.is_signed else 0
    limits = np.iinfo(dtype.numpy)
    return np.array([*range(low, 9), 31, 33, 63, 64, 100, limits.min, limits.max]).astype(dtype.numpy)


def run_all(expressions: list[Expression], arrays: list[np.ndarray], fast: bool | None = None) -> list[np.ndarray]:
    """Every expression over the flat operands, in one kernel; results as float64 or int64 bits of their type."""
    types = [DataType(array.dtype.name) for array in arrays]
    count = arrays[0].size
    functions, branches, outputs = [], [], []
    for index, expression in enumerate(expressions):
        out = type_of(expression, types)
        functions.append(device_function(f"f{index}", expression, types, fast))
        operands = ", ".join(f"fx::widen(x{i}[i])" for i in range(len(arrays)))
        branches.append(f"        case {index}: static_cast<{storage_type(out)}*>(out)[i] = fx::narrow<{storage_type(out)}>(f{index}({operands})); break;")
        outputs.append(out)
    parameters = ", ".join(f"const {storage_type(dtype)}* x{i}" for i, dtype in enumerate(types))
    prelude = (
        '#include "functions.cuh"\n' + "".join(functions)
        + f'extern "C" __global__ void all({parameters}, void* out, int f, int n) {{\n'
        "    const int i = blockIdx.x * blockDim.x + threadIdx.x;\n    if (i >= n) return;\n    switch (f) {\n"
        + "\n".join(branches) + "\n    }\n}\n"
    )  # fmt: skip
    kernel = Kernel("", "all", (), prelude)
    results = []
    for index, out in enumerate(outputs):
        buffers = [Buffer("input", i) for i in range(len(arrays))]
        launch = Launch(kernel, ((count + 127) // 128, 1, 1), (128, 1, 1),
                        (*buffers, Buffer("output"), Scalar(index), Scalar(count)))  # fmt: skip
        results.append(run_plan(Plan((launch,)), arrays, [TensorType(out, (count,))])[0])
    return results


def grid(dtype: DataType, arity: int = 3) -> list[np.ndarray]:
    values = operand_values(dtype)
    x, y = (axis.reshape(-1) for axis in np.meshgrid(values, values))
    z = np.roll(x, 7)
    return [x, y, z]


def ulps(dtype: DataType) -> float:
    return {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}[dtype.value]


@needs_compiler
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.value)
def test_functions_of_real_numbers(dtype: DataType) -> None:
    arrays = grid(dtype)
    named = cases(dtype)
    results = run_all([expression for _, expression in named], arrays)
    for (name, expression), result in zip(named, results, strict=True):
        assert not is_fast(expression, [dtype] * 3) or dtype in (DataType.HALF, DataType.BF16)
        truth = evaluate(expression, arrays)
        if result.dtype == bool:
            np.testing.assert_array_equal(result, truth, err_msg=name)
            continue
        wide = truth.astype(np.float64)
        got = result.astype(np.float64)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wide), err_msg=f"{name}: NaN")
        with np.errstate(all="ignore"):
            error = np.abs(got - wide) / ulps(dtype)
            limit = 8 * np.maximum(np.abs(wide), np.finfo(np.float32).tiny)
            if name in ("erf", "gelu") and dtype is DataType.DOUBLE:  # the reference interpolates a table
                limit = limit + 2e-11 / ulps(dtype) * np.maximum(1, np.abs(arrays[0]))
            limit = np.maximum(limit, ABSOLUTE.get(name, 0) * np.maximum(1, np.abs(arrays[0].astype(np.float64))))
            wrong = np.flatnonzero((got != wide) & ~np.isnan(wide) & ~(error <= limit))
            # near overflow or a half-way point one rounding of the narrow type may differ
        assert not wrong.size, (name, [(array[wrong[0]]) for array in arrays], got[wrong[0]], wide[wrong[0]])


@needs_compiler
@pytest.mark.parametrize("dtype", [*INTEGERS, DataType.BOOL], ids=lambda dtype: dtype.value)
def test_functions_of_integers(dtype: DataType) -> None:
    arrays = grid(dtype)
    named = cases(dtype)
    with np.errstate(all="ignore"):
        for (name, expression), result in zip(named, run_all([e for _, e in named], arrays), strict=True):
            keep = np.ones(arrays[0].shape, bool)
            if name == "pow":  # NumPy goes through float64 for negative exponents: only small values are exact there
                keep = (np.abs(arrays[0].astype(np.float64)) < 9) & (np.abs(arrays[1].astype(np.float64)) < 9)
                keep &= (arrays[0] != 0) | (arrays[1] >= 0)
            if name in ("floor", "round"):  # NumPy goes through float64
                keep = np.abs(arrays[0].astype(np.float64)) < 2.0**53
            if name.startswith("shift") and dtype.is_signed:
                keep = arrays[1] >= 0
            if name == "div" and dtype.is_signed:  # undefined
                keep = (arrays[1] != 0) & ~((arrays[0] == np.iinfo(dtype.numpy).min) & (arrays[1] == -1))
            truth = evaluate(expression, arrays)
            wrong = np.flatnonzero(keep & (result != truth))
            assert not wrong.size, (name, [array[wrong[0]] for array in arrays], result[wrong[0]], truth[wrong[0]])


@needs_compiler
def test_conversions_between_all_types() -> None:
    for source in (DataType.FLOAT, DataType.HALF, DataType.INT32, DataType.INT64, DataType.UINT8, DataType.BOOL, DataType.DOUBLE):
        values = operand_values(source)
        if source.is_float:
            values = values[np.isfinite(values.astype(np.float64))]
        targets = [*FLOATS, *INTEGERS, DataType.BOOL]
        arrays = [values]
        for target, result in zip(targets, run_all([Convert(target, X) for target in targets], arrays), strict=True):
            limits = None if target.is_float or target is DataType.BOOL else np.iinfo(target.numpy)
            wide = values.astype(np.float64)
            inside = np.ones(values.shape, bool) if limits is None or not source.is_float else (wide > max(limits.min, -2e9) - 1) & (wide < min(limits.max, 2e9))
            truth = evaluate(Convert(target, X), arrays)
            np.testing.assert_array_equal(result[inside].view(np.uint8), truth[inside].view(np.uint8), err_msg=f"{source} to {target}")


NARROW = {
    DataType.FP8_FNUZ: 8, DataType.FP8_E5M2_FNUZ: 8, DataType.FP8_E8M0: 8, DataType.FP4: 4,
    DataType.INT4: 4, DataType.UINT4: 4, DataType.INT2: 2, DataType.UINT2: 2,
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.value)
def test_narrow_types(dtype: DataType) -> None:
    """Every value of the type, and rounding of numbers around and between them."""
    every = np.arange(1 << NARROW[dtype], dtype=np.uint8).view(dtype.numpy)
    (wide,) = run_all([Convert(DataType.FLOAT, X)], [every])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(wide, every.astype(np.float32))
    generator = np.random.default_rng(0)
    if dtype.is_float:
        largest = wide[np.isfinite(wide)].max() if dtype is not DataType.FP8_E8M0 else np.float32(1e30)
        middles = (np.sort(wide[np.isfinite(wide)])[1:] + np.sort(wide[np.isfinite(wide)])[:-1]) / 2
        random = np.float32(2) ** generator.uniform(-20, np.log2(largest) + 1, 400).astype(np.float32) * generator.choice([-1, 1], 400)
        values = np.concatenate([wide, middles, random, [np.inf, -np.inf, np.nan, 0.0, -0.0]]).astype(np.float32)
        if dtype is DataType.FP8_E8M0:
            values = np.abs(values)
    else:
        values = generator.uniform(-300, 300, 400).astype(np.float32)
    (found,) = run_all([Convert(dtype, X)], [values])
    truth = evaluate(Convert(dtype, X), [values])
    same = (found.view(np.uint8) == truth.view(np.uint8)) | (np.isnan(found.astype(np.float32)) & np.isnan(truth.astype(np.float32)))
    assert same.all(), (values[~same][:5], found[~same][:5], truth[~same][:5])


@needs_compiler
@pytest.mark.parametrize("dtype", [DataType.FP8, DataType.FP8_E5M2])
def test_8_bit_floats(dtype: DataType) -> None:
    """Every value, and every float half way between two or next to that, up to what is not there."""
    every = np.arange(256, dtype=np.uint8).view(dtype.numpy)
    (wide,) = run_all([Convert(DataType.FLOAT, X)], [every])
    np.testing.assert_array_equal(wide, every.astype(np.float32))
    finite = np.unique(wide[np.isfinite(wide)])
    middle = (finite[1:] + finite[:-1]) / 2
    values = np.concatenate([finite, middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf)),
                             np.float32([1e-9, 464, 464.01, 500, 61439, 61440, 7e4, np.inf, -np.inf])]).astype(np.float32)  # fmt: skip
    (narrow,) = run_all([Convert(dtype, X)], [values])
    wanted = values.astype(dtype.numpy)
    same = (narrow.view(np.uint8) == wanted.view(np.uint8)) | (np.isnan(narrow.astype(np.float32)) & np.isnan(wanted.astype(np.float32)))
    assert same.all(), (values[~same], narrow[~same], wanted[~same])


@needs_compiler
def test_mixed_types() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=200).astype(np.float32)
    n = generator.integers(0, 5, 200)
    mask = generator.random(200) < 0.5
    expressions = [
        apply("pow", X, Y),
        apply("where", Z, X, Literal(-1.5, DataType.FLOAT)),
        apply("where", apply("and", Z, apply("greater", Y, Literal(2, DataType.INT64))), Convert(DataType.FLOAT, Y), X),
        apply("add", Y, Convert(DataType.INT64, apply("floor", X))),
    ]
    for expression, result in zip(expressions, run_all(expressions, [x, n, mask]), strict=True):
        np.testing.assert_allclose(result, evaluate(expression, [x, n, mask]), rtol=1e-6)


@needs_compiler
def test_fast_functions_stay_under_half_rounding() -> None:
    """Relative error under 2^-12 over the range of float16, tiny values included."""
    magnitude = np.exp2(np.random.default_rng(1).uniform(-14, 4, 4000))
    x = np.concatenate([magnitude, -magnitude]).astype(np.float32)
    for name in ("sigmoid", "tanh", "softplus", "softsign", "gelu", "gelu_tanh", "mish", "elu", "exp"):
        expression = apply(name, X, Literal(1.0, DataType.FLOAT)) if name == "elu" else apply(name, X)
        (result,) = run_all([expression], [x], fast=True)
        truth = evaluate(expression, [x.astype(np.float64)])
        error = np.abs(result - truth) / np.maximum(np.abs(truth), 6e-8)
        assert error.max() < 2.0**-12, (name, x[error.argmax()], error.max())


@needs_compiler
def test_fast_gelu_over_all_of_float16() -> None:
    """Every float16 against float64: 2^-14 of the result before it is rounded, and what is stored is one of the two nearest values."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)].astype(np.float32)
    truth = np.array([0.5 * value * math.erfc(-value * math.sqrt(0.5)) for value in x.astype(np.float64)])
    (result,) = run_all([apply("gelu", X)], [x], fast=True)
    assert np.max(np.abs(result - truth) / np.maximum(np.abs(truth), 6e-8)) < 2.0**-14
    stored = result.astype(np.float16)
    with np.errstate(over="ignore"):
        below, above = (np.nextafter(stored, np.float16(end)) for end in (-np.inf, np.inf))
    assert np.all((below <= truth) & (truth <= above))
    edges = run_all([apply("gelu", X)], [np.array([np.inf, -np.inf, np.nan, 3e38, -3e38], np.float32)], fast=True)[0]
    np.testing.assert_array_equal(edges[:4], np.array([np.inf, np.nan, np.nan, 3e38], np.float32))
    assert abs(edges[4]) < 1e-13


def test_every_function_compiles_for_the_gpu() -> None:
    for dtype, arch in ((DataType.HALF, "sm_90a"), (DataType.FLOAT, "sm_75"), (DataType.DOUBLE, "sm_80"), (DataType.INT64, "sm_80")):
        text = '#include "functions.cuh"\n'
        calls = ""
        for index, (_, expression) in enumerate(cases(dtype)):
            out = storage_type(type_of(expression, [dtype] * 3))
            text += device_function(f"f{index}", expression, [dtype] * 3)
            calls += f"    static_cast<{out}*>(out)[{index}] = fx::narrow<{out}>(f{index}(fx::widen(x[0]), fx::widen(x[1]), fx::widen(x[2])));\n"
        text += f'extern "C" __global__ void all(const {storage_type(dtype)}* x, void* out) {{\n{calls}}}\n'
        assert compile_cubin(text, (), arch).resources.spill_stores == 0


def test_common_subexpressions_are_written_once() -> None:
    shared = apply("exp", X)
    code = device_function("f", apply("add", shared, apply("mul", shared, shared)), [DataType.FLOAT])
    assert code.count("fx::exp(") == 1


def test_literals() -> None:
    assert literal(float("-inf"), DataType.HALF) == "__int_as_float(-8388608)"
    assert literal(True, DataType.BOOL) == "true"
    assert literal(-1, DataType.INT8) == "fx::i8(-1ll)"
    assert literal(255, DataType.UINT8) == "fx::u8(255ll)"
    assert literal(-(1 << 63), DataType.INT64) == "fx::i64(-9223372036854775807ll - 1)"


def test_unknown_functions_are_refused() -> None:
    with pytest.raises(Unsupported, match="nothing"):
        device_function("f", Apply("nothing", (X,)), [DataType.FLOAT])


@needs_compiler
@pytest.mark.parametrize("dtype", [DataType.INT8, DataType.UINT8])
@pytest.mark.parametrize("before", ["", "relu", "clip"])
@pytest.mark.parametrize("zero", [0, 5, -3])
def test_quantisation_in_a_few_instructions(dtype: DataType, zero: int, before: str) -> None:
    """Ties, limits and infinities; a scale of a power of two divides exactly."""
    low, high = np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max
    limited = {"": X, "relu": apply("relu", X), "clip": apply("clip", X, Literal(-0.375, DataType.FLOAT), Literal(6.0, DataType.FLOAT))}[before]
    steps: Expression = apply("round", apply("div", limited, Literal(0.25, DataType.FLOAT)))
    if zero:
        steps = apply("add", steps, Literal(float(zero), DataType.FLOAT))
    expression = Convert(dtype, apply("clip", steps, Literal(float(low), DataType.FLOAT), Literal(float(high), DataType.FLOAT)))
    code = device_function("f", expression, [DataType.FLOAT])
    assert "fx::quantize" in code and "relu" not in code and "clip" not in code
    values = np.concatenate([np.arange(-4000, 4000) / 32, [1e9, -1e9, np.inf, -np.inf, 0.0, -0.0]]).astype(np.float32)
    (result,) = run_all([expression], [values])
    np.testing.assert_array_equal(result, evaluate(expression, [values]))
