"""Entries (a key and an index) of many lines, sorted: tiles in shared memory, then runs merged pairwise through global memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tactics.cuda.simple import ceil_div, defines, launch
from tactics.tactic import Argument, Buffer, DeviceSpec, Kernel, Launch, Scalar

FILE = "select/sort.cu"
PRELUDE = '#include "vector.cuh"\n'
THREADS, TILE = 256, 1024


@dataclass(frozen=True)
class Sorting:
    """``lines`` lines of ``n`` entries with keys of ``key_bytes``.

    Attributes:
        varies: whether n may be another at another inference, so that runs must be mergeable whatever n is now.
        counts: uint32 per line, how many of its entries there are; None: all n.
        slices: further defines and arguments of an order that looks beyond the keys (SLICES in the source).
    """

    lines: int
    n: int
    key_bytes: int
    varies: bool
    counts: Buffer | None = None
    slices: tuple[Mapping[str, object], Sequence[Argument]] | None = None

    @property
    def entry_bytes(self) -> int:
        """Bytes of an entry."""
        return 2 * self.key_bytes

    @property
    def bytes(self) -> int:
        """Bytes of all entries; two buffers of this size are needed."""
        return self.lines * self.n * self.entry_bytes

    @property
    def passes(self) -> int:
        """How often all n entries of a line must be merged."""
        return max(0, ceil_div(self.n, TILE) - 1).bit_length()

    def steps(self, device: DeviceSpec, first: Buffer, second: Buffer) -> tuple[Launch, ...]:
        """Sorts the entries in ``first``. A line with c entries is then in ``second`` if it took an odd number of passes, the least p
        with ``c <= TILE * 2**p``; else in ``first``."""
        more, arguments = self.slices or ({}, ())
        names = {"THREADS": THREADS, "TILE": TILE, "KEY_BYTES": self.key_bytes, "COUNTED": self.counts is not None, "SLICES": self.slices is not None}

        def kernel(step: int, entry: str) -> Kernel:
            return Kernel(FILE, entry, defines(device, STEP=step, **names, **more), PRELUDE)

        tiles = ceil_div(self.n, TILE)
        counts, sizes = self.counts or first, (Scalar(self.n, "u32"), Scalar(tiles, "u32"))
        made = [launch(kernel(0, "sort_tiles"), self.lines * tiles, THREADS, (first, counts, *sizes, *arguments))]
        source, target = first, second
        for number in range(max(self.passes, int(self.varies))):
            run = Scalar(TILE << number, "u32")
            made.append(launch(kernel(1, "merge_runs"), self.lines * tiles, THREADS, (source, target, counts, *sizes, run, *arguments)))
            source, target = target, source
        return tuple(made)
