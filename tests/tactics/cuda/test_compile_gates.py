"""Every kernel of every registered CUDA tactic compiles for every architecture that it supports, without spilling registers.

Of each kernel (a file's entry) the first that the tactic launches: over the cases that it serves, over its configurations, the most promising first.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply, substitute
from fusion.network import Op, TensorType
from fusion.ops import (
    ArgReduce,
    Attention,
    CacheAppend,
    Concatenation,
    Convolution,
    ConvolutionPooling,
    Cumulative,
    Deconvolution,
    DeformableColumns,
    Determinant,
    Expand,
    Fill,
    Fold,
    Gather,
    GatherElements,
    GatherND,
    GridSample,
    GroupNormalization,
    Inverse,
    LinearAttention,
    LocalResponseNormalization,
    MatrixMultiply,
    NonMaxSuppression,
    NonZero,
    Normalization,
    PackedMatrixMultiply,
    Padding,
    PlanarConvolution,
    Pointwise,
    Pooling,
    PoolingIndices,
    PrologueProduct,
    Range,
    Recurrence,
    Reduce,
    Reformat,
    Resize,
    RoiAlign,
    RotaryEmbedding,
    ScatterElements,
    ScatterND,
    SeparableConvolution,
    ShapeValue,
    Shuffle,
    Slice,
    Softmax,
    SumNormalization,
    Tile,
    TopK,
    Unique,
)
from tactics.compiler import compile_cubin, cuda_include_paths
from tactics.dequantized import Dequantized
from tactics.registry import tactics
from tactics.tactic import CUDA_FOLDER, DeviceSpec, Launch, Workload
from tests.harness.fiber import H100
from tests.harness.spills import may_spill

pytestmark = pytest.mark.skipif(not cuda_include_paths(), reason="needs the CUDA headers")

F16, F32, F64, I64 = DataType.HALF, DataType.FLOAT, DataType.DOUBLE, DataType.INT64
X, Y, Z = Operand(0), Operand(1), Operand(2)
BIAS_RELU = apply("relu", apply("add", X, Y))
SCALE_BIAS = apply("add", apply("mul", X, Y), Z)
ARCHITECTURES = {"sm_75": 64, "sm_80": 163, "sm_89": 99, "sm_90a": 227, "sm_100a": 227, "sm_120a": 99}  # KiB of shared memory a block


def _case(op: Op, *types: tuple[DataType, tuple[int, ...]], constant: tuple[int, ...] = ()) -> Workload:
    inputs = tuple(TensorType(dtype, shape) for dtype, shape in types)
    return Workload(op, inputs, op.infer(inputs), tuple(index in constant for index in range(len(inputs))))


def _conv(n: int, size: int, c: int, o: int, k: int, stride: int, groups: int = 1) -> Workload:
    pad = (k // 2,) * 2
    op = Convolution((stride,) * 2, pad, pad, (1, 1), groups, True, BIAS_RELU)
    return _case(op, (F16, (n, size, size, c)), (F16, (o, c // groups, k, k)), (F16, (o,)), constant=(1, 2))


def _lstm(dtype: DataType, hidden: int, batch: int) -> Workload:
    op = Recurrence("lstm", hidden, (False,), ((apply("sigmoid", X), apply("tanh", X), apply("tanh", X)),))
    return _case(op, (dtype, (100, batch, 4 * hidden)), (dtype, (1, 4 * hidden, hidden)), constant=(1,))


def _packed() -> list[Workload]:
    """Products with packed weights, few rows first."""
    op, byte = PackedMatrixMultiply(4, 2048, 128, BIAS_RELU), DataType.UINT8
    weights = ((byte, (1024, 1024)), (F16, (1024, 16)), (F16, (1024, 16)), (F16, (1024,)))
    return [_case(op, (F16, (rows, 2048)), *weights, constant=(1, 2, 3, 4)) for rows in (1, 512)]


def _separable(dtype: DataType, stride: int) -> Workload:
    """A pair of MobileNetV2; the second 5x5 as EfficientNet has it."""
    taps, channels = (3, 144) if stride == 1 else (5, 672)
    first, second = (relu_quantized(dtype, SCALE_BIAS) for _ in range(2))
    op = SeparableConvolution(Convolution((stride,) * 2, (taps // 2,) * 2, (taps // 2,) * 2, (1, 1), channels, True, first),
                              Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True, second), 2)  # fmt: skip
    weights = ((dtype, (channels, 1, taps, taps)), (dtype, (channels // 6, channels, 1, 1)))
    scales = [(F32, (size,)) for size in (channels, channels, channels // 6, channels // 6)]
    return _case(op, (dtype, (8, 28, 28, channels)), *weights, *scales, constant=(1, 2, 3, 4, 5, 6))


def relu_quantized(dtype: DataType, real: Expression) -> Expression:
    """``relu(real)``, rounded to ``dtype``."""
    real = apply("relu", substitute(real, {0: Convert(F32, X)}))
    if dtype is DataType.INT8:
        real = apply("clip", apply("round", real), Literal(-128.0, F32), Literal(127.0, F32))
    return Convert(dtype, real)


@cache
def cases() -> tuple[Workload, ...]:
    """Workloads of common networks, so that every tactic finds one that it serves."""
    product = MatrixMultiply(epilogue=BIAS_RELU)
    two = ((3, 3), (1, 1), (1, 1))
    return (
        _case(GridSample("cubic", "reflection"), (F16, (2, 64, 32, 32)), (F32, (2, 32, 32, 2))),
        _case(DeformableColumns(*two, (1, 1), 2, True), (F16, (2, 64, 32, 32)), (F16, (2, 36, 32, 32)), (F16, (2, 18, 32, 32))),
        _case(RoiAlign((7, 7), 2, 0.25), (F16, (2, 64, 50, 50)), (F32, (100, 4)), (I64, (100,))),
        _case(Fold((16, 16), *two, (1, 1), (1, 1)), (F16, (2, 576, 256))),
        _case(PoolingIndices(*two, (1, 1), (1, 1)), (F16, (2, 64, 32, 32))),
        _case(product, (F64, (64, 32)), (F64, (32, 48)), (F64, (48,))),
        _case(Convolution((1, 1), (1, 1), (1, 1), (1, 1)), (F64, (1, 4, 16, 16)), (F64, (8, 4, 3, 3))),
        _case(Deconvolution((2, 2), (0, 0), (0, 0), (1, 1), (0, 0)), (F64, (1, 4, 16, 16)), (F64, (4, 8, 3, 3))),
        _case(Attention(0.125), *[(F64, (1, 2, 16, 64))] * 3),
        _case(Determinant(), (F32, (8, 16, 16))), _case(Inverse(), (F32, (8, 16, 16))),
        _case(LinearAttention(8, 4, True, True), *[(F16, (2, 16, width)) for width in (512, 256, 256, 256, 4)]),
        _case(product, (F16, (512, 768)), (F16, (768, 3072)), (F16, (3072,)), constant=(1, 2)),
        _case(product, (F16, (1, 2048)), (F16, (2048, 1000)), (F16, (1000,)), constant=(1, 2)),
        *(_case(PrologueProduct(product, apply("gelu", SCALE_BIAS), 2), (F16, (rows, 2048)), (F16, (2048, 1000)), (F16, (1000,)), (F16, (2048,)), (F16, (2048,)),
                constant=(1, 2, 3, 4)) for rows in (1, 512)),
        _case(product, (F32, (129, 65)), (F32, (65, 33)), (F32, (33,)), constant=(1, 2)),
        *_packed(),
        _conv(8, 56, 64, 64, 3, 1), _conv(1, 14, 256, 1024, 1, 1), _conv(8, 224, 3, 64, 7, 2), _conv(8, 56, 96, 96, 3, 1, 96), _conv(8, 56, 96, 96, 7, 1, 96),
        _case(Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, True), (F32, (2, 14, 14, 24)), (F32, (40, 24, 3, 3)), constant=(1,)),
        _case(ConvolutionPooling(Convolution((2, 2), (3, 3), (3, 3), (1, 1), 1, True, BIAS_RELU, False),
                                 Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True)),
              (F16, (8, 3, 224, 224)), (F16, (64, 3, 7, 7)), (F16, (64,)), constant=(1, 2)),
        _case(PlanarConvolution(Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, True, Convert(F32, BIAS_RELU))), (F16, (2, 56, 56, 64)), (F16, (21, 64, 3, 3)),
              (F16, (21,)), constant=(1, 2)),
        *(_separable(dtype, stride) for dtype in (DataType.INT8, F16) for stride in (2, 1)),
        _case(Convolution((16, 16), (0, 0), (0, 0), (1, 1), 1, True, BIAS_RELU, False), (F16, (8, 3, 224, 224)), (F16, (768, 3, 16, 16)), (F16, (768,)), constant=(1, 2)),
        _case(Deconvolution((2, 2), (0, 0), (0, 0), (1, 1), (0, 0), 1, True), (F16, (2, 14, 14, 64)), (F16, (64, 32, 2, 2)), constant=(1,)),
        _case(Attention(0.125), *[(F16, (2, 12, 128, 64))] * 3), _case(Attention(0.125), *[(F16, (2, 12, 1024, 128))] * 3),
        _case(Attention(0.125), (F16, (2, 12, 1, 64)), *[(F16, (2, 4, 700, 64))] * 2),
        _case(CacheAppend(((2, 8), (3, 10))), *[(F16, (2, 2, 64, 64))] * 2, (F16, (2, 1, 10, 64)), (F16, (2, 1, 12, 64))),
        _case(Pointwise(apply("gelu", X)), (F16, (1000,))),
        _case(Pointwise(BIAS_RELU), (F32, (8, 64, 64)), (F32, (64,))),
        _case(Reduce("mean", (1,), False), (F16, (64, 1000))), _case(Reduce("mean", (1, 2), True), (F16, (8, 7, 7, 2048))),
        _case(Reduce("logsumexp", (0, 2), True), (F32, (8, 9, 10))),
        _case(Softmax(1), (F16, (1000, 1000))), _case(Softmax(1), (F32, (4, 50000))), _case(Softmax(1), (F32, (4, 20, 30))),
        _case(Normalization((1,), 1e-5, True, SCALE_BIAS), (F16, (128, 768)), (F16, (768,)), (F16, (768,))),
        _case(GroupNormalization(32, 1e-5, True, SCALE_BIAS), (F16, (2, 64, 64, 320)), (F16, (320,)), (F16, (320,))),
        _case(LocalResponseNormalization(5, 1e-4, 0.75, 1.0), (F32, (1, 96, 27, 27))),
        _case(Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True), (F16, (8, 112, 112, 64))),
        _case(Pooling("average", (7, 7), (1, 1), (0, 0), (0, 0), (1, 1), channels_last=True), (F16, (8, 7, 7, 2048))),
        _case(Shuffle((0, 2, 3, 1)), (F16, (8, 3, 224, 224))), _case(Shuffle(None, (8, 50, 12, 64), (0, 2, 1, 3)), (F16, (8, 50, 768))),
        _case(Shuffle(None, (6,)), (F32, (2, 3))), _case(Reformat((0, 2, 3, 1), Convert(F16, X)), (F32, (32, 64, 56, 56))),
        _case(Slice((0, 8), (4, 16), (1, 1)), (F16, (4, 32))), _case(Expand((8, 64)), (F16, (64,))), _case(Tile((2, 2)), (F16, (8, 8))),
        _case(Concatenation(1), *[(F16, (8, 64))] * 3), _case(Padding((0, 1), (0, 1)), (F32, (4, 9))), _case(Padding((0, 0), (0, 3)), (F16, (9, 37))),
        _case(Gather(0), (F16, (30000, 768)), (I64, (8, 128))), _case(GatherND(0), (F32, (8, 9, 10)), (I64, (5, 2))),
        _case(GatherElements(1), (F32, (8, 9)), (I64, (8, 4))),
        _case(ScatterElements(1, "add"), (F16, (8, 9)), (I64, (8, 4)), (F16, (8, 4))),
        _case(ScatterND(), (F16, (8, 9)), (I64, (4, 1)), (F16, (4, 9))),
        _case(Resize((1, 64, 64, 32), (1.0, 2.0, 2.0, 1.0), "linear"), (F16, (1, 32, 32, 32))),
        _case(TopK(5, 1), (F32, (8, 1000))), _case(ArgReduce(1, False), (F32, (8, 1000))), _case(Cumulative(1), (F32, (8, 1000))),
        _case(NonZero(), (F32, (8, 1000))), _case(Unique(1, False), (F32, (8, 5000))),
        _case(NonMaxSuppression(100), (F32, (1, 8400, 4)), (F32, (1, 80, 8400)), (I64, (1,)), (F32, (1,)), (F32, (1,))),
        _case(SumNormalization(1, 1e-5, True, True, SCALE_BIAS), (F16, (128, 768)), (F16, (128, 768)), (F16, (768,)), (F16, (768,))),
        _case(RotaryEmbedding(), (F16, (2, 12, 128, 64)), (F16, (128, 64)), (F16, (128, 64))),
        _lstm(F16, 512, 4), _lstm(F32, 128, 1),
        _case(Fill((100,), F32, 1.0)), _case(Range(0, 1, 100, I64)), _case(ShapeValue((3,), (1,), I64)),
    )  # fmt: skip


def _device(arch: str) -> DeviceSpec:
    capability = int("".join(letter for letter in arch if letter.isdigit()))
    return replace(H100, name=arch, arch=arch, capability=capability, shared_memory=ARCHITECTURES[arch] * 1024)


@cache
def _launches(tactic_id: str, arch: str) -> dict[tuple[str, str], Launch]:
    """The first launch of each kernel, by file and entry."""
    tactic, device = TACTICS[tactic_id], _device(arch)
    found: dict[tuple[str, str], Launch] = {}
    for workload in cases():
        if isinstance(workload.op, tactic.ops) and tactic.supports(workload, device) is None:
            for one in tactic.configs(workload, device):
                for step in tactic.plan(workload, one, device).steps:
                    if isinstance(step, Launch):
                        found.setdefault((step.kernel.file, step.kernel.entry), step)
    return found


TACTICS = {tactic.id: tactic for tactic in tactics("cuda") if not isinstance(tactic, Dequantized)}  # those run the kernels of others
WITHOUT_KERNEL = {"cuda.cublas_lt", "cuda.cudnn", "cuda.plugin.kernel", "cuda.reinterpret.copy", "cuda.shuffle.copy"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tactic_id", sorted(TACTICS))
def test_compiles_without_spills(tactic_id: str, arch: str) -> None:
    found = _launches(tactic_id, arch)
    if not found:  # it refuses this architecture
        assert tactic_id in WITHOUT_KERNEL or any(_launches(tactic_id, other) for other in ARCHITECTURES), "no case serves it"
    for step in found.values():
        _fits(step, arch)


def _fits(step: Launch, arch: str) -> None:
    used = compile_cubin(step.kernel.source(), step.kernel.defines, arch, step.kernel.file).resources
    threads = step.block[0] * step.block[1] * step.block[2]
    assert used.registers * threads <= 65536, f"{step.kernel.entry}: {used.registers} registers x {threads} threads"
    assert used.shared + step.shared_memory <= max(48 * 1024, ARCHITECTURES[arch] * 1024), f"{step.kernel.entry}: shared memory"
    assert used.spill_stores <= may_spill(step.kernel.entry, arch), f"{step.kernel.entry} spills {used.spill_stores} bytes for {arch}"


def test_every_kernel_file_is_compiled() -> None:
    compiled = {file for tactic_id in TACTICS for file, _ in _launches(tactic_id, "sm_90a")}  # which has all of them
    assert {path.relative_to(CUDA_FOLDER).as_posix() for path in CUDA_FOLDER.rglob("*.cu")} == compiled


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_pooling_with_a_prologue_compiles(arch: str) -> None:
    device = _device(arch)
    for size, name in ((2, "cuda.pooling.window"), (56, "cuda.pooling.global")):
        op = Pooling("average", (size, size), (size, size), (0, 0), (0, 0), (1, 1), channels_last=True, prologue=apply("mul", X, apply("sigmoid", X)))
        workload = _case(op, (F16, (8, 56, 56, 64)))
        assert TACTICS[name].supports(workload, device) is None
        for step in TACTICS[name].plan(workload, TACTICS[name].configs(workload, device)[0], device).steps:
            assert isinstance(step, Launch)
            _fits(step, arch)


def test_plans_of_every_configuration_are_pure_and_launchable() -> None:
    """Grids and blocks within the hardware's limits, the same plan each time, one kernel list for every size."""
    device = _device("sm_90a")
    for workload in cases():
        for tactic in tactics("cuda"):
            if not isinstance(workload.op, tactic.ops) or tactic.supports(workload, device) is not None:
                continue
            configs = tactic.configs(workload, device)
            assert configs and len(set(configs)) == len(configs), f"{tactic.id}: no or repeated configurations"
            near = tactic.neighbours(workload, configs[0], device)
            assert len(set(near)) == len(near) and configs[0] not in near, f"{tactic.id}: neighbours"
            for config in (*configs, *near):
                plan = tactic.plan(workload, config, device)
                assert plan == tactic.plan(workload, config, device), f"{tactic.id} is not pure"
                for step in plan.steps:
                    if isinstance(step, Launch):
                        assert 0 < step.grid[0] < 2**31 and 0 < step.grid[1] < 65536 and 0 < step.grid[2] < 65536, (tactic.id, step.grid)
                        assert 0 < step.block[0] * step.block[1] * step.block[2] <= 1024, (tactic.id, step.block)
                        assert step.shared_memory <= device.shared_memory, (tactic.id, config)


def test_every_family_has_one_reference() -> None:
    """For each operation that CUDA serves, some tactic is marked as the plainest."""
    served = {op for tactic in tactics("cuda") for op in tactic.ops}
    plain = {op for tactic in tactics("cuda") if tactic.reference for op in tactic.ops}
    assert served == plain, f"no reference for {sorted(op.__name__ for op in served - plain)}"
