"""The arena plan: one allocation for all intermediate tensors and workspaces, which share addresses when they never live together.

Pure functions over sizes and an order of layers. Offset assignment is the dynamic storage allocation problem (NP-hard); greedy placement
by size into the best gap comes within a few per cent of the bound on real networks (Sekiyama et al., "Profile-guided memory
optimization for deep neural networks", 2018; Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ALIGNMENT = 256  # bytes: where blocks begin (views within a block begin at multiples of 16)


@dataclass(frozen=True)
class Block:
    """A piece of memory: its size in bytes, the layers (numbers) that touch it, and those that write it (none given: the first)."""

    size: int
    uses: tuple[int, ...]
    writers: tuple[int, ...] = ()


@dataclass(frozen=True)
class MemoryPlan:
    """Where each block lies.

    Attributes:
        offsets: per block, bytes from the start of the arena, a multiple of 256.
        size: the arena's size: the peak.
        total: what the blocks would take without sharing.
        lower_bound: the largest sum of blocks that are live at one layer; no plan can be smaller.
    """

    offsets: tuple[int, ...]
    size: int
    total: int
    lower_bound: int


def layer_order(streams: Sequence[int], waits: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """Which layers are certain to have ended when another starts: ``order[i, j]`` says so of ``i`` before ``j``.

    ``streams[i]`` is the stream of layer ``i``; a stream runs its layers one after another. ``waits[j]`` are layers on other streams that
    ``j`` waits for. On one stream this is ``i < j``.
    """
    count = len(streams)
    order = np.zeros((count, count), bool)
    last: dict[int, int] = {}
    for layer, stream in enumerate(streams):
        before = [last[stream]] if stream in last else []
        before += waits[layer] if waits else ()
        for other in before:
            order[:, layer] |= order[:, other]
            order[other, layer] = True
        last[stream] = layer
    return order


def plan_memory(blocks: Sequence[Block], order: np.ndarray) -> MemoryPlan:
    """Offsets such that no two blocks overlap unless every use of one is certain to end before anything writes the other.

    Blocks of size 0 lie at offset 0. ``order`` comes from :func:`layer_order`.
    """
    sizes = [-(-block.size // ALIGNMENT) * ALIGNMENT for block in blocks]
    kept = [index for index, size in enumerate(sizes) if size]
    clash = _conflicts([blocks[index] for index in kept], order)
    load = _load([(sizes[index], blocks[index]) for index in kept], len(order))
    bound = int(load.max(initial=0))
    crowds = [int(load[min(blocks[index].uses) : max(blocks[index].uses) + 1].max()) for index in kept]
    spans = [max(blocks[index].uses) - min(blocks[index].uses) + 1 for index in kept]
    # Four orders, the smallest arena wins: who lives in the fullest moment first, in the order of execution (so that what follows
    # fits around it); large blocks first; long-lived large blocks first; all in the order of execution.
    priorities = (
        lambda n: (-crowds[n], min(blocks[kept[n]].uses)),
        lambda n: (-sizes[kept[n]], min(blocks[kept[n]].uses)),
        lambda n: (-sizes[kept[n]] * spans[n], min(blocks[kept[n]].uses)),
        lambda n: (min(blocks[kept[n]].uses), -sizes[kept[n]]),
    )
    lengths = [sizes[index] for index in kept]
    best: tuple[int, list[int], list[int]] = (sum(sizes) + 1, [], [])
    for priority in priorities:
        best = min(best, _try(sorted(range(len(kept)), key=priority), lengths, clash), key=lambda found: found[0])
        if best[0] <= bound:
            break
    # Then, as long as it is cheap: whatever ends at the peak is placed first in the next attempt.
    sequence, offsets, seen = best[2], best[1], set()
    for _ in range(min(64, 2_000_000 // max(1, len(kept)) ** 2)):
        peak = max(map(sum, zip(offsets, lengths, strict=True)), default=0)
        top = {n for n, offset in enumerate(offsets) if offset + lengths[n] == peak}
        sequence = [n for n in sequence if n in top] + [n for n in sequence if n not in top]
        if best[0] <= bound or tuple(sequence) in seen:
            break
        seen.add(tuple(sequence))
        attempt = _try(sequence, lengths, clash)
        offsets = attempt[1]
        best = min(best, attempt, key=lambda found: found[0])
    result = [0] * len(blocks)
    for index, offset in zip(kept, best[1], strict=True):
        result[index] = offset
    return MemoryPlan(tuple(result), best[0], sum(sizes), bound)


def _conflicts(blocks: Sequence[Block], order: np.ndarray) -> np.ndarray:
    """Which two blocks may not overlap; sizes do not matter, so other shapes of a network mostly ask the same again."""
    return _clash(tuple((block.uses, block.writers or block.uses[:1]) for block in blocks), len(order), order.tobytes())


@lru_cache(maxsize=4)  # quadratic in the layers
def _clash(blocks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], layers: int, order_bytes: bytes) -> np.ndarray:
    if not blocks:
        return np.zeros((0, 0), bool)
    order = np.frombuffer(order_bytes, bool).reshape(layers, layers)
    # over[a, j]: every use of block a has ended when layer j starts
    over = np.stack([order[list(uses)].all(axis=0) for uses, _ in blocks])
    # apart[a, b]: a is over before anything writes b. Several layers may write parts of a block, on streams of their own.
    apart = np.stack([over[:, list(writers)].all(axis=1) for _, writers in blocks], axis=1)
    found = ~(apart | apart.T)
    found.flags.writeable = False  # it is shared
    return found


def _load(blocks: Sequence[tuple[int, Block]], layers: int) -> np.ndarray:
    """Bytes that are live at each layer."""
    change = np.zeros(layers + 1, np.int64)
    for size, block in blocks:
        change[min(block.uses)] += size
        change[max(block.uses) + 1] -= size
    return np.cumsum(change)[:layers]


def _try(sequence: list[int], sizes: Sequence[int], clash: np.ndarray) -> tuple[int, list[int], list[int]]:
    """(peak, offsets, sequence) when blocks are placed in the order of ``sequence``."""
    offsets = _place(sequence, sizes, clash)
    return max((offset + size for offset, size in zip(offsets, sizes, strict=True)), default=0), offsets, sequence


def _place(sequence: Sequence[int], sizes: Sequence[int], clash: np.ndarray) -> list[int]:
    """Place the blocks of ``sequence`` one by one, each into the smallest gap between those that it clashes with."""
    offsets = [-1] * len(sizes)
    placed = np.zeros(len(sizes), bool)
    for block in sequence:
        neighbours = np.flatnonzero(clash[block] & placed).tolist()
        near = sorted((offsets[other], offsets[other] + sizes[other]) for other in neighbours)
        best, room, end = -1, 0, 0
        for low, high in near:
            gap = low - end
            if gap >= sizes[block] and (best < 0 or gap < room):
                best, room = end, gap
            end = max(end, high)
        offsets[block] = end if best < 0 else best
        placed[block] = True
    return offsets
