"""Opening a device by the name that ``--device`` takes."""

from __future__ import annotations

from functools import cache

from runtime.cuda_driver import device_count
from runtime.device import Device, DeviceError


def open_device(name: str = "auto", limit_sms: str = "", mps: str = "") -> Device:
    """The device ``name``: ``auto`` (the first GPU, else the CPU), ``cpu``, or a GPU's number. The same object for the same arguments.

    ``limit_sms`` (``64``, ``50%``) keeps to so many of a GPU's multiprocessors; ``mps`` is the share that this process has from the
    Multi-Process Service (``50%``), which is only recorded: the driver enforces it.

    Raises:
        DeviceError: there is no such device, it does not start, or it has no such share.
    """
    text = name.strip().lower()
    if text in ("auto", ""):
        text = "0" if device_count() else "cpu"
    if text == "cpu":
        if limit_sms:
            raise DeviceError(f"--limitSMs={limit_sms}: the CPU has no streaming multiprocessors; give a GPU with --device, or leave it out")
        return _open("cpu", "", "")
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
    return _open(str(int(text)), limit_sms, mps)


@cache
def _open(name: str, limit_sms: str, mps: str) -> Device:
    if name == "cpu":
        from runtime.cpu import CpuDevice

        return CpuDevice()
    from runtime.cuda import CudaDevice

    return CudaDevice(int(name), limit_sms, mps)
