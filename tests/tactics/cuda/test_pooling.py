"""Pooling kernels on the CPU harness against the operation's NumPy meaning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Convert, Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import Pooling
from tactics.cuda.pooling.pooling import GlobalPooling, WindowPooling
from tactics.tactic import Refusal, Workload
from tests.harness.fiber import A100, available, check

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
MAX = Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True)


def run(tactic, op: Pooling, shape: tuple[int, ...], dtype: DataType = DataType.FLOAT, extras: tuple[tuple[int, ...], ...] = (),
        configs: int = 4) -> None:  # fmt: skip
    generator = np.random.default_rng(1)
    types = tuple(TensorType(dtype, one) for one in (shape, *extras))
    arrays = [(generator.normal(size=one) * 3).astype(dtype.numpy) for one in (shape, *extras)]
    check(tactic, Workload(op, types, op.infer(types)), arrays, op.evaluate(arrays), configs=configs)


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.HALF, DataType.INT8], ids=lambda d: d.value)
def test_max_all_configurations(dtype: DataType) -> None:
    run(WindowPooling(), MAX, (2, 9, 11, 16), dtype)
    run(WindowPooling(), replace(MAX, channels_last=False), (2, 3, 9, 11), dtype)


@pytest.mark.parametrize("kind", ["average", "lp"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_kinds(kind: str, channels_last: bool) -> None:
    op = Pooling(kind, (3, 2), (2, 1), (1, 0), (1, 1), (1, 1), channels_last=channels_last)
    for one in (op, replace(op, count_include_pad=True), replace(op, ceil_mode=True), replace(op, p=3), replace(op, dilation=(2, 1))):
        run(WindowPooling(), one, (2, 9, 8, 6), configs=1)


@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_dimensions(axes: int) -> None:
    for channels_last in (False, True):
        op = Pooling("average", (3, 2, 2)[:axes], (2, 1, 2)[:axes], (1, 0, 1)[:axes], (0, 1, 0)[:axes], (1,) * axes, channels_last=channels_last)
        run(WindowPooling(), op, (2, 5, 6, 7, 4)[: axes + 2] if axes == 3 else (2, 17, 5), configs=1)


@settings(max_examples=25, deadline=None)
@given(h=st.integers(3, 14), w=st.integers(3, 14), k=st.integers(1, 3), s=st.integers(1, 3), pad=st.integers(0, 1), ceil=st.booleans(), count=st.booleans())
def test_any_window(h: int, w: int, k: int, s: int, pad: int, ceil: bool, count: bool) -> None:
    pad = min(pad, k - 1)
    op = Pooling("average", (k, k), (s, s), (pad, pad), (pad, pad), (1, 1), ceil, count)
    run(WindowPooling(), op, (1, 3, h, w), configs=1)


@pytest.mark.parametrize("kind", ["max", "average"])
def test_global(kind: str) -> None:
    for channels_last, shape in ((True, (3, 7, 7, 72)), (False, (3, 40, 7, 7))):
        op = Pooling(kind, (7, 7), (1, 1), (0, 0), (0, 0), (1, 1), channels_last=channels_last)
        run(GlobalPooling(), op, shape, DataType.HALF, configs=2)
        run(WindowPooling(), op, shape, configs=1)
    refusal = GlobalPooling().supports(Workload(MAX, (TensorType(DataType.FLOAT, (1, 7, 7, 8)),), (TensorType(DataType.FLOAT, (1, 4, 4, 8)),)), A100)
    assert isinstance(refusal, Refusal) and "whole image" in refusal.reason


def test_epilogue() -> None:
    op = replace(MAX, epilogue=apply("relu", apply("add", apply("mul", Operand(0), Operand(1)), Operand(2))))
    run(WindowPooling(), op, (2, 8, 8, 24), DataType.HALF, ((24,), (2, 4, 4, 24)), configs=2)
    first = replace(op, channels_last=False)
    run(WindowPooling(), first, (2, 5, 8, 8), DataType.FLOAT, ((5, 1, 1), (2, 5, 4, 4)), configs=1)


SWISH = apply("mul", apply("sigmoid", Operand(0)), apply("add", Operand(0), Literal(0.25, DataType.FLOAT)))  # not 0 at 0: padding must stay outside


@pytest.mark.parametrize("kind", ["max", "average", "lp"])
def test_prologue(kind: str) -> None:
    op = Pooling(kind, (3, 2), (3, 2), (1, 0), (1, 1), (1, 1), count_include_pad=True, prologue=SWISH)
    run(WindowPooling(), op, (2, 5, 8, 7), configs=1)
    run(WindowPooling(), replace(op, channels_last=True, count_include_pad=False, epilogue=apply("add", Operand(0), Operand(1))), (2, 8, 7, 24),
        DataType.HALF, ((24,),))  # fmt: skip
    run(WindowPooling(), replace(op, prologue=Convert(DataType.FLOAT, SWISH)), (2, 5, 8, 7), DataType.HALF, configs=1)


@pytest.mark.parametrize("kind", ["max", "average"])
def test_prologue_of_whole_images(kind: str) -> None:
    for channels_last, shape in ((True, (3, 7, 7, 72)), (False, (3, 40, 7, 7))):
        op = Pooling(kind, (7, 7), (1, 1), (0, 0), (0, 0), (1, 1), channels_last=channels_last, prologue=SWISH)
        run(GlobalPooling(), op, shape, DataType.HALF, configs=2)


def test_prologue_of_integers() -> None:
    run(WindowPooling(), replace(MAX, stride=(3, 3), prologue=apply("max", Operand(0), Literal(-1, DataType.INT8))), (2, 9, 11, 16), DataType.INT8)


def test_nan_wins_a_maximum() -> None:
    x = np.zeros((1, 4, 4, 2), np.float32)
    x[0, 1, 1, 0] = np.nan
    types = (TensorType(DataType.FLOAT, x.shape),)
    check(WindowPooling(), Workload(MAX, types, MAX.infer(types)), [x], MAX.evaluate([x]), configs=1)


@pytest.mark.parametrize("kind", ["max", "average"])
def test_prologue_with_operands_of_channels(kind: str) -> None:
    """Padding is not the logarithm of zero; every image has a factor of its own."""
    scaled = apply("add", apply("log", apply("abs", Operand(0))), apply("mul", Operand(1), Operand(2)))
    op = Pooling(kind, (3, 2), (3, 2), (1, 0), (1, 1), (1, 1), channels_last=True, prologue=scaled, epilogue=apply("add", Operand(0), Operand(1)), operands=2)
    run(WindowPooling(), op, (2, 8, 7, 24), DataType.HALF, ((24,), (24,), (2, 1, 1, 24)), configs=2)
    whole = Pooling(kind, (5, 7), (1, 1), (0, 0), (0, 0), (1, 1), channels_last=True, prologue=apply("relu", scaled), operands=2)
    run(WindowPooling(), whole, (2, 5, 7, 12), DataType.FLOAT, ((12,), (1, 1, 1, 12)), configs=1)
    for tactic in (GlobalPooling(), WindowPooling()):
        types = tuple(TensorType(DataType.FLOAT, shape) for shape in ((2, 12, 5, 7), (12, 1, 1), (12, 1, 1)))
        first = replace(whole, channels_last=False)
        refusal = tactic.supports(Workload(first, types, first.infer(types)), A100)
        assert isinstance(refusal, Refusal) and "further tensors" in refusal.reason


@pytest.mark.parametrize("kind", ["average", "max"])
def test_prologue_that_dequantises(kind: str) -> None:
    real = apply("mul", Convert(DataType.FLOAT, Operand(0)), Literal(0.05, DataType.FLOAT))
    for channels_last, shape in ((True, (2, 7, 7, 32)), (False, (2, 12, 7, 7))):
        op = Pooling(kind, (7, 7), (1, 1), (0, 0), (0, 0), (1, 1), channels_last=channels_last, prologue=real)
        run(GlobalPooling(), op, shape, DataType.INT8, configs=1)
        run(WindowPooling(), replace(op, window=(3, 3), stride=(3, 3), pre_padding=(1, 1), post_padding=(1, 1)), shape, DataType.INT8, configs=1)
