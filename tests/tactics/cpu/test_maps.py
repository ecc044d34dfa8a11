"""Pointwise layers, pooling, reductions and normalisations on the CPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import FUNCTIONS, Apply, Convert, Literal, Operand, apply, evaluate, type_of
from fusion.ops import (
    GroupNormalization,
    LocalResponseNormalization,
    Normalization,
    Pointwise,
    Pooling,
    Reduce,
    Softmax,
)
from tactics.cpu.expressions import compile_expression

SETTINGS = settings(max_examples=30, deadline=None)
small = st.integers(1, 3)
dim = st.integers(1, 6)
seeds = st.integers(0, 99)
FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
floats = st.sampled_from(FLOATS)


def values(seed: int, *shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def functions_and_types():
    """Every function with every type that it makes sense for."""
    plain = {
        "add", "sub", "mul", "div", "mod", "fmod", "min", "max", "neg", "abs", "sign", "equal", "less", "greater",
        "less_or_equal", "greater_or_equal", "where", "square", "pow",
    }  # fmt: skip
    for name in sorted(FUNCTIONS):
        bits, logic = name.startswith(("bitwise", "shift")), name in ("and", "or", "xor", "not")
        for dtype in ("float32", "float64", "float16", "bfloat16", "int32", "int8", "uint8", "bool"):
            if dtype == "bool":
                fits = logic or name in ("equal", "where")
            elif "float" in dtype:
                fits = not bits and not logic
            else:
                fits = bits or (name in plain and (name, dtype) != ("neg", "uint8"))
            if fits:
                yield name, DataType(dtype).numpy


@pytest.mark.parametrize(("name", "dtype"), list(functions_and_types()))
def test_every_function(check, name, dtype):
    function, rng = FUNCTIONS[name], np.random.default_rng(0)
    operands = [rng.uniform(-3, 3, (5, 70)) for _ in range(function.arity)]
    if dtype.kind in "iu":
        operands = [np.abs(one) + number for number, one in enumerate(operands)]
    if name in ("pow", "log", "sqrt", "rsqrt", "acosh", "celu"):
        operands = [np.abs(one) + 0.1 for one in operands]
    arrays = [one.astype(dtype) for one in operands]
    if dtype.kind == "b":
        arrays = [rng.random((5, 70)) < 0.5 for _ in operands]
    if name == "where":
        arrays[0] = rng.random((5, 70)) < 0.5
    check(Pointwise(Apply(name, tuple(Operand(i) for i in range(function.arity)))), arrays)


@st.composite
def expressions(draw, depth: int = 4):
    """Trees over three float operands, with shared subtrees, literals and conversions."""
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from([Operand(0), Operand(1), Operand(2), Literal(0.5, DataType.FLOAT)]))
    choice = draw(st.integers(0, 5))
    if choice == 0:
        return Convert(draw(st.sampled_from([DataType.FLOAT, DataType.HALF])), draw(expressions(depth - 1)))
    if choice == 1:
        shared = draw(expressions(depth - 1))
        return apply(draw(st.sampled_from(["add", "mul", "max"])), shared, apply("sigmoid", shared))
    if choice == 2:
        test = apply("less", draw(expressions(depth - 1)), draw(expressions(depth - 1)))
        return apply("where", test, draw(expressions(depth - 1)), draw(expressions(depth - 1)))
    name = draw(
        st.sampled_from(["add", "sub", "mul", "min", "relu", "tanh", "abs", "neg", "hard_swish", "softsign", "clip"])
    )
    if name == "clip":
        return apply("clip", draw(expressions(depth - 1)), Literal(-1.0, DataType.FLOAT), Literal(1.0, DataType.FLOAT))
    return Apply(name, tuple(draw(expressions(depth - 1)) for _ in range(FUNCTIONS[name].arity)))


@given(expressions(), st.booleans(), st.sampled_from(["float32", "float16", "float64", "bool"]), seeds)
@settings(max_examples=300, deadline=None)
def test_compiled_expression(expression, in_place, out, seed):
    """Memory that temporaries share is never still wanted; operand 0 may be the output's memory."""
    arrays = [values(seed + i, 4, 9) for i in range(3)]
    kind = type_of(expression, [DataType.FLOAT] * 3)
    value = evaluate(expression, arrays)
    in_place = in_place and out == "float32"
    program = compile_expression(expression, [np.dtype(np.float32)] * 3, np.dtype(out), in_place)
    operands = [array.copy() for array in arrays]
    result = operands[0] if in_place else np.full((4, 9), 1, out)
    scratch = np.full(program.scratch_bytes(36), 0xFF, np.uint8)
    with np.errstate(all="ignore"):
        for action in program.bind(operands, result, scratch):
            action()
    assert all(np.array_equal(a, b) for a, b in zip(operands[1:], arrays[1:], strict=True))
    want = (value != 0) if out == "bool" else value.astype(out)
    if kind is DataType.HALF and out in ("float32", "float64"):
        np.testing.assert_allclose(result, want, rtol=1e-3, atol=1e-3)  # a half may have been rounded once less
    elif out != "bool":
        np.testing.assert_allclose(result, want, rtol=2e-3, atol=2e-3)


