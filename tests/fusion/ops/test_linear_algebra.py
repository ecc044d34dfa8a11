"""MatrixMultiply, Attention, Reduce, Softmax and the normalisations against ONNX Runtime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Convert, Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import (
    Attention,
    GroupNormalization,
    LocalResponseNormalization,
    MatrixMultiply,
    Normalization,
    Reduce,
    Softmax,
)

SETTINGS = settings(max_examples=30, deadline=None)
dim = st.integers(1, 5)
seeds = st.integers(0, 99)
HALVES = (np.float16, ml_dtypes.bfloat16)


def values(seed: int, *shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check_type(op, inputs, outputs) -> None:
    inferred = op.infer([TensorType(DataType(array.dtype.name), array.shape) for array in inputs])
    assert [(t.dtype.numpy, t.shape) for t in inferred] == [(array.dtype, array.shape) for array in outputs]


@given(st.lists(dim, max_size=2), st.booleans(), st.booleans(), dim, dim, dim, st.booleans(), st.booleans(), seeds)
@SETTINGS
def test_matmul(oracle, batch, share_a, share_b, m, k, n, transpose_a, transpose_b, seed):
    a = values(seed, *(1 if share_a else b for b in batch), m, k)
    b = values(seed + 1, *(() if share_b else batch), k, n)
    (want,) = oracle("MatMul", [a, b])
    op = MatrixMultiply(transpose_a, transpose_b)
    given_a = np.ascontiguousarray(a.swapaxes(-1, -2)) if transpose_a else a
    given_b = np.ascontiguousarray(b.swapaxes(-1, -2)) if transpose_b else b
    (got,) = op.evaluate([given_a, given_b])
    check_type(op, [given_a, given_b], [got])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_matmul_narrow_accumulates_in_float32(dtype):
    a, b = np.full((1, 4096), 1, dtype), np.full((4096, 1), 0.0625, dtype)
    assert MatrixMultiply().evaluate([a, b])[0].astype(np.float32).item() == 256


@given(st.sampled_from(["int8", "uint8", "int32", "int64"]), seeds)
@SETTINGS
def test_matmul_integers_exact(dtype, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 100, (3, 50)).astype(dtype), rng.integers(0, 100, (50, 4)).astype(dtype)
    wide = Convert(DataType.INT64, Operand(0)) if dtype == "int64" else Operand(0)
    (got,) = MatrixMultiply(epilogue=wide).evaluate([a, b])
    assert got.dtype == ("int64" if dtype == "int64" else "int32")
    assert np.array_equal(got, (a.astype(object) @ b.astype(object)).astype(np.int64))


REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd",
              "logsumexp": "ReduceLogSumExp"}  # fmt: skip


@given(st.sampled_from(sorted(REDUCTIONS)), st.lists(dim, min_size=1, max_size=4), st.data(), st.booleans(), seeds)
@SETTINGS
def test_reduce(oracle, kind, shape, data, keep, seed):
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    x = values(seed, *shape)
    (want,) = oracle(REDUCTIONS[kind], [x, np.array(axes, np.int64)], keepdims=int(keep))
    op = Reduce(kind, axes, keep)
    (got,) = op.evaluate([x])
    check_type(op, [x], [got])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_reduce_norms_and_integers(oracle):
    x = values(3, 4, 5)
    l2 = Reduce("sum", (1,), False, apply("square", Operand(0)), apply("sqrt", Operand(0)))
    np.testing.assert_allclose(l2.evaluate([x])[0], oracle("ReduceL2", [x, np.array([1])], keepdims=0)[0], rtol=1e-6)
    # Squares beyond half precision's range stay finite inside.
    big = np.full((1, 2), 300, np.float16)
    assert l2.evaluate([big])[0] == np.float16(424.2641)
    ints = np.array([[1, -2, -2], [7, 7, 8]], np.int32)
    assert Reduce("mean", (1,), False).evaluate([ints])[0].tolist() == [-1, 7]
    assert Reduce("sum", (0,), True).evaluate([ints])[0].tolist() == [[8, 5, 6]]
    assert Reduce("max", (0, 1), False).evaluate([np.array([[True, False]])])[0] == np.True_
    converted = Reduce("mean", (0,), False, Convert(DataType.FLOAT, Operand(0)))
    (got,) = converted.evaluate([np.array([1, 2], np.int32)])
    assert got == 1.5
    check_type(converted, [np.array([1, 2], np.int32)], [got])


def test_reduce_of_nothing():
    empty = np.zeros((2, 0), np.float32)
    assert Reduce("sum", (1,), False).evaluate([empty])[0].tolist() == [0, 0]
    assert Reduce("max", (1,), False).evaluate([empty])[0].tolist() == [-np.inf] * 2
    assert Reduce("min", (1,), False).evaluate([empty.astype(np.int8)])[0].tolist() == [127, 127]


@given(st.lists(dim, min_size=1, max_size=4), st.data(), st.booleans(), seeds)
@SETTINGS
def test_softmax(oracle, shape, data, log, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = values(seed, *shape) * 20
    (want,) = oracle("LogSoftmax" if log else "Softmax", [x], axis=axis)
    op = Softmax(axis, log)
    (got,) = op.evaluate([x])
    check_type(op, [x], [got])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_softmax_prologue_scales_before():
    x = values(0, 2, 7)
    scaled = Softmax(1, prologue=apply("mul", Operand(0), Literal(0.5, DataType.FLOAT)))
    np.testing.assert_array_equal(scaled.evaluate([x])[0], Softmax(1).evaluate([x * np.float32(0.5)])[0])


@given(st.lists(dim, min_size=2, max_size=4), st.data(), seeds)
@SETTINGS
def test_layer_normalization(oracle, shape, data, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x, scale, bias = values(seed, *shape), values(seed + 1, *shape[axis:]), values(seed + 2, *shape[axis:])
    (want,) = oracle("LayerNormalization", [x, scale, bias], axis=axis, epsilon=1e-3)
    op = Normalization(tuple(range(axis, len(shape))), 1e-3,
                       epilogue=apply("add", apply("mul", Operand(0), Operand(1)), Operand(2)))  # fmt: skip
    (got,) = op.evaluate([x, scale, bias])
    check_type(op, [x, scale, bias], [got])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_rms_normalization():
    x = values(0, 3, 8)
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(Normalization((1,), 1e-6, center=False).evaluate([x])[0], want, rtol=1e-5)


@given(dim, st.integers(1, 3), st.integers(1, 3), dim, st.booleans(), seeds)
@SETTINGS
def test_group_normalization(oracle, n, groups, per_group, size, last, seed):
    channels = groups * per_group
    x, scale, bias = values(seed, n, channels, size, 3), values(seed + 1, channels), values(seed + 2, channels)
    (want,) = oracle("GroupNormalization", [x, scale, bias], num_groups=groups, epsilon=1e-3)
    op = GroupNormalization(groups, 1e-3, last, apply("add", apply("mul", Operand(0), Operand(1)), Operand(2)))
    shape = (channels,) if last else (channels, 1, 1)
    given_x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x
    (got,) = op.evaluate([given_x, scale.reshape(shape), bias.reshape(shape)])
    np.testing.assert_allclose(np.moveaxis(got, -1, 1) if last else got, want, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 8), st.integers(1, 6), st.booleans(), seeds)
@SETTINGS
def test_local_response_normalization(oracle, channels, size, last, seed):
    x = values(seed, 2, channels, 3, 2)
    given_x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x
    (got,) = LocalResponseNormalization(size, 0.3, 0.7, 1.5, last).evaluate([given_x])
    got = np.moveaxis(got, -1, 1) if last else got
    for c in range(channels):
        near = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1]
        want = x[:, c] / (1.5 + 0.3 / size * np.square(near).sum(1)) ** 0.7
        np.testing.assert_allclose(got[:, c], want, rtol=1e-5, atol=1e-6)
    if size % 2:  # ONNX Runtime takes odd sizes only
        (want,) = oracle("LRN", [x], size=size, alpha=0.3, beta=0.7, bias=1.5)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@given(dim, st.integers(1, 3), st.integers(1, 2), dim, dim, dim, st.booleans(), st.sampled_from(["none", "add", "bool"]),
       st.permutations("bhsd"), st.permutations("bhsd"), seeds)  # fmt: skip
@SETTINGS
def test_attention(oracle, b, kv_heads, share, s, t, d, causal, masked, q_order, out_order, seed):
    t = max(s, t)
    q = values(seed, b, kv_heads * share, s, d)
    k, v = values(seed + 1, b, kv_heads, t, d), values(seed + 2, b, kv_heads, t, d)
    mask = {"none": None, "add": values(seed + 3, 1, 1, s, t), "bool": values(seed + 3, b, 1, s, t) > -0.5}[masked]
    if masked == "bool":
        mask[..., 0] = True
    extra = np.where(np.arange(t) <= np.arange(s)[:, None] + t - s, 0, -np.inf).astype(np.float32) if causal else None
    full = extra if mask is None else mask
    if extra is not None and mask is not None:
        full = mask & (extra == 0) if masked == "bool" else mask + extra
    inputs = [q, k, v] if full is None else [q, k, v, full]
    (want,) = oracle("Attention", inputs, opset=23, scale=0.7)
    layouts = ("".join(q_order), "bhsd", "bhsd", "".join(out_order))
    given_q = np.ascontiguousarray(q.transpose(["bhsd".index(axis) for axis in q_order]))
    op = Attention(0.7, causal, mask is not None, layouts)
    (got,) = op.evaluate([given_q, k, v, *(() if mask is None else (mask,))])
    check_type(op, [given_q, k, v], [got])
    np.testing.assert_allclose(got.transpose([out_order.index(axis) for axis in "bhsd"]), want, rtol=1e-4, atol=1e-5)


def test_attention_fully_masked_row_is_zero():
    x = values(0, 1, 1, 2, 3)
    (got,) = Attention(1.0, masked=True).evaluate([x, x, x, np.array([[True, True], [False, False]])])
    assert np.isfinite(got).all() and not got[0, 0, 1].any()
