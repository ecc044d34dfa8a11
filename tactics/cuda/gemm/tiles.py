"""Tiles of the mma.sync loop (``include/mma_tile.cuh``): which are legal, what memory they take, how long they should take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusion.dtypes import DataType
from tactics.cuda.gemm.common import ceil_div, round_up
from tactics.tactic import Config, DeviceSpec, config


@dataclass(frozen=True)
class Tile:
    """One configuration: a ``bm`` x ``bn`` output tile in ``bk``-deep stages; warps over rows, columns and depth; ``splits`` blocks
    share the depth, through a cluster's shared memory when ``cluster``, else through partial sums in memory."""

    bm: int
    bn: int
    bk: int
    warps_m: int
    warps_n: int
    warps_k: int = 1
    stages: int = 3
    splits: int = 1
    cluster: int = 0

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_m * self.warps_n * self.warps_k

    @property
    def partial(self) -> bool:
        """Whether partial sums go through memory."""
        return self.splits > 1 and not self.cluster

    def shared_bytes(self, itemsize: int) -> int:
        """Dynamic shared memory: the stages, or what the results' way out needs, whichever is larger."""
        return max(self.stages * (self.bm + self.bn) * self.bk * itemsize, self.exit_bytes())

    def exit_bytes(self) -> int:
        """Shared memory that the results need on their way out."""
        exchange = (self.warps_k - 1) * self.bm * self.bn * 4
        rows = self.bm if self.cluster else self.threads // 2  # 16 rows for each warp
        columns = self.bn if self.cluster else self.bn // self.warps_n
        return max(exchange, rows * (columns + 8) * 4)

    def registers(self) -> int:
        """Registers a thread holds for results and two steps of operands: a lower bound."""
        rows, columns = self.bm // self.warps_m // 16, self.bn // self.warps_n // 8
        return rows * columns * 4 + (rows * 4 + columns * 2) + 40

    def config(self) -> Config:
        """As a tactic's configuration."""
        return config(**self.__dict__)


def tile_of(configuration: Config) -> Tile:
    """The inverse of :meth:`Tile.config`."""
    return Tile(**dict(configuration))


