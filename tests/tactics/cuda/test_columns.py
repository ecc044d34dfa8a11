"""Kernels whose inputs, operands and outputs are columns of wider tensors: channels of a channels-last image that others share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import Op, TensorType
from fusion.ops import (
    Concatenation,
    Convolution,
    ConvolutionPooling,
    Deconvolution,
    GroupNormalization,
    MatrixMultiply,
    Normalization,
    Padding,
    Pointwise,
    Pooling,
    PrologueProduct,
    Reduce,
    Resize,
    SeparableConvolution,
    Shuffle,
    Slice,
    Softmax,
)
from tactics.compiler import compile_cubin, cuda_include_paths
from tactics.registry import tactic, tactics
from tactics.tactic import Tactic, Workload, refusal
from tests.harness.columns import apart, check_columns
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, H100, available, run_plan

F16, F32 = DataType.HALF, DataType.FLOAT
X, Y, Z = Operand(0), Operand(1), Operand(2)
BIAS_RESIDUAL = apply("relu", apply("add", apply("add", X, Y), Z))
IMAGE = (2, 6, 5, 16)


def _convolution(channels: int, taps: int, **fields: object) -> Op:
    pad = taps // 2
    return Convolution(
        **{"stride": (1, 1), "pre_padding": (pad, pad), "post_padding": (pad, pad), "dilation": (1, 1), "groups": 1, "channels_last": True,
           "epilogue": BIAS_RESIDUAL, **fields}  # type: ignore[arg-type]
    )  # fmt: skip


def _case(op: Op, *shapes: tuple[int, ...], dtype: DataType = F32, constant: tuple[int, ...] = ()) -> Workload:
    inputs = tuple(TensorType(dtype, shape) for shape in shapes)
    return Workload(op, inputs, op.infer(inputs), tuple(number in constant for number in range(len(inputs))))


# name -> (tactics that must serve it, workload, tensors that are columns)
CASES: dict[str, tuple[tuple[str, ...], Workload, tuple[int, ...]]] = {
    "3x3": (("conv.simt", "conv.mma", "conv.sm90"), _case(_convolution(16, 3), IMAGE, (24, 16, 3, 3), (24,), (2, 6, 5, 24), constant=(1, 2)), (0, 3, 4)),
    "1x1": (("conv.simt", "conv.mma", "conv.sm90"), _case(_convolution(16, 1), IMAGE, (40, 16, 1, 1), (40,), (2, 6, 5, 40), constant=(1, 2)), (0, 3, 4)),
    "strided": (
        ("conv.simt", "conv.mma", "conv.sm90"),
        _case(_convolution(16, 2, stride=(2, 2), pre_padding=(0, 0), post_padding=(0, 0), epilogue=X), (1, 6, 8, 16), (8, 16, 2, 2), constant=(1,)),
        (0, 2),
    ),
    "groups": (("conv.simt", "conv.mma"), _case(_convolution(16, 3, groups=4, epilogue=X), IMAGE, (16, 4, 3, 3), constant=(1,)), (0, 2)),
    "depthwise": (
        ("conv.depthwise", "conv.simt", "conv.mma"),
        _case(_convolution(16, 3, groups=16), IMAGE, (16, 1, 3, 3), (16,), IMAGE, constant=(1, 2)),
        (0, 3, 4),
    ),
    "large depthwise": (("conv.depthwise.mma",), _case(_convolution(16, 7, groups=16), IMAGE, (16, 1, 7, 7), (16,), IMAGE, constant=(1, 2)), (0, 3, 4)),
    "transposed": (
        ("conv.simt", "conv.mma"),
        _case(Deconvolution((2, 2), (0, 0), (0, 0), (1, 1), (0, 0), 1, channels_last=True), IMAGE, (16, 8, 2, 2), constant=(1,)),
        (0, 2),
    ),
    "product": (
        ("gemm.simt", "gemm.mma", "gemm.sm90"),
        _case(MatrixMultiply(False, True, apply("add", X, Y)), (3, 7, 16), (24, 16), (3, 7, 24), constant=(1,)),
        (0, 2, 3),
    ),
    "prologue": (
        ("prologue.simt", "prologue.mma", "prologue.sm90"),
        _case(PrologueProduct(MatrixMultiply(False, True, apply("add", X, Y)), apply("relu", apply("mul", X, Y)), 1), (3, 7, 16), (24, 16), (3, 7, 24), (3, 7, 16), constant=(1,)),
        (0, 2, 3, 4),
    ),
    "prologue of 1x1": (
        ("prologue.simt", "prologue.mma", "prologue.sm90"),
        _case(PrologueProduct(_convolution(16, 1), apply("relu", apply("mul", X, Y)), 1), IMAGE, (40, 16, 1, 1), (40,), (2, 6, 5, 40), (16,), constant=(1, 2, 4)),
        (0, 3, 5),
    ),
    "batched": (("gemm.simt", "gemm.mma", "gemm.sm90"), _case(MatrixMultiply(False, True), (3, 7, 16), (3, 24, 16)), (0, 2)),
    "maximum": (("pooling.window",), _case(Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True), IMAGE), (0, 1)),
    "average": (("pooling.window",), _case(Pooling("average", (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), channels_last=True), IMAGE), (0, 1)),
    "whole": (("pooling.global",), _case(Pooling("average", (6, 5), (1, 1), (0, 0), (0, 0), (1, 1), channels_last=True), IMAGE), (0, 1)),
    "mean": (("reduce.columns",), _case(Reduce("mean", (1, 2), False), IMAGE), (0, 1)),
    "convolution and pooling": (
        ("conv.pooled", "conv.pooled.mma"),
        _case(
            ConvolutionPooling(_convolution(16, 3, epilogue=apply("relu", apply("add", X, Y))),
                               Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True)),
            IMAGE, (24, 16, 3, 3), (24,), constant=(1, 2),
        ),
        (0, 3),
    ),
    "depthwise-separable": (
        ("conv.separable", "conv.separable.mma"),
        _case(SeparableConvolution(_convolution(16, 3, groups=16, epilogue=apply("relu", apply("add", X, Y))), _convolution(16, 1), 1),
              IMAGE, (16, 1, 3, 3), (24, 16, 1, 1), (16,), (24,), (2, 6, 5, 24), constant=(1, 2, 3, 4), dtype=F16),
        (0, 5, 6),
    ),
    "softmax": (("softmax.row",), _case(Softmax(2, epilogue=apply("add", X, Y)), (3, 7, 24), (3, 7, 24)), (0, 1, 2)),
    "row normalisation": (
        ("normalization.row",),
        _case(Normalization((2,), 1e-5, True, apply("add", apply("mul", X, Y), Z)), (3, 7, 24), (24,), (3, 7, 24), constant=(1,)),
        (0, 2, 3),
    ),
    "group normalisation": (
        ("normalization.strided",),
        _case(GroupNormalization(4, 1e-5, True, apply("relu", apply("add", apply("mul", X, Y), Z))), IMAGE, (16,), (16,)),
        (0, 3),
    ),
    "large groups": (("normalization.cluster", "normalization.split", "normalization.strided"), _case(GroupNormalization(2, 1e-5, True, apply("add", X, Y)), (1, 24, 24, 16), (1, 24, 24, 16)), (0, 1, 2)),
    "pointwise": (
        ("pointwise.broadcast",),
        _case(Pointwise(apply("relu", apply("add", apply("mul", X, Y), Z))), IMAGE, (16,), (2, 1, 1, 16)),
        (0, 3),
    ),
    "pointwise operands": (("pointwise.broadcast",), _case(Pointwise(apply("add", X, apply("mul", Y, Z))), IMAGE, IMAGE, (2, 6, 5, 1)), (0, 1, 3)),
    "transpose": (("shuffle.tiled", "shuffle.strided"), _case(Shuffle((0, 3, 1, 2)), IMAGE), (0,)),
    "transpose back": (("shuffle.tiled", "shuffle.strided"), _case(Shuffle((0, 2, 3, 1)), (2, 16, 6, 5)), (1,)),
    "reshape": (("shuffle.strided",), _case(Shuffle(reshape=(2, 480)), IMAGE), (0,)),
    "anchors": (("shuffle.strided",), _case(Shuffle(reshape=(2, 30, 2, 8), second=(0, 2, 1, 3)), IMAGE), (0,)),
    "anchors first": (("shuffle.tiled", "shuffle.strided"), _case(Shuffle(reshape=(2, 6, 5, 2, 8), second=(0, 3, 4, 1, 2)), IMAGE), (0,)),
    "anchors last": (("shuffle.strided",), _case(Shuffle((0, 3, 1, 2), (2, 2, 8, 30), (0, 1, 3, 2)), (2, 6, 5, 16)), (0,)),
    "concatenation": (("shuffle.concatenate",), _case(Concatenation(3), IMAGE, (2, 6, 5, 8), IMAGE), (0, 2, 3)),
    "rows": (("shuffle.pad_rows",), _case(Padding((0, 0, 0, 0), (0, 0, 0, 4)), IMAGE), (0,)),
    "slice": (("shuffle.movement",), _case(Slice((0, 1, 0, 4), (2, 4, 5, 8), (1, 1, 1, 1)), IMAGE), (0, 1)),
    "nearest": (("resize.axes",), _case(Resize((2, 12, 10, 16), (1.0, 2.0, 2.0, 1.0)), IMAGE), (0, 1)),
    "linear": (("resize.axes",), _case(Resize((2, 12, 5, 16), (1.0, 2.0, 1.0, 1.0), "linear"), IMAGE), (0, 1)),
}  # fmt: skip
SERVED = [(name, f"cuda.{short}") for name, (shorts, _, _) in CASES.items() for short in shorts]


# On the CPU, whole networks (tests/test_views_in_networks.py) run these kernels, or others here differ in numbers only.
GPU_ONLY = {"1x1", "prologue of 1x1", "strided", "average", "mean", "nearest", "linear", "transpose", "transpose back", "reshape", "pointwise operands"}


def _inputs(workload: Workload) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.uniform(-1, 1, kind.shape).astype(kind.dtype.numpy) for kind in workload.inputs]  # type: ignore[arg-type]


def _typed(workload: Workload, dtype: DataType) -> Workload:
    inputs = tuple(replace(kind, dtype=dtype) for kind in workload.inputs)
    return replace(workload, inputs=inputs, outputs=workload.op.infer(inputs))


def _on_cpu(one: Tactic) -> bool:
    return "sm90" not in one.id


@pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
@pytest.mark.parametrize(("name", "which"), [pair for pair in SERVED if "sm90" not in pair[1] and pair[0] not in GPU_ONLY])
def test_columns_in_the_harness(name, which):
    one, (_, workload, numbers) = tactic(which), CASES[name]
    workload = workload if one.supports(workload, A100) is None else _typed(workload, F16)
    tolerance = {"float32": 2e-3} if ".mma" in which else None  # TF32

    def run(plan, inputs, outputs, packed):
        return run_plan(emulated(plan) if ".mma" in which else plan, inputs, outputs, packed)

    check_columns(one, workload, numbers, _inputs(workload), run, A100, configs=1, tolerance=tolerance)


def test_dense_workloads_have_the_kernels_that_they_had():
    """A pitch is a define: where there is none, none stands there."""
    for shorts, workload, _ in CASES.values():
        for short in shorts:
            one = tactic(f"cuda.{short}")
            dense = workload if one.supports(workload, H100) is None else _typed(workload, F16)
            plan = one.plan(dense, one.configs(dense, H100)[0], H100)
            names = {name for step in plan.steps for name, _ in getattr(step, "kernel", step).defines}
            assert not names & {"OUT_PITCH", "X_PITCH", "X_PITCHES"}


def test_a_tactic_that_says_nothing_wants_dense_tensors():
    softmax = [one for one in tactics("cuda") if one.id.startswith("cuda.softmax") and one.id != "cuda.softmax.row"]
    workload = apart(_case(Softmax(3), IMAGE), (0,))
    assert all("input 0 is columns of a wider tensor" in refusal(one, workload, H100).reason for one in softmax)  # type: ignore[union-attr]


def test_rows_begin_at_multiples_of_16_bytes():
    workload = CASES["pointwise"][1]
    workload = replace(workload, inputs=(replace(workload.inputs[0], pitch=18), *workload.inputs[1:]))
    assert "18 elements apart" in refusal(tactic("cuda.pointwise.broadcast"), workload, H100).reason  # type: ignore[union-attr]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "which", "dtype"), [(*pair, F16) for pair in SERVED] + [(*pair, F32) for pair in SERVED if pair[0] in ("3x3", "1x1", "product", "depthwise")]
)
def test_columns_on_the_gpu(name, which, dtype):
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    one, (_, workload, numbers) = tactic(which), CASES[name]
    workload, spec = _typed(workload, dtype), open_device("0").spec
    if one.supports(workload, spec) is not None:
        pytest.skip(f"{which} does not serve {dtype.value}")
    check_columns(one, workload, numbers, _inputs(workload), run_on_gpu, spec, configs=1, tolerance={"float32": 2e-3, "float16": 4e-3})


@pytest.mark.skipif(not cuda_include_paths(), reason="needs the CUDA headers")
@pytest.mark.parametrize("name", ["3x3", "product"])
def test_columns_cost_no_registers_on_hopper(name):
    shorts, workload, numbers = CASES[name]
    one, dense = tactic(f"cuda.{shorts[-1]}"), _typed(workload, F16)
    columns = apart(dense, numbers)
    plain, wide = (
        compile_cubin(step.kernel.source(), step.kernel.defines, "sm_90a", step.kernel.file).resources
        for kind in (dense, columns)
        for step in one.plan(kind, one.configs(kind, H100)[0], H100).steps
    )
    assert wide.registers <= plain.registers + 8 and wide.spill_stores <= plain.spill_stores
