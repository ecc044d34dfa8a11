"""Convolution and pooling in one layer on the CPU: the meaning, and what the two layers compute one after the other."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fusion.expression import Operand, apply
from fusion.ops import Convolution, ConvolutionPooling, Pooling
from fusion.ops.epilogue import IDENTITY

RESIDUAL_RELU = apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2)))
small = st.integers(1, 3)


@st.composite
def layers(draw):
    pair = lambda strategy: (draw(strategy), draw(strategy))  # noqa: E731
    convolution = Convolution(pair(st.integers(1, 2)), pair(st.integers(0, 2)), pair(st.integers(0, 2)), pair(st.integers(1, 2)), draw(small))
    window = pair(small)
    pads = [tuple(min(one, k - 1) for one, k in zip(pair(st.integers(0, 1)), window, strict=True)) for _ in range(2)]
    pooling = Pooling(draw(st.sampled_from(["max", "average"])), window, pair(small), *pads, pair(st.integers(1, 2)), draw(st.booleans()),
                      draw(st.booleans()))  # fmt: skip
    return ConvolutionPooling(convolution, pooling), pair(small), pair(st.integers(4, 12)), pair(small)


@given(layers(), st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_bands(check, made, dtype, residual) -> None:
    op, window, spatial, (n, c) = made
    random, groups = np.random.default_rng(4), op.convolution.groups
    inputs = [random.normal(size=(n, c * groups, *spatial)), random.normal(size=(2 * groups, c, *window))]
    inputs = [one.astype(dtype) for one in inputs]
    extent = [gap * (k - 1) + 1 for gap, k in zip(op.convolution.dilation, window, strict=True)]
    assume(all(size >= one for size, one in zip(spatial, extent, strict=True)))
    (middle,) = op.convolution.evaluate(inputs)
    reach = [gap * (k - 1) + 1 for gap, k in zip(op.pooling.dilation, op.pooling.window, strict=True)]
    assume(all(size >= one for size, one in zip(middle.shape[2:], reach, strict=True)))
    if residual:
        op = replace(op, convolution=replace(op.convolution, epilogue=RESIDUAL_RELU))
        inputs += [random.normal(size=(2 * groups, 1, 1)).astype(dtype), random.normal(size=middle.shape).astype(dtype)]
    ran = check(op, inputs, (1,))
    assert "cpu.conv.pool" in ran


@pytest.mark.parametrize("kind", ["max", "average"])
def test_it_means_one_layer_after_the_other(kind: str) -> None:
    convolution = Convolution((2, 2), (3, 3), (3, 3), (1, 1), epilogue=apply("relu", IDENTITY))
    pooling = Pooling(kind, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    random = np.random.default_rng(1)
    x, weights = (random.normal(size=shape).astype(np.float16) for shape in ((1, 3, 20, 18), (4, 3, 7, 7)))
    (found,) = ConvolutionPooling(convolution, pooling).evaluate([x, weights])
    assert found.shape == (1, 4, 5, 5)
    np.testing.assert_array_equal(found, pooling.evaluate(convolution.evaluate([x, weights]))[0])
