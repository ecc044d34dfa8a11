"""Products of 8-bit numbers on the CPU harness (tensor-core instructions emulated) and, exactly so, on the GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import Convolution, Deconvolution, MatrixMultiply
from fusion.ops.epilogue import product_type
from tactics.compiler import compile_cubin
from tactics.cuda.conv.depthwise import Depthwise
from tactics.cuda.conv.mma_conv import MmaConvolution
from tactics.cuda.conv.simt_conv import SimtConvolution
from tactics.cuda.gemm.mma_gemm import MmaGemm
from tactics.cuda.gemm.simt_gemm import SimtGemm
from tactics.cuda.sm90.conv_sm90 import Sm90Convolution
from tactics.cuda.sm90.gemm_sm90 import Sm90Gemm
from tactics.tactic import DeviceSpec, Launch, Refusal, Tactic, Workload
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, H100, available, run_plan
from tests.harness.spills import may_spill
from tests.tactics.cuda.test_compile_gates import ARCHITECTURES

pytestmark = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
FLOAT, INT8, UINT8, INT32 = DataType.FLOAT, DataType.INT8, DataType.UINT8, DataType.INT32
FP8, E5M2 = DataType.FP8, DataType.FP8_E5M2
L4 = replace(A100, arch="sm_89", capability=89, shared_memory=99 << 10)
LIMITS = {INT8: (-128.0, 127.0), UINT8: (0.0, 255.0), FP8: (-448.0, 448.0), E5M2: (-57344.0, 57344.0)}


def requantized(kind: DataType, out: DataType) -> Expression:
    """``relu((sum - correction) * scale)``, then the quantisation to ``out``."""
    total: Expression = Operand(0)
    if product_type(kind) is INT32:
        total = Convert(FLOAT, apply("sub", total, Operand(2)))
    real = apply("relu", apply("mul", total, Operand(1)))
    if out in (FLOAT, DataType.HALF):
        return real if out is FLOAT else Convert(out, real)
    steps = apply("div", real, Literal(0.05, FLOAT))
    steps = apply("round", steps) if out.is_integer else steps
    return Convert(out, apply("clip", steps, *(Literal(limit, FLOAT) for limit in LIMITS[out])))


def values(random: np.random.Generator, shape: tuple[int, ...], dtype: DataType) -> np.ndarray:
    if dtype.is_float:
        return random.standard_normal(shape).astype(dtype.numpy)
    low, high = (0, 256) if dtype is UINT8 else (-128, 128)
    return random.integers(low, high, shape).astype(dtype.numpy)


def case(op, x_shape, w_shape, kind: DataType, out: DataType, channels: tuple[int, ...], depth: int, constant: bool = True):  # noqa: ANN001
    """(workload, inputs, expected) of a product with scale and correction per channel; ``out`` INT32 has no epilogue."""
    random = np.random.default_rng(11)
    weights = kind if kind.is_float else INT8
    inputs = [values(random, x_shape, kind), values(random, w_shape, weights)]
    if out is not product_type(kind):
        spread = 1.0 if kind.is_float else 5000.0
        inputs.append(((random.random(channels) + 0.5) / (spread * depth**0.5)).astype(np.float32))
        if not kind.is_float:
            inputs.append(random.integers(-900, 900, channels).astype(np.int32))
        op = type(op)(**{**op.__dict__, "epilogue": requantized(kind, out)})
    types = tuple(TensorType(DataType(one.dtype.name), one.shape) for one in inputs)
    flags = (False, constant, *(True for _ in inputs[2:]))
    return Workload(op, types, op.infer(types), flags), inputs, op.evaluate(inputs)


def compare(got: np.ndarray, expected: np.ndarray, label: str, lost: np.ndarray | float = 0.0) -> None:
    """Integers are exact but for the last bit of a float scale at a rounding edge; 8-bit floats may differ by one step, and by what is ``lost``."""
    assert got.dtype == expected.dtype and got.shape == expected.shape, label
    if expected.dtype == np.int32:
        np.testing.assert_array_equal(got, expected, label)
    elif expected.dtype.kind in "iu":
        steps = np.abs(got.astype(int) - expected.astype(int))
        assert steps.max(initial=0) <= 1 and np.count_nonzero(steps) <= 1 + steps.size // 500, (label, steps.max(initial=0))
        assert len(np.unique(expected)) > 3 or expected.size < 20
    else:
        tolerance = {np.dtype(np.float32): 1e-4, np.dtype(np.float16): 2e-3}.get(expected.dtype, 0.26)
        wrong = np.abs(got.astype(float) - expected.astype(float)) - tolerance * np.abs(expected.astype(float)) - tolerance / 20 - lost
        assert wrong.max(initial=-1.0) <= 0, f"{label}: {np.count_nonzero(~(wrong <= 0))} of {wrong.size} results are wrong, by up to {wrong.max()}"


def lost_by_hopper(workload: Workload, inputs: list[np.ndarray]) -> np.ndarray | float:
    """What a product of 8-bit floats may lose, in units of the output: Hopper's tensor cores add with 14 bits, so a sum is known to
    2^-14 of the sum of its terms' magnitudes, which is much of a sum that cancels."""
    if not isinstance(workload.op, MatrixMultiply) or not workload.inputs[0].dtype.is_float:
        return 0.0
    a, b, scale = (np.abs(one.astype(np.float64)) for one in inputs)
    return 2.0**-14 * (a @ b.T) * scale / 0.05


