"""The few driver functions that must be fast or early, through ctypes: device discovery and launches.

Discovery needs no heavy import (2-3 ms). Launches go through structures that were filled beforehand, so that one launch costs one foreign
call; the layouts below are those of ``cuda.h`` (a test compares them with cuda.bindings').
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from runtime.device import CaptureError, DeviceError, DeviceLostError, DeviceMemoryError

CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
COOPERATIVE = 2  # CU_LAUNCH_ATTRIBUTE_COOPERATIVE
PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

# Errors after which the context is unusable (cuda.h, CUresult: "this leaves the process in an inconsistent state").
_STICKY = frozenset({214, 700, 702, 710, 714, 715, 716, 717, 718, 719, 720, 721})
_CAPTURE = range(900, 911)


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: ``value`` is a union of 64 bytes, of which we set the first three words."""

    _fields_ = (("id", ctypes.c_uint), ("pad", ctypes.c_uint), ("value", ctypes.c_uint * 16))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_memory", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


_NAME = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@cache
def library() -> Any:
    """The driver library.

    Raises:
        DeviceError: no NVIDIA driver is installed.
    """
    try:
        return ctypes.CDLL(_NAME)
    except OSError as error:
        raise DeviceError(f"no NVIDIA driver: {error}") from error


@cache
def enqueuing() -> Any:
    """The same for calls that put little on a stream: they keep Python's global lock. To give it up to another thread and to wait for it again takes
    longer than they do. A full queue makes them wait with the lock, so nothing in a stream may need it: for streams of our own only.

    Raises:
        DeviceError: no NVIDIA driver is installed.
    """
    library()
    return ctypes.PyDLL(_NAME)


@cache
def device_count() -> int:
    """How many GPUs there are for this process (0 without a driver)."""
    try:
        cuda = library()
    except DeviceError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def attribute(device: int, number: int) -> int:
    """CUdevice_attribute ``number`` of GPU ``device``, 0 when the driver does not know it."""
    value = ctypes.c_int(0)
    code = library().cuDeviceGetAttribute(ctypes.byref(value), number, device)
    return 0 if code else value.value


def device_name(device: int) -> str:
    """The GPU's product name."""
    text = ctypes.create_string_buffer(256)
    check(library().cuDeviceGetName(text, 256, device), "cuDeviceGetName")
    return text.value.decode(errors="replace")


def device_memory(device: int) -> int:
    """Bytes of memory on the GPU."""
    size = ctypes.c_size_t(0)
    check(library().cuDeviceTotalMem_v2(ctypes.byref(size), device), "cuDeviceTotalMem")
    return size.value


def device_uuid(device: int) -> str:
    """The GPU's UUID as nvidia-smi shows it."""
    raw = (ctypes.c_ubyte * 16)()
    if library().cuDeviceGetUuid_v2(raw, device):
        return ""
    text = bytes(raw).hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def driver_version() -> tuple[int, int]:
    """The newest CUDA version that the driver supports."""
    value = ctypes.c_int(0)
    check(library().cuDriverGetVersion(ctypes.byref(value)), "cuDriverGetVersion")
    return value.value // 1000, value.value % 1000 // 10


def check(code: int, what: str) -> None:
    """Raise the failure that a driver call's result ``code`` means; 0 means none."""
    if code:
        raise failure(code, what)


def failure(code: int, what: str) -> DeviceError:
    """The exception for error ``code`` of ``what``."""
    text = f"{what}: {error_text(code)}"
    if code in _STICKY:
        return DeviceLostError(
            f"{text}. The GPU's context is broken: nothing more can run in this process, start it again"
        )
    if code == 2:
        return DeviceMemoryError(f"{text}: not enough free GPU memory")
    if code == 906:  # CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
        text += ". Something ran on the legacy default stream during the capture: use streams created as non-blocking"
    return CaptureError(text) if code in _CAPTURE else DeviceError(text)


def error_text(code: int) -> str:
    """Name and description of a CUresult."""
    try:
        cuda = library()
    except DeviceError:
        return f"CUDA error {code}"
    found = []
    for get in (cuda.cuGetErrorName, cuda.cuGetErrorString):
        text = ctypes.c_char_p()
        get(code, ctypes.byref(text))
        if text.value:
            found.append(text.value.decode(errors="replace"))
    return f"{found[0]} ({code}): {found[-1]}" if found else f"CUDA error {code}"
