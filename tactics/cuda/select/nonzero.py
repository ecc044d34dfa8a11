"""Stream compaction: tiles are counted, the counts scanned, and every tile writes its rows where those before it end.

Three launches; x is read twice. Source of the scheme: Blelloch, "Prefix Sums and Their Applications" (1990).
"""

from __future__ import annotations

from fusion.expression import compute_type
from fusion.ops import NonZero
from tactics.cuda.codegen import STORAGE_TYPES
from tactics.cuda.simple import ceil_div, count, defines, dims, launch, refuse_large
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Memset,
    Plan,
    Refusal,
    Scalar,
    Struct,
    Tactic,
    Workload,
)

FILE = "select/nonzero.cu"
PRELUDE = '#include "vector.cuh"\n'
THREADS, ITEMS = 256, 8


def scan_tiles(device: DeviceSpec, counts: Buffer, found: Buffer, tiles: int) -> Launch:
    """Turns the counts (uint32) of ``tiles`` tiles into the sums of those before each; ``found`` (int64) gets the sum of all."""
    kernel = Kernel("select/scan.cu", "scan_tiles", defines(device, THREADS=THREADS))
    return launch(kernel, 1, THREADS, (counts, found, Scalar(tiles, "u32")))


class Compaction(Tactic):
    """NonZero of any type and rank."""

    id = "cuda.nonzero.compaction"
    device = "cuda"
    ops = (NonZero,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        dtype = workload.inputs[0].dtype
        return refuse_large(workload) if dtype in STORAGE_TYPES else Refusal(f"no CUDA type for {dtype.value}")

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        x = workload.inputs[0]
        elements, sizes = count(x), dims(x)
        found = Buffer("output", 1)
        if not elements:
            return Plan((Memset(found, 8),))
        tiles = ceil_div(elements, THREADS * ITEMS)
        counts = Buffer("workspace")

        def kernel(step: int, entry: str, **more: int) -> Kernel:
            names = defines(device, STEP=step, IN_T=STORAGE_TYPES[x.dtype], WORK=STORAGE_TYPES[compute_type(x.dtype)],
                            THREADS=THREADS, ITEMS=ITEMS, **more)  # fmt: skip
            return Kernel(FILE, entry, names, PRELUDE)

        shape = Struct(tuple(Scalar(size, "u32") for size in sizes))
        steps = (
            launch(kernel(0, "count_tiles"), tiles, THREADS, (Buffer("input"), counts, Scalar(elements, "u32"))),
            scan_tiles(device, counts, found, tiles),
            launch(kernel(1, "write_rows", RANK=len(sizes)), tiles, THREADS,
                   (Buffer("input"), counts, Buffer("output"), Scalar(elements, "u32"), shape)),
        )  # fmt: skip
        return Plan(steps, 4 * tiles)


TACTICS = (Compaction(),)