def legal(tile: Tile, itemsize: int, b_kn: bool, device: DeviceSpec) -> bool:
    """Every condition that the kernel's static_asserts and the hardware put on a tile, stated once."""
    per_chunk = 16 // itemsize
    chunks_a, chunks_b = tile.bk // per_chunk, (tile.bn if b_kn else tile.bk) // per_chunk
    return (
        tile.bm % (16 * tile.warps_m) == 0
        and tile.bn % (16 * tile.warps_n) == 0
        and all(chunks in (4, 8, 16, 32) for chunks in (chunks_a, chunks_b))  # the swizzle's rows
        and tile.threads % chunks_a == 0
        and tile.threads % chunks_b == 0
        and (tile.bk * itemsize // 32) % tile.warps_k == 0
        and tile.threads <= 512
        and tile.registers() <= min(240, 65536 // tile.threads)
        and tile.shared_bytes(itemsize) <= device.shared_memory
        and (not tile.cluster or (device.capability >= 90 and tile.splits in (2, 4, 8)))
        and (device.capability >= 80 or (tile.stages == 2 and tile.registers() <= 160))  # sm_75 copies through registers
    )


SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
# (bm, bn, bk in bytes, warps m, n, k, stages): from large tiles for throughput to small ones for latency.
_SHAPES = (
    (256, 128, 64, 4, 2, 1, 3), (128, 256, 64, 2, 4, 1, 3), (128, 128, 64, 2, 2, 1, 4), (128, 128, 128, 2, 2, 1, 3),
    (128, 128, 64, 2, 4, 1, 4), (128, 64, 128, 2, 2, 1, 3), (128, 64, 64, 4, 1, 1, 4), (128, 32, 128, 4, 1, 1, 4),
    (64, 64, 128, 2, 2, 1, 4), (64, 64, 256, 2, 1, 2, 3), (64, 32, 128, 2, 1, 2, 5), (32, 64, 128, 1, 2, 2, 5),
    (32, 128, 128, 1, 4, 1, 4), (32, 32, 256, 1, 1, 4, 4), (64, 32, 256, 2, 1, 4, 4), (32, 64, 256, 1, 2, 4, 4),
    (16, 64, 256, 1, 2, 4, 4), (16, 32, 256, 1, 1, 4, 5), (64, 16, 256, 2, 1, 4, 4), (128, 16, 128, 4, 1, 1, 4),
)  # fmt: skip


_RATES = {DataType.FLOAT: "tf32", DataType.UINT8: "int8", DataType.FP8_E5M2: "float8_e4m3fn"}  # data types that share a rate

# How much slower a stage is when A is a convolution's window: in whole vectors, and element by element.
GATHER, GATHER_ELEMENTS = 0.26, 1.5


def candidates(
    m: int, n: int, k: int, batch: int, dtype: DataType, b_kn: bool, device: DeviceSpec, gather: float = 0.0, limit: int = 32
) -> list[Tile]:
    """Legal tiles for ``batch`` products m x n x k, the most promising first."""
    itemsize = dtype.itemsize
    found: dict[Tile, float] = {}
    for bm, bn, depth, warps_m, warps_n, warps_k, stages in _SHAPES:
        stages = stages if device.capability >= 80 else 2
        plain = Tile(bm, bn, depth // itemsize, warps_m, warps_n, warps_k, stages)
        for splits in SPLITS:
            for cluster in (0, 1):
                tile = Tile(**{**plain.__dict__, "splits": splits, "cluster": cluster if splits > 1 else 0})
                if tile in found or not legal(tile, itemsize, b_kn, device):
                    continue
                if splits > 1 and k < splits * tile.bk * 2:  # each split deserves two stages at least
                    continue
                found[tile] = estimate(tile, m, n, k, batch, dtype, device, gather)
    return sorted(found, key=lambda tile: (found[tile], tile.config()))[:limit]


def neighbours(tile: Tile, k: int, itemsize: int, b_kn: bool, device: DeviceSpec) -> list[Tile]:
    """Legal tiles that differ from ``tile`` in one step."""
    return [one for one in steps(tile, k) if legal(one, itemsize, b_kn, device)]


def steps(tile: Tile, k: int) -> list[Tile]:
    """Tiles one step away, legal or not."""
    values: dict[str, tuple[int, ...]] = {name: (size * 2, size // 2) for name, size in (("bm", tile.bm), ("bn", tile.bn), ("bk", tile.bk), ("warps_k", tile.warps_k))}
    values["stages"] = (tile.stages + 1, tile.stages - 1)
    at = SPLITS.index(tile.splits) if tile.splits in SPLITS else 0
    values["splits"] = tuple(SPLITS[n] for n in (at + 1, at - 1) if 0 <= n < len(SPLITS))
    found = [replace(tile, **{name: value}) for name, choices in values.items() for value in choices]
    found += [replace(tile, warps_m=tile.warps_m * 2, warps_n=tile.warps_n // 2), replace(tile, warps_m=tile.warps_m // 2, warps_n=tile.warps_n * 2)]
    if tile.splits > 1:
        found.append(replace(tile, cluster=1 - tile.cluster))
    found = [replace(one, cluster=0) if one.splits == 1 else one for one in found]
    return [
        one
        for one in dict.fromkeys(found)
        if min(one.bm, one.bn, one.bk, one.warps_m, one.warps_n, one.warps_k) > 0 and 2 <= one.stages <= 8 and (one.splits == 1 or k >= 2 * one.splits * one.bk)
    ]


def split_depth(tile: Tile, k: int) -> int:
    """How deep each split is: a multiple of ``bk``."""
    return round_up(ceil_div(max(k, 1), tile.splits), tile.bk)


def estimate(
    tile: Tile, m: int, n: int, k: int, batch: int, dtype: DataType, device: DeviceSpec, gather: float = 0.0
) -> float:
    """Seconds that a tile should take: per stage the slower of throughput and latency, in whole waves.

    ``gather`` is the share by which a stage is slower because A is gathered (see ``GATHER``, ``GATHER_ELEMENTS``). The numbers
    were fitted to 654 timings of 57 GEMM and convolution layers on an H200: over them the first choice is 1.05 times as slow as
    the best one timed (geometric mean), the best of the first three 1.02 times.
    """
    itemsize = dtype.itemsize
    blocks = ceil_div(m, tile.bm) * ceil_div(n, tile.bn) * batch * tile.splits
    per_sm = max(1, min(
        device.shared_memory // max(1, tile.shared_bytes(itemsize)),
        2048 // tile.threads,
        65536 // (min(255, tile.registers() + 24) * tile.threads),
    ))  # fmt: skip
    busy = min(per_sm, ceil_div(blocks, device.multiprocessors))  # blocks that share one multiprocessor
    waves = ceil_div(blocks, device.multiprocessors * busy)
    steps = ceil_div(split_depth(tile, k), tile.bk)
    name = _RATES.get(dtype, dtype.value)
    peak = (device.flops.get(name) or 1e14) / device.multiprocessors
    share = 0.47 if device.capability in range(90, 110) else 0.75  # of the peak that mma.sync reaches
    depth = tile.bk * itemsize
    arithmetic = 2 * tile.bm * tile.bn * tile.bk / (peak * share)
    exchange = (tile.bm * (tile.warps_n + 1) + tile.bn * (tile.warps_m + 1)) * depth / 3.2e11  # through shared memory
    feed = (tile.bm + tile.bn) * depth / (2.1 * device.bandwidth / device.multiprocessors)  # from L2
    throughput = busy * (arithmetic**7 + exchange**7 + feed**7) ** (1 / 7)
    fragments = (tile.bm / tile.warps_m / 16) * (tile.bn / tile.warps_n / 8)
    latency = 5.3e-7 / (tile.stages - 1) + 4.5e-9 * depth / 32 / tile.warps_k * fragments**0.5
    step = (throughput**7 + latency**7) ** (1 / 7) * (1 + gather)
    result = 1.3e-7 + waves * (steps * step + 9.7e-7 * (1 + tile.bm * tile.bn / tile.threads / 32))
    if tile.partial:
        result += 2.2e-6 + tile.splits * m * n * batch * 4 / device.bandwidth
    elif tile.cluster:
        result += 7.1e-7 + 9.7e-8 * tile.splits
    memory = m * n * batch * 2 + (0 if gather else (m * k + n * k) * batch * itemsize)
    # What does not stay in L2 comes at the bandwidth; a little of the smaller keeps tiles apart that memory makes equal.
    bound = memory / (0.9 * device.bandwidth) if memory > device.l2_bytes / 2 > 0 else 1e-6 + memory / (1.3 * device.bandwidth)
    return max(result, bound) + 0.01 * min(result, bound)
