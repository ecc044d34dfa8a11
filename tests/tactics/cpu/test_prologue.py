"""Products of a function of their first operand on the CPU: the meaning, and what the two layers compute one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Convert, Operand, apply
from fusion.ops import Convolution, MatrixMultiply, Pointwise, PrologueProduct
from tactics.cpu import prologue
from tactics.cpu.prologue import PrologueBlocks
from tactics.tactic import Refusal
from tests.tactics.cpu.conftest import DEVICE, workload_of

X, Y, Z = Operand(0), Operand(1), Operand(2)
BIAS_RESIDUAL = apply("add", apply("add", X, Y), Z)
SCALED = apply("relu", apply("add", apply("mul", X, Y), Z))
small = st.integers(1, 3)


def arrays(dtype: type, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(2)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


@given(st.lists(small, max_size=2).map(tuple), st.integers(1, 40), small, st.integers(1, 7), st.booleans(), st.booleans(), st.integers(0, 4),
       st.sampled_from([np.float32, np.float64]))  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_rows(check, lead, rows, depth, columns, batched, transposed, kind, dtype) -> None:
    x, out = (*lead, rows, depth), (*lead, rows, columns)
    right = (*(lead if batched else ()), *((columns, depth) if transposed else (depth, columns)))
    others = [((depth,), (1, depth)), (x, (depth,)), ((*lead, rows, 1), (1,)), ((*lead, 1, depth), (rows, depth)), (x, x)][kind]
    inputs = arrays(dtype, x, right, (columns,), out, *others)
    before, prologue.BLOCKS = prologue.BLOCKS, (1, 64)  # many pieces
    try:
        assert "cpu.gemm.prologue" in check(PrologueProduct(MatrixMultiply(False, transposed, BIAS_RESIDUAL), SCALED, 2), inputs)
    finally:
        prologue.BLOCKS = before


@given(small, small, st.tuples(st.integers(1, 9), st.integers(1, 9)), small, st.integers(0, 4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_pixels(check, batch, channels, spatial, out, kind, narrow) -> None:
    x = (batch, channels, *spatial)
    others = [((channels, 1, 1), (1, channels, 1, 1)), ((batch, channels, 1, 1), (1,)), ((batch, 1, *spatial), (channels, 1, 1)), (spatial, x), ((1, spatial[1]), x)][kind]
    epilogue = Convert(DataType.HALF, BIAS_RESIDUAL) if narrow else BIAS_RESIDUAL
    op = PrologueProduct(Convolution((1, 1), (0, 0), (0, 0), (1, 1), epilogue=epilogue), SCALED, 2)
    inputs = arrays(np.float32, x, (out, channels, 1, 1), (out, 1, 1), (batch, out, *spatial), *others)
    before, prologue.BLOCKS = prologue.BLOCKS, (1, 64)
    try:
        assert "cpu.gemm.prologue" in check(op, inputs)
    finally:
        prologue.BLOCKS = before


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_it_means_one_layer_after_the_other(dtype: type) -> None:
    x, b, bias, scale, shift = arrays(dtype, (2, 5, 8), (8, 3), (3,), (8,), (8,))
    product = MatrixMultiply(epilogue=apply("add", X, Y))
    (middle,) = Pointwise(SCALED).evaluate([x, scale, shift])
    (found,) = PrologueProduct(product, SCALED, 2).evaluate([x, b, bias, scale, shift])
    np.testing.assert_array_equal(found, product.evaluate([middle, b, bias])[0])


def test_refusals() -> None:
    plain = Convolution((1, 1), (0, 0), (0, 0), (1, 1))
    for op, shapes, dtype, text in (
        (PrologueProduct(MatrixMultiply(), apply("relu", X)), ((4, 8), (8, 3)), np.float16, "FP16"),
        (PrologueProduct(MatrixMultiply(True), apply("relu", X)), ((8, 4), (8, 3)), np.float32, "[K, M]"),
        (PrologueProduct(MatrixMultiply(), apply("relu", X)), ((4, 8), (2, 8, 3)), np.float32, "repeated"),
        (PrologueProduct(plain, apply("relu", X)), ((1, 3, 6, 6), (2, 3, 3, 3)), np.float32, "1x1"),
        (PrologueProduct(plain, apply("relu", X)), ((0, 3, 6, 6), (2, 3, 1, 1)), np.float32, "empty"),
    ):
        refusal = PrologueBlocks().supports(workload_of(op, arrays(dtype, *shapes)), DEVICE)
        assert isinstance(refusal, Refusal) and text in refusal.reason, refusal
