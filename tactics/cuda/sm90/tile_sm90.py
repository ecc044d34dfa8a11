"""Tiles of the sm_90a pipeline (``include/sm90_pipeline.cuh``): which are legal, what memory they take, how long they should take."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from fusion.dtypes import DataType
from tactics.cuda.gemm.common import EIGHT_BIT_TYPES, STORED_TYPES, Defines, ceil_div, defines, sum_types_of
from tactics.cuda.simple import divider
from tactics.tactic import Config, DeviceSpec, Refusal, Scalar, Tactic, Workload, config

SHARED = 227 * 1024  # bytes of shared memory that one block may use on sm_90
SHARED_SM = 228 * 1024  # of a multiprocessor, of which every block costs SHARED_RESERVED more than it asks for
SHARED_RESERVED = 1024
REGISTERS = 65536
OVERLAY = 24 * 1024
# Products of 8-bit floats that the tensor cores may sum; of longer sums, the stages between additions in float32. Measured on an H100: of positive factors
# the tensor cores' sums are too small by 1.3e-5 of themselves for every product: 6.6 % at 4,096 products. An addition every stage leaves 0.05 % and takes 25 %
# more time, every second 0.17 % and 10 %, every fourth 0.5 % and 6 % (4096x4096x4096).
SHORT_SUM, PROMOTED_STAGES = 512, 2
GROUP = 8  # tiles along X that are walked before the next along Y
TYPES = (DataType.HALF, DataType.BF16, DataType.FLOAT, *EIGHT_BIT_TYPES)  # what wgmma multiplies here; FLOAT as TF32


@dataclass(frozen=True)
class Tile:
    """One configuration; the fields are the defines of ``sm90_pipeline.cuh`` of the same names."""

    bm: int
    bn: int
    warpgroups: int
    stages: int = 0
    pingpong: int = 0
    swizzle: int = 128
    cluster_x: int = 1
    cluster_y: int = 1
    split: int = 1
    swap: int = 0
    blocks: int = 1  # of a multiprocessor
    chunk: int = 32  # columns that a warp writes at a time
    direct: int = 0  # rows of B are permuted (permute_rows), so that results need no turn through shared memory
    ahead: int = 0  # what the epilogue adds row by row is asked for while the tile is multiplied
    promote: int = 0  # stages between additions of the tensor cores' sums to float32 ones

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return self.cluster_x * self.cluster_y * self.split

    @property
    def row_blocks(self) -> int:
        """64-row blocks of a warpgroup."""
        return self.bm // 64 // (1 if self.pingpong else self.warpgroups)

    @property
    def accumulators(self) -> int:
        """Registers a thread holds for sums."""
        return self.row_blocks * self.bn // 2 * (2 if self.promote else 1)

    @property
    def threads(self) -> int:
        """Threads of a block: the consumers, and a producer warp, or warpgroup where setmaxnreg shares registers out anew."""
        rebalance = self.accumulators > {1: 999, 2: 96, 3: 64}[self.warpgroups]
        return self.warpgroups * 128 + (128 if rebalance else 32)

    @property
    def groups_at_once(self) -> int:
        """Groups of 32 columns whose operands a thread reads before it stores any: as many as its registers hold beside the sums."""
        if self.blocks > 1:
            return 2 if register_limit(self.threads, self.blocks) - self.accumulators >= 60 else 1
        most = 4 if self.accumulators <= 64 else 3 if self.accumulators <= 96 else 2
        return 1 if self.accumulators > 160 else most if self.warpgroups < 3 else 2

    @property
    def partial_bytes(self) -> int:
        """Shared memory for the partial sums of a split's blocks; from OVERLAY bytes on they lie where the stages were."""
        owned = self.bm // self.split
        return 4 * self.split * (self.bn * (owned + 4) if self.swap else owned * (self.bn + 8)) if self.split > 1 else 0

    @property
    def staging_bytes(self) -> int:
        """Shared memory beside the stages, through which results leave."""
        if self.split > 1:
            return self.partial_bytes if self.partial_bytes <= OVERLAY else 0
        if self.direct:
            return 0
        return 4 * self.warpgroups * 4 * self.chunk * (20 if self.swap else 16)

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one stage and its two barriers."""
        return (self.bm + self.bn) * self.swizzle + 16

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        ring = self.stages * (self.stage_bytes - 16)
        return max(ring, self.partial_bytes if self.partial_bytes > OVERLAY else 0) + self.staging_bytes + 16 * (self.stages + (self.split > 1))

    def config(self) -> Config:
        """As a tactic's configuration."""
        return config(**self.__dict__)

    def defines(self) -> dict[str, int]:
        """The defines of ``sm90_pipeline.cuh``."""
        return {
            "BM": self.bm, "BN": self.bn, "WARPGROUPS": self.warpgroups, "STAGES": self.stages, "PINGPONG": self.pingpong,
            "SWIZZLE": self.swizzle, "CLUSTER_X": self.cluster_x, "CLUSTER_Y": self.cluster_y, "SPLIT": self.split, "SWAP": self.swap,
            "CHUNK": self.chunk, "MIN_BLOCKS": self.blocks, "DIRECT": self.direct, "AHEAD": self.ahead, "PROMOTE": self.promote,
            "GROUPS_AT_ONCE": self.groups_at_once, "GROUP": GROUP,
        }  # fmt: skip


