"""The kernel that convolves and pools, on the CPU harness, against the operation's NumPy meaning."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import TensorType
from fusion.ops import Convolution, ConvolutionPooling, Pooling
from tactics.cuda.conv.pooled_conv import PooledConvolution, PooledMma
from tactics.tactic import Refusal, Tactic, Workload
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, available, check, close, run_plan

harness = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
BIAS_RESIDUAL_RELU = apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2)))
BIAS_RELU = apply("relu", apply("add", Operand(0), Operand(1)))
MAX = Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True)
LIMITS = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-3}  # fp32 products on tensor cores round both operands to 10 bits
CASES = {
    "stem": (Convolution((2, 2), (3, 3), (3, 3), (1, 1), 1, True, BIAS_RELU, False), MAX, (2, 3, 23, 19), 24, 7, DataType.HALF),
    "vgg": (Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, True, BIAS_RELU),
            replace(MAX, window=(2, 2), pre_padding=(0, 0), post_padding=(0, 0)), (1, 11, 9, 8), 72, 3, DataType.FLOAT),
    "residual": (Convolution((1, 2), (0, 1), (1, 0), (2, 1), 1, True, BIAS_RESIDUAL_RELU), MAX, (2, 12, 15, 5), 7, 3, DataType.BF16),
    "average": (Convolution((1, 1), (1, 1), (1, 1), (1, 1), 3, True, BIAS_RELU),
                Pooling("average", (3, 2), (2, 1), (1, 0), (0, 1), (1, 2), True, channels_last=True), (1, 8, 9, 12), 18, 3, DataType.FLOAT),
    "whole image": (Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True, BIAS_RESIDUAL_RELU),
                    Pooling("average", (5, 7), (1, 1), (0, 0), (0, 0), (1, 1), channels_last=True), (3, 5, 7, 24), 40, 1, DataType.HALF),
    "padding counts": (Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True),
                       Pooling("average", (3, 3), (2, 3), (1, 1), (1, 0), (1, 1), True, True, channels_last=True), (2, 7, 8, 4), 65, 1,
                       DataType.HALF),
}  # fmt: skip


def case(name: str, poison: bool = False) -> tuple[Workload, list[np.ndarray], tuple[np.ndarray, ...]]:
    convolution, pooling, shape, out, window, dtype = CASES[name]
    channels = shape[1] if convolution.input_channels_last is False else shape[-1]
    shapes = [shape, (out, channels // convolution.groups, window, window)]
    if convolution.epilogue != Operand(0):
        shapes.append((out,))
    if convolution.epilogue == BIAS_RESIDUAL_RELU:
        bare = replace(convolution, epilogue=Operand(0))
        shapes.append(bare.infer([TensorType(dtype, one) for one in shapes[:2]])[0].shape)  # type: ignore[arg-type]
    random = np.random.default_rng(5)
    inputs = [random.normal(size=one) for one in shapes]
    inputs[1] *= math.prod(shapes[1][1:]) ** -0.5
    if poison:
        inputs[0][0, 2, 2] = np.nan
    inputs = [one.astype(dtype.numpy) for one in inputs]
    types = tuple(TensorType(dtype, one.shape) for one in inputs)
    op = ConvolutionPooling(convolution, pooling)
    return Workload(op, types, op.infer(types), (False, True, True, False)[: len(inputs)]), inputs, op.evaluate(inputs)


@harness
@pytest.mark.parametrize("name", CASES)
def test_it_convolves_and_pools(name: str) -> None:
    workload, inputs, expected = case(name)
    check(PooledConvolution(), workload, inputs, expected, configs=2)


@harness
@pytest.mark.parametrize("name", CASES)
def test_it_multiplies_on_tensor_cores(name: str) -> None:
    workload, inputs, expected = case(name)
    tactic = PooledMma()
    assert tactic.supports(workload, A100) is None
    configs = tactic.configs(workload, A100)
    for one in (configs[0], configs[-1]) if name == "stem" else configs[:1]:
        plan = emulated(tactic.plan(workload, one, A100))
        (result,) = run_plan(plan, inputs, workload.outputs, tactic.prepare(workload, one, {1: inputs[1]}))
        close(result, expected[0], str(dict(one)), LIMITS)


@harness
def test_nan_wins_a_maximum() -> None:
    workload, inputs, expected = case("vgg", poison=True)
    assert np.isnan(expected[0]).any() and not np.isnan(expected[0]).all()
    check(PooledConvolution(), workload, inputs, expected, configs=1)


def test_it_refuses_what_it_does_not_compute() -> None:
    workload, *_ = case("vgg")
    op = workload.op
    assert isinstance(op, ConvolutionPooling)
    others = (
        (replace(workload, op=replace(op, pooling=replace(op.pooling, kind="lp"))), "maximum or average"),
        (replace(workload, constant=()), "not constant"),
        (replace(workload, op=replace(op, pooling=replace(op.pooling, window=(60, 60)))), "shared memory"),
    )
    for other, reason in others:
        refusal = PooledConvolution().supports(other, A100)
        assert isinstance(refusal, Refusal) and reason in refusal.reason


@pytest.mark.gpu
@pytest.mark.parametrize("tactic", [PooledConvolution(), PooledMma()], ids=lambda one: one.id)
@pytest.mark.parametrize("name", CASES)
def test_on_the_gpu(name: str, tactic: Tactic) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    workload, inputs, expected = case(name)
    device = open_device("0").spec
    for one in tactic.configs(workload, device):
        packed = tactic.prepare(workload, one, {1: inputs[1]})
        (result,) = run_on_gpu(tactic.plan(workload, one, device), inputs, workload.outputs, packed)
        close(result, expected[0], str(dict(one)), LIMITS if tactic.id.endswith("mma") else None)
