"""TMA descriptors (CUtensorMap), encoded by the driver from the description in a launch.

Source: CUDA driver API, "Tensor Map Object Management"; the limits checked here are the ones documented there.
"""

from __future__ import annotations

import ctypes
from typing import Any

from fusion.dtypes import DataType
from runtime.cuda_driver import check
from runtime.device import DeviceError
from tactics.tactic import TensorMap

_WIDE = {
    DataType.FLOAT: "FLOAT32", DataType.HALF: "FLOAT16", DataType.BF16: "BFLOAT16", DataType.DOUBLE: "FLOAT64", DataType.INT16: "UINT16",
    DataType.UINT16: "UINT16", DataType.INT32: "INT32", DataType.UINT32: "UINT32", DataType.INT64: "INT64", DataType.UINT64: "UINT64",
}  # fmt: skip
_TYPES = {dtype: _WIDE.get(dtype, "UINT8") for dtype in DataType}  # whatever takes a byte is copied as one


def encode(tensor_map: TensorMap, address: int) -> bytes:
    """The 128 bytes of the descriptor of ``tensor_map`` at ``address``.

    Raises:
        DeviceError: the description breaks one of TMA's rules; the text says which.
    """
    problem = invalid(tensor_map, address)
    if problem:
        raise DeviceError(f"tensor map: {problem}")
    from cuda.bindings import driver

    wide, narrow = driver.cuuint64_t, driver.cuuint32_t
    rank = len(tensor_map.dims)
    steps = tensor_map.element_strides or (1,) * rank
    kind = "TFLOAT32" if tensor_map.tf32 else _TYPES[tensor_map.dtype]
    head: list[Any] = [
        getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{kind}"),
        rank,
        address,
        [wide(dim) for dim in tensor_map.dims],
        [wide(stride) for stride in tensor_map.strides],
    ]
    swizzle = f"{tensor_map.swizzle}B" if tensor_map.swizzle else "NONE"
    promotion = f"L2_{tensor_map.l2_promotion}B" if tensor_map.l2_promotion else "NONE"
    tail = [
        [narrow(step) for step in steps],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{swizzle}"),
        getattr(driver.CUtensorMapL2promotion, f"CU_TENSOR_MAP_L2_PROMOTION_{promotion}"),
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    ]
    if tensor_map.im2col is None:
        error, result = driver.cuTensorMapEncodeTiled(*head, [narrow(size) for size in tensor_map.box], *tail)
    else:
        column = tensor_map.im2col
        corners = [list(column.lower_corner), list(column.upper_corner)]
        counts = [column.channels_per_pixel, column.pixels_per_column]
        error, result = driver.cuTensorMapEncodeIm2col(*head, *corners, *counts, *tail)
    check(int(error), f"tensor map {tensor_map}")
    return ctypes.string_at(int(result.getPtr()), 128)


def invalid(tensor_map: TensorMap, address: int) -> str:
    """The rule that ``tensor_map`` breaks, or an empty text. The driver only answers "invalid value"."""
    rank, item = len(tensor_map.dims), tensor_map.dtype.itemsize
    if not 1 <= rank <= 5 or (tensor_map.im2col is not None and rank < 3):
        return f"rank {rank} (1 to 5; im2col 3 to 5)"
    if address % 16:
        return f"address {address:#x} is not a multiple of 16"
    if any(not 1 <= dim <= 2**32 for dim in tensor_map.dims):
        return f"dimensions {tensor_map.dims} (1 to 2^32 each)"
    if len(tensor_map.strides) != rank - 1:
        return f"{len(tensor_map.strides)} strides for rank {rank} ({rank - 1} wanted)"
    if any(stride % 16 or not 0 <= stride < 2**40 for stride in tensor_map.strides):
        return f"strides {tensor_map.strides} bytes (multiples of 16 below 2^40)"
    if tensor_map.swizzle not in (0, 32, 64, 128):
        return f"swizzle {tensor_map.swizzle} (0, 32, 64, 128)"
    if any(not 1 <= step <= 8 for step in tensor_map.element_strides):
        return f"element strides {tensor_map.element_strides} (1 to 8)"
    if tensor_map.im2col is None:
        if len(tensor_map.box) != rank or any(not 1 <= size <= 256 for size in tensor_map.box):
            return f"box {tensor_map.box} ({rank} sizes of 1 to 256)"
        inner = tensor_map.box[0] * item
    else:
        column = tensor_map.im2col
        if len(column.lower_corner) != rank - 2 or len(column.upper_corner) != rank - 2:
            return f"im2col corners {column.lower_corner}, {column.upper_corner} ({rank - 2} values each)"
        if not 1 <= column.channels_per_pixel <= 256 or not 1 <= column.pixels_per_column <= 1024:
            return f"im2col of {column.channels_per_pixel} channels (1 to 256) and {column.pixels_per_column} pixels (1 to 1024)"
        inner = column.channels_per_pixel * item
    if inner % 16:
        return f"{inner} bytes in the innermost box dimension (a multiple of 16)"
    if tensor_map.swizzle and inner > tensor_map.swizzle:
        return f"{inner} bytes in the innermost box dimension, the swizzle spans {tensor_map.swizzle}"
    return ""
