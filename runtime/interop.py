"""Addresses of other libraries' tensors, without a copy: NumPy arrays, the CUDA array interface, DLPack.

Sources: numpy's array interface protocol, version 3; the CUDA Array Interface (numba), version 3; the DLPack C header, version 0 layout of
DLTensor (unchanged since), see https://dmlc.github.io/dlpack.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fusion.dtypes import DataType, data_type
from runtime.device import Memory


@dataclass(frozen=True)
class Foreign:
    """A tensor that someone else holds. ``kind`` is ``cpu`` or ``cuda``; ``shape`` and ``dtype`` are None for a bare address; ``gpu`` is the number of
    the GPU whose memory it is, None when that is not known or all can use it.

    ``strides`` are in elements, None for a row-major tensor without gaps. ``writable`` is False where the owner says that it must not be written; ``size`` is in bytes, of memory without a type.
    """

    address: int
    kind: str | None = None
    shape: tuple[int, ...] | None = None
    dtype: DataType | None = None
    owner: object = None
    writable: bool = True
    size: int | None = None
    gpu: int | None = None
    strides: tuple[int, ...] | None = None

    @property
    def bytes(self) -> int | None:
        """How many bytes it holds, None when only its address is known."""
        if self.size is not None or self.shape is None or self.dtype is None:
            return self.size
        return prod(self.shape) * self.dtype.itemsize


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DLPACK_CUDA = 2
_DLPACK_KINDS = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}  # CPU, CUDA, CUDA host, CUDA managed
_DLPACK_TYPES = {  # (code, bits)
    (0, 8): DataType.INT8, (0, 16): DataType.INT16, (0, 32): DataType.INT32, (0, 64): DataType.INT64,
    (1, 8): DataType.UINT8, (1, 16): DataType.UINT16, (1, 32): DataType.UINT32, (1, 64): DataType.UINT64,
    (2, 16): DataType.HALF, (2, 32): DataType.FLOAT, (2, 64): DataType.DOUBLE, (4, 16): DataType.BF16, (6, 8): DataType.BOOL,
    (10, 8): DataType.FP8, (12, 8): DataType.FP8_E5M2,
}  # fmt: skip


def foreign(value: Any, strided: bool = False) -> Foreign:
    """Where ``value`` lies: an address, memory of the device's own, a NumPy array, a tensor of any library with a CUDA array interface or DLPack, or an object with
    Python's buffer protocol (``bytearray``, ``array.array``, ``memoryview``, ``mmap``). ``strided``: tensors may have any strides.

    Raises:
        TypeError: it is none of these.
        ValueError: its elements are not contiguous (row-major), or of a type that trtcli lacks.
    """
    if isinstance(value, int | np.integer):
        return Foreign(int(value))
    if isinstance(value, Memory):
        return Foreign(value.address, owner=value, size=value.size)
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous and not strided:
            raise ValueError("the array is not contiguous (row-major): pass numpy.ascontiguousarray(x)")
        strides = None if value.flags.c_contiguous else tuple(stride // value.itemsize for stride in value.strides)
        return Foreign(value.ctypes.data, "cpu", value.shape, data_type(value.dtype), value, value.flags.writeable, strides=strides)
    interface = _interface(value)
    if interface is not None:
        shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
        given = interface.get("strides")
        strides = _strides(shape, None if given is None else tuple(stride // dtype.itemsize for stride in given), strided)
        return Foreign(int(interface["data"][0]), "cuda", shape, data_type(dtype), value, not interface["data"][1], gpu=_gpu(value), strides=strides)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value, strided)
    if (array := _from_buffer(value)) is not None:
        return Foreign(array.ctypes.data, "cpu", array.shape, data_type(array.dtype), value, array.flags.writeable)
    raise TypeError(
        f"{type(value).__name__} is no address and no tensor with __cuda_array_interface__, __dlpack__ or a buffer"
    )


def stream_handle(value: Any) -> int:
    """The driver handle of a stream: a number, or an object with ``__cuda_stream__``, ``cuda_stream``, ``ptr`` or ``handle``."""
    if isinstance(value, int):
        return value
    if hasattr(value, "__cuda_stream__"):
        return int(value.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):
        if hasattr(value, name):
            return int(getattr(value, name))
    raise TypeError(f"{type(value).__name__} is no stream: pass a handle or an object with __cuda_stream__")


def _interface(value: Any) -> dict[str, Any] | None:
    try:
        found = getattr(value, "__cuda_array_interface__", None)
    except (TypeError, AttributeError, RuntimeError):  # torch raises for tensors on the CPU and for bfloat16
        return None
    return found if isinstance(found, dict) else None


def _gpu(value: Any) -> int | None:
    """The number of the GPU in whose own memory ``value`` lies, where its library says so."""
    if not hasattr(value, "__dlpack_device__"):
        return None
    kind, number = value.__dlpack_device__()
    return int(number) if int(kind) == _DLPACK_CUDA else None


def _strides(shape: tuple[int, ...], strides: tuple[int, ...] | None, strided: bool) -> tuple[int, ...] | None:
    """``strides`` (in elements), or None where they are those of a row-major tensor without gaps.

    Raises:
        ValueError: they are others, and the tensor may not be ``strided``.
    """
    expected = 1
    for dim, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if dim > 1 and stride != expected and 0 not in shape:
            if not strided:
                raise ValueError(f"the tensor of shape {shape} is not contiguous (row-major)")
            return strides
        expected *= dim
    return None


def _export(value: Any) -> Any:
    """The DLPack capsule; a GPU is not made to wait, since the caller says on which stream the work runs."""
    device = getattr(value, "__dlpack_device__", None)
    if device is not None and _DLPACK_KINDS.get(int(device()[0])) == "cuda":
        return value.__dlpack__(stream=-1)
    return value.__dlpack__()


def _from_buffer(value: Any) -> np.ndarray | None:
    """An object of Python's buffer protocol as an array on its memory; None for other objects.

    Raises:
        ValueError: its elements are not contiguous, or of a type that NumPy lacks.
    """
    try:
        view = memoryview(value)
    except TypeError:
        return None
    if not view.c_contiguous:
        raise ValueError("the buffer is not contiguous (row-major)")
    return np.asarray(view)


def _from_dlpack(value: Any, strided: bool) -> Foreign:
    capsule = _export(value)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    # The capsule keeps its name, so its destructor releases the export; the tensor itself is kept alive by ``owner``.
    tensor = ctypes.cast(get(capsule, b"dltensor"), ctypes.POINTER(_DLTensor)).contents
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = _strides(shape, tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None, strided)
    dtype = _DLPACK_TYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    kind = _DLPACK_KINDS.get(tensor.device_type)
    if dtype is None or kind is None:
        raise ValueError(
            f"the tensor's type (DLPack code {tensor.code}, {tensor.bits} bits) or device is not one of ours"
        )
    gpu = tensor.device_id if tensor.device_type == _DLPACK_CUDA else None
    return Foreign((tensor.data or 0) + tensor.byte_offset, kind, shape, dtype, value, gpu=gpu, strides=strides)