@given(st.lists(dim, max_size=4), st.data(), floats, seeds)
@SETTINGS
def test_pointwise_broadcasts(check, shape, data, dtype, seed):
    parts = []
    for number in range(3):
        cut = data.draw(st.integers(0, len(shape)))
        parts.append(
            values(seed + number, *(1 if data.draw(st.booleans()) else size for size in shape[cut:]), dtype=dtype)
        )
    parts.append(values(seed, *shape, dtype=dtype))
    expression = apply("add", apply("mul", Operand(0), Operand(1)), apply("max", Operand(2), Operand(3)))
    check(Pointwise(expression), parts)


def test_pointwise_on_several_threads(check):
    """Big enough that every thread has blocks, with odd sizes, and an output of another type."""
    x, y = values(0, 3, 7, 8191), values(1, 7, 1)
    check(Pointwise(apply("relu", apply("add", Operand(0), Operand(1)))), [x, y])
    check(Pointwise(apply("less", Operand(0), Operand(1))), [x, y])
    check(Pointwise(Convert(DataType.INT8, apply("mul", Operand(0), Literal(9.0, DataType.FLOAT)))), [x])


def test_pointwise_of_integers_is_exact(check):
    rng = np.random.default_rng(0)
    big = rng.integers(-(2**62), 2**62, (4, 5))
    check(Pointwise(apply("add", apply("mul", Operand(0), Literal(3, DataType.INT64)), Operand(0))), [big])
    check(Pointwise(apply("div", Operand(0), Operand(1))), [big, rng.integers(1, 9, (4, 5))])


@st.composite
def poolings(draw):
    rank = draw(small)
    per_axis = lambda strategy: tuple(draw(strategy) for _ in range(rank))
    window, stride, dilation = per_axis(st.integers(1, 4)), per_axis(small), per_axis(st.integers(1, 2))
    pre = tuple(draw(st.integers(0, k - 1)) for k in window)
    post = tuple(draw(st.integers(0, k - 1)) for k in window)
    spatial = tuple(dilation[i] * (window[i] - 1) + 1 + draw(st.integers(0, 8)) for i in range(rank))
    if draw(st.booleans()):
        window, stride, pre, post, dilation = spatial, (1,) * rank, (0,) * rank, (0,) * rank, (1,) * rank
    return window, stride, pre, post, dilation, spatial


@given(
    poolings(), st.sampled_from(["max", "average", "lp"]), st.booleans(), st.booleans(), floats, st.booleans(), seeds
)
@SETTINGS
def test_pooling(check, case, kind, ceil, include, dtype, bias, seed):
    *shape, spatial = case
    x = values(seed, 2, 5, *spatial, dtype=dtype)
    op = Pooling(kind, *shape, ceil, include, epilogue=apply("add", Operand(0), Operand(1)) if bias else Operand(0))
    more = [values(seed, 5, *(1,) * len(spatial), dtype=dtype)] if bias else []
    check(op, [x, *more], least=kind != "lp")


@given(poolings(), st.sampled_from(["max", "average", "lp"]), st.booleans(), floats, st.booleans(), seeds)
@SETTINGS
def test_pooling_prologue(check, case, kind, include, dtype, wide, seed):
    *shape, spatial = case
    prologue = apply("exp", Operand(0))
    op = Pooling(kind, *shape, count_include_pad=include, prologue=Convert(DataType.FLOAT, prologue) if wide else prologue)
    check(op, [values(seed, 2, 5, *spatial, dtype=dtype)], least=kind != "lp")


def test_pooling_of_integers(check):
    x = np.random.default_rng(0).integers(-128, 128, (2, 3, 9, 9)).astype(np.int8)
    check(Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)), [x])
    check(Pooling("average", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)), [x], least=0)


@given(st.sampled_from(["sum", "mean", "max", "min", "prod", "logsumexp"]), st.lists(dim, min_size=1, max_size=4),
       st.data(), st.booleans(), floats, st.booleans(), seeds)  # fmt: skip
