"""The memory of a context's activations and workspaces: its own, which grows, or what its caller gave."""

from __future__ import annotations

from collections.abc import Callable

from runtime.device import Device, DeviceMemoryError, Memory
from runtime.interop import Foreign
from runtime.memory import ALIGNMENT


class Arena:
    """One piece of device memory. What it held is lost when it grows."""

    def __init__(self, device: Device, given: bool = False) -> None:
        """``given``: it never allocates, :meth:`lie_in` says where it is."""
        self._device, self._given = device, given
        self._memory = Memory(0, 0)

    @property
    def address(self) -> int:
        """Where it begins."""
        return self._memory.address

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._memory.size

    def lie_in(self, memory: Foreign, size: int) -> None:
        """Use ``size`` bytes of the caller's from now on.

        Raises:
            ValueError: they do not begin at a multiple of 256 bytes.
        """
        if memory.address % ALIGNMENT:
            raise ValueError(f"device memory: address {memory.address:#x} is not a multiple of {ALIGNMENT}")
        self._give_back()
        self._given = True
        self._memory = Memory(memory.address, size, memory.owner)

    def hold(self, size: int, most: Callable[[], int]) -> bool:
        """Have at least ``size`` bytes; whether the arena moved. ``most()`` bytes are enough for whatever runs, which an error says.

        Raises:
            DeviceMemoryError: there are not that many, on the device or in what the caller gave.
        """
        if size <= self._memory.size:
            return False
        if self._given:
            raise DeviceMemoryError(
                f"activations need {size} bytes at these shapes, set_device_memory gave {self._memory.size}: "
                f"engine.device_memory_size ({most()}) bytes are enough for all"
            )
        self._give_back()  # first give back, then ask
        try:
            self._memory = self._device.allocate(size)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"activations and workspaces need {size / 2**20:.1f} MiB, {self._device.free_memory() / 2**20:.1f} MiB are free on device "
                f"{self._device.name}: smaller --maxShapes, fewer --infStreams, --memPoolSize=workspace:SIZE or --allocationStrategy=runtime "
                "need less"
            ) from error
        return True

    def _give_back(self) -> None:
        """Whoever gets the memory next may write there at once, so all that uses it must have ended."""
        if self._memory.size and not self._given:
            self._device.synchronize()
        self._memory = Memory(0, 0)
