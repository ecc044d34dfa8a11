"""Products of real numbers, and attention, whose epilogue quantises them, on the CPU harness (tensor-core instructions emulated) and on the GPU.

All sums and quotients of products are exact here, many of them half way between two steps or beyond the limits, so results have to be equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply
from fusion.network import Op, TensorType
from fusion.ops import Attention, Convolution, Deconvolution, MatrixMultiply, PackedMatrixMultiply, SeparableConvolution
from fusion.ops.packed_matmul import packed
from tactics.compiler import compile_cubin, cuda_include_paths
from tactics.cuda.attention.attention import GroupedAttention, MmaAttention, SimtAttention
from tactics.cuda.conv.depthwise import Depthwise
from tactics.cuda.conv.depthwise_mma import DepthwiseMma
from tactics.cuda.conv.mma_conv import MmaConvolution
from tactics.cuda.conv.separable import MmaSeparable, SimtSeparable
from tactics.cuda.conv.simt_conv import SimtConvolution
from tactics.cuda.gemm.gemv import Gemv
from tactics.cuda.gemm.mma_gemm import MmaGemm
from tactics.cuda.gemm.simt_gemm import SimtGemm
from tactics.cuda.gemm.stream import StreamedGemm
from tactics.cuda.packed.packed_gemm import PackedGemm
from tactics.cuda.packed.packed_gemv import PackedGemv
from tactics.cuda.sm90.attention_decode_sm90 import Sm90DecodeAttention
from tactics.cuda.sm90.attention_sm90 import Sm90Attention, Sm90ShortAttention
from tactics.cuda.sm90.conv_sm90 import Sm90Convolution
from tactics.cuda.sm90.conv_window_sm90 import Sm90WindowConvolution
from tactics.cuda.sm90.gemm_sm90 import Sm90Gemm
from tactics.cuda.sm90.stem_sm90 import Sm90Stem
from tactics.tactic import Config, Launch, Tactic, Workload
from tests.harness.emulated import emulated
from tests.harness.fiber import A100, H100, available, run_plan
from tests.harness.spills import may_spill
from tests.tactics.cuda.test_compile_gates import ARCHITECTURES

harness = pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
F32, F16, BF16, INT8, UINT8, FP8, E5M2 = (
    DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT8, DataType.UINT8, DataType.FP8, DataType.FP8_E5M2,
)  # fmt: skip
LIMITS = {INT8: (-128.0, 127.0), UINT8: (0.0, 255.0), FP8: (-448.0, 448.0), E5M2: (-57344.0, 57344.0)}
SCALE, ZERO = 0.5, 3

Case = tuple[Workload, list[np.ndarray], np.ndarray]


def quantized(real: Expression, out: DataType, zero: int = 0, scale: float = SCALE) -> Expression:
    """``real`` quantised to ``out`` as the importer writes it."""
    steps: Expression = apply("div", real, Literal(scale, F32))
    if out.is_integer:
        steps = apply("round", steps)
    if zero:
        steps = apply("add", steps, Literal(float(zero), F32))
    return Convert(out, apply("clip", steps, *(Literal(limit, F32) for limit in LIMITS[out])))


def by_definition(real: np.ndarray, out: DataType, zero: int, scale: float = SCALE) -> np.ndarray:
    """The quantisation in float64; a number that is none becomes the lowest integer, or stays none."""
    steps = real / scale
    if out.is_integer:
        low, high = LIMITS[out]
        whole = np.clip(np.rint(steps) + zero, low, high)
        return np.where(np.isnan(whole), low, whole).astype(out.numpy)
    return np.clip(steps, *LIMITS[out]).astype(np.float32).astype({FP8: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}[out])


def integers(random: np.random.Generator, shape: tuple[int, ...], dtype: DataType, most: int) -> np.ndarray:
    return random.integers(-most, most + 1, shape).astype(dtype.numpy)


def case(
    op: Op, x: tuple[int, ...], w: tuple[int, ...], dtype: DataType, out: DataType, *, zero: int = 0, residual: bool = False, spoilt: bool = False, constant: bool = True
) -> Case:  # fmt: skip
    """A product with a bias of quarters (and a residual sum), quantised; ``spoilt``: some of its left operand is not finite."""
    random = np.random.default_rng(5)
    inputs = [integers(random, x, dtype, 4), integers(random, w, dtype, 3)]
    real = apply("add", Operand(0), Operand(1))
    plain = op.infer([TensorType(dtype, one.shape) for one in inputs])[0].shape
    inputs.append((integers(random, (plain[-1],), F32, 20) / 4).astype(dtype.numpy))
    if residual:
        real = apply("add", real, Operand(2))
        inputs.append(integers(random, plain, dtype, 9))
    if spoilt:
        inputs[0].reshape(-1)[:3] = (np.inf, -np.inf, np.nan)
    op = replace(op, epilogue=quantized(real, out, zero))
    types = tuple(TensorType(DataType(one.dtype.name), one.shape) for one in inputs)
    with np.errstate(all="ignore"):
        total = replace(op, epilogue=Operand(0)).evaluate([one.astype(np.float64) for one in inputs[:2]])[0]
        expected = by_definition(total + sum(one.astype(np.float64) for one in inputs[2:]), out, zero)
    return Workload(op, types, op.infer(types), (False, constant, True, False)[: len(inputs)]), inputs, expected


def product(m: int, n: int, k: int, dtype: DataType = F16, out: DataType = INT8, batch: int = 0, transpose_b: bool = True, **more: bool | int) -> Case:
    lead, b = ((batch,), (batch,)) if batch else ((), ())
    return case(MatrixMultiply(transpose_b=transpose_b), (*lead, m, k), (*b, n, k) if transpose_b else (*b, k, n), dtype, out, **more)  # type: ignore[arg-type]


def convolution(size: int, c: int, o: int, window: int = 3, stride: int = 1, groups: int = 1, dtype: DataType = F16, out: DataType = INT8, planes: bool = False,
                **more: bool | int) -> Case:  # fmt: skip
    pad = (window // 2,) * 2
    op = Convolution((stride,) * 2, pad, pad, (1, 1), groups, True, input_channels_last=False if planes else None)
    x = (2, c, size, size + 1) if planes else (2, size, size + 1, c)
    return case(op, x, (o, c // groups, window, window), dtype, out, **more)  # type: ignore[arg-type]


def packed_product(m: int, n: int, k: int, out: DataType = INT8) -> Case:
    """Weights of 4 bits with scales of 1 or 2 by block."""
    random = np.random.default_rng(5)
    blocks = k // 32
    op = PackedMatrixMultiply(4, k, 32, quantized(apply("add", Operand(0), Operand(1)), out))
    values, scales = random.integers(5, 12, (n, k)).astype(np.uint8), random.integers(1, 3, (n, blocks)).astype(np.float16)
    inputs = [integers(random, (m, k), F16, 2), packed(values, 4), scales, np.full((n, blocks), 8, np.float16), (integers(random, (n,), F32, 20) / 4).astype(np.float16)]
    types = tuple(TensorType(DataType(one.dtype.name), one.shape) for one in inputs)
    weights = (values.astype(np.float64) - 8) * np.repeat(scales, 32, 1)
    expected = by_definition(inputs[0].astype(np.float64) @ weights.T + inputs[4], out, 0)
    return Workload(op, types, op.infer(types), (False, True, True, True, True)), inputs, expected


def separable(out: DataType = INT8) -> Case:
    random = np.random.default_rng(5)
    first = Convolution((1, 1), (1, 1), (1, 1), (1, 1), 16, True)
    second = Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True)
    inputs = [integers(random, (2, 7, 9, 16), F16, 2), integers(random, (16, 1, 3, 3), F16, 2), integers(random, (24, 16, 1, 1), F16, 2)]
    (middle,) = first.evaluate([one.astype(np.float64) for one in inputs[:2]])
    (total,) = second.evaluate([middle, inputs[2].astype(np.float64)])
    op = SeparableConvolution(first, replace(second, epilogue=quantized(Operand(0), out)), 0)
    types = tuple(TensorType(F16, one.shape) for one in inputs)
    return Workload(op, types, op.infer(types), (False, True, True)), inputs, by_definition(total, out, 0)


def equal(got: np.ndarray, expected: np.ndarray, label: str) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape, label
    assert len(np.unique(expected.astype(np.float32))) > 3, label
    same = (got == expected) | ((got != got) & (expected != expected))
    first = np.argwhere(~same)[:1]
    assert same.all(), f"{label}: {np.count_nonzero(~same)} of {same.size} differ, first at {first}: {got[~same][0]}, not {expected[~same][0]}"


def constants(workload: Workload, inputs: list[np.ndarray]) -> dict[int, np.ndarray]:
    return {number: inputs[number] for number, known in enumerate(workload.constant) if known}


def chosen(tactic: Tactic, workload: Workload, device, wanted: Callable[[dict], bool]) -> Config:  # noqa: ANN001
    refusal = tactic.supports(workload, device)
    assert refusal is None, refusal
    return next(one for one in tactic.configs(workload, device) if wanted(dict(one)))


def run(tactic: Tactic, made: Case, wanted: Callable[[dict], bool] = lambda one: True) -> None:
    workload, inputs, expected = made
    one = chosen(tactic, workload, A100, wanted)
    plan = tactic.plan(workload, one, A100)
    (got,) = run_plan(emulated(plan), inputs, workload.outputs, tactic.prepare(workload, one, constants(workload, inputs)))
    equal(got, expected, f"{tactic.id} {dict(one)}")


def _small(one: dict) -> bool:
    return one["bm"] <= 64 and one["splits"] == one["warps_k"] == 1


HARNESS: dict[str, tuple[Tactic, Callable[[], Case], Callable[[dict], bool]]] = {
    "simt": (SimtGemm(), lambda: product(33, 19, 21, F32, INT8, transpose_b=False, constant=False, spoilt=True, residual=True), lambda one: True),
    "simt fp8": (SimtGemm(), lambda: product(33, 20, 21, F16, FP8, spoilt=True), lambda one: True),
    "mma": (MmaGemm(), lambda: product(37, 24, 40, F16, INT8, zero=ZERO, spoilt=True), _small),
    "mma bf16 uint8 odd": (MmaGemm(), lambda: product(37, 19, 35, BF16, UINT8, zero=128, residual=True), _small),
    "mma batched": (MmaGemm(), lambda: product(17, 24, 32, F16, E5M2, batch=3, transpose_b=False, constant=False), _small),
    "mma split": (MmaGemm(), lambda: product(16, 16, 2048, F16, INT8), lambda one: one["splits"] > 1 and not one["cluster"]),
    "gemv": (Gemv(), lambda: product(3, 35, 64, F16, INT8, zero=ZERO, spoilt=True), lambda one: True),
    "stream": (StreamedGemm(), lambda: product(5, 40, 128, F16, INT8, residual=True), lambda one: True),
    "packed rows": (PackedGemv(), lambda: packed_product(3, 48, 128, INT8), lambda one: True),
    "packed": (PackedGemm(), lambda: packed_product(20, 48, 128, FP8), lambda one: one["splits"] == 1 and one["bm"] <= 32),
    "simt conv": (SimtConvolution(), lambda: convolution(5, 6, 7, dtype=F32, out=UINT8, zero=128), lambda one: True),
    "conv": (MmaConvolution(), lambda: convolution(5, 16, 24, out=INT8, residual=True), _small),
    "planes": (MmaConvolution(), lambda: convolution(9, 3, 8, 3, 2, planes=True, out=FP8), _small),
    "deconvolution": (SimtConvolution(), lambda: case(Deconvolution((2, 2), (1, 1), (1, 1), (1, 1), (1, 1), 1, True), (2, 4, 5, 16), (16, 8, 3, 3), F16, INT8),
                      lambda one: True),
    "depthwise": (Depthwise(), lambda: convolution(7, 6, 6, groups=6, out=INT8, zero=ZERO), lambda one: True),
    "depthwise mma": (DepthwiseMma(), lambda: convolution(7, 24, 24, 5, groups=24, out=INT8, residual=True), lambda one: True),
    "separable": (SimtSeparable(), separable, lambda one: True),
}  # fmt: skip


@harness
@pytest.mark.parametrize("name", HARNESS)
def test_the_results_are_exact(name: str) -> None:
    tactic, make, wanted = HARNESS[name]
    run(tactic, make(), wanted)


# Attention: sums are rounded on the way, so a value beside the middle between two steps may go to the other one.
FINE = 0.01


def attention(s_q: int, s_k: int, d: int, out: DataType = INT8, dtype: DataType = F16, heads: int = 2, kv_heads: int = 2, causal: bool = False) -> Case:
    """With fewer keys than queries the first causal ones see none: they are 0, which is the zero point."""
    random = np.random.default_rng(5)
    inputs = [random.standard_normal((2, length, count, d)).astype(dtype.numpy) for length, count in ((s_q, heads), (s_k, kv_heads), (s_k, kv_heads))]
    zero = ZERO if out.is_integer else 0
    op = Attention(d**-0.5, causal, layouts=("bshd",) * 4, epilogue=quantized(Operand(0), out, zero, FINE))
    types = tuple(TensorType(dtype, one.shape) for one in inputs)
    (real,) = replace(op, epilogue=Operand(0)).evaluate([one.astype(np.float64) for one in inputs])
    return Workload(op, types, op.infer(types)), inputs, by_definition(real, out, zero, FINE)


def near(got: np.ndarray, expected: np.ndarray, label: str, dtype: DataType = F16) -> None:
    """Probabilities are rounded to ``dtype``, which near zero is more than a step of an 8-bit float."""
    assert got.dtype == expected.dtype and got.shape == expected.shape, label
    steps = np.abs(got.astype(np.float32) - expected.astype(np.float32))
    allowed = 1.0 if expected.dtype.kind in "iu" else np.maximum(np.abs(expected.astype(np.float32)) / 8, (2.0**-8 if dtype is BF16 else 2.0**-11) / FINE)
    assert (steps <= allowed).all() and np.count_nonzero(steps) <= steps.size // 15, f"{label}: {np.count_nonzero(steps)} of {steps.size}, up to {steps.max()}"


ATTENTIONS: dict[str, tuple[Tactic, Callable[[], Case], Callable[[dict], bool]]] = {
    "simt": (SimtAttention(), lambda: attention(9, 21, 33), lambda one: True),
    "mma, rows without keys": (MmaAttention(), lambda: attention(37, 21, 64, causal=True), lambda one: one["warps"] == 2 and one["block_kv"] == 32),
    "mma odd fp8": (MmaAttention(), lambda: attention(20, 37, 33, FP8), lambda one: one["warps"] == 1 and one["block_kv"] == 32),
    "mma float32": (MmaAttention(), lambda: attention(17, 40, 32, UINT8, F32), lambda one: one["warps"] == 2 and one["block_kv"] == 32),
    "split": (GroupedAttention(), lambda: attention(1, 150, 64, heads=4), lambda one: one["splits"] > 1),
}  # fmt: skip


@harness
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_quantises_its_results(name: str) -> None:
    tactic, make, wanted = ATTENTIONS[name]
    workload, inputs, expected = make()
    one = chosen(tactic, workload, A100, wanted)
    (got,) = run_plan(emulated(tactic.plan(workload, one, A100)), inputs, workload.outputs)
    near(got, expected, name)


def _fits(step: object, arch: str) -> None:
    assert isinstance(step, Launch)
    used = compile_cubin(step.kernel.source(), step.kernel.defines, arch, step.kernel.file).resources
    assert used.registers * step.block[0] <= 65536
    assert used.spill_stores <= may_spill(step.kernel.entry, arch), f"{step.kernel.entry} spills {used.spill_stores} bytes for {arch}"


# Whether the way out of 8 bits and a residual sum fits beside the sums of the largest tiles.
GATES: dict[str, tuple[str, Tactic, Callable[[], Case], Callable[[dict], bool]]] = {
    "wgmma in turns": ("sm_90a", Sm90Gemm(), lambda: product(2048, 2048, 128, residual=True), lambda one: one["pingpong"] and one["bn"] >= 128),
    "wgmma wide fp8": ("sm_90a", Sm90Gemm(), lambda: product(2048, 2048, 128, out=FP8, residual=True), lambda one: one["bm"] * one["bn"] >= 128 * 192),
    "wgmma few rows": ("sm_90a", Sm90Gemm(), lambda: product(5, 256, 1024, residual=True), lambda one: one["swap"] and one["split"] > 1),
    "wgmma conv": ("sm_90a", Sm90Convolution(), lambda: convolution(14, 64, 128, residual=True), lambda one: one["blocks"] > 1),
    "window conv": ("sm_90a", Sm90WindowConvolution(), lambda: convolution(14, 64, 64, residual=True), lambda one: True),
    "depthwise mma": ("sm_80", DepthwiseMma(), lambda: convolution(14, 32, 32, 5, groups=32, residual=True), lambda one: True),
    "long attention": ("sm_90a", Sm90Attention(), lambda: attention(200, 200, 64, FP8, causal=True), lambda one: one["block_kv"] == 128),
    "short attention": ("sm_90a", Sm90ShortAttention(), lambda: attention(77, 200, 64), lambda one: True),
    "mma attention": ("sm_80", MmaAttention(), lambda: attention(100, 100, 64, FP8), lambda one: True),
    "mma fp8": ("sm_75", MmaGemm(), lambda: product(256, 256, 256, out=FP8), lambda one: True),
    "mma fp8, blackwell": ("sm_120a", MmaGemm(), lambda: product(256, 256, 256, out=FP8, residual=True), lambda one: True),
}  # fmt: skip


@pytest.mark.skipif(not cuda_include_paths(), reason="needs the CUDA headers")
@pytest.mark.parametrize("name", GATES)
def test_kernels_compile_without_spills(name: str) -> None:
    arch, tactic, make, wanted = GATES[name]
    capability = int("".join(letter for letter in arch if letter.isdigit()))
    device, workload = replace(H100, arch=arch, capability=capability, shared_memory=ARCHITECTURES[arch] * 1024), make()[0]
    for step in tactic.plan(workload, chosen(tactic, workload, device, wanted), device).steps:
        _fits(step, arch)


def _stem(planes: bool, channels: int, out: DataType) -> Case:
    return convolution(32, channels, 64, 3, 2, planes=planes, out=out)


ON_GPU: dict[str, tuple[Tactic, Callable[[], Case]]] = {name: (tactic, make) for name, (tactic, make, _) in HARNESS.items()} | {
    "separable mma": (MmaSeparable(), separable),
    "wgmma": (Sm90Gemm(), lambda: product(300, 264, 264, zero=ZERO, spoilt=True)),
    "wgmma odd columns": (Sm90Gemm(), lambda: product(129, 131, 264, residual=True)),
    "wgmma bf16 fp8": (Sm90Gemm(), lambda: product(257, 256, 512, BF16, FP8, spoilt=True)),
    "wgmma tf32 uint8": (Sm90Gemm(), lambda: product(130, 96, 256, F32, UINT8, zero=128)),
    "wgmma few rows": (Sm90Gemm(), lambda: product(5, 256, 1024, residual=True)),
    "wgmma batched": (Sm90Gemm(), lambda: product(65, 64, 96, F16, INT8, batch=6, transpose_b=False, constant=False)),
    "wgmma conv": (Sm90Convolution(), lambda: convolution(14, 64, 96, residual=True)),
    "wgmma strided": (Sm90Convolution(), lambda: convolution(15, 32, 40, 3, 2, out=UINT8, zero=128)),
    "wgmma 1x1": (Sm90Convolution(), lambda: convolution(14, 64, 128, 1, out=FP8)),
    "window conv": (Sm90WindowConvolution(), lambda: convolution(14, 64, 64, residual=True)),
    "stem planes": (Sm90Stem(), lambda: _stem(True, 3, INT8)), "stem": (Sm90Stem(), lambda: _stem(False, 4, FP8)),
}  # fmt: skip


ATTENTIONS_ON_GPU: dict[str, tuple[Tactic, Callable[[], Case]]] = {name: (tactic, make) for name, (tactic, make, _) in ATTENTIONS.items()} | {
    "long": (Sm90Attention(), lambda: attention(300, 260, 64)), "long, rows without keys": (Sm90Attention(), lambda: attention(400, 130, 40, UINT8, causal=True)),
    "long fp8": (Sm90Attention(), lambda: attention(200, 300, 128, FP8, BF16)), "short": (Sm90ShortAttention(), lambda: attention(77, 77, 64, causal=True)),
    "decode": (Sm90DecodeAttention(), lambda: attention(1, 600, 64, UINT8, heads=8)), "decode fp8": (Sm90DecodeAttention(), lambda: attention(3, 90, 128, FP8)),
    "short fp8": (Sm90ShortAttention(), lambda: attention(100, 197, 32, FP8)),
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("name", ATTENTIONS_ON_GPU)
def test_attention_on_gpu(name: str) -> None:
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    tactic, make = ATTENTIONS_ON_GPU[name]
    workload, inputs, expected = make()
    spec = open_device("0").spec
    refusal = tactic.supports(workload, spec)
    if refusal is not None and "sm_90a" in refusal.reason:
        pytest.skip(refusal.reason)
    assert refusal is None, refusal
    for one in list(tactic.configs(workload, spec))[:3]:
        (got,) = run_on_gpu(tactic.plan(workload, one, spec), inputs, workload.outputs)
        near(got, expected, f"{tactic.id} {dict(one)}", workload.inputs[0].dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_on_gpu(name: str) -> None:
    """The first configurations, and the first of each that leaves in another way (split depths, swapped operands, turns, permuted columns)."""
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    tactic, make = ON_GPU[name]
    workload, inputs, expected = make()
    spec = open_device("0").spec
    refusal = tactic.supports(workload, spec)
    if refusal is not None and "sm_90a" in refusal.reason:
        pytest.skip(refusal.reason)
    assert refusal is None, refusal
    found = list(tactic.configs(workload, spec))
    ways = {tuple(dict(one).get(key, 0) > least for key, least in (("split", 1), ("splits", 1), ("swap", 0), ("pingpong", 0), ("direct", 0), ("cluster", 0), ("patches", 0))): one
            for one in reversed(found)}  # fmt: skip
    for one in dict.fromkeys((*found[:1], *ways.values())):
        plan = tactic.plan(workload, one, spec)
        (got,) = run_on_gpu(plan, inputs, workload.outputs, tactic.prepare(workload, one, constants(workload, inputs)))
        equal(got, expected, f"{tactic.id} {dict(one)}")
