"""What the tactics for packed weights share: which workloads they take, and the weights in the order of ``include/packed.cuh``."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import PackedMatrixMultiply
from fusion.ops.packed_matmul import unpacked
from tactics.cuda.gemm.common import C_TYPES, Epilogue, epilogue_of, round_up, sizes
from tactics.memo import LastResult
from tactics.tactic import DeviceSpec, Refusal, Workload

# What MAGIC + q is in a kernel: numbers that IN_T holds exactly (see packed.cuh).
_MAGIC = {(DataType.HALF, 4): 1024, (DataType.HALF, 8): 1024, (DataType.BF16, 4): 128, (DataType.BF16, 8): 0}


def refused(workload: Workload, device: DeviceSpec) -> Refusal | None:
    """Why kernels that read packed weights cannot take the workload, or None."""
    op, dtype = workload.op, workload.inputs[0].dtype
    assert isinstance(op, PackedMatrixMultiply)
    if dtype not in (DataType.HALF, DataType.BF16):
        return Refusal(f"activations are {dtype.label}; this kernel takes FP16 and BF16 (--fp16, --bf16)")
    if device.capability < (75 if dtype is DataType.HALF else 80):
        return Refusal(f"tensor cores multiply {dtype.label} from sm_{75 if dtype is DataType.HALF else 80} on; the device is {device.arch}")
    if workload.outputs[0].dtype not in C_TYPES:
        return Refusal(f"the output is {workload.outputs[0].dtype.label}; this kernel stores FP32, FP16 or BF16")
    if not all(workload.constant[1:4]):
        return Refusal("weights, scales or zero points are computed by the network")
    if kernel_block(op) is None:
        return Refusal(f"blocks of {op.block}; this kernel takes 16, 32 or multiples of 64")
    if prod(sizes(workload, len(workload.inputs))) == 0 or op.depth == 0:
        return Refusal("an empty product")
    epilogue = epilogue_of(workload)
    return epilogue if isinstance(epilogue, Refusal) else None


def kernel_block(op: PackedMatrixMultiply) -> int | None:
    """How much of the depth shares a scale, as kernels count it: one block for all is rounded up to whole groups of 64."""
    if op.block >= op.depth:
        return round_up(op.depth, 64)
    return op.block if op.block in (16, 32) or op.block % 64 == 0 else None


def shape_of(workload: Workload) -> tuple[int, int, int]:
    """(m, n, k) with the batch folded into m."""
    op = workload.op
    assert isinstance(op, PackedMatrixMultiply)
    out = sizes(workload, len(workload.inputs))
    return prod(out[:-1]), out[-1], op.depth


def kernel_weights(workload: Workload, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The weights in groups of 16 columns x 64 of the depth, and their scaling, both as uint32."""
    op, dtype = workload.op, workload.inputs[0].dtype
    assert isinstance(op, PackedMatrixMultiply)
    return _kernel_weights((constants[1], constants[2], constants[3]), op.bits, op.depth, dtype)


@LastResult
def _kernel_weights(arrays: tuple[np.ndarray, ...], bits: int, depth: int, dtype: DataType) -> tuple[np.ndarray, np.ndarray]:
    weights, scales, zeros = arrays
    return grouped(unpacked(weights, bits)[:, :depth], bits), scaling(scales, zeros, dtype, bits)


def grouped(values: np.ndarray, bits: int) -> np.ndarray:
    """``values`` ``[N, K]`` (a byte each) as packed.cuh wants them: ``[column group][depth group][vector][lane][word]``."""
    n, k = (round_up(size, step) for size, step in zip(values.shape, (16, 64), strict=True))
    filled = np.zeros((n, k), np.uint32)
    filled[: values.shape[0], : values.shape[1]] = values
    # (column group, tile, row of the lane) x (depth group, step, half, quad, neighbour)
    parts = filled.reshape(n // 16, 2, 8, k // 64, 4, 2, 4, 2).transpose(0, 3, 2, 6, 1, 4, 5, 7)
    # -> [column group][depth group][row][quad][tile][step][half][neighbour]
    if bits == 4:  # a word holds two steps: bits 0, 4 (halves), 8, 12 (of the second step); neighbours 16 bits apart
        shifts = np.array([[[step * 8 + half * 4 + e * 16 for e in range(2)] for half in range(2)] for step in range(2)], np.uint32)
        split = parts.reshape(*parts.shape[:5], 2, 2, 2, 2)
        words = np.bitwise_or.reduce(split << shifts, axis=(-3, -2, -1))
        return np.ascontiguousarray(words.reshape(n // 16, k // 64, 1, 32, 4))
    shifts = np.array([[0, 8], [16, 24]], np.uint32)
    words = np.bitwise_or.reduce(parts << shifts, axis=(-2, -1))  # [column group][depth group][row][quad][tile][step]
    return np.ascontiguousarray(words.transpose(0, 1, 4, 2, 3, 5).reshape(n // 16, k // 64, 2, 32, 4))


def scaling(scales: np.ndarray, zeros: np.ndarray, dtype: DataType, bits: int) -> np.ndarray:
    """``[block][column]`` words: the scale in the lower half, MAGIC + zero point in the upper."""
    columns, blocks = round_up(scales.shape[0], 16), scales.shape[1]
    words = np.zeros((blocks, columns, 2), dtype.numpy)
    words[:, : len(scales), 0] = scales.T.astype(dtype.numpy)
    offsets = zeros.T.astype(np.float32) + _MAGIC[dtype, bits]
    words[:, : len(scales), 1] = offsets.astype(dtype.numpy)
    if not np.array_equal(words[:, : len(scales), 1].astype(np.float32), offsets):
        raise ValueError("zero points that are no whole numbers: this kernel cannot subtract them exactly")
    return words.view(np.uint32).reshape(blocks, columns)


def finished(workload: Workload) -> Epilogue:
    """The epilogue of a workload that :func:`refused` has let pass."""
    epilogue = epilogue_of(workload)
    assert isinstance(epilogue, Epilogue)
    return epilogue
