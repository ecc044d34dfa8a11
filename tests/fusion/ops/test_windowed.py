"""Convolution, Deconvolution and Pooling against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import Convolution, Deconvolution, Pooling

SETTINGS = settings(max_examples=40, deadline=None)
small = st.integers(1, 3)


def values(seed: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check_type(op, inputs, outputs) -> None:
    inferred = op.infer([TensorType(DataType(array.dtype.name), array.shape) for array in inputs])
    assert [(t.dtype.numpy, t.shape) for t in inferred] == [(array.dtype, array.shape) for array in outputs]


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    per_axis = lambda strategy: tuple(draw(strategy) for _ in range(rank))
    window, stride, dilation = per_axis(small), per_axis(small), per_axis(st.integers(1, 2))
    pre, post = per_axis(st.integers(0, 2)), per_axis(st.integers(0, 2))
    spatial = tuple(
        max(1, dilation[i] * (window[i] - 1) + 1 - pre[i] - post[i]) + draw(st.integers(0, 6)) for i in range(rank)
    )
    return {
        "n": draw(st.integers(1, 2)), "groups": draw(small), "c": draw(small), "o": draw(small), "spatial": spatial,
        "window": window, "stride": stride, "dilation": dilation, "pre": pre, "post": post, "seed": draw(st.integers(0, 99)),
    }  # fmt: skip


@given(convolutions(), st.booleans())
@SETTINGS
def test_convolution(oracle, case, last):
    groups = case["groups"]
    x = values(case["seed"], case["n"], case["c"] * groups, *case["spatial"])
    w = values(case["seed"] + 1, case["o"] * groups, case["c"], *case["window"])
    (want,) = oracle("Conv", [x, w], strides=case["stride"], pads=[*case["pre"], *case["post"]],
                     dilations=case["dilation"], group=groups)  # fmt: skip
    op = Convolution(case["stride"], case["pre"], case["post"], case["dilation"], groups, last)
    given_x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x
    (got,) = op.evaluate([given_x, w])
    check_type(op, [given_x, w], [got])
    np.testing.assert_allclose(np.moveaxis(got, -1, 1) if last else got, want, rtol=1e-4, atol=1e-5)


@given(convolutions(), st.booleans(), st.data())
@SETTINGS
def test_deconvolution(oracle, case, last, data):
    groups, rank = case["groups"], len(case["window"])
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in case["stride"])
    op = Deconvolution(case["stride"], case["pre"], case["post"], case["dilation"], extra, groups, last)
    x = values(case["seed"], case["n"], case["c"] * groups, *case["spatial"])
    w = values(case["seed"] + 1, case["c"] * groups, case["o"], *case["window"])
    given_x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x
    (out,) = op.infer([TensorType(DataType.FLOAT, given_x.shape), TensorType(DataType.FLOAT, w.shape)])
    assume(all(size > 0 for size in out.shape))
    assume(rank < 3 or extra == (0, 0, 0))  # ONNX Runtime's 3-D case reads output_padding only without it
    (want,) = oracle("ConvTranspose", [x, w], strides=case["stride"], pads=[*case["pre"], *case["post"]],
                     dilations=case["dilation"], group=groups, output_padding=extra)  # fmt: skip
    (got,) = op.evaluate([given_x, w])
    check_type(op, [given_x, w], [got])
    np.testing.assert_allclose(np.moveaxis(got, -1, 1) if last else got, want, rtol=1e-4, atol=1e-5)


def test_convolution_epilogue_rounds_once():
    """bias and residual in half precision: the sum of the wide accumulator, rounded at the end."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 8, 5, 5)).astype(np.float16), rng.standard_normal((4, 8, 3, 3)).astype(np.float16)
    bias, residual = (
        rng.standard_normal((4, 1, 1)).astype(np.float16),
        rng.standard_normal((1, 4, 5, 5)).astype(np.float16),
    )
    epilogue = apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2)))
    op = Convolution((1, 1), (1, 1), (1, 1), (1, 1), epilogue=epilogue)
    (got,) = op.evaluate([x, w, bias, residual])
    plain = Convolution((1, 1), (1, 1), (1, 1), (1, 1))
    (wide,) = plain.evaluate([x.astype(np.float64), w.astype(np.float64)])
    want = np.maximum(wide + bias + residual, 0)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, want.astype(np.float16), rtol=1e-3, atol=1e-4)