def tile_of(configuration: Config) -> Tile:
    """The inverse of :meth:`Tile.config`."""
    return Tile(**dict(configuration))


@dataclass(frozen=True)
class Problem:
    """Sizes that tiles are judged by. ``iterations(bk)`` stages of ``bk`` values cover K; ``bytes``: read and written once."""

    m: int
    n: int
    batch: int
    taps: int  # K is taps x depth, and a stage holds values of one tap only
    depth: int
    dtype: DataType
    bytes: float
    x_mn: bool = False
    y_mn: bool = False
    may_swap: bool = True
    permutable: bool = False  # B is a constant whose rows prepare() may permute
    adds_rows: bool = False  # the epilogue reads an operand of the output's shape, as a residual

    def iterations(self, tile: Tile) -> int:
        """Stages along K."""
        return self.taps * ceil_div(self.depth, tile.swizzle // self.dtype.itemsize)

    def sides(self, tile: Tile) -> tuple[int, int]:
        """The sizes along X (64-row side of wgmma) and Y."""
        return (self.n, self.m) if tile.swap else (self.m, self.n)


def illegal(tile: Tile, problem: Problem) -> str:
    """Which rule of the kernel or the hardware a tile breaks, or an empty text: every condition once."""
    x_mn, y_mn = (problem.y_mn, problem.x_mn) if tile.swap else (problem.x_mn, problem.y_mn)
    x_box, y_box = tile.bm // tile.cluster_y, tile.bn // tile.cluster_x
    width = 64 if tile.bn % 64 == 0 else 32 if tile.bn % 32 == 0 else 16  # rows of Y in one box when its rows are contiguous
    rules = (
        (tile.bm % 64 == 0 and 8 <= tile.bn <= 256 and tile.bn % 8 == 0, "wgmma multiplies 64 rows by 8 to 256 columns in steps of 8"),
        (problem.dtype.is_float or tile.bn % 16 == 0 or tile.bn in (8, 24), "integers multiply by 8, 24 or a multiple of 16 columns"),
        (tile.row_blocks >= 1 and tile.bm == 64 * tile.row_blocks * (1 if tile.pingpong else tile.warpgroups),
         "consumer warpgroups share a tile's 64-row blocks evenly"),
        (tile.warpgroups in (1, 2, 3) and (not tile.pingpong or tile.warpgroups == 2), "one to three consumer warpgroups, two that take turns"),
        (tile.bn % tile.chunk == 0 and tile.chunk in (8, 16, 32) if tile.swap else tile.chunk in (32, 64), "a warp writes whole chunks"),
        (tile.swizzle in (32, 64, 128), "a stage's rows are 32, 64 or 128 bytes"),
        (2 <= tile.stages <= 16, "2 to 16 stages"),
        (x_box <= 256 and y_box <= 256, "a TMA box has at most 256 rows"),
        (tile.bm % tile.cluster_y == 0 and x_box % (64 if x_mn else 8) == 0, "each block of a cluster loads whole parts of X"),
        (tile.bn % tile.cluster_x == 0 and y_box % (width if y_mn else 8) == 0, "each block of a cluster loads whole parts of Y"),
        (not y_mn or tile.bn % 16 == 0, "rows of Y that are contiguous come 16 at a time"),
        (not (x_mn or y_mn) or (problem.dtype.itemsize == 2 and tile.swizzle == 128), "only two-byte operands multiply with contiguous rows"),
        (tile.cluster <= 8, "portable clusters have at most 8 blocks"),
        (tile.split == 1 or (not tile.pingpong and tile.bm % (8 * tile.split) == 0), "each block of a split owns whole groups of 8 rows"),
        (not tile.swap or problem.may_swap, "the operands cannot change sides"),
        (not tile.direct or (problem.permutable and tile.bn % 32 == problem.n % 32 == 0 and tile.split == 1 and not tile.swap),
         "rows of a constant B are permuted within whole groups of 32"),
        (not tile.promote or tile.cluster_x * tile.cluster_y <= 2, "blocks of a cluster wait for whichever adds its sums: twice the time, where they are four"),
        (not tile.ahead or (problem.adds_rows and not tile.swap), "the epilogue adds nothing that could be asked for ahead"),
        (tile.accumulators <= most_sums(tile, problem.dtype), "the sums fit in registers"),
        (tile.blocks == 1 or register_limit(tile.threads, tile.blocks) >= tile.accumulators + 32, "the blocks' registers fit"),
        (tile.shared_bytes <= SHARED and tile.blocks * (tile.shared_bytes + SHARED_RESERVED) <= SHARED_SM, "the stages fit in shared memory"),
    )  # fmt: skip
    return next((reason for holds, reason in rules if not holds), "")


def most_sums(tile: Tile, dtype: DataType) -> int:
    """Sums that a thread can hold without spills; the epilogue of 8-bit products wants more registers beside them."""
    if tile.warpgroups == 2:
        return 192 if tile.pingpong and dtype.itemsize > 1 else 128
    return 160 if tile.warpgroups == 1 else 96 if dtype.itemsize > 1 else 64


def permute_rows(b: np.ndarray) -> np.ndarray:
    """[N, ...] with the rows of each 32 in the order that DIRECT asks for: row 8 j + 2 c + e is 8 c + 2 j + e of before."""
    return np.ascontiguousarray(b.reshape(-1, 4, 4, 2, *b.shape[1:]).swapaxes(1, 2)).reshape(b.shape)


def register_limit(threads: int, blocks: int) -> int:
    """Registers a thread may have when ``blocks`` blocks share a multiprocessor, whose four quarters share the warps out."""
    return REGISTERS // (ceil_div(blocks * threads // 32, 4) * 128) // 8 * 8


def registers(tile: Tile) -> int:
    """Registers of a thread, from above: sums, and what the loop and the epilogue keep beside them."""
    if tile.threads > tile.warpgroups * 128 + 32:
        return 168 if tile.warpgroups == 2 else 128
    return min(register_limit(tile.threads, tile.blocks), 168 if tile.warpgroups == 2 else 248, (tile.accumulators + 80 + 7) // 8 * 8)


def refused(device: DeviceSpec, dtype: DataType, tf32: bool) -> Refusal | None:
    """What every tactic of this family asks of the device and the data type."""
    if device.arch != "sm_90a":
        return Refusal(f"wgmma and setmaxnreg are sm_90a instructions; the device is {device.arch or device.kind}")
    if dtype is DataType.FLOAT and not tf32:
        return Refusal("FP32 products on tensor cores round to TF32, which is not allowed here")
    return None


def promotion(tile: Tile, problem: Problem) -> int:
    """After how many stages sums of 8-bit floats go to float32 sums: tensor cores keep some 14 bits, and cut off the rest. 0 where sums are short."""
    products = ceil_div(problem.iterations(tile), tile.split) * (tile.swizzle // problem.dtype.itemsize)
    return PROMOTED_STAGES if problem.dtype.itemsize == 1 and problem.dtype.is_float and products > SHORT_SUM else 0


def with_stages(tile: Tile, problem: Problem) -> Tile:
    """The tile with as many stages as K and shared memory allow: latency is hidden by bytes under way, 160 KiB or five stages. Its sums are promoted
    where they are long."""
    tile = replace(tile, promote=promotion(tile, problem))
    room = min(SHARED, SHARED_SM // tile.blocks - SHARED_RESERVED) - tile.staging_bytes - 16 * (tile.split > 1)
    wanted, most = ceil_div(problem.iterations(tile), tile.split), max(5, 160 * 1024 // tile.stage_bytes + 1)
    several = problem.batch * problem.m > 64 * 132 or prod(tiles_along(tile, problem)) * problem.batch * tile.cluster > 132 * tile.blocks
    if tile.split == 1 and several:  # a block has several tiles and may load ahead of the one it writes
        if tile.pingpong and tile.cluster == 1 and wanted <= 4:  # half of the next one
            most = max(most, 6)
        wanted *= 4
    elif tile.split == 1 and not tile.pingpong and tile.stage_bytes >= 32 * 1024:  # all blocks wait for memory at once
        most = 7
    return replace(tile, stages=max(2, min(12, most, room // tile.stage_bytes, wanted)))


def shapes(problem: Problem) -> Iterator[Tile]:
    """Tiles worth trying, without stages."""
    narrow = tuple(dict.fromkeys(min(128, size) for size in (128, 64, 32) if problem.depth * problem.dtype.itemsize % size == 0 or size == 128))
    for swizzle in narrow[:2] if problem.depth * problem.dtype.itemsize < 256 and problem.depth * problem.dtype.itemsize % 128 else narrow[:1]:
        for split in (1, 2, 4, 8):
            for bn in (32, 48, 64, 72, 80, 96, 128, 160, 192, 256):
                yield Tile(64, bn, 1, split=split, swizzle=swizzle)
            for bn in (32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256):
                yield Tile(128, bn, 2, split=split, swizzle=swizzle)
            yield Tile(256, 128, 2, split=split, swizzle=swizzle)
            for bn in (8, 16, 24, 32, 48, 64):
                yield Tile(64, bn, 1, split=split, swap=1, swizzle=swizzle, chunk=next(size for size in (32, 16, 8) if bn % size == 0))
        for blocks in (2, 3, 4):
            for chunk in (32, 64):
                yield Tile(64, 64, 1, blocks=blocks, swizzle=swizzle, chunk=chunk)
                yield Tile(64, 128, 1, blocks=blocks, swizzle=swizzle, chunk=chunk)
                yield Tile(128, 64, 2, blocks=blocks, swizzle=swizzle, chunk=chunk)
                yield Tile(128, 96, 2, blocks=blocks, swizzle=swizzle)
        yield Tile(128, 128, 2, blocks=2, swizzle=swizzle)
        for cluster_x, cluster_y in ((1, 1), (2, 1), (1, 2)):
            for bn in (128, 144, 160, 176, 192, 208, 224, 240, 256):
                yield Tile(128, bn, 2, cluster_x=cluster_x, cluster_y=cluster_y, swizzle=swizzle)
            for bm, bn, warpgroups, pingpong in (
                (256, 64, 2, 0), (256, 80, 2, 0), (256, 96, 2, 0), (256, 112, 2, 0), (256, 128, 2, 0), (192, 64, 3, 0), (192, 96, 3, 0), (192, 128, 3, 0), (192, 160, 3, 0), (192, 192, 3, 0),
                (128, 64, 2, 1), (128, 96, 2, 1), (128, 128, 2, 1), (128, 160, 2, 1), (128, 192, 2, 1), (64, 192, 2, 1), (64, 256, 2, 1),
            ):  # fmt: skip
                yield Tile(bm, bn, warpgroups, pingpong=pingpong, cluster_x=cluster_x, cluster_y=cluster_y, swizzle=swizzle)
        for cluster_x, cluster_y in ((2, 1), (1, 2), (2, 2)):
            for bm, bn in ((64, 64), (64, 96), (64, 128), (128, 64), (128, 96)):
                yield Tile(bm, bn, bm // 64, cluster_x=cluster_x, cluster_y=cluster_y, swizzle=swizzle)
            yield Tile(128, 128, 2, split=2, cluster_x=cluster_x, cluster_y=cluster_y, swizzle=swizzle)
        for bm, bn, warpgroups in ((128, 128, 2), (128, 192, 2), (192, 128, 3), (128, 256, 2)):
            yield Tile(bm, bn, warpgroups, cluster_x=2, cluster_y=2, swizzle=swizzle)
        for bm, bn, pingpong in ((128, 64, 0), (128, 128, 0), (128, 64, 1), (128, 128, 1)):
            yield Tile(bm, bn, 2, pingpong=pingpong, swizzle=swizzle, chunk=64)


# Often the best where the estimate does not see it: always among the first six; and third, a tile that writes whole rows of the output where one
# stage is all of K, for there memory is all that counts.
PROVEN = (Tile(128, 128, 2, pingpong=1), Tile(128, 128, 2, pingpong=1, cluster_y=2), Tile(128, 64, 2))
WHOLE_ROWS = Tile(128, 256, 2)
# The first tiles are offered with operands asked for ahead, too, where arithmetic at 800 TFLOP/s takes less than this part of the time: up to 13 % faster
# there, up to 5 % slower in longer products.
AHEAD_OF, AHEAD_ARITHMETIC = 3, 0.5


def candidates(problem: Problem, device: DeviceSpec, limit: int = 32) -> list[Tile]:
    """Legal tiles, the most promising first; those much like a better one come after all others."""
    found: dict[Tile, float] = {}
    for shape in shapes(problem):
        direct = replace(shape, direct=1)
        tile = with_stages(shape if illegal(replace(direct, stages=2), problem) else direct, problem)
        x, y = problem.sides(tile)
        if illegal(tile, problem) or tile in found:
            continue
        if tile.split > 1 and problem.iterations(tile) < 2 * tile.split:  # each block deserves two stages at least
            continue
        if (tile.bm >= 2 * x and tile.bm > 64) or (tile.bn >= 2 * y and tile.bn > 32):  # half of it would do
            continue
        if (tile.cluster_x > 1 and x <= tile.bm) or (tile.cluster_y > 1 and y <= tile.bn):  # nobody to share with
            continue
        if tile.cluster_x * tile.cluster_y > 1 and problem.iterations(tile) < 4:  # nothing to gain
            continue
        if tile.swap and problem.m > 64:
            continue
        found[tile] = estimate(tile, problem, device)
    order = sorted(found, key=lambda tile: (found[tile], tile.config()))
    kinds = {(replace(tile, bn=tile.bn // 32, stages=0, chunk=0)): tile for tile in reversed(order)}  # the first of each kind
    order.sort(key=lambda tile: kinds[replace(tile, bn=tile.bn // 32, stages=0, chunk=0)] != tile)
    streams = problem.n == WHOLE_ROWS.bn and problem.iterations(WHOLE_ROWS) == 1 and problem.m >= WHOLE_ROWS.bm * device.multiprocessors
    whole = [tile for tile in order[2:] if streams and replace(tile, stages=0, direct=0) == WHOLE_ROWS]
    first = [*order[: 3 - len(whole)], *whole]
    proven = [tile for tile in order if tile not in first and replace(tile, stages=0, direct=0) in PROVEN]
    ranked = [*first, *proven, *(tile for tile in order if tile not in first and tile not in proven)]
    arithmetic = 2 * problem.batch * problem.m * problem.n * problem.taps * problem.depth * problem.dtype.itemsize / 1.6e15
    if not problem.adds_rows or not ranked or arithmetic > AHEAD_ARITHMETIC * found[ranked[0]]:
        return ranked[:limit]
    offered = [one for at, tile in enumerate(ranked) for one in (tile, replace(tile, ahead=1)) if not one.ahead or (at < AHEAD_OF and not tile.swap)]
    return offered[:limit]


def neighbours(tile: Tile, problem: Problem) -> list[Tile]:
    """Legal tiles that differ from ``tile`` in one step."""
    found = [replace(tile, stages=tile.stages + step) for step in (1, -1)]
    found += [replace(tile, bn=tile.bn + step) for step in (8, -8, 16, -16, 32, -32) if tile.bn + step > 0]
    found += [replace(tile, blocks=max(1, tile.blocks + step)) for step in (1, -1)]
    found += [replace(tile, split=size) for size in (tile.split * 2, tile.split // 2) if size]
    found += [replace(tile, chunk=size) for size in (8, 16, 32, 64)]
    found += [replace(tile, cluster_x=3 - tile.cluster_x), replace(tile, cluster_y=3 - tile.cluster_y)] if tile.cluster_x < 3 > tile.cluster_y else []
    found.append(replace(tile, ahead=1 - tile.ahead))
    fitting = (one if one.stages != tile.stages else with_stages(one, problem) for one in found)
    return [
        one
        for one in dict.fromkeys(fitting)
        if one != tile and not illegal(one, problem) and (one.split == 1 or problem.iterations(one) >= 2 * one.split)
    ]


def tiles_along(tile: Tile, problem: Problem) -> tuple[int, int]:
    """How many cluster tiles there are along X and Y."""
    x, y = problem.sides(tile)
    return ceil_div(x, tile.bm * tile.cluster_x), ceil_div(y, tile.bn * tile.cluster_y)


def tile_order(tile: Tile, problem: Problem, group: int = GROUP) -> tuple[Scalar, ...]:
    """The fields of ``TileOrder`` (``sm90_pipeline.cuh``)."""
    along_x, along_y = tiles_along(tile, problem)
    return (Scalar(along_x, "u32"), *divider(along_x * along_y), *divider(group * along_y), *divider(along_x % group or group))


def grid(tile: Tile, problem: Problem, device: DeviceSpec) -> int:
    """Blocks of the launch: one a tile, at most as many as run at a time (a split tile's cluster does one tile)."""
    along_x, along_y = tiles_along(tile, problem)
    blocks = along_x * along_y * problem.batch * tile.cluster
    if tile.split > 1:
        return blocks
    resident = device.multiprocessors * per_multiprocessor(tile)
    return min(blocks, resident // tile.cluster * tile.cluster)


def per_multiprocessor(tile: Tile) -> int:
    """Blocks that one multiprocessor holds at a time, by shared memory, registers and threads."""
    most = min(SHARED_SM // (tile.shared_bytes + SHARED_RESERVED), 2048 // tile.threads)
    return next((count for count in range(most, 1, -1) if register_limit(tile.threads, count) >= registers(tile)), 1)


# What the estimate rests on, fitted to timings on an H100 and an H200 (benchmarks/gpu/NOTES-sm90.md).
CLOCK = 1.4e9  # under the load of a large product
LATENCY = 660  # cycles from asking TMA for a stage to having it, under load
INGEST = 74  # bytes a cycle into one multiprocessor
L2_RATE = 4700  # bytes a cycle out of L2, to all multiprocessors
LAUNCH = 1.0e-6  # of a launch that overlaps its predecessor's end
CHUNK_COST = 300  # issue slots for 16 x 32 results
CHUNK_LATENCY = 800
DIRECT_COST, DIRECT_LATENCY = 69, 370  # the same without a turn through shared memory
TURN = 270  # cycles from one tile to the next
IN_TURNS = 0.92  # of its estimate is what a tile of two warpgroups in turns takes
SPLIT_COST, SPLIT_BLOCK, SPLIT_SUM = 656, 151, 0.151  # cycles that partial sums take: once, for each block of the cluster, for each sum


def estimate(tile: Tile, problem: Problem, device: DeviceSpec) -> float:
    """Seconds that a tile should take: each block's own chain of stages and epilogues, or what the blocks of a multiprocessor ask of
    its tensor cores, of its port to L2 and of its schedulers, or what all ask of L2 and of memory: the slowest, in whole waves."""
    along_x, along_y = tiles_along(tile, problem)
    blocks = along_x * along_y * problem.batch * tile.cluster
    at_a_time = per_multiprocessor(tile)
    clusters = device.multiprocessors if tile.cluster == 1 else _cluster_room(tile.cluster, device)
    resident = clusters * at_a_time
    waves = ceil_div(blocks, resident)
    running = min(blocks, resident)
    busy = ceil_div(running, device.multiprocessors)  # blocks on the busiest multiprocessor
    stages = ceil_div(problem.iterations(tile), tile.split)
    steps = tile.swizzle // 32
    arithmetic = tile.bm // 64 * steps * max(tile.bn / 2, 10 + tile.bn / 4)
    loaded = (tile.bm + tile.bn) * tile.swizzle
    asked = (tile.bm / tile.cluster_y + tile.bn / tile.cluster_x) * tile.swizzle
    chunks = tile.row_blocks * ceil_div(tile.bn, 32) / tile.split  # of a warp
    turn = TURN + chunks * (DIRECT_LATENCY if tile.direct else CHUNK_LATENCY)
    chain = stages * max(arithmetic, LATENCY / min(tile.stages, max(stages, 2)))
    in_turns = tile.pingpong and waves > 1  # else there is nobody to take turns with
    each = max(chain, (chain + turn) / 2) if in_turns else chain + turn
    issue = chunks * (DIRECT_COST if tile.direct else CHUNK_COST) * tile.warpgroups / (2 if tile.pingpong else 1)
    together = max(stages * arithmetic * busy, stages * loaded / INGEST * busy, issue * busy, stages * asked * running / L2_RATE)
    body = waves * max(each, together + turn / (waves * busy + 1)) + LATENCY
    if tile.split > 1:  # every wave is a launch of its own; partial sums cross from block to block in pieces of 32 bytes
        exchange = SPLIT_COST + SPLIT_BLOCK * tile.cluster + SPLIT_SUM * tile.bm * tile.bn
        body = waves * (max(each, together) + exchange) + LATENCY + (waves - 1) * 2 * LATENCY
    writers = 4 * tile.warpgroups * at_a_time  # warps; memory wants 16 a multiprocessor that read and write
    if in_turns:
        body *= IN_TURNS
    inside, outside = body / CLOCK, problem.bytes / device.bandwidth * (1 + 0.036 * max(0, 16 - writers)) + 1e-6
    return LAUNCH + max(inside, outside) + 0.118 * min(inside, outside)


def _cluster_room(cluster: int, device: DeviceSpec) -> int:
    """Multiprocessors that clusters can fill, each within one GPC: measured, between 112 and 128 of 132 for clusters of 4 and 8."""
    return device.multiprocessors if cluster <= 2 else device.multiprocessors * 10 // 11 // cluster * cluster


def tile_defines(tile: Tile, dtype: DataType, out: DataType, columns: int, constant_b: bool, pdl: bool) -> Defines:
    """All defines of a kernel of this family but its operands' layouts; ``columns`` is what the output's row length divides by."""
    # The operands of a requantisation (scales, biases) want registers of their own where several blocks share them.
    at_once = {"GROUPS_AT_ONCE": 1} if dtype in EIGHT_BIT_TYPES and tile.blocks > 1 else {}
    return defines(
        **tile.defines() | at_once, IN_T=STORED_TYPES[dtype], OUT_T=STORED_TYPES[out], **sum_types_of(dtype), VEC=columns, CONSTANT_B=int(constant_b), PDL=1 if pdl else None
    )


class Tiled(Tactic):
    """A tactic whose configurations are tiles of a :class:`Problem`."""

    @abstractmethod
    def problem(self, workload: Workload) -> Problem:
        """The products that the workload amounts to."""

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [tile.config() for tile in candidates(self.problem(workload), device)]

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        return [tile.config() for tile in neighbours(tile_of(config), self.problem(workload))]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return estimate(tile_of(config), self.problem(workload), device)
