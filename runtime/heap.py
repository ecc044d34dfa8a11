"""Memory for an inference whose sizes only the inference tells: handed out and taken back as it goes.

All work of an inference is in the order of one stream (auxiliary streams join it at the end of every segment), so what is taken back may be
handed out at once: whoever writes there next is enqueued later. A place is the first that is large enough, so that an inference with the sizes of
an earlier one finds all its tensors where they were, and programs and graphs stay bound. Tensors may be known under several names (a loop that never ran returns
its inputs), so holders are counted.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass

from runtime.device import Device, DeviceMemoryError, Memory, Stream
from runtime.interop import Foreign
from runtime.memory import ALIGNMENT


@dataclass(slots=True)
class _Block:
    """Bytes ``start`` to ``end`` of a piece of memory, with so many holders."""

    start: int
    end: int
    holders: int = 1


class Heap:
    """Pieces of device memory: one, but for the inference in which more was needed than ever before."""

    def __init__(self, device: Device, given: bool = False) -> None:
        """``given``: it never allocates, :meth:`lie_in` says where it is."""
        self._device, self._given = device, given
        self._pieces: list[Memory] = []
        self._blocks: dict[int, _Block] = {}  # held now, by their first address
        self._starts: list[int] = []  # of these, in order
        self._used = 0  # bytes held now
        self.peak = 0  # the most that were held at a time

    @property
    def size(self) -> int:
        """Bytes of device memory."""
        return sum(piece.size for piece in self._pieces)

    def lie_in(self, memory: Foreign, size: int) -> None:
        """Use ``size`` bytes of the caller's from now on.

        Raises:
            ValueError: they do not begin at a multiple of 256 bytes.
        """
        if memory.address % ALIGNMENT:
            raise ValueError(f"device memory: address {memory.address:#x} is not a multiple of {ALIGNMENT}")
        if self._pieces and not self._given:
            self._device.synchronize()  # before the memory is given back
        self._given = True
        self._pieces = [Memory(memory.address, size, memory.owner)]
        self._clear()

    def begin(self, stream: Stream) -> None:
        """An inference begins: nothing is held. Several pieces become one; that waits for ``stream``."""
        self._clear()
        if len(self._pieces) > 1:
            stream.synchronize()
            size = self.size
            self._pieces = []  # first give back, then ask
            self._pieces = [self._device.allocate(size)]

    def take(self, size: int) -> int:
        """The address of ``size`` bytes, held once; 0 for none.

        Raises:
            DeviceMemoryError: there are not that many, on the device or in what the caller gave.
        """
        if not size:
            return 0
        size = -(-size // ALIGNMENT) * ALIGNMENT
        start = self._hole(size)
        if start is None:
            start = self._more(size)
        self._blocks[start] = _Block(start, start + size)
        insort(self._starts, start)
        self._used += size
        self.peak = max(self.peak, self._used)
        return start

    def share(self, address: int) -> None:
        """One holder more for what lies at ``address``; nothing happens where that is no memory of the heap's."""
        block = self._at(address)
        if block is not None:
            block.holders += 1

    def drop(self, address: int) -> None:
        """One holder less; after the last one the memory is free."""
        block = self._at(address)
        if block is None:
            return
        block.holders -= 1
        if not block.holders:
            del self._blocks[block.start], self._starts[bisect_left(self._starts, block.start)]
            self._used -= block.end - block.start

    def _clear(self) -> None:
        self._blocks, self._starts, self._used = {}, [], 0

    def _at(self, address: int) -> _Block | None:
        block = self._blocks.get(address)
        if block is None and (index := bisect_right(self._starts, address)):
            block = self._blocks[self._starts[index - 1]]
        return block if block is not None and address < block.end else None

    def _hole(self, size: int) -> int | None:
        for piece in self._pieces:
            start, end = piece.address, piece.address + piece.size
            for index in range(bisect_left(self._starts, start), len(self._starts)):
                block = self._blocks[self._starts[index]]
                if block.start >= end or block.start - start >= size:
                    break
                start = block.end
            if end - start >= size:
                return start
        return None

    def _more(self, size: int) -> int:
        if self._given:
            held = self.size
            raise DeviceMemoryError(
                f"activations need {size} bytes beside the {self._used} that are in use, set_device_memory gave {held}: give more "
                "(engine.device_memory_size where sizes are bounded, else what device_memory_size of a context with memory of its own came to)"
            )
        try:
            piece = self._device.allocate(size)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"activations and workspaces need {size / 2**20:.1f} MiB more, {self._device.free_memory() / 2**20:.1f} MiB are free on device "
                f"{self._device.name}: smaller --maxShapes, fewer --infStreams or --memPoolSize=workspace:SIZE need less"
            ) from error
        self._pieces.append(piece)
        return piece.address
