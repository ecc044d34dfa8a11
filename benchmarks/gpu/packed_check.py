"""Products with 4- and 8-bit weights: packed in memory, beside the same weights dequantised to FP16 at build, and the bandwidth's floor.

    python benchmarks/gpu/packed_check.py [--seconds 40] [--level 3] [--only int4] [--results FILE]

Every case goes through tactic selection, which checks results. Per case: the best packed kernel, the best ordinary FP16 kernel on the
dequantised weights, and how long the packed bytes alone would take at the device's bandwidth.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.runner import compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.network import TensorType  # noqa: E402
from fusion.ops import PackedMatrixMultiply  # noqa: E402
from fusion.ops.packed_matmul import packed  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from runtime.timer import Bench  # noqa: E402
from tactics.select import Compilers, SelectOptions, finish, start  # noqa: E402
from tactics.tactic import Workload, floor_seconds  # noqa: E402

# (rows, columns, depth, bits, block): the projections of a 7-billion-parameter decoder
CASES = [
    (1, 4096, 4096, 4, 128), (1, 11008, 4096, 4, 128), (1, 4096, 11008, 4, 32), (8, 11008, 4096, 4, 128), (1, 11008, 4096, 8, 128),
    (1, 32000, 4096, 4, 128), (16, 11008, 4096, 4, 128), (64, 11008, 4096, 4, 128), (512, 11008, 4096, 4, 128), (2048, 4096, 4096, 4, 128),
    (8, 4096, 4096, 8, 64), (64, 4096, 4096, 8, 128), (4, 4096, 4096, 4, 128), (16, 4096, 4096, 4, 32),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="begin no case after so long")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--results", default="packed")
    arguments = parser.parse_args()
    began, device = time.perf_counter(), open_device("0")
    driver, generator = str(device.properties().get("driver", "")), np.random.default_rng(1)
    compilers, options = Compilers(device.spec.arch, 16, {}), SelectOptions(level=arguments.level)
    searches = []
    for m, n, k, bits, block in CASES:
        name = f"packed {m}x{n}x{k} int{bits} block {block} float16"
        if arguments.only not in name:
            continue
        op, blocks = PackedMatrixMultiply(bits, k, block), -(-k // block)
        half, byte = DataType.HALF, DataType.UINT8
        types = (TensorType(half, (m, k)), TensorType(byte, (n, k * bits // 8)), *[TensorType(half, (n, blocks))] * 2)
        workload = Workload(op, types, op.infer(types), (False, True, True, True))
        searches.append((name, workload))
    begun = [start(workload, device.spec, options, compilers) for _, workload in searches[:1]]
    for number, (name, _) in enumerate(searches):
        begun += [start(workload, device.spec, options, compilers) for _, workload in searches[number + 1 : number + 2]]  # compiles meanwhile
        search = begun[number]
        op, (_, _, scales, _) = search.workload.op, search.workload.inputs
        assert isinstance(op, PackedMatrixMultiply)
        n, blocks = map(int, scales.shape)  # type: ignore[arg-type]
        values = {
            1: packed(generator.integers(0, 1 << op.bits, (n, op.depth), dtype=np.uint8), op.bits),
            2: (generator.random((n, blocks)) * 0.1 / (1 << op.bits)).astype(np.float16),
            3: generator.integers(0, 1 << op.bits, (n, blocks)).astype(np.float16),
        }
        decision = finish(search, values, device.spec, options, partial(Bench, device, search.workload, values), compilers)
        timed = [row for row in decision.timings if row.seconds is not None]
        best = {kind: min((row for row in timed if ("dequantized" in row.tactic) == kind), key=lambda row: row.seconds or 0) for kind in (False, True)}
        for row in decision.timings:
            if row.seconds is None and ("wrong" in row.reason or "failed" in row.reason):
                print(f"    {row.tactic} {dict(row.config)}: {row.reason[:150]}")
        ours, peer = ((best[kind].seconds or 0) * 1e6 for kind in (False, True))
        floor = floor_seconds(search.workload, device.spec) * 1e6
        note = f"{best[False].tactic} {dict(best[False].config)}; floor {floor:.1f} us"
        record(arguments.results, [compare(name, [ours], "us", [peer], best[True].tactic, device=device.spec.name, driver=driver, note=note)])
        tactics = sorted({row.tactic for row in timed if "dequantized" not in row.tactic})
        each = ", ".join(f"{tactic} {min((row.seconds or 0) * 1e6 for row in timed if row.tactic == tactic):.2f}" for tactic in tactics)
        print(f"{name}: packed {ours:.2f} ({ours / floor:.2f} of its floor {floor:.2f} us), FP16 {peer:.1f} ({peer / ours:.2f}x); {each}; {note}", flush=True)
        if time.perf_counter() - began > arguments.seconds:
            break
    compilers.close()


if __name__ == "__main__":
    main()
