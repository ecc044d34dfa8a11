"""What the tactics for packed weights share: which workloads they take, and the weights in the order of ``include/packed.cuh``."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import PackedMatrixMultiply
from fusion.ops.packed_matmul import unpacked
from tactics.cuda.gemm.common import STORED_TYPES, Epilogue, epilogue_of, refuse_epilogue, round_up, sizes
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
    if workload.outputs[0].dtype not in STORED_TYPES:
        return Refusal(f"the output is {workload.outputs[0].dtype.label}; this kernel stores {', '.join(one.label for one in STORED_TYPES)}")
    if not all(map(workload.is_constant, (1, 2, 3))):
        return Refusal("weights, scales or zero points are computed by the network")
    if kernel_block(op) is None:
        return Refusal(f"blocks of {op.block}; this kernel takes 16, 32 or multiples of 64")
    if prod(sizes(workload, len(workload.inputs))) == 0 or op.depth == 0:
        return Refusal("an empty product")
    return refuse_epilogue(workload)


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


def streamed_weights(workload: Workload, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The same for ``gemm/stream.cu``: a lane's part of a group is one run of the depth, a column group's scaling lies together."""
    op, dtype = workload.op, workload.inputs[0].dtype
    assert isinstance(op, PackedMatrixMultiply)
    return _streamed_weights((constants[1], constants[2], constants[3]), op.bits, op.depth, dtype, 4 if kernel_block(op) == 16 else 8)


@LastResult
def _streamed_weights(arrays: tuple[np.ndarray, ...], bits: int, depth: int, dtype: DataType, run: int) -> tuple[np.ndarray, np.ndarray]:
    weights, scales, zeros = arrays
    words = scaling(scales, zeros, dtype, bits)  # [block][column group, tile, row] -> [column group][block][row][tile]
    paired = words.reshape(len(words), -1, 2, 8).transpose(1, 0, 3, 2)
    return grouped(in_runs(unpacked(weights, bits)[:, :depth], run), bits), np.ascontiguousarray(paired)


def in_runs(values: np.ndarray, run: int) -> np.ndarray:
    """``values`` ``[N, K]``, the depth padded to whole groups and permuted so that :func:`grouped` gives a lane (row, quad), of every
    ``run * 4`` of the depth, the ``run`` (4 or 8) from ``quad * run`` on."""
    n, k = values.shape[0], round_up(values.shape[1], 64)
    padded = np.pad(values, ((0, 0), (0, k - values.shape[1])))
    # (piece, quad, step, half, neighbour) -> (piece, step, half, quad, neighbour)
    return padded.reshape(n, k // (run * 4), 4, run // 4, 2, 2).transpose(0, 1, 3, 4, 2, 5).reshape(n, k)


def grouped(values: np.ndarray, bits: int) -> np.ndarray:
    """``values`` ``[N, K]`` (a byte each) as packed.cuh wants them: words ``[column group][depth group][vector][lane][word]``."""
    n, k = (round_up(size, step) for size, step in zip(values.shape, (16, 64), strict=True))
    if values.shape != (n, k):
        values = np.pad(values, ((0, n - values.shape[0]), (0, k - values.shape[1])))
    # (column group, tile, row) x (depth group, word, step of a word, half, quad, neighbour); a lane is (row, quad)
    parts = values.reshape(n // 16, 2, 8, k // 64, 2, 2, 2, 4, 2)
    if bits == 4:  # bytes of a word: (neighbour, step), in each both halves
        halves = parts[:, :, :, :, :, :, 0] | parts[:, :, :, :, :, :, 1] << 4
        words = np.ascontiguousarray(halves.transpose(0, 3, 2, 6, 1, 4, 7, 5))
        return words.reshape(n // 16, k // 64, 1, 32, 16).view(np.uint32)
    words = np.ascontiguousarray(parts.transpose(0, 3, 1, 2, 7, 4, 5, 6, 8))  # a word for each step: (half, neighbour)
    return words.reshape(n // 16, k // 64, 2, 32, 16).view(np.uint32)


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
