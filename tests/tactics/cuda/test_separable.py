"""Depthwise and pointwise convolution in one kernel, on the CPU harness (tensor cores emulated) and on the GPU, against NumPy in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import Convolution, SeparableConvolution
from tactics.cuda.conv.separable import MmaSeparable, SimtSeparable
from tactics.tactic import Config, Refusal, Tactic, Workload, config
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, available, close, run_plan

harness = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
FLOAT, HALF, BF16, INT8, UINT8 = DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT8, DataType.UINT8
LIMITS = {INT8: (-128.0, 127.0), UINT8: (0.0, 255.0)}


def real(dtype: DataType, activation: str, residual: bool = False, correction: bool = False) -> Expression:
    """``activation(sum * operand 1 + operand 2 [+ operand 3])``; integers first lose operand 3 or 4, an int32 correction."""
    total: Expression = Operand(0)
    if not dtype.is_float:
        total = Convert(FLOAT, apply("sub", total, Operand(4 if residual else 3)) if correction else total)
    result = apply("add", apply("mul", total, Operand(1)), Operand(2))
    if residual:
        result = apply("add", result, Operand(3))
    if activation == "relu6":
        return apply("clip", result, Literal(0.0, FLOAT), Literal(6.0, FLOAT))
    if activation == "swish":
        return apply("swish", result, Literal(1.0, FLOAT))
    return apply(activation, result) if activation else result


def stored(expression: Expression, kind: DataType, step: float) -> Expression:
    """``expression`` rounded to ``kind``, integers in units of ``step``."""
    if kind not in LIMITS:
        return Convert(kind, expression)
    return Convert(kind, apply("clip", apply("round", apply("div", expression, Literal(step, FLOAT))), *(Literal(one, FLOAT) for one in LIMITS[kind])))


def made(x: tuple[int, ...], out: int, window: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int], kinds: tuple[DataType, DataType, DataType],
         dilation: tuple[int, int] = (1, 1), activation: str = "relu6", residual: bool = False, correction: bool = False, plain: bool = False, seed: int = 3):  # fmt: skip
    """(workload, inputs, expected); ``kinds`` are those of x, of what lies between and of the output. ``correction``: per place, as zero points
    make them; ``plain``: no epilogues."""
    random, (first, middle, last) = np.random.default_rng(seed), kinds
    channels = x[-1]
    weights = first if first.is_float else INT8

    def numbers(shape: tuple[int, ...], kind: DataType, scale: float = 1.0) -> np.ndarray:
        if kind.is_float:
            return (random.standard_normal(shape) * scale).astype(kind.numpy)
        low, high = (0, 256) if kind is UINT8 else (-128, 128)
        return random.integers(low, high, shape).astype(kind.numpy)

    depthwise = Convolution(stride, pad, pad, dilation, channels, True)
    pointwise = Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True)
    inputs = [numbers(x, first), numbers((channels, 1, *window), weights, 1 / math.prod(window) ** 0.5), numbers((out, channels, 1, 1), weights, channels**-0.5)]
    places = depthwise.infer([TensorType(first, x), TensorType(weights, inputs[1].shape)])[0].shape
    spread = 1.0 if first.is_float else (5000.0 if first is INT8 else 9000.0)
    operands = 0
    if not plain:
        extras = [(1 + random.random(channels)).astype(np.float32) / np.float32(spread * math.prod(window) ** 0.5), random.standard_normal(channels).astype(np.float32)]
        if correction:
            extras.append(random.integers(-900, 900, (*places[1:3], channels)).astype(np.int32))
        operands = len(extras)
        wide = 1.0 if first.is_float else 2500.0
        extras += [(1 + random.random(out)).astype(np.float32) / np.float32(wide * channels**0.5), random.standard_normal(out).astype(np.float32)]
        if residual:
            extras.append(numbers((*places[:3], out), last))
        inputs += extras
        after: Expression = real(middle, "", residual)
        if residual and last in LIMITS:  # dequantised
            after = apply("add", real(middle, ""), apply("mul", Convert(FLOAT, Operand(3)), Literal(0.02, FLOAT)))
        depthwise = replace(depthwise, epilogue=stored(real(first, activation, correction=correction), middle, 6 / 255 if middle is UINT8 else 0.05))
        pointwise = replace(pointwise, epilogue=stored(after, last, 0.05))
    op = SeparableConvolution(depthwise, pointwise, operands)
    types = tuple(TensorType(DataType(one.dtype.name), one.shape) for one in inputs)
    constant = tuple(0 < number < len(inputs) - residual for number in range(len(inputs)))
    return Workload(op, types, op.infer(types), constant), inputs, op.evaluate(inputs)


CASES = {
    "int8": made((2, 5, 6, 80), 24, (3, 3), (1, 1), (1, 1), (INT8, INT8, INT8), residual=True),
    "uint8 between": made((1, 9, 7, 48), 40, (3, 3), (2, 2), (1, 1), (INT8, UINT8, INT8)),
    "zero points": made((2, 5, 6, 16), 17, (5, 5), (1, 1), (2, 2), (UINT8, UINT8, FLOAT), correction=True),
    "odd channels": made((1, 6, 7, 21), 10, (3, 3), (1, 2), (0, 1), (INT8, INT8, HALF), dilation=(2, 1)),
    "fp16": made((2, 4, 6, 40), 24, (3, 3), (1, 1), (1, 1), (HALF, HALF, HALF), residual=True),
    "fp16 wide": made((1, 5, 4, 24), 130, (5, 5), (2, 2), (2, 2), (HALF, HALF, HALF), activation="swish"),
    "bf16 without epilogues": made((1, 5, 5, 36), 33, (3, 3), (1, 1), (1, 1), (BF16, BF16, BF16), plain=True),
    "fp16 odd": made((1, 5, 6, 19), 9, (3, 2), (2, 1), (1, 1), (HALF, HALF, HALF)),
}  # fmt: skip


def compare(got: np.ndarray, expected: np.ndarray, label: str, kind: DataType) -> None:
    """A quantised value between two steps may go to the other one, there and in the result; else within the limit of the type."""
    if expected.dtype.kind in "iu":
        steps = np.abs(got.astype(int) - expected.astype(int))
        assert steps.max(initial=0) <= 1 and np.count_nonzero(steps) <= 1 + steps.size // 200, (label, steps.max(initial=0), np.count_nonzero(steps), steps.size)
        assert len(np.unique(expected)) > 3 or expected.size < 20
    else:
        close(got, expected, label, {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-5 if kind.is_float else 1e-3})


def run(tactic: Tactic, workload: Workload, inputs: list[np.ndarray], one: Config) -> np.ndarray:
    plan = emulated(tactic.plan(workload, one, A100))
    (result,) = run_plan(plan, inputs, workload.outputs, tactic.prepare(workload, one, {1: inputs[1], 2: inputs[2]}))
    return result


@harness
@pytest.mark.parametrize("name", ["int8", "odd channels", "fp16 odd"])
def test_reference(name: str) -> None:
    workload, inputs, expected = CASES[name]
    assert SimtSeparable().supports(workload, A100) is None
    compare(run(SimtSeparable(), workload, inputs, ()), expected[0], name, workload.inputs[0].dtype)


@harness
def test_float32_on_the_ordinary_cores() -> None:
    workload, inputs, expected = made((1, 6, 7, 21), 10, (3, 3), (1, 2), (0, 1), (FLOAT, FLOAT, FLOAT), residual=True)
    compare(run(SimtSeparable(), workload, inputs, ()), expected[0], "float32", FLOAT)
    refusal = MmaSeparable().supports(workload, A100)
    assert isinstance(refusal, Refusal) and "TF32" in refusal.reason


@harness
@pytest.mark.parametrize("name", ["int8", "zero points", "odd channels", "fp16", "fp16 odd"])
def test_on_tensor_cores(name: str) -> None:
    workload, inputs, expected = CASES[name]
    tactic = MmaSeparable()
    assert tactic.supports(workload, A100) is None
    one = tactic.configs(workload, A100)[0]
    compare(run(tactic, workload, inputs, one), expected[0], f"{name} {dict(one)}", workload.inputs[0].dtype)


@harness
@given(st.integers(1, 2), st.integers(1, 6), st.integers(1, 10), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=6, deadline=None)
def test_any_size_with_one_kernel(batch: int, height: int, width: int, groups: int, columns: int) -> None:
    """Images, channels and columns are arguments: tiles hang over every edge, stages over the last channels."""
    workload, inputs, expected = made((batch, height, width, 16 * groups), 8 * columns, (3, 3), (1, 1), (1, 1), (INT8, INT8, INT8), correction=True)
    one = config(bm=32, bn=32, bk=64, warps_m=2, warps_n=2, warps_k=1, stages=3, splits=1, cluster=0, tile_y=3, tile_x=8)
    compare(run(MmaSeparable(), workload, inputs, one), expected[0], str(workload.inputs[0].shape), INT8)


def test_it_refuses_what_it_does_not_compute() -> None:
    workload, *_ = CASES["int8"]
    op = workload.op
    assert isinstance(op, SeparableConvolution)
    others = (
        (replace(workload, constant=()), "not constant"),
        (replace(workload, op=replace(op, pointwise=replace(op.pointwise, stride=(2, 2)))), "no depthwise and 1x1"),
        (replace(workload, inputs=(replace(workload.inputs[0], dtype=HALF), *workload.inputs[1:])), "8-bit integers with INT8 weights"),
    )
    for other, reason in others:
        refusal = MmaSeparable().supports(other, A100)
        assert isinstance(refusal, Refusal) and reason in refusal.reason
    tiny = replace(A100, shared_memory=2048)
    refusal = MmaSeparable().supports(workload, tiny)
    assert isinstance(refusal, Refusal) and "shared memory" in refusal.reason


@pytest.mark.gpu
@pytest.mark.parametrize("tactic", [SimtSeparable(), MmaSeparable()], ids=lambda one: one.id)
@pytest.mark.parametrize("name", CASES)
def test_on_the_gpu(name: str, tactic: Tactic) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    workload, inputs, expected = CASES[name]
    device = open_device("0").spec
    configs = list(tactic.configs(workload, device))
    split = [one for one in (tactic.ranked(workload, device) if isinstance(tactic, MmaSeparable) else []) if dict(one)["splits"] > 1]
    for one in (*configs[:4], configs[-1], *split[:1]):
        packed = tactic.prepare(workload, one, {1: inputs[1], 2: inputs[2]})
        (result,) = run_on_gpu(tactic.plan(workload, one, device), inputs, workload.outputs, packed)
        compare(result, expected[0], f"{name} {dict(one)}", workload.inputs[0].dtype)