def run(tactic: Tactic, made, configs: int = 1, wanted=lambda one: True, device: DeviceSpec = L4) -> None:  # noqa: ANN001
    workload, inputs, expected = made
    refusal = tactic.supports(workload, device)
    assert refusal is None, refusal
    found = [one for one in tactic.configs(workload, device) if wanted(dict(one))][:configs]
    assert found
    for one in found:
        plan = tactic.plan(workload, one, device)
        (result,) = run_plan(emulated(plan), inputs, workload.outputs, tactic.prepare(workload, one, {1: inputs[1]}))
        compare(result, expected[0], f"{tactic.id} {dict(one)}", lost_by_hopper(workload, inputs) if "sm90" in tactic.id else 0.0)


def product(m, n, k, kind=INT8, out=INT8, transpose_b=True, constant=True):  # noqa: ANN001
    return case(MatrixMultiply(transpose_b=transpose_b), (m, k), (n, k) if transpose_b else (k, n), kind, out, (n,), k, constant)


@pytest.mark.parametrize(("kind", "out"), [
    (INT8, INT32), (INT8, INT8), (UINT8, DataType.HALF), (FP8, FP8), (E5M2, FLOAT),
])  # fmt: skip
def test_matmul_types(kind: DataType, out: DataType) -> None:
    made = product(37, 24, 80, kind, out)
    run(MmaGemm(), made)
    if out in (INT32, FP8):
        run(SimtGemm(), made)


def test_matmul_odd_sizes() -> None:
    run(MmaGemm(), product(7, 5, 3, transpose_b=False))
    run(MmaGemm(), product(33, 19, 70, constant=False))
    run(SimtGemm(), product(33, 19, 70, transpose_b=False, constant=False))


def test_matmul_splits_its_depth() -> None:
    made = product(16, 16, 2048)
    run(MmaGemm(), made, 1, lambda one: one["splits"] > 1 and not one["cluster"])
    run(MmaGemm(), made, 1, lambda one: one["warps_k"] > 1 and one["splits"] == 1)


def test_rows_that_tensor_cores_cannot_read_are_refused() -> None:
    workload, *_ = product(16, 16, 32, transpose_b=False, constant=False)
    assert isinstance(MmaGemm().supports(workload, H100), Refusal)
    assert isinstance(MmaGemm().supports(product(16, 16, 32, FP8, FP8)[0], A100), Refusal)


