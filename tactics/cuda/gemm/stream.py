"""One to sixteen rows times a constant weight (``stream.cu``): bound by reading the weight once, in the order in which it is multiplied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product as combinations

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import MatrixMultiply
from tactics.cuda.epilogue import overwritable
from tactics.cuda.gemm.common import (
    C_TYPES,
    STORED_TYPES,
    Defines,
    Epilogue,
    ceil_div,
    defines,
    epilogue_of,
    null,
    pdl,
    refuse_epilogue,
    refuse_types,
    round_up,
)
from tactics.cuda.gemm.mma_gemm import Product, k_alignment, product_of
from tactics.memo import LastResult
from tactics.tactic import (
    Argument,
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Tactic,
    Workload,
    config,
    floor_seconds,
)

MOST_ROWS = 16
SHARED_ROWS = 16  # rows of A times turns, up to which a warp keeps all of A that it multiplies in shared memory
GROUP = 64  # of the depth, is what a warp multiplies in a turn
CLOCK = 1.7e9  # Hz, about
# (columns, warps, stages) by tiles: the best of a shape where the estimate did not see it, so always among the first.
PROVEN = {1: ((2, 16, 2), (1, 16, 2), (4, 8, 2), (4, 4, 2)), 2: ((2, 4, 4), (2, 16, 2), (4, 8, 2))}
# Registers that a thread may have, by (columns, tiles): so many that at most a few bytes are spilled (ptxas, sm_75 to sm_120).
_REGISTERS = {(1, 1): 64, (2, 1): 64, (3, 1): 80, (4, 1): 80, (1, 2): 80, (2, 2): 112, (4, 2): 144}


@dataclass(frozen=True)
class Stream:
    """One configuration: a block has ``across`` teams; a team has ``columns`` groups of 16 columns, and ``warps`` that share the depth, each with
    ``stages`` turns of weights under way; ``tiles`` fragments of eight rows."""

    columns: int
    warps: int
    stages: int
    tiles: int
    across: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps * self.across

    @property
    def wide(self) -> int:
        """Groups of columns of a block."""
        return self.columns * self.across

    def registers(self, bits: int, block: int) -> int:
        """Registers that a thread may have."""
        scaled = 32 if block < 32 else 16 if self.columns > 1 and bits == 8 or self.columns > 2 and block < GROUP else 0
        return _REGISTERS[self.columns, self.tiles] + scaled

    def blocks(self, bits: int, block: int) -> int:
        """Blocks whose registers a multiprocessor has room for, which the compiler is told."""
        return max(1, min(2048 // self.threads, 65536 // (self.registers(bits, block) * self.threads)))

    def stage_bytes(self, bits: int, block: int) -> int:
        """What a warp copies for a turn."""
        scales = 0 if bits == 16 else GROUP // min(block, GROUP) * self.columns
        return self.columns * 128 * bits + ceil_div(scales, 2) * 512

    def shared_bytes(self, bits: int, block: int) -> int:
        """Dynamic shared memory: the ring, or the sums of all warps."""
        return self.warps * self.across * max(self.stages * self.stage_bytes(bits, block), self.columns * self.tiles * 8 * 64)

    def config(self) -> Config:
        """As a tactic's configuration."""
        return config(**self.__dict__)


def stream_of(configuration: Config) -> Stream:
    """The inverse of :meth:`Stream.config`."""
    return Stream(**dict(configuration))


def legal(stream: Stream, n: int, bits: int, block: int, device: DeviceSpec) -> bool:
    """Every condition of the kernel and the hardware."""
    return (
        (stream.columns, stream.tiles) in _REGISTERS
        and stream.warps >= 1
        and stream.across >= 1
        and stream.threads <= 512
        and 2 <= stream.stages <= 16
        and 16 * stream.wide <= round_up(n, 16)
        and (block >= 32 or stream.columns * stream.tiles <= 2)  # else it spills
        and stream.shared_bytes(bits, block) + stream.threads // 32 * SHARED_ROWS * 128 <= device.shared_memory
        and stream.registers(bits, block) <= 65536 // stream.threads
    )


