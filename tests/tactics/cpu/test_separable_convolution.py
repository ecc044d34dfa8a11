"""A depthwise-separable pair in one layer on the CPU: the meaning, and what the two layers compute one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply
from fusion.ops import Convolution, SeparableConvolution

BIAS_RELU = apply("relu", apply("add", Operand(0), Operand(1)))
BIAS_RESIDUAL = apply("add", apply("add", Operand(0), Operand(1)), Operand(2))
small = st.integers(1, 3)


def to_int8(bias: int) -> Expression:
    """Scale, bias, and the quantisation of the result."""
    real = apply("add", apply("mul", Convert(DataType.FLOAT, Operand(0)), Literal(0.004, DataType.FLOAT)), Operand(bias))
    return Convert(DataType.INT8, apply("clip", apply("round", real), Literal(-128.0, DataType.FLOAT), Literal(127.0, DataType.FLOAT)))


@st.composite
def layers(draw):
    pair = lambda strategy: (draw(strategy), draw(strategy))  # noqa: E731
    channels = draw(st.integers(1, 6))
    depthwise = Convolution(pair(st.integers(1, 2)), pair(st.integers(0, 2)), pair(st.integers(0, 2)), pair(st.integers(1, 2)), channels)
    return depthwise, draw(st.integers(1, 5)), channels, draw(st.integers(1, 7)), pair(small), pair(st.integers(4, 9))


@given(layers(), st.sampled_from([np.float32, np.float64, np.int8]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_images(check, made, dtype, epilogues) -> None:
    depthwise, batch, channels, out, window, spatial = made
    random = np.random.default_rng(2)
    extent = [gap * (k - 1) + 1 for gap, k in zip(depthwise.dilation, window, strict=True)]
    assume(all(size >= one for size, one in zip(spatial, extent, strict=True)))

    def numbers(*shape: int) -> np.ndarray:
        return random.integers(-128, 128, shape).astype(np.int8) if dtype is np.int8 else random.standard_normal(shape).astype(dtype)

    inputs = [numbers(batch, channels, *spatial), numbers(channels, 1, *window), numbers(out, channels, 1, 1)]
    (middle,) = depthwise.evaluate(inputs[:2])
    first, second, operands = Operand(0), Operand(0), 0
    if dtype is np.int8:
        bias = random.standard_normal((channels, 1, 1)).astype(np.float32)
        first, second, operands, inputs = to_int8(1), to_int8(1), 1, [*inputs, bias, random.standard_normal((out, 1, 1)).astype(np.float32)]
    elif epilogues:
        first, second, operands = BIAS_RELU, BIAS_RESIDUAL, 1
        inputs += [numbers(channels, 1, 1), numbers(out, 1, 1), numbers(batch, out, *middle.shape[2:])]
    depthwise = Convolution(**{**depthwise.__dict__, "epilogue": first})
    op = SeparableConvolution(depthwise, Convolution((1, 1), (0, 0), (0, 0), (1, 1), epilogue=second), operands)
    assert "cpu.conv.separable" in check(op, inputs, (1, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_it_means_one_layer_after_the_other(dtype: type) -> None:
    random = np.random.default_rng(1)
    inputs = [random.standard_normal(shape).astype(dtype) for shape in ((2, 4, 6, 5), (4, 1, 3, 3), (3, 4, 1, 1), (4, 1, 1), (3, 1, 1))]
    depthwise = Convolution((1, 1), (1, 1), (1, 1), (1, 1), 4, epilogue=BIAS_RELU)
    pointwise = Convolution((1, 1), (0, 0), (0, 0), (1, 1), epilogue=BIAS_RELU)
    (found,) = SeparableConvolution(depthwise, pointwise, 1).evaluate(inputs)
    (middle,) = depthwise.evaluate([inputs[0], inputs[1], inputs[3]])
    np.testing.assert_array_equal(found, pointwise.evaluate([middle, inputs[2], inputs[4]])[0])
