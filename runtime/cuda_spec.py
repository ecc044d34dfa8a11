"""What an NVIDIA GPU is, for tactics and reports: asked of the driver, before any heavy import.

Peak rates follow from the SM's operations per clock by compute capability (the architecture white papers' tables), the SM count and the
boost clock; they are leads for estimates, not promises.
"""

from __future__ import annotations

from pathlib import Path

from runtime import cuda_driver
from tactics.tactic import DeviceSpec

# CUdevice_attribute numbers (cuda.h)
_SMS, _CLOCK_KHZ, _MAJOR, _MINOR, _L2 = 16, 13, 75, 76, 38
_MEMORY_CLOCK_KHZ, _BUS_BITS, _SHARED_PER_SM, _SHARED_OPTIN, _ECC = 36, 37, 81, 97, 32

# Dense floating-point operations per SM and clock (a fused multiply-add counts two); int8 counts likewise.
_RATES: dict[int, dict[str, int]] = {
    75: {"float16": 1024, "int8": 2048, "float32": 128, "float64": 4},
    80: {"float16": 2048, "bfloat16": 2048, "tf32": 1024, "int8": 4096, "float32": 128, "float64": 128},
    86: {"float16": 1024, "bfloat16": 1024, "tf32": 512, "int8": 2048, "float32": 256, "float64": 4},
    89: {"float16": 1024, "bfloat16": 1024, "tf32": 512, "int8": 2048, "float8_e4m3fn": 2048, "float32": 256, "float64": 4},
    90: {"float16": 4096, "bfloat16": 4096, "tf32": 2048, "int8": 8192, "float8_e4m3fn": 8192, "float32": 256, "float64": 256},
    100: {"float16": 8192, "bfloat16": 8192, "tf32": 4096, "int8": 16384, "float8_e4m3fn": 16384, "float32": 256, "float64": 128},
    120: {"float16": 1024, "bfloat16": 1024, "tf32": 512, "int8": 2048, "float8_e4m3fn": 2048, "float32": 256, "float64": 4},
}  # fmt: skip


def architecture(capability: int) -> str:
    """NVRTC's name of the target: with the architecture's own features (wgmma, TMA multicast ...) from 9.0 on."""
    return f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"


def peak_rates(capability: int, multiprocessors: int, clock_hz: float) -> dict[str, float]:
    """Operations per second by data type; capabilities that are not in the table take the nearest lower one."""
    known = max((key for key in _RATES if key <= capability), default=75)
    rates = {name: rate * multiprocessors * clock_hz for name, rate in _RATES[known].items()}
    if "float8_e4m3fn" in rates:
        rates["float8_e5m2"] = rates["float8_e4m3fn"]
    return rates


def cuda_spec(device: int) -> DeviceSpec:
    """The specification of GPU ``device``.

    Raises:
        DeviceError: the driver does not answer.
    """
    capability = cuda_driver.attribute(device, _MAJOR) * 10 + cuda_driver.attribute(device, _MINOR)
    sms = cuda_driver.attribute(device, _SMS)
    clock = cuda_driver.attribute(device, _CLOCK_KHZ) * 1e3 or 1.5e9
    # double data rate: two transfers per memory clock
    bandwidth = (
        2.0 * cuda_driver.attribute(device, _MEMORY_CLOCK_KHZ) * 1e3 * cuda_driver.attribute(device, _BUS_BITS) / 8
    )
    return DeviceSpec(
        kind="cuda",
        name=cuda_driver.device_name(device),
        arch=architecture(capability),
        capability=capability,
        multiprocessors=sms,
        shared_memory=cuda_driver.attribute(device, _SHARED_OPTIN),
        l2_bytes=cuda_driver.attribute(device, _L2),
        memory_bytes=cuda_driver.device_memory(device),
        bandwidth=bandwidth or 5e11,
        flops=peak_rates(capability, sms, clock),
    )


def cuda_properties(device: int) -> dict[str, str | int | float]:
    """What reports show of GPU ``device`` beside its specification."""
    capability = f"{cuda_driver.attribute(device, _MAJOR)}.{cuda_driver.attribute(device, _MINOR)}"
    return {
        "id": device,
        "name": cuda_driver.device_name(device),
        "uuid": cuda_driver.device_uuid(device),
        "compute_capability": capability,
        "multiprocessors": cuda_driver.attribute(device, _SMS),
        "memory_bytes": cuda_driver.device_memory(device),
        "shared_memory_per_sm": cuda_driver.attribute(device, _SHARED_PER_SM),
        "l2_bytes": cuda_driver.attribute(device, _L2),
        "bus_width_bits": cuda_driver.attribute(device, _BUS_BITS),
        "ecc": cuda_driver.attribute(device, _ECC),
        "compute_clock_ghz": cuda_driver.attribute(device, _CLOCK_KHZ) / 1e6,
        "memory_clock_ghz": cuda_driver.attribute(device, _MEMORY_CLOCK_KHZ) / 1e6,
        "cuda_version": "{}.{}".format(*cuda_driver.driver_version()),
        "driver": _driver_text(),
    }


def _driver_text() -> str:
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return ""
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), "")
