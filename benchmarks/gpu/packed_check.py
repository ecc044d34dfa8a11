"""Products with 4- and 8-bit weights: packed in memory, beside the same weights dequantised to FP16 at build, and the bandwidth's floor.

    python benchmarks/gpu/packed_check.py [--seconds 40] [--level 3] [--only int4] [--results FILE]

Every case goes through tactic selection, which checks results. Per case: the best packed kernel, the best ordinary FP16 kernel on the
dequantised weights, and how long the packed bytes alone would take at the device's bandwidth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.selection import Case, arguments, decisions  # noqa: E402
from benchmarks.runner import compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.network import TensorType  # noqa: E402
from fusion.ops import PackedMatrixMultiply  # noqa: E402
from fusion.ops.packed_matmul import packed  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from tactics.candidates import SelectOptions  # noqa: E402
from tactics.tactic import Workload, floor_seconds  # noqa: E402

# (rows, columns, depth, bits, block): the projections of a 7-billion-parameter decoder
CASES = [
    (1, 4096, 4096, 4, 128), (1, 11008, 4096, 4, 128), (1, 4096, 11008, 4, 32), (8, 11008, 4096, 4, 128), (1, 11008, 4096, 8, 128),
    (1, 32000, 4096, 4, 128), (16, 11008, 4096, 4, 128), (64, 11008, 4096, 4, 128), (512, 11008, 4096, 4, 128), (2048, 4096, 4096, 4, 128),
    (8, 4096, 4096, 8, 64), (64, 4096, 4096, 8, 128), (4, 4096, 4096, 4, 128), (16, 4096, 4096, 4, 32),
]  # fmt: skip


def case_of(rows: int, columns: int, depth: int, bits: int, block: int) -> Case:
    """A product with random packed weights."""
    op, blocks = PackedMatrixMultiply(bits, depth, block), -(-depth // block)
    half, byte = DataType.HALF, DataType.UINT8
    types = (TensorType(half, (rows, depth)), TensorType(byte, (columns, depth * bits // 8)), *[TensorType(half, (columns, blocks))] * 2)

    def values() -> dict[int, np.ndarray]:
        generator = np.random.default_rng(1)
        return {
            1: packed(generator.integers(0, 1 << bits, (columns, depth), dtype=np.uint8), bits),
            2: (generator.random((columns, blocks)) * 0.1 / (1 << bits)).astype(np.float16),
            3: generator.integers(0, 1 << bits, (columns, blocks)).astype(np.float16),
        }

    workload = Workload(op, types, op.infer(types), (False, True, True, True))
    return Case(f"packed {rows}x{columns}x{depth} int{bits} block {block} float16", workload, values)


def main() -> None:
    given, device = arguments(__doc__, "packed", 40), open_device("0")
    driver = str(device.properties().get("driver", ""))
    for case, decision in decisions([case_of(*one) for one in CASES], device, SelectOptions(level=given.level), given):
        timed = [row for row in decision.timings if row.seconds is not None]
        best = {kind: min((row for row in timed if ("dequantized" in row.tactic) == kind), key=lambda row: row.seconds or 0) for kind in (False, True)}
        ours, peer = ((best[kind].seconds or 0) * 1e6 for kind in (False, True))
        floor = floor_seconds(case.workload, device.spec) * 1e6
        note = f"{best[False].tactic} {dict(best[False].config)}; floor {floor:.1f} us"
        record(given.results, [compare(case.name, [ours], "us", [peer], best[True].tactic, device=device.spec.name, driver=driver, note=note)])
        tactics = sorted({row.tactic for row in timed if "dequantized" not in row.tactic})
        each = ", ".join(f"{tactic} {min((row.seconds or 0) * 1e6 for row in timed if row.tactic == tactic):.2f}" for tactic in tactics)
        print(f"{case.name}: packed {ours:.2f} ({ours / floor:.2f} of its floor {floor:.2f} us), FP16 {peer:.1f} ({peer / ours:.2f}x); {each}; {note}", flush=True)


if __name__ == "__main__":
    main()
