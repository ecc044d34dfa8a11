"""A device that shows use of memory after it was given back."""

from __future__ import annotations

from weakref import finalize

import numpy as np

from runtime.cpu import CpuDevice
from runtime.device import Memory


class OverwritingDevice(CpuDevice):
    """Memory that is given back reads as NaN and -1 at once, as if another program had taken it; it stays mapped until the device ends."""

    def __init__(self) -> None:
        super().__init__()
        self._gone: list[np.ndarray] = []

    def allocate(self, size: int, managed: bool = False) -> Memory:
        memory = super().allocate(size, managed)
        assert isinstance(memory.owner, np.ndarray)
        owner = _Owner()
        finalize(owner, _overwrite, memory.owner, self._gone)
        return Memory(memory.address, size, owner)

    def overwrite(self) -> None:
        """Once more, for work that was enqueued before and runs now."""
        for raw in self._gone:
            raw.fill(0xFF)


class _Owner:
    """What the last holder of a piece of memory drops."""


def _overwrite(raw: np.ndarray, gone: list[np.ndarray]) -> None:
    raw.fill(0xFF)
    gone.append(raw)