def conv(size, c, o, window=3, stride=1, groups=1, kind=INT8, out=INT8, pad=1, planes=False):  # noqa: ANN001
    op = Convolution((stride,) * 2, (pad,) * 2, (pad,) * 2, (1, 1), groups, True, input_channels_last=False if planes else None)
    x = (2, c, size, size + 1) if planes else (2, size, size + 1, c)
    return case(op, x, (o, c // groups, window, window), kind, out, (o,), window * window * c // groups)


CONVOLUTIONS = {
    "aligned": conv(9, 32, 24, stride=2), "uint8": conv(5, 16, 16, kind=UINT8, out=UINT8), "odd": conv(5, 6, 7),
    "planes": conv(9, 3, 8, 3, 2, planes=True), "groups": conv(5, 12, 12, groups=3),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str) -> None:
    run(MmaConvolution(), CONVOLUTIONS[name], 1, lambda one: one["warps_k"] == 1 and one["splits"] == 1 and one["bm"] <= 64)
    if name in ("aligned", "odd"):
        run(SimtConvolution(), CONVOLUTIONS[name])


@pytest.mark.parametrize(("kind", "channels"), [(INT8, 16), (UINT8, 6), (INT8, 3)])
def test_depthwise(kind: DataType, channels: int) -> None:
    run(Depthwise(), conv(7, channels, channels, 3, 2 if channels == 16 else 1, channels, kind, kind))


def test_integers_of_32_bits_go_to_the_reference() -> None:
    random = np.random.default_rng(2)
    inputs = [random.integers(-900, 900, shape).astype(np.int32) for shape in ((2, 9, 17), (2, 17, 5))]
    types = tuple(TensorType(INT32, one.shape) for one in inputs)
    op = MatrixMultiply()
    run(SimtGemm(), (Workload(op, types, op.infer(types), (False, False)), inputs, op.evaluate(inputs)))


def test_deconvolution() -> None:
    op = Deconvolution((2, 2), (1, 1), (1, 1), (1, 1), (1, 1), 1, True)
    made = case(op, (2, 4, 5, 16), (16, 8, 3, 3), INT8, INT8, (8,), 64)
    run(MmaConvolution(), made)
    run(SimtConvolution(), made)


FAST = {"sm_75": ("gemm",), "sm_80": ("conv", "depthwise"), "sm_89": ("fp8",), "sm_90a": ("wgmma", "wgmma fp8", "wgmma conv"), "sm_100a": ("gemm",), "sm_120a": ("conv",)}


@pytest.mark.parametrize("arch", FAST)
def test_kernels_compile_without_spills(arch: str) -> None:
    capability = int("".join(letter for letter in arch if letter.isdigit()))
    device = replace(H100, arch=arch, capability=capability, shared_memory=ARCHITECTURES[arch] * 1024)
    served = {"gemm": (MmaGemm(), product(512, 768, 3072)), "fp8": (MmaGemm(), product(512, 768, 3072, FP8, FP8)),
              "conv": (MmaConvolution(), conv(28, 128, 128)), "depthwise": (Depthwise(), conv(56, 96, 96, groups=96)),
              "wgmma": (Sm90Gemm(), product(4096, 3072, 768)), "wgmma fp8": (Sm90Gemm(), product(512, 768, 768, FP8, FP8)),
              "wgmma conv": (Sm90Convolution(), conv(28, 128, 128))}  # fmt: skip
    for name in FAST[arch]:
        tactic, (workload, *_) = served[name]
        for step in tactic.plan(workload, tactic.configs(workload, device)[0], device).steps:
            assert isinstance(step, Launch)
            used = compile_cubin(step.kernel.source(), step.kernel.defines, arch, step.kernel.file).resources
            assert used.registers * step.block[0] <= 65536
            assert used.spill_stores <= may_spill(step.kernel.entry, arch), f"{name} spills {used.spill_stores} bytes for {arch}"


ON_GPU = {
    "int8": (MmaGemm(), lambda: product(300, 264, 1000)), "uint8": (MmaGemm(), lambda: product(65, 48, 128, UINT8, UINT8)),
    "int32": (MmaGemm(), lambda: product(300, 264, 1000, INT8, INT32)), "fp8": (MmaGemm(), lambda: product(300, 256, 992, FP8, FP8)),
    "conv": (MmaConvolution(), lambda: conv(14, 64, 96)),
    "depthwise": (Depthwise(), lambda: conv(14, 32, 32, groups=32)),
    "planes": (MmaConvolution(), lambda: conv(33, 3, 16, 3, 2, planes=True)), "simt": (SimtConvolution(), lambda: conv(9, 32, 24)),
}  # fmt: skip


def hopper(kind: DataType, out: DataType, m: int = 300):  # noqa: ANN201
    return lambda: product(m, 256, 1008, kind, out)


ON_GPU |= {
    "wgmma int8": (Sm90Gemm(), hopper(INT8, INT8)), "wgmma uint8": (Sm90Gemm(), hopper(UINT8, UINT8)),
    "wgmma int32": (Sm90Gemm(), hopper(INT8, INT32)), "wgmma fp8": (Sm90Gemm(), hopper(FP8, FP8)),
    "wgmma few rows": (Sm90Gemm(), hopper(INT8, FLOAT, 5)), "wgmma few uint8 rows": (Sm90Gemm(), hopper(UINT8, DataType.HALF, 5)),
    "wgmma conv": (Sm90Convolution(), lambda: conv(14, 64, 96)), "wgmma strided": (Sm90Convolution(), lambda: conv(15, 32, 40, 3, 2, kind=UINT8, out=UINT8)),
    "wgmma 1x1": (Sm90Convolution(), lambda: conv(14, 64, 128, window=1, pad=0)),
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_on_gpu(name: str) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    tactic, make = ON_GPU[name]
    workload, inputs, expected = make()
    spec = open_device("0").spec
    if tactic.supports(workload, spec) is not None:
        pytest.skip("this GPU has no tensor cores for that type")
    found = list(tactic.configs(workload, spec))
    split = [one for one in found if dict(one).get("split", dict(one).get("splits", 1)) > 1]
    for one in dict.fromkeys((*found[:1], *split[:1])):
        plan = tactic.plan(workload, one, spec)
        (result,) = run_on_gpu(plan, inputs, workload.outputs, tactic.prepare(workload, one, {1: inputs[1]}))
        compare(result, expected[0], f"{tactic.id} {dict(one)}", lost_by_hopper(workload, inputs) if "sm90" in tactic.id else 0.0)


def test_long_sums_of_8_bit_floats_are_promoted() -> None:
    """Tensor cores of Hopper cut off what does not fit some 14 bits; shares of a depth that is split are short."""
    for depth, wanted in ((512, {0}), (768, {2}), (4096, {2})):
        workload, *_ = product(64, 64, depth, FP8, FLOAT)
        found = [dict(one) for one in Sm90Gemm().configs(workload, H100)]
        assert {one["promote"] for one in found if one["split"] == 1} == wanted
        assert all(one["promote"] == 0 for one in found if depth // one["split"] <= 512)
    workload, *_ = product(64, 64, 4096)
    assert not any(dict(one)["promote"] for one in Sm90Gemm().configs(workload, H100))


@pytest.mark.gpu
def test_long_sums_of_8_bit_floats_on_gpu() -> None:
    """Of positive factors, whose sums never cancel: without promotion they come out 12 % too small."""
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    spec = open_device("0").spec
    random = np.random.default_rng(3)
    a, b = (random.random((128, 8192)).astype(FP8.numpy) for _ in range(2))
    types = tuple(TensorType(FP8, one.shape) for one in (a, b))
    workload = Workload(MatrixMultiply(transpose_b=True), types, (TensorType(FLOAT, (128, 128)),), (False, True))
    truth = a.astype(np.float64) @ b.astype(np.float64).T
    for tactic in (Sm90Gemm(), MmaGemm()):
        if tactic.supports(workload, spec) is None:
            for one in tactic.configs(workload, spec)[:6]:
                (got,) = run_on_gpu(tactic.plan(workload, one, spec), [a, b], workload.outputs, tactic.prepare(workload, one, {1: b}))
                assert np.abs(got / truth - 1).max() < 2**-8 * (1 if dict(one).get("promote", 1) else 2), dict(one)
