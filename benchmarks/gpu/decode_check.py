"""Attention of generation (few queries, many keys) and attention in float32, beside torch's scaled_dot_product_attention.

    python benchmarks/gpu/decode_check.py [--seconds 30] [--level 3] [--only float32] [--results FILE]

Every case goes through tactic selection, which checks results. Per case: the best kernel, each tactic's best, the floor of the bandwidth
(or of the tensor cores), and torch (a CUDA graph of 20 calls).
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.selection import Case, arguments, decisions  # noqa: E402
from benchmarks.gpu.torch_times import graph_times  # noqa: E402
from benchmarks.runner import compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.network import TensorType  # noqa: E402
from fusion.ops import Attention  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from tactics.candidates import SelectOptions  # noqa: E402
from tactics.tactic import Workload, floor_seconds  # noqa: E402

HALF, FLOAT = DataType.HALF, DataType.FLOAT
Shape = tuple[int, int, int, int, int, int, DataType]  # batch, heads, key heads, queries, keys, head size, type
CASES: list[Shape] = [
    (1, 32, 8, 1, 4096, 128, HALF), (8, 32, 8, 1, 2048, 128, HALF), (1, 12, 12, 1, 1024, 64, HALF), (32, 32, 8, 1, 1024, 128, HALF), (1, 32, 8, 4, 4096, 128, HALF),
    (1, 12, 12, 128, 128, 64, FLOAT), (8, 12, 12, 197, 197, 64, FLOAT), (1, 16, 16, 1024, 1024, 64, FLOAT), (1, 32, 8, 1, 4096, 128, FLOAT),
]  # fmt: skip


def shapes_of(case: Shape) -> list[tuple[int, int, int, int]]:
    """Those of q, k and v."""
    batch, heads, kv_heads, queries, keys, size, _ = case
    return [(batch, count, length, size) for count, length in ((heads, queries), (kv_heads, keys), (kv_heads, keys))]


def torch_seconds(case: Shape) -> float:
    """Of one call; TF32 is allowed."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    kind = torch.float16 if case[-1] is HALF else torch.float32
    sides = [torch.randn(*shape, device="cuda", dtype=kind) for shape in shapes_of(case)]
    call = partial(torch.nn.functional.scaled_dot_product_attention, *sides, enable_gqa=case[1] != case[2])
    return median(graph_times([call]))


def case_of(case: Shape) -> Case:
    """The attention, of random q, k and v."""
    batch, heads, kv_heads, queries, keys, size, dtype = case
    op, types = Attention(size**-0.5), tuple(TensorType(dtype, shape) for shape in shapes_of(case))
    return Case(f"attention b{batch} h{heads}/{kv_heads} s{queries} t{keys} d{size} {dtype.value}", Workload(op, types, op.infer(types)))


def main() -> None:
    given, device = arguments(__doc__, "decode", 30), open_device("0")
    driver = str(device.properties().get("driver", ""))
    made = {case_of(shape).name: shape for shape in CASES}
    for case, decision in decisions([case_of(shape) for shape in CASES], device, SelectOptions(level=given.level), given):
        best: dict[str, tuple[float, dict[str, int]]] = {}
        for row in decision.timings:
            if row.seconds is not None and row.seconds < best.get(row.tactic, (1.0, {}))[0]:
                best[row.tactic] = row.seconds, dict(row.config)
        ours, peer = min(one for one, _ in best.values()) * 1e6, torch_seconds(made[case.name]) * 1e6
        floor = floor_seconds(case.workload, device.spec) * 1e6
        each = ", ".join(f"{tactic.removeprefix('cuda.attention.')} {seconds * 1e6:.2f} {chosen}" for tactic, (seconds, chosen) in best.items())
        record(given.results, [compare(case.name, [ours], "us", [peer], "torch SDPA", device=device.spec.name, driver=driver, note=f"{each}; floor {floor:.1f} us")])
        print(f"{case.name}: {ours:.2f} us, torch {peer:.2f} ({peer / ours:.2f}x), floor {floor:.2f}; {each}", flush=True)


if __name__ == "__main__":
    main()
