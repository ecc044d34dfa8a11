"""``--monitorMemory``: what every stage of a build and of a run adds to the memory of host and device, in the form of TensorRT's reports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from runtime.device import Device
from trtcli.log import Log

HostMemory = Callable[[], tuple[int, int]]


class MemoryUsage:
    """Says after each stage what the process holds now; without a log it says nothing.

    GPU figures are of the whole device, so other programs are in them; the peak is what this process took for tensors and kept. On the CPU all
    memory is the host's.
    """

    def __init__(self, log: Log | None = None, host: HostMemory | None = None) -> None:
        """``host``: bytes that the process holds now, and the most that it ever held."""
        self._log, self._host = log, host or host_memory
        self._device: Device | None = None
        self._before = (self._host()[0] if log else 0, 0)

    def begin(self, device: Device) -> None:
        """``device`` has been opened."""
        self._device = device
        self.stage("Init device")

    def stage(self, name: str) -> None:
        """Stage ``name`` has ended."""
        if self._log is None:
            return
        now = (self._host()[0], self._device.memory_usage()[0] if self._device is not None else 0)
        host, device = ((one - before) / 2**20 for one, before in zip(now, self._before, strict=True))
        on_gpu = self._device is not None and self._device.spec.kind != "cpu"
        more, total = (f", GPU {device:+.1f}", f", GPU {now[1] / 2**20:.1f}") if on_gpu else ("", "")
        self._log.info(f"[MemUsageChange] {name}: CPU {host:+.1f}{more}, now: CPU {now[0] / 2**20:.1f}{total} (MiB)")
        self._before = now

    def peak(self, what: str) -> None:
        """The most that was held until now, while ``what`` went on."""
        if self._log is None:
            return
        on_gpu = self._device is not None and self._device.spec.kind != "cpu"
        device = f", GPU {self._device.memory_usage()[1] / 2**20:.1f} MiB" if self._device is not None and on_gpu else ""
        self._log.info(f"[MemUsageStats] Peak memory usage of the {what}: CPU {self._host()[1] / 2**20:.1f} MiB{device}")


def host_memory() -> tuple[int, int]:
    """Bytes of memory that this process holds now, and the most that it ever held; (0, 0) where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
        return found["VmRSS"], found["VmHWM"]
    except (OSError, KeyError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return 0, 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most
