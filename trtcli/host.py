"""What this machine has in the way of NVIDIA drivers, with the standard library only: it runs before anything is installed.

``python trtcli/host.py`` prints the extra that ``pip install`` should take here: ``gpu``, ``gpu12``, or nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path


def cuda_version() -> int:
    """The CUDA version that the driver supports (13000 for 13.0), or 0 without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return 0
    return 0 if driver.cuDriverGetVersion(ctypes.byref(version)) else version.value


def mps_share(environment: Mapping[str, str]) -> tuple[str, str]:
    """The share of the GPU that the Multi-Process Service gives this process (``50%``, empty for all), and a warning or nothing."""
    text = environment.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "").strip()
    if not text or text in ("100", "100.0"):
        return "", ""
    if not Path(environment.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps", "control").exists():
        return "", (
            f"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE={text} has no effect: no MPS control daemon runs here (nvidia-cuda-mps-control -d starts it)"
        )
    return f"{text}%", ""


def extra() -> str:
    """The name of the extra whose CUDA packages run under this driver."""
    version = cuda_version()
    return "gpu" if version >= 13000 else "gpu12" if version >= 12000 else ""


if __name__ == "__main__":
    print(extra())
