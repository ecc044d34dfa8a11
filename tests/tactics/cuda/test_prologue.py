"""Products of a function of their left operand on the CPU harness (tensor-core instructions emulated) against the operation's NumPy meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply
from fusion.network import Op, TensorType
from fusion.ops import Convolution, MatrixMultiply, PrologueProduct
from tactics.cuda.gemm.prologue import TACTICS, GemvPrologue, MmaPrologue, SimtPrologue, Sm90Prologue, StreamedPrologue
from tactics.tactic import DeviceSpec, Refusal, Tactic, Workload, refusal
from tests.harness.columns import apart
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, H100, available, close, kernels, run_plan

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
HALF, FLOAT = DataType.HALF, DataType.FLOAT
X, Y, Z = Operand(0), Operand(1), Operand(2)
BIAS_RESIDUAL = apply("relu", apply("add", apply("add", X, Y), Z))
SCALED = apply("relu", apply("add", apply("mul", X, Y), Z))  # a folded normalisation
LOGARITHM = apply("log", apply("abs", X))  # minus infinity at zero: what is padded must stay outside
GATED = apply("mul", X, Y)
LIMITS = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-3}  # fp32 products round to TF32
POINTWISE = Convolution((1, 1), (0, 0), (0, 0), (1, 1), channels_last=True)

WINDOWS = Convolution((1, 1), (1, 2), (1, 1), (1, 1), channels_last=True)
SOLID = Convolution((1,) * 3, (1, 1, 0), (0, 1, 1), (1,) * 3, channels_last=True)


def case(inner: Op, x: tuple, b: tuple, prologue: Expression, *operands: tuple, dtype: DataType = HALF, constant: bool = True, seed: int = 3):  # type: ignore[no-untyped-def]
    """(workload, inputs, expected) of ``inner`` (its epilogue has a bias and a residual) behind a prologue with operands of these shapes."""
    random = np.random.default_rng(seed)
    out = inner.infer([TensorType(dtype, x), TensorType(dtype, b)])[0].shape
    arrays = [random.standard_normal(shape) + 0.1 for shape in (x, b, out[-1:], out, *operands)]
    arrays[1] *= np.prod(b[1:]) ** -0.5
    inputs = [one.astype(dtype.numpy) for one in arrays]
    op = PrologueProduct(replace(inner, epilogue=BIAS_RESIDUAL), prologue, len(operands))  # type: ignore[call-arg]
    types = tuple(TensorType(dtype, one.shape) for one in inputs)
    return Workload(op, types, op.infer(types), (False, constant, *(False for _ in inputs[2:]))), inputs, op.evaluate(inputs)


DEPTH = lambda one: one["warps"] == 2 and one["columns"] == 2  # noqa: E731  (of streamed weights: several turns)
# name -> (tactics, the case's arguments, more of them, configurations that are wanted)
CASES: dict[str, tuple] = {
    "one tensor": ((MmaPrologue(), SimtPrologue()), (MatrixMultiply(), (37, 44), (44, 28), LOGARITHM), {"constant": False}),
    "bfloat16": ((MmaPrologue(),), (MatrixMultiply(), (37, 44), (44, 28), LOGARITHM), {"dtype": DataType.BF16}),
    "float": ((MmaPrologue(), SimtPrologue()), (MatrixMultiply(), (37, 44), (44, 28), LOGARITHM), {"dtype": FLOAT}),
    "vectors along the depth": ((MmaPrologue(), SimtPrologue(), Sm90Prologue()), (MatrixMultiply(False, True), (70, 264), (24, 264), SCALED, (264,), (1, 264)), {}),
    "past the depth": ((Sm90Prologue(),), (MatrixMultiply(), (300, 584), (584, 200), apply("add", LOGARITHM, Y), (584,)), {"dtype": DataType.BF16}),
    "many tiles": ((Sm90Prologue(),), (POINTWISE, (5, 70, 71, 72), (136, 72, 1, 1), apply("add", GATED, LOGARITHM), (5, 1, 1, 72)), {}),
    "another tensor on Hopper": ((Sm90Prologue(),), (MatrixMultiply(), (3, 170, 264), (264, 96), GATED, (3, 170, 264)), {}),
    "pairs": ((MmaPrologue(),), (MatrixMultiply(), (70, 70), (70, 24), SCALED, (70,), (1, 70)), {}),
    "single elements": ((MmaPrologue(),), (MatrixMultiply(), (70, 33), (33, 24), SCALED, (33,), (1, 33)), {}),
    # The rows of the left operand are counted in it, wherever the batch broadcasts it.
    "operands of rows": ((MmaPrologue(), SimtPrologue()), (MatrixMultiply(), (3, 1, 17, 24), (2, 24, 9), GATED, (3, 1, 17, 1)), {}),
    "operands of batches": ((MmaPrologue(), SimtPrologue(), Sm90Prologue()), (MatrixMultiply(), (3, 2, 17, 24), (3, 2, 24, 9), GATED, (3, 1, 1, 1)), {}),
    "another tensor": ((MmaPrologue(), SimtPrologue()), (MatrixMultiply(), (3, 1, 17, 24), (2, 24, 9), GATED, (3, 1, 17, 24)), {}),
    "one left operand for all": ((MmaPrologue(), Sm90Prologue()), (MatrixMultiply(), (17, 24), (4, 24, 9), GATED, (17, 24)), {}),
    "split depth": ((MmaPrologue(),), (MatrixMultiply(), (20, 1037), (1037, 24), LOGARITHM), {}, lambda one: one["splits"] == 3),
    "warps over the depth": ((MmaPrologue(),), (MatrixMultiply(), (20, 1040), (1040, 24), SCALED, (1040,), (1040,)), {}, lambda one: one["splits"] == 2 and one["warps_k"] > 1),
    "one row": ((GemvPrologue(),), (MatrixMultiply(), (1, 264), (264, 21), SCALED, (264,), (264,)), {}),
    "three rows": ((GemvPrologue(),), (MatrixMultiply(), (3, 264), (264, 21), GATED, (3, 264)), {}),
    "a streamed row": ((StreamedPrologue(),), (MatrixMultiply(), (1, 200), (200, 21), LOGARITHM), {}, DEPTH),
    "streamed rows": ((StreamedPrologue(),), (MatrixMultiply(), (3, 4, 200), (200, 21), apply("add", SCALED, Operand(3)), (200,), (1, 200), (3, 4, 200)), {"dtype": DataType.BF16}, DEPTH),
    "normalisation of channels": ((MmaPrologue(), SimtPrologue(), Sm90Prologue()), (POINTWISE, (2, 5, 7, 32), (24, 32, 1, 1), SCALED, (32,), (1, 1, 1, 32)), {}),
    "a factor per image and channel": ((MmaPrologue(), SimtPrologue()), (POINTWISE, (2, 5, 7, 12), (24, 12, 1, 1), GATED, (2, 1, 1, 12)), {}),
    "windows": ((MmaPrologue(), SimtPrologue()), (WINDOWS, (2, 5, 7, 32), (24, 32, 3, 3), apply("add", SCALED, LOGARITHM), (32,), (1, 1, 1, 32)), {}),
    "windows of two groups": ((MmaPrologue(),), (replace(WINDOWS, groups=2, stride=(2, 1)), (2, 5, 7, 8), (24, 4, 3, 3), GATED, (2, 1, 1, 8)), {}),
    "windows of single channels": ((MmaPrologue(),), (replace(WINDOWS, dilation=(1, 2)), (2, 5, 7, 3), (24, 3, 3, 3), apply("add", GATED, LOGARITHM), (2, 5, 7, 3)), {}),
    "windows of planes": ((MmaPrologue(), SimtPrologue()), (SOLID, (1, 3, 4, 5, 12), (8, 12, 2, 3, 2), GATED, (1, 3, 4, 5, 1)), {}),
    "every other pixel": ((MmaPrologue(),), (replace(POINTWISE, stride=(2, 2)), (2, 5, 7, 16), (24, 16, 1, 1), SCALED, (16,), (2, 5, 7, 1)), {}),
    "a factor per pixel": ((MmaPrologue(), Sm90Prologue()), (POINTWISE, (2, 5, 7, 32), (24, 32, 1, 1), GATED, (2, 5, 7, 1)), {}),
}  # fmt: skip
# On the CPU others run the same lines.
GPU_ONLY = {"bfloat16", "float", "pairs", "another tensor", "one left operand for all", "operands of batches", "three rows", "windows of planes", "every other pixel", "a factor per pixel", "warps over the depth"}
GPU_ONLY |= {"past the depth", "many tiles", "another tensor on Hopper"}
SERVED = [(name, which) for name, (found, *_) in CASES.items() for which in range(len(found))]


def check(name: str, which: int, spec: DeviceSpec, execute: Callable, configs: int) -> None:
    found, arguments, more, *wanted = CASES[name]
    tactic, (workload, inputs, expected) = found[which], case(*arguments, **more)
    reason = tactic.supports(workload, spec)
    assert reason is None, reason
    chosen = [one for one in tactic.configs(workload, spec) if not wanted or wanted[0](dict(one))][:configs]
    assert chosen
    for one in chosen:
        packed = tactic.prepare(workload, one, {1: inputs[1]})
        (result,) = execute(tactic.plan(workload, one, spec), inputs, workload.outputs, packed)
        assert np.isfinite(result.astype(np.float64)).all()
        close(result, expected[0], f"{tactic.id} {dict(one)}", LIMITS)


@pytest.mark.parametrize(("name", "which"), [(name, which) for name, which in SERVED if name not in GPU_ONLY and not isinstance(CASES[name][0][which], Sm90Prologue)])
def test_in_the_harness(name: str, which: int) -> None:
    check(name, which, A100, lambda plan, *rest: run_plan(emulated(plan), *rest), 1)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "which"), SERVED)
def test_on_the_gpu(name: str, which: int) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    spec, tactic = open_device("0").spec, CASES[name][0][which]
    if isinstance(tactic, Sm90Prologue) and spec.arch != "sm_90a":
        pytest.skip("wgmma is Hopper's")
    check(name, which, spec, run_on_gpu, 5 if isinstance(tactic, Sm90Prologue) else 2)


def test_rows_that_vary_keep_the_kernel() -> None:
    few, many = (case(MatrixMultiply(), (rows, 64), (64, 32), SCALED, (64,), (rows, 64))[0] for rows in (64, 200))
    axes = ((True, False), (False, False), (False,), (True, False), (False,), (True, False), (True, False))
    few, many = (replace(one, varies=axes) for one in (few, many))
    for one in MmaPrologue().configs(few, A100)[:4]:
        assert kernels(MmaPrologue().plan(few, one, A100)) == kernels(MmaPrologue().plan(many, one, A100))


@pytest.mark.parametrize("tactic", TACTICS, ids=lambda one: one.id)
def test_columns_are_asked_of_every_kernel(tactic: Tactic) -> None:
    for workload in (case(POINTWISE, (2, 5, 7, 32), (24, 32, 1, 1), LOGARITHM)[0], case(MatrixMultiply(), (8, 64), (64, 32), LOGARITHM)[0]):
        wide = apart(workload, (0,))
        served = isinstance(tactic, MmaPrologue | SimtPrologue | Sm90Prologue) and refusal(tactic, wide, H100) is None
        assert served or isinstance(refusal(tactic, wide, H100), Refusal)


def test_refusals() -> None:
    wide = case(MatrixMultiply(), (8, 64), (64, 32), Convert(FLOAT, X))[0]
    cases = (
        (MmaPrologue(), replace(wide, inputs=(wide.inputs[0], TensorType(FLOAT, (64, 32)), *wide.inputs[2:])), "in place"),
        (MmaPrologue(), case(MatrixMultiply(True), (64, 8), (64, 32), LOGARITHM)[0], "[K][M]"),
        (GemvPrologue(), case(MatrixMultiply(), (17, 64), (64, 8), LOGARITHM)[0], "17 rows"),
        (StreamedPrologue(), case(POINTWISE, (2, 5, 7, 32), (24, 32, 1, 1), LOGARITHM)[0], "does not convolve"),
        (MmaPrologue(), case(replace(POINTWISE, stride=(2, 2)), (2, 4, 6, 32), (24, 32, 2, 2), LOGARITHM)[0], "several pixels as one"),
        (MmaPrologue(), case(replace(POINTWISE, input_channels_last=False), (2, 8, 4, 6), (24, 8, 1, 1), LOGARITHM)[0], "planes"),
        (SimtPrologue(), case(replace(POINTWISE, channels_last=False), (2, 32, 5, 7), (24, 32, 1, 1), apply("add", X, Literal(1.0, HALF)))[0], "channels-last"),
    )
    for tactic, workload, text in cases:
        reason = tactic.supports(workload, A100)
        assert isinstance(reason, Refusal) and text in reason.reason, reason
    for workload, text in ((case(WINDOWS, (2, 5, 7, 32), (24, 32, 3, 3), LOGARITHM)[0], "im2col"), (case(MatrixMultiply(), (8, 64), (64, 32), LOGARITHM, dtype=FLOAT)[0], "TF32")):
        reason = Sm90Prologue().supports(workload, replace(H100, arch="sm_90a", capability=90))
        assert isinstance(reason, Refusal) and text in reason.reason, reason
