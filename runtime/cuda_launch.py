"""Launches made ready: every argument of a kernel packed once into one buffer, laid out as the driver wants it.

``kernelParams`` of a launch is an array of pointers, one per kernel parameter, each to the parameter's value. The driver copies the
values during the call, so one buffer serves every launch of a program.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence

from runtime.cuda_driver import (
    CLUSTER_DIMENSION,
    COOPERATIVE,
    PROGRAMMATIC_STREAM_SERIALIZATION,
    LaunchAttribute,
    LaunchConfig,
)
from runtime.device import DeviceError
from tactics.tactic import Argument, Buffer, Launch, Scalar, Struct, TensorMap

_FORMATS = {"i32": "<i", "u32": "<I", "i64": "<q", "u64": "<Q", "f32": "<f", "f64": "<d"}
_MAP_SIZE = 128  # bytes of a CUtensorMap; 64-byte aligned


class Arguments:
    """Packed kernel arguments: ``data`` holds the values, ``pointers`` one pointer per parameter."""

    def __init__(self, values: Sequence[bytes], alignments: Sequence[int]) -> None:
        offsets, end = [], 0
        for value, alignment in zip(values, alignments, strict=True):
            end = -(-end // alignment) * alignment
            offsets.append(end)
            end += len(value)
        self._raw = ctypes.create_string_buffer(end + 64)
        start = -(-ctypes.addressof(self._raw) // 64) * 64
        for value, offset in zip(values, offsets, strict=True):
            ctypes.memmove(start + offset, value, len(value))
        self.pointers = (ctypes.c_void_p * max(1, len(values)))(*(start + offset for offset in offsets))

    def value(self, number: int, size: int) -> bytes:
        """The first ``size`` bytes of parameter ``number``."""
        address = self.pointers[number]
        assert address is not None
        return ctypes.string_at(address, size)


def pack_arguments(
    arguments: Sequence[Argument], address: Callable[[Buffer], int], encode: Callable[[TensorMap, int], bytes]
) -> Arguments:
    """Pack ``arguments``; ``address`` resolves buffers, ``encode(map, address)`` makes the 128 bytes of a tensor map.

    Raises:
        DeviceError: a number does not fit its type.
    """
    values, alignments = [], []
    for argument in arguments:
        if isinstance(argument, TensorMap):
            value, alignment = encode(argument, address(argument.buffer)), 64
            assert len(value) == _MAP_SIZE
        elif isinstance(argument, Struct):
            value, alignment = _pack_struct(argument, address)
        else:
            value = _pack_field(argument, address)
            alignment = len(value)
        values.append(value)
        alignments.append(alignment)
    return Arguments(values, alignments)


def _pack_struct(argument: Struct, address: Callable[[Buffer], int]) -> tuple[bytes, int]:
    """C's layout: each field aligned to its size, the whole to the largest of them."""
    data, largest = b"", 1
    for field in argument.fields:
        value = _pack_field(field, address)
        data += b"\0" * (-len(data) % len(value)) + value
        largest = max(largest, len(value))
    return data + b"\0" * (-len(data) % largest), largest


def _pack_field(field: Buffer | Scalar, address: Callable[[Buffer], int]) -> bytes:
    if isinstance(field, Buffer):
        return struct.pack("<Q", address(field))
    try:
        return struct.pack(_FORMATS[field.ctype], field.value)
    except (struct.error, OverflowError, KeyError) as error:
        raise DeviceError(f"kernel argument {field.value!r} is no {field.ctype}: {error}") from error


def launch_config(launch: Launch) -> tuple[LaunchConfig, object]:
    """The driver's launch configuration (its stream is set at each launch), and the attribute array that it points to.

    Raises:
        DeviceError: grid or block exceed what any GPU allows.
    """
    _check_geometry(launch)
    attributes: list[LaunchAttribute] = []
    if launch.cluster != (1, 1, 1):
        cluster = LaunchAttribute(id=CLUSTER_DIMENSION)
        cluster.value[:3] = launch.cluster
        attributes.append(cluster)
    if launch.dependent:
        dependent = LaunchAttribute(id=PROGRAMMATIC_STREAM_SERIALIZATION)
        dependent.value[0] = 1
        attributes.append(dependent)
    if launch.cooperative:
        cooperative = LaunchAttribute(id=COOPERATIVE)
        cooperative.value[0] = 1
        attributes.append(cooperative)
    array = (LaunchAttribute * max(1, len(attributes)))(*attributes)
    config = LaunchConfig(
        grid=launch.grid,
        block=launch.block,
        shared_memory=launch.shared_memory,
        attributes=ctypes.addressof(array) if attributes else None,
        attribute_count=len(attributes),
    )
    return config, array


def _check_geometry(launch: Launch) -> None:
    # CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; the same from 7.5 on
    limits = ((2**31 - 1, 65535, 65535), (1024, 1024, 64))
    for what, sizes, limit in zip(("grid", "block"), (launch.grid, launch.block), limits, strict=True):
        if any(size < 0 or size > most for size, most in zip(sizes, limit, strict=True)):
            raise DeviceError(f"kernel {launch.kernel.entry!r}: {what} {sizes} exceeds {limit}")
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    if not 0 < threads <= 1024:
        raise DeviceError(f"kernel {launch.kernel.entry!r}: {threads} threads in a block, 1 to 1024 are possible")
    if any(size % cluster for size, cluster in zip(launch.grid, launch.cluster, strict=True)):
        raise DeviceError(
            f"kernel {launch.kernel.entry!r}: grid {launch.grid} is no multiple of cluster {launch.cluster}"
        )