@SETTINGS
def test_reduce(check, kind, shape, data, keep, dtype, dressed, seed):
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    x = values(seed, *shape, dtype=dtype)
    around = (apply("square", Operand(0)), apply("sqrt", apply("abs", Operand(0)))) if dressed else (Operand(0),) * 2
    check(Reduce(kind, axes, keep, *around), [x])


def test_reduce_large_and_integers(check):
    x = values(0, 9, 50, 200)
    for axes in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):
        check(Reduce("sum", axes, True), [x])
    ints = np.random.default_rng(0).integers(-9, 9, (4, 50)).astype(np.int32)
    for kind in ("sum", "prod", "max", "min"):
        check(Reduce(kind, (1,), False), [ints])
    check(Reduce("mean", (1,), False, Convert(DataType.FLOAT, Operand(0))), [ints])
    check(Reduce("max", (0,), False), [ints > 0])
    check(Reduce("sum", (1,), False), [np.zeros((3, 0), np.float32)])


@given(st.lists(dim, min_size=1, max_size=4), st.data(), st.booleans(), floats, st.booleans(), seeds)
@SETTINGS
def test_softmax(check, shape, data, log, dtype, scaled, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    prologue = apply("mul", Operand(0), Literal(3.0, DataType.FLOAT)) if scaled else Operand(0)
    check(Softmax(axis, log, prologue), [values(seed, *shape, dtype=dtype) * np.dtype(dtype).type(4)])


@given(st.lists(dim, min_size=2, max_size=4), st.data(), st.booleans(), floats, seeds)
@SETTINGS
def test_normalization(check, shape, data, center, dtype, seed):
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    x, scale = values(seed, *shape, dtype=dtype), values(seed + 1, shape[-1], dtype=dtype)
    check(Normalization(axes, 1e-2, center, apply("mul", Operand(0), Operand(1))), [x, scale])
    check(Normalization(axes, 0.0, False, floor=0.7), [x * np.dtype(dtype).type(0 if center else 0.5)])


@given(small, small, small, dim, floats, seeds)
@SETTINGS
def test_group_and_local_normalization(check, n, groups, per_group, size, dtype, seed):
    channels = groups * per_group
    x, scale = values(seed, n, channels, size, 3, dtype=dtype), values(seed + 1, channels, 1, 1, dtype=dtype)
    check(GroupNormalization(groups, 1e-2, epilogue=apply("mul", Operand(0), Operand(1))), [x, scale])
    check(LocalResponseNormalization(size, 0.3, 0.75, 1.0), [x])


@given(st.lists(dim, min_size=1, max_size=4), st.data(), st.sampled_from(["sum", "mean"]), st.booleans(), seeds)
@SETTINGS
def test_reduce_as_product(check, shape, data, kind, first, seed):
    count = data.draw(st.integers(1, len(shape)))
    axes = tuple(range(count)) if first else tuple(range(len(shape) - count, len(shape)))
    ran = check(Reduce(kind, axes, True, epilogue=apply("relu", Operand(0))), [values(seed, *shape)])
    assert {"cpu.reduce.product", "cpu.reduce.ufunc"} <= ran


def test_pooling_of_whole_images(check):
    x, bias = values(0, 2, 7, 5, 6), values(1, 7, 1, 1)
    op = Pooling("average", (5, 6), (1, 1), (0, 0), (0, 0), (1, 1), epilogue=apply("add", Operand(0), Operand(1)))
    assert "cpu.pool.whole" in check(op, [x, bias])


def test_sizes_other_than_those_it_was_built_for(check):
    first, op = values(0, 2, 40, 33, 50), Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    add = Pointwise(apply("add", Operand(0), Literal(1.0, DataType.FLOAT)))
    for shape in ((1, 40, 3, 3), (3, 40, 70, 9)):
        x = values(1, *shape)
        for one in (
            op,
            add,
            Softmax(3),
            Normalization((3,), 1e-5),
            GroupNormalization(4, 1e-5),
            Reduce("max", (2, 3), False),
        ):
            check(one, [x], built=(one, [first]))


def test_rows_on_several_threads(check):
    x = values(0, 5, 90, 400)
    for axis in range(3):
        check(Softmax(axis), [x])
        check(Normalization((axis,), 1e-5), [x])
    check(GroupNormalization(10, 1e-5), [x])


@pytest.mark.parametrize("kind", ["sum", "mean", "prod", "max", "min", "logsumexp"])
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value", "ignore:divide by zero")
def test_reductions_over_nothing(check, kind):
    check(Reduce(kind, (1,), True), [values(0, 2, 0)])
