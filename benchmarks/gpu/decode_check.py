"""Attention of generation (few queries, many keys) and attention in float32, beside torch's scaled_dot_product_attention.

    python benchmarks/gpu/decode_check.py [--seconds 30] [--level 3] [--only float32] [--results FILE]

Every case goes through tactic selection, which checks results. Per case: the best kernel, each tactic's best, the floor of the bandwidth
(or of the tensor cores), and torch (a CUDA graph of 20 calls).
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.torch_times import graph_times  # noqa: E402
from benchmarks.runner import compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.network import TensorType  # noqa: E402
from fusion.ops import Attention  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from runtime.timer import Bench  # noqa: E402
from tactics.select import Compilers, SelectOptions, finish, start  # noqa: E402
from tactics.tactic import Workload, floor_seconds  # noqa: E402

HALF, FLOAT = DataType.HALF, DataType.FLOAT
# (batch, heads, key heads, queries, keys, head size, type)
CASES = [
    (1, 32, 8, 1, 4096, 128, HALF), (8, 32, 8, 1, 2048, 128, HALF), (1, 12, 12, 1, 1024, 64, HALF), (32, 32, 8, 1, 1024, 128, HALF), (1, 32, 8, 4, 4096, 128, HALF),
    (1, 12, 12, 128, 128, 64, FLOAT), (8, 12, 12, 197, 197, 64, FLOAT), (1, 16, 16, 1024, 1024, 64, FLOAT), (1, 32, 8, 1, 4096, 128, FLOAT),
]  # fmt: skip


def torch_seconds(case: tuple) -> float:  # type: ignore[type-arg]
    """Of one call; TF32 is allowed."""
    import torch

    batch, heads, kv_heads, queries, keys, size, dtype = case
    torch.backends.cuda.matmul.allow_tf32 = True
    kind = torch.float16 if dtype is HALF else torch.float32
    sides = [torch.randn(batch, count, length, size, device="cuda", dtype=kind) for count, length in ((heads, queries), (kv_heads, keys), (kv_heads, keys))]
    call = partial(torch.nn.functional.scaled_dot_product_attention, *sides, enable_gqa=heads != kv_heads)
    return median(graph_times([call]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="begin no case after so long")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--results", default="decode")
    arguments = parser.parse_args()
    began, device = time.perf_counter(), open_device("0")
    driver = str(device.properties().get("driver", ""))
    compilers, options = Compilers(device.spec.arch, 16, {}), SelectOptions(level=arguments.level)
    searches = []
    for case in CASES:
        batch, heads, kv_heads, queries, keys, size, dtype = case
        name = f"attention b{batch} h{heads}/{kv_heads} s{queries} t{keys} d{size} {dtype.value}"
        if arguments.only not in name:
            continue
        op = Attention(size**-0.5)
        types = tuple(TensorType(dtype, (batch, count, length, size)) for count, length in ((heads, queries), (kv_heads, keys), (kv_heads, keys)))
        searches.append((name, case, start(Workload(op, types, op.infer(types)), device.spec, options, compilers)))
    for name, case, search in searches:
        decision = finish(search, {}, device.spec, options, partial(Bench, device, search.workload, {}), compilers)
        best: dict[str, tuple[float, dict[str, int]]] = {}
        for row in decision.timings:
            if row.seconds is None:
                if "wrong" in row.reason or "failed" in row.reason:
                    print(f"    {row.tactic} {dict(row.config)}: {row.reason[:150]}")
            elif row.seconds < best.get(row.tactic, (1.0, {}))[0]:
                best[row.tactic] = row.seconds, dict(row.config)
        ours, peer, floor = min(one for one, _ in best.values()) * 1e6, torch_seconds(case) * 1e6, floor_seconds(search.workload, device.spec) * 1e6
        each = ", ".join(f"{tactic.removeprefix('cuda.attention.')} {seconds * 1e6:.2f} {chosen}" for tactic, (seconds, chosen) in best.items())
        record(arguments.results, [compare(name, [ours], "us", [peer], "torch SDPA", device=device.spec.name, driver=driver, note=f"{each}; floor {floor:.1f} us")])
        print(f"{name}: {ours:.2f} us, torch {peer:.2f} ({peer / ours:.2f}x), floor {floor:.2f}; {each}", flush=True)
        if time.perf_counter() - began > arguments.seconds:
            break
    compilers.close()


if __name__ == "__main__":
    main()
