"""Products of float64 and wide integers on the CPU harness."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import Op, TensorType
from fusion.ops import Attention, Convolution, Deconvolution, MatrixMultiply
from tactics.cuda.plain.products import PlainAttention, PlainConvolution, PlainDeconvolution, PlainMatmul
from tactics.tactic import Tactic, Workload
from tests.harness.fiber import available, check

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
BIAS_RELU = apply("relu", apply("add", Operand(0), Operand(1)))


def run(tactic: Tactic, op: Op, *inputs: np.ndarray) -> None:
    types = tuple(TensorType(DataType(array.dtype.name), array.shape) for array in inputs)
    check(tactic, Workload(op, types, op.infer(types)), list(inputs), op.evaluate(inputs))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def integers(*shape: int, dtype: type = np.int32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-50, 50, shape).astype(dtype)


@pytest.mark.parametrize(("a", "b"), [(False, False), (True, True)])
def test_matmul_of_doubles(a: bool, b: bool) -> None:
    left, right = normal(3, 1, 4, 5), normal(2, 5, 6, seed=1)
    inputs = (left.swapaxes(-1, -2).copy() if a else left, right.swapaxes(-1, -2).copy() if b else right, normal(6, seed=2))
    run(PlainMatmul(), MatrixMultiply(a, b, BIAS_RELU), *inputs)


def test_matmul_of_integers() -> None:
    run(PlainMatmul(), MatrixMultiply(), integers(4, 7), integers(7, 5, seed=1))
    run(PlainMatmul(), MatrixMultiply(), integers(2, 4, 7, dtype=np.int64), integers(7, 5, dtype=np.int64, seed=1))


@pytest.mark.parametrize("last", [False, True])
def test_convolution(last: bool) -> None:
    op = Convolution((2, 1), (1, 0), (0, 1), (1, 2), 2, last, BIAS_RELU)
    x = normal(2, 5, 6, 4) if last else normal(2, 4, 5, 6)
    bias = normal(6, seed=2) if last else normal(6, 1, 1, seed=2)
    run(PlainConvolution(), op, x, normal(6, 2, 3, 2, seed=1), bias)


def test_convolution_of_integers() -> None:
    run(PlainConvolution(), Convolution((1,), (1,), (1,), (1,)), integers(1, 2, 6), integers(3, 2, 3, seed=1))


@pytest.mark.parametrize("last", [False, True])
def test_transposed_convolution(last: bool) -> None:
    op = Deconvolution((2, 1), (1, -2), (-3, 1), (1, 2), (1, 0), 2, last, BIAS_RELU)
    x = normal(2, 5, 6, 4) if last else normal(2, 4, 5, 6)
    bias = normal(6, seed=2) if last else normal(6, 1, 1, seed=2)
    run(PlainDeconvolution(), op, x, normal(4, 3, 3, 2, seed=1), bias)
    if not last:
        run(PlainDeconvolution(), Deconvolution((3,), (0,), (0,), (1,), (0,)), integers(1, 2, 6), integers(2, 3, 2, seed=1))


@pytest.mark.parametrize(
    "op",
    [
        Attention(0.5, causal=True),
        Attention(0.5, masked=True, layouts=("bshd", "bhsd", "bhsd", "bshd")),
        Attention(0.5, layouts=("bshd",) * 4, parts=((0, 0, 4), (0, 4, 2), (0, 6, 2)), softcap=1.5, window=2),
    ],
)
def test_attention(op: Attention) -> None:
    if op.parts:
        return run(PlainAttention(), op, normal(2, 3, 8, 5))
    q = normal(2, 3, 4, 5) if op.layouts[0] == "bshd" else normal(2, 4, 3, 5)
    mask = normal(1, 1, 3, 6, seed=3) > -0.5
    mask[0, 0, 1] = False
    return run(PlainAttention(), op, q, normal(2, 2, 6, 5, seed=1), normal(2, 2, 6, 7, seed=2), *([mask] if op.masked else []))
