"""Opening a device by the name that ``--device`` takes."""

from __future__ import annotations

from functools import cache

from runtime.cuda_driver import device_count
from runtime.device import Device, DeviceError


def open_device(name: str = "auto") -> Device:
    """The device ``name``: ``auto`` (the first GPU, else the CPU), ``cpu``, or a GPU's number. The same object for the same device.

    Raises:
        DeviceError: there is no such device, or it does not start.
    """
    text = name.strip().lower()
    if text in ("auto", ""):
        return _open("0" if device_count() else "cpu")
    if text == "cpu":
        return _open("cpu")
    if not text.isascii() or not text.isdigit():
        raise DeviceError(
            f"--device={name}: not a device; give cpu or the number of a GPU (0 to {max(0, device_count() - 1)})"
        )
    count = device_count()
    if not count:
        raise DeviceError(
            "Cannot find any available devices (GPUs)! Use --device=cpu, or check the driver with trtcli doctor"
        )
    if int(text) >= count:
        raise DeviceError(f"Cannot find device ID {int(text)}! There are {count} GPUs, 0 to {count - 1}")
    return _open(str(int(text)))


@cache
def _open(name: str) -> Device:
    if name == "cpu":
        from runtime.cpu import CpuDevice

        return CpuDevice()
    from runtime.cuda import CudaDevice

    return CudaDevice(int(name))
