"""Small and odd workloads for ``sanitize.py``: together they run every kernel (tests/test_sanitize_cases.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.gpu.memory_bound_check import checks
from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Literal, Operand, apply, substitute
from fusion.network import Op, TensorType
from fusion.ops import (
    Attention,
    CacheAppend,
    Convolution,
    ConvolutionPooling,
    Deconvolution,
    DeformableColumns,
    Determinant,
    Fill,
    Fold,
    GridSample,
    Inverse,
    LinearAttention,
    MatrixMultiply,
    NonMaxSuppression,
    NonZero,
    PackedMatrixMultiply,
    PlanarConvolution,
    Pooling,
    PoolingIndices,
    PrologueProduct,
    Range,
    Recurrence,
    RoiAlign,
    RotaryEmbedding,
    SeparableConvolution,
    SumNormalization,
    Unique,
)
from tactics.tactic import Workload

F16, F32, F64, BF16, INT8, I64 = DataType.HALF, DataType.FLOAT, DataType.DOUBLE, DataType.BF16, DataType.INT8, DataType.INT64
X, Y = Operand(0), Operand(1)
BIAS_RELU = apply("relu", apply("add", X, Y))
SCALE_BIAS = apply("add", apply("mul", X, Y), Operand(2))
FAMILIES = ("products", "prologues", "packed", "convolutions", "separable", "attention", "recurrences", "memory", "others")

Case = tuple[str, Workload]


def case(op: Op, *types: tuple[DataType, tuple[int, ...]], constant: tuple[int, ...] = ()) -> Case:
    """A workload and its name."""
    inputs = tuple(TensorType(dtype, shape) for dtype, shape in types)
    name = f"{type(op).__name__} {types[0][0].label if types else ''} {' '.join('x'.join(map(str, shape)) for _, shape in types)}"
    return name, Workload(op, inputs, op.infer(inputs), tuple(index in constant for index in range(len(inputs))))


def cases(family: str) -> list[Case]:
    """The small workloads of one of FAMILIES."""
    return {"products": _products, "prologues": _prologues, "packed": _packed, "convolutions": _convolutions, "separable": _separable, "attention": _attention,
            "recurrences": _recurrences, "memory": _memory, "others": _others}[family]()  # fmt: skip


def _products() -> list[Case]:
    bias = MatrixMultiply(epilogue=BIAS_RELU)
    sizes = ((130, 200, 136), (9, 264, 72), (1, 512, 100), (77, 72, 67))
    found = [case(bias, (F16, (m, k)), (F16, (k, n)), (F16, (n,)), constant=(1, 2)) for m, k, n in sizes]
    found += [case(MatrixMultiply(), (F16, (2, 3, 70, 72)), (F16, (2, 3, 72, 40))), case(MatrixMultiply(), (BF16, (65, 136)), (BF16, (136, 200)))]
    found += [case(bias, (F32, (65, 33)), (F32, (33, 17)), (F32, (17,)), constant=(1, 2)), case(bias, (F16, (200, 1032)), (F16, (1032, 72)), (F16, (72,)))]
    found += [case(MatrixMultiply(epilogue=_quantized(apply("mul", X, Y))), (INT8, (m, 144)), (INT8, (144, 80)), (F32, (80,)), constant=(1, 2)) for m in (3, 130)]
    found += [case(MatrixMultiply(epilogue=_quantized(BIAS_RELU)), (F16, (m, 144)), (F16, (144, n)), (F16, (n,)), constant=(1, 2)) for m, n in ((3, 80), (130, 80), (130, 77))]
    return [*found, case(bias, (F64, (33, 17)), (F64, (17, 35)), (F64, (35,)))]


def _prologues() -> list[Case]:
    """Products of a function of their left operand, with vectors along the depth, and of a tensor beside it; one convolution."""
    scaled, bias = apply("relu", SCALE_BIAS), MatrixMultiply(epilogue=BIAS_RELU)
    found = [
        case(PrologueProduct(bias, scaled, 2), (F16, (m, k)), (F16, (k, n)), (F16, (n,)), (F16, (k,)), (F16, (k,)), constant=(1, 2))
        for m, k, n in ((130, 200, 136), (9, 264, 72), (1, 512, 100))
    ]
    pointwise = Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True, BIAS_RELU)
    gate = (F16, (2, 9, 7, 72)), (F16, (40, 72, 1, 1)), (F16, (40,)), (F16, (2, 1, 1, 72))
    return [
        *found, case(PrologueProduct(MatrixMultiply(), apply("mul", X, Y), 1), (F16, (2, 3, 70, 77)), (F16, (2, 3, 77, 40)), (F16, (2, 3, 70, 77))),
        case(PrologueProduct(pointwise, apply("mul", X, Y), 1), *gate, constant=(1, 2)),
    ]  # fmt: skip


def _packed() -> list[Case]:
    def packed(m: int, n: int, k: int, bits: int, block: int) -> Case:
        blocks = [(F16, (n, -(-k // block)))] * 2
        return case(PackedMatrixMultiply(bits, k, block, apply("add", X, Y)), (F16, (m, k)), (DataType.UINT8, (n, k * bits // 8)), *blocks, (F16, (m, n)), constant=(1, 2, 3))

    return [packed(1, 269, 1096, 4, 32), packed(9, 85, 1096, 4, 128), packed(5, 77, 456, 8, 16), packed(150, 72, 200, 8, 64)]


def _convolutions() -> list[Case]:
    def conv(size: int, c: int, o: int, k: int, stride: int, groups: int = 1, dtype: DataType = F16, epilogue: Expression = BIAS_RELU) -> Case:
        op = Convolution((stride,) * 2, (k // 2,) * 2, (k // 2,) * 2, (1, 1), groups, True, epilogue)
        added = F32 if dtype is INT8 else dtype
        return case(op, (dtype, (2, size, size - 2, c)), (dtype, (o, c // groups, k, k)), (added, (o,)), constant=(1, 2))

    pooled = ConvolutionPooling(Convolution((2, 2), (3, 3), (3, 3), (1, 1), 1, True, BIAS_RELU, False),
                                Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True))  # fmt: skip
    scaled = _quantized(apply("mul", X, Y))
    return [
        conv(9, 64, 72, 3, 1), conv(10, 64, 40, 3, 2), conv(9, 128, 64, 1, 1), conv(9, 64, 64, 3, 1), conv(17, 3, 32, 7, 2), conv(18, 3, 32, 7, 2), conv(11, 32, 32, 3, 1, 32),
        conv(12, 40, 40, 5, 2, 40), conv(13, 48, 48, 7, 1, 48), conv(11, 32, 32, 3, 1, 32, INT8, scaled), conv(9, 64, 48, 3, 1, 1, INT8, scaled),
        conv(12, 40, 40, 5, 1, 40, F16, _quantized(BIAS_RELU)), conv(9, 64, 64, 3, 1, 1, F16, _quantized(BIAS_RELU)), conv(17, 3, 32, 7, 2, 1, F16, _quantized(BIAS_RELU)),
        conv(9, 32, 32, 3, 1, 4), conv(9, 24, 20, 3, 1, 1, F32), conv(7, 4, 8, 3, 1, 1, F64),
        case(PlanarConvolution(Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, True, BIAS_RELU)), (F16, (2, 9, 7, 64)), (F16, (21, 64, 3, 3)), (F16, (21,)), constant=(1, 2)),
        case(Convolution((4, 4), (0, 0), (0, 0), (1, 1), 1, True, BIAS_RELU, False), (F16, (2, 3, 36, 28)), (F16, (40, 3, 4, 4)), (F16, (40,)), constant=(1, 2)),
        case(pooled, (F16, (2, 3, 37, 35)), (F16, (16, 3, 7, 7)), (F16, (16,)), constant=(1, 2)),
        case(Deconvolution((2, 2), (0, 0), (0, 0), (1, 1), (0, 0), 1, True), (F16, (2, 7, 7, 64)), (F16, (64, 32, 2, 2)), constant=(1,)),
        case(Deconvolution((2, 2), (0, 0), (0, 0), (1, 1), (0, 0)), (F64, (1, 4, 5, 6)), (F64, (4, 8, 3, 3))),
    ]  # fmt: skip


def _separable() -> list[Case]:
    """Depthwise and pointwise: every type, both strides, sizes that no tile divides."""
    found = []
    for dtype in (INT8, F16):
        for size, channels, out, taps, stride in ((13, 48, 24, 3, 1), (11, 40, 40, 5, 2), (7, 96, 136, 5, 1)):
            scale = _quantized(SCALE_BIAS) if dtype is INT8 else SCALE_BIAS
            op = SeparableConvolution(Convolution((stride,) * 2, (taps // 2,) * 2, (taps // 2,) * 2, (1, 1), channels, True, scale),
                                      Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True, scale), 2)  # fmt: skip
            added = F32 if dtype is INT8 else F16
            found.append(case(op, (dtype, (2, size, size - 2, channels)), (dtype, (channels, 1, taps, taps)), (dtype, (out, channels, 1, 1)),
                              *((added, (count,)) for count in (channels, channels, out, out)), constant=(1, 2, 3, 4, 5, 6)))  # fmt: skip
    return found


def _attention() -> list[Case]:
    plain = [case(Attention(0.125), *[(F16, (2, 3, length, 64))] * 3) for length in (70, 300)]
    causal = [case(Attention(0.125, causal=True), (F16, (1, 2, 200, 64)), *[(F16, (1, 2, keys, 64))] * 2) for keys in (90, 330)]
    # More tiles than multiprocessors: blocks go on from tile to tile.
    steady = case(Attention(0.125), (F16, (3, 16, 600, 64)), *[(F16, (3, 16, 100, 64))] * 2)
    quantised = [case(Attention(0.125, epilogue=_quantized(X), causal=True), (F16, (2, 2, length, 64)), *[(F16, (2, 2, keys, 64))] * 2) for length, keys in ((70, 40), (300, 333))]
    return [
        *plain, *causal, steady, *quantised, *(case(Attention(0.1, causal=causal), *[(BF16, (1, 2, 150, 128))] * 3) for causal in (False, True)),
        case(Attention(0.125, masked=True), *[(F16, (2, 3, 300, 64))] * 3, (F32, (1, 3, 300, 300))), case(Attention(0.125, masked=True), *[(F16, (2, 3, 150, 64))] * 3, (F16, (2, 1, 1, 150))),
        case(Attention(0.125, causal=True), (F16, (2, 12, 2, 128)), *[(F16, (2, 2, 333, 128))] * 2),
        case(Attention(0.125), (F16, (2, 12, 1, 64)), *[(F16, (2, 4, 333, 64))] * 2), case(Attention(0.125), *[(F64, (1, 2, 16, 64))] * 3),
        case(CacheAppend(((2, 4), (3, 10))), *[(F16, (2, 2, 37, 64))] * 2, (F16, (2, 1, 10, 64)), (F16, (2, 1, 12, 64))),
        case(LinearAttention(8, 4, True, True), *[(F16, (2, 9, width)) for width in (512, 256, 256, 256, 4)]),
        case(RotaryEmbedding(), (F16, (2, 3, 37, 64)), (F16, (37, 64)), (F16, (37, 64))),
    ]  # fmt: skip


def _recurrences() -> list[Case]:
    found = []
    for cell, gates, parts in (("lstm", 4, ("sigmoid", "tanh", "tanh")), ("gru", 3, ("sigmoid", "tanh"))):
        op = Recurrence(cell, 96, (False,), (tuple(apply(part, X) for part in parts),), **({"reset_after": True} if cell == "gru" else {}))  # type: ignore[arg-type]
        found += [case(op, (dtype, (5, 9, gates * 96)), (dtype, (1, gates * 96, 96)), constant=(1,)) for dtype in (F16, F32)]
    return found


def _memory() -> list[Case]:
    return [case(op, *types) for name, op, types in checks() if (" FP16" in name or "INT" in name) and max(np.prod(shape) for _, shape in types) < 400_000]


def _others() -> list[Case]:
    """What fits no other family: sampling, selection, windows, small matrices, values from nothing."""
    two = ((3, 3), (1, 1), (1, 1))
    return [
        case(SumNormalization(1, 1e-5, True, True, SCALE_BIAS), (F16, (17, 768)), (F16, (17, 768)), (F16, (768,)), (F16, (768,))),
        case(GridSample("cubic", "reflection"), (F16, (2, 5, 13, 11)), (F32, (2, 9, 7, 2))), case(GridSample("linear", "zeros"), (F32, (1, 3, 13, 11)), (F32, (1, 9, 7, 2))),
        case(DeformableColumns(*two, (1, 1), 2, True), (F16, (2, 6, 13, 11)), (F16, (2, 36, 13, 11)), (F16, (2, 18, 13, 11))),
        case(RoiAlign((3, 3), 2, 0.25), (F16, (1, 5, 20, 20)), (F32, (7, 4)), (I64, (7,))),
        case(Fold((9, 7), *two, (1, 1), (1, 1)), (F16, (2, 45, 63))), case(PoolingIndices(*two, (1, 1), (1, 1)), (F16, (2, 5, 13, 11))),
        case(Determinant(), (F32, (7, 11, 11))), case(Inverse(), (F32, (7, 11, 11))),
        case(NonZero(), (F16, (37, 1001))), case(Unique(1, False), (F32, (3, 777))), case(Unique(None, True), (I64, (5000,))),
        case(NonMaxSuppression(40), (F32, (2, 777, 4)), (F32, (2, 3, 777)), (I64, (1,)), (F32, (1,)), (F32, (1,))),
        case(Fill((1001,), F16, 1.5)), case(Range(1, 3, 1001, I64)),
    ]  # fmt: skip


def _quantized(real: Expression) -> Expression:
    """``real`` of 32-bit sums, rounded to INT8."""
    return Convert(INT8, apply("clip", apply("round", substitute(real, {0: Convert(F32, X)})), Literal(-128.0, F32), Literal(127.0, F32)))


def values(workload: Workload, random: np.random.Generator) -> list[np.ndarray]:
    """Inputs that the operation takes: indices that exist, boxes with corners in order, scales that keep 8-bit results in range."""
    op = workload.op
    if isinstance(op, PackedMatrixMultiply):
        a, weights, scales, zeros, added = (one.shape for one in workload.inputs)
        return [random.standard_normal(a).astype(np.float16), random.integers(0, 256, weights, np.uint8), (random.random(scales) * 0.01).astype(np.float16),
                random.integers(0, 1 << op.bits, zeros).astype(np.float16), random.standard_normal(added).astype(np.float16)]  # fmt: skip
    if isinstance(op, NonMaxSuppression):
        batch, n = workload.inputs[0].shape[:2]
        low = random.random((batch, n, 2), np.float32)
        scores = random.random(workload.inputs[1].shape, np.float32)
        return [np.concatenate([low, low + 0.2 * random.random((batch, n, 2), np.float32)], 2), scores, np.array([30]), np.array([0.4], np.float32), np.array([0.2], np.float32)]
    if isinstance(op, RoiAlign):
        regions = workload.inputs[1].shape[0]
        low = 40 * random.random((regions, 2), np.float32)
        return [random.standard_normal(workload.inputs[0].shape).astype(np.float16), np.concatenate([low, low + 30], 1).astype(np.float32), np.zeros(regions, np.int64)]
    limit = workload.inputs[0].shape[getattr(op, "axis", 0) or 0] if workload.inputs else 2
    scale = 0.1 if isinstance(op, Recurrence | LinearAttention) else 1.0
    found = []
    for number, one in enumerate(workload.inputs):
        if one.dtype is INT8:
            array = random.integers(-128, 128, one.shape, np.int8)
        elif not one.dtype.is_float:
            array = random.integers(1, max(2, int(limit)), one.shape).astype(one.dtype.numpy)  # type: ignore[arg-type]
        elif workload.inputs[0].dtype is INT8:  # of sums
            depth = np.prod(workload.inputs[1].shape) / workload.outputs[0].shape[-1]
            array = (random.random(one.shape, np.float32) * 0.005 / depth**0.5).astype(np.float32)
        else:
            array = (random.standard_normal(one.shape, np.float32) * scale).astype(one.dtype.numpy)  # type: ignore[arg-type]
            if isinstance(op, NonZero):
                array[random.random(one.shape) < 0.5] = 0
            elif isinstance(op, Determinant | Inverse):
                array += 5 * np.eye(one.shape[-1], dtype=array.dtype)
            elif isinstance(op, LinearAttention) and number == 3:  # decays
                array = -np.abs(array)
        found.append(array)
    return found


def cropped(workload: Workload, *results: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Results without the rows behind those that the operation found: nothing is promised of them."""
    if not isinstance(workload.op, NonZero | Unique | NonMaxSuppression):
        return [list(one) for one in results]
    tables = (0, 2) if isinstance(workload.op, Unique) else (0,)
    return [[array[: int(one[-1][0])] if number in tables else array for number, array in enumerate(one)] for one in results]