def estimate(stream: Stream, m: int, n: int, k: int, bits: int, block: int, floor: float, device: DeviceSpec) -> float:
    """Seconds that a configuration should take.

    The slower of memory (the floor, more where too few bytes are under way) and arithmetic (issue slots, or latency where warps are few), and
    what stands between two kernels: the later the blocks of the next one find room beside this one's, the less of it is hidden.
    """
    blocks, groups = ceil_div(ceil_div(n, 16), stream.wide), ceil_div(k, GROUP)
    resident = max(1, min(device.shared_memory // (stream.shared_bytes(bits, block) + 1024), stream.blocks(bits, block)))
    share = blocks / device.multiprocessors
    busy, most = min(share, resident), min(ceil_div(blocks, device.multiprocessors), resident)
    turns = ceil_div(groups, stream.warps)
    under_way = busy * stream.across * stream.warps * min(stream.stages, turns) * stream.columns * 128 * bits
    memory = floor / 0.95 * max(1.0, 30e3 / under_way)
    issue = {4: 55, 8: 75, 16: 25}[bits] + 16 / stream.columns + 25 * (stream.tiles - 1)  # cycles of a group of weights
    latency = 350 * (0.6 + 0.4 * stream.columns) / stream.columns / (busy * stream.threads / 128)
    groups_each = (most if share <= resident else share) * stream.wide * turns * stream.warps
    arithmetic = groups_each / 4 * max(issue, latency) / CLOCK
    rows = m * 2 * k * blocks / (1.9 * device.bandwidth)  # A again for every block, from L2
    # Bytes that arrive before the kernel may read A: its blocks start where those of the kernel before leave room.
    room = min(1.0, (resident - most) / most) if share <= resident else (resident - 1) / resident
    ahead = room * under_way * device.multiprocessors
    between = max(0.3e-6, 2e-6 - 0.5 * ahead / device.bandwidth)
    slow, fast = max(memory, arithmetic), min(memory, arithmetic)
    return slow + 0.3 * fast + 0.25 * rows + between


def configurations(workload: Workload, m: int, n: int, k: int, bits: int, block: int, device: DeviceSpec, limit: int = 48) -> list[Config]:
    """Legal configurations for ``m`` rows, the most promising first; those that differ from a better one in their stages come five places later."""
    tiles = (ceil_div(m, 8),) if workload.is_static else (1, 2) if m <= 8 else (2,)
    groups, floor = ceil_div(k, GROUP), floor_seconds(workload, device)
    found: dict[Stream, float] = {}
    for columns, warps, stages, rows, across in combinations((1, 2, 3, 4), (2, 4, 8, 16), (2, 4, 8), tiles, (1, 2, 4) if m > 4 else (1,)):
        turns = ceil_div(groups, warps)
        one = Stream(columns, warps, max(2, min(stages, turns)), rows, across)
        if legal(one, n, bits, block, device) and (warps == 2 or warps <= groups):
            found[one] = estimate(one, m, n, k, bits, block, floor, device)
    kinds: dict[Stream, list[Stream]] = {}  # which differ in their stages only
    for one in sorted(found, key=lambda one: (found[one], one.stages, one.config())):
        kinds.setdefault(replace(one, stages=0), []).append(one)
    places = {one: rank + 5 * place for rank, kind in enumerate(kinds.values()) for place, one in enumerate(kind)}
    order = sorted(places, key=lambda one: (places[one], one.config()))
    proven = [one for one in order[3:] if one.across == 1 and (one.columns, one.warps, one.stages) in PROVEN[one.tiles]]
    order = [*order[:3], *proven, *(one for one in order[3:] if one not in proven)]
    return [one.config() for one in order[:limit]]


def neighbours(configuration: Config, n: int, bits: int, block: int, device: DeviceSpec) -> list[Config]:
    """Legal configurations one step away."""
    one = stream_of(configuration)
    steps = [(one.columns + 1, one.warps, one.stages), (one.columns - 1, one.warps, one.stages), (one.columns, one.warps * 2, one.stages),
             (one.columns, one.warps // 2, one.stages), (one.columns, one.warps + 2, one.stages), (one.columns, one.warps - 2, one.stages),
             (one.columns, one.warps, one.stages + 1), (one.columns, one.warps, one.stages - 1)]  # fmt: skip
    found = [Stream(*step, one.tiles, one.across) for step in steps] + [replace(one, across=size) for size in (one.across * 2, one.across // 2)]
    return [other.config() for other in found if legal(other, n, bits, block, device)]


def plan(
    workload: Workload, one: Stream, sizes: tuple[int, int, int], bits: int, block: int, epilogue: Epilogue, scaling: Argument, device: DeviceSpec,
    more: Defines = (),
) -> Plan:  # fmt: skip
    """The launch for ``sizes`` (m, n, k), its weights the first packed array.

    Raises:
        ValueError: more rows than the configuration has room for.
    """
    m, n, k = sizes
    if round_up(n, 16) < 16 * one.wide:
        raise ValueError(f"{n} columns; a block of this configuration has {one.wide} groups of 16")
    if m > one.tiles * 8:
        raise ValueError(f"{m} rows; this configuration takes {one.tiles * 8}")
    held = m * ceil_div(ceil_div(k, GROUP), one.warps)
    in_shared = workload.is_static and held <= SHARED_ROWS and m <= 8
    kernel = Kernel("gemm/stream.cu", "stream", (*defines(
        IN_T=C_TYPES[workload.inputs[0].dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], ROWS=m if workload.is_static else one.tiles * 8,
        WARPS=one.warps, ACROSS=one.across, COLUMNS=one.columns, STAGES=one.stages, BLOCKS=one.blocks(bits, block), PACKED_BITS=bits, DEPTH=k, A_SHARED=1 if in_shared else None, PDL=1 if pdl(device) else None,
    ), *more, *epilogue.defines), epilogue.prelude)  # fmt: skip
    arguments = (Buffer("input", 0), Buffer("packed", 0), scaling, Buffer("output"), Scalar(m), Scalar(n), epilogue.argument)
    launch = Launch(
        kernel, (ceil_div(ceil_div(n, 16), one.wide), 1, 1), (one.threads, 1, 1), arguments,
        shared_memory=one.shared_bytes(bits, block) + (one.threads // 32 * held * 128 if in_shared else 0),
        dependent=pdl(device),
    )  # fmt: skip
    return Plan((launch,), in_place=overwritable(workload))


class StreamedGemm(Tactic):
    """Constant weights of 16 bits as fragments of ``mma``, each lane's own bytes in a ring of its own."""

    id = "cuda.gemm.stream"
    device = "cuda"
    ops = (MatrixMultiply,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, (DataType.HALF, DataType.BF16)):
            return refusal
        dtype = workload.inputs[0].dtype
        if device.capability < (75 if dtype is DataType.HALF else 80):
            return Refusal(f"tensor cores multiply {dtype.label} from sm_{75 if dtype is DataType.HALF else 80} on; the device is {device.arch}")
        product = product_of(workload)
        if isinstance(product, Refusal):
            return product
        if product.batch != 1 or product.transpose_a:
            return Refusal("this kernel takes one product, a stored [M][K]")
        if not 1 <= product.m <= MOST_ROWS:
            return Refusal(f"{product.m} rows; this kernel takes 1 to {MOST_ROWS}")
        if not workload.is_constant(1):
            return Refusal("b is no constant that could be laid out at build")
        if k_alignment(workload) % 8 or product.k == 0 or product.n == 0:
            return Refusal(f"a depth of {product.k} is no multiple of 8")
        return refuse_epilogue(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        product = _product(workload)
        return configurations(workload, product.m, product.n, product.k, 16, GROUP, device)

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        return neighbours(config, _product(workload).n, 16, GROUP, device)

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        product = _product(workload)
        return estimate(stream_of(config), product.m, product.n, product.k, 16, GROUP, floor_seconds(workload, device), device)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        return (_fragments((constants[1],), workload.op.transpose_b),)  # type: ignore[attr-defined]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        product, epilogue = _product(workload), epilogue_of(workload)
        assert isinstance(epilogue, Epilogue)
        return plan(workload, stream_of(config), (product.m, product.n, product.k), 16, GROUP, epilogue, null(), device)


def _product(workload: Workload) -> Product:
    product = product_of(workload)
    assert isinstance(product, Product)
    return product


@LastResult
def _fragments(arrays: tuple[np.ndarray, ...], transposed: bool) -> np.ndarray:
    matrix = arrays[0].reshape(arrays[0].shape[-2:])
    return fragments((matrix if transposed else matrix.T).view(np.uint16))


def fragments(values: np.ndarray) -> np.ndarray:
    """``values`` ``[N, K]`` (two bytes each) as words ``[column group][depth group][step][lane][word]``; a lane is (row, quad)."""
    n, k = (round_up(size, step) for size, step in zip(values.shape, (16, GROUP), strict=True))
    padded = np.zeros((n, k), np.uint16)
    padded[: values.shape[0], : values.shape[1]] = values
    # (column group, tile, row) x (depth group, piece, quad, step of a piece, half, neighbour)
    parts = padded.reshape(n // 16, 2, 8, k // GROUP, 2, 4, 2, 2, 2)
    words = np.ascontiguousarray(parts.transpose(0, 3, 4, 6, 2, 5, 7, 1, 8))
    return words.view(np.uint32).reshape(n // 16, k // GROUP, 4, 32, 4)


TACTICS = (StreamedGemm(),)