def test_integer_convolution_is_exact():
    rng = np.random.default_rng(0)
    x, w = (
        rng.integers(-128, 128, (1, 3, 6, 6)).astype(np.int32),
        rng.integers(-128, 128, (2, 3, 3, 3)).astype(np.int32),
    )
    (got,) = Convolution((1, 1), (0, 0), (0, 0), (1, 1)).evaluate([x, w])
    (want,) = Convolution((1, 1), (0, 0), (0, 0), (1, 1)).evaluate([x.astype(np.float64), w.astype(np.float64)])
    assert got.dtype == np.int32 and np.array_equal(got, want)


@st.composite
def poolings(draw):
    rank = draw(st.integers(1, 3))
    per_axis = lambda strategy: tuple(draw(strategy) for _ in range(rank))
    window, stride, dilation = per_axis(small), per_axis(small), per_axis(st.integers(1, 2))
    pre = tuple(draw(st.integers(0, k - 1)) for k in window)
    post = tuple(draw(st.integers(0, k - 1)) for k in window)
    spatial = tuple(dilation[i] * (window[i] - 1) + 1 + draw(st.integers(0, 7)) for i in range(rank))
    return {"window": window, "stride": stride, "dilation": dilation, "pre": pre, "post": post, "spatial": spatial,
            "ceil": draw(st.booleans()), "seed": draw(st.integers(0, 99))}  # fmt: skip


@given(poolings(), st.sampled_from(["max", "average", "lp"]), st.booleans(), st.booleans(), st.integers(1, 3))
@SETTINGS
def test_pooling(oracle, case, kind, include, last, p):
    # ONNX Runtime divides by the whole window where ceil_mode hangs over; ONNX (and the reference evaluator) does not.
    assume(not (kind == "average" and case["ceil"] and include))
    x = values(case["seed"], 2, 3, *case["spatial"])
    attributes = {"kernel_shape": case["window"], "strides": case["stride"], "pads": [*case["pre"], *case["post"]],
                  "dilations": case["dilation"], "ceil_mode": int(case["ceil"])}  # fmt: skip
    if kind == "average":
        attributes["count_include_pad"] = int(include)
    if kind == "lp":
        attributes["p"] = p
    (want,) = oracle({"max": "MaxPool", "average": "AveragePool", "lp": "LpPool"}[kind], [x], **attributes)
    op = Pooling(kind, case["window"], case["stride"], case["pre"], case["post"], case["dilation"], case["ceil"],
                 include, p, last)  # fmt: skip
    given_x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x
    (got,) = op.evaluate([given_x])
    check_type(op, [given_x], [got])
    np.testing.assert_allclose(np.moveaxis(got, -1, 1) if last else got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind, operator", [("max", "MaxPool"), ("average", "AveragePool"), ("lp", "LpPool")])
@pytest.mark.parametrize("include", [False, True])
def test_padding_does_not_go_through_the_prologue_of_pooling(oracle, kind, operator, include):
    x = values(3, 2, 3, 7, 8)
    more = {"average": {"count_include_pad": int(include)}, "lp": {"p": 2}}.get(kind, {})
    (want,) = oracle(operator, [np.exp(x)], kernel_shape=(2, 3), strides=(2, 3), pads=(1, 0, 0, 1), **more)
    op = Pooling(kind, (2, 3), (2, 3), (1, 0), (0, 1), (1, 1), count_include_pad=include, prologue=apply("exp", Operand(0)))
    np.testing.assert_allclose(op.evaluate([x])[0], want, rtol=1e-5, atol=1e-6)


def test_average_pooling_with_ceil_counts_only_declared_padding():
    """The last window covers one input element, one declared padding element and one beyond: it divides by 2."""
    op = Pooling("average", (3,), (3,), (0,), (1,), (1,), ceil_mode=True, count_include_pad=True)
    (got,) = op.evaluate([np.array([[[1, 2, 3, 8]]], np.float32)])
    np.testing.assert_allclose(got, [[[2, 4]]])


def test_pooling_epilogue_and_integers():
    x = np.arange(-8, 8, dtype=np.int8).reshape(1, 1, 4, 4)
    op = Pooling(
        "max", (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), epilogue=apply("max", Operand(0), Literal(0, DataType.INT8))
    )
    assert op.evaluate([x])[0].tolist() == [[[[0, 0], [5, 7]]]]


def test_window_that_does_not_fit_is_refused():
    from fusion.ops.windows import windows

    with pytest.raises(ValueError, match="do not fit"):
        windows(np.zeros((1, 1, 4)), (3,), (2,), (1,), (2,))
