"""Attention as the builder would choose it, beside torch's scaled_dot_product_attention: generation (few queries, many keys), windows, masks, short
sequences, float32.

    python benchmarks/gpu/attention_check.py [--seconds 30] [--level 3] [--only window] [--pin cuda.attention.sm90] [--all] [--results FILE]

Every case goes through tactic selection, which checks results. Per case: the best kernel, each tactic's best (``--all``: every timing, with the values of its configuration), the floor of the
bandwidth (or of the tensor cores), and torch (a CUDA graph of 20 calls). Both take turns over tensors that no cache holds together.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.selection import Case, decisions, parser  # noqa: E402
from benchmarks.gpu.torch_times import graph_times  # noqa: E402
from benchmarks.runner import compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.network import TensorType  # noqa: E402
from fusion.ops import Attention  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from tactics.candidates import SelectOptions  # noqa: E402
from tactics.tactic import Workload, floor_seconds, tensor_bytes  # noqa: E402

HALF, FLOAT, BOOL = DataType.HALF, DataType.FLOAT, DataType.BOOL


@dataclass(frozen=True)
class Shape:
    """An attention: sizes of q and of k and v, their type; ``mask``: of which axes of (batch, heads, queries, keys) it has more than one, and its type."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    size: int
    dtype: DataType = HALF
    causal: bool = False
    window: int = 0
    mask: str = ""
    mask_type: DataType = HALF

    @property
    def name(self) -> str:
        said = " causal" * self.causal + f" window {self.window}" * (self.window > 0) + f" {self.mask_type.value} mask {self.mask}" * bool(self.mask)
        return f"attention b{self.batch} h{self.heads}/{self.kv_heads} s{self.queries} t{self.keys} d{self.size} {self.dtype.value}{said}"

    @property
    def sides(self) -> list[tuple[int, int, int, int]]:
        """The shapes of q, k and v."""
        return [(self.batch, count, length, self.size) for count, length in ((self.heads, self.queries), (self.kv_heads, self.keys), (self.kv_heads, self.keys))]

    @property
    def mask_shape(self) -> tuple[int, ...]:
        whole = {"b": self.batch, "h": self.heads, "s": self.queries, "t": self.keys}
        return tuple(size if axis in self.mask else 1 for axis, size in whole.items())


CASES = [
    Shape(1, 32, 8, 1, 4096, 128), Shape(8, 32, 8, 1, 2048, 128), Shape(1, 12, 12, 1, 1024, 64), Shape(32, 32, 8, 1, 1024, 128), Shape(1, 32, 8, 4, 4096, 128),
    Shape(1, 32, 8, 1, 32768, 128), Shape(4, 32, 32, 1, 2048, 128), Shape(16, 12, 12, 1, 1024, 64), Shape(16, 12, 12, 1, 1024, 64, mask="bt"),
    Shape(1, 32, 32, 8192, 8192, 128, causal=True, window=1024), Shape(4, 16, 16, 4096, 4096, 64, causal=True, window=512),
    Shape(4, 16, 16, 1024, 1024, 64, mask="hst", mask_type=FLOAT), Shape(4, 16, 16, 1024, 1024, 64, mask="hst"), Shape(4, 16, 16, 1024, 1024, 64, mask="bst", mask_type=FLOAT),
    Shape(1, 32, 32, 4096, 4096, 64, mask="st", mask_type=FLOAT), Shape(4, 16, 16, 1024, 1024, 64, mask="bt", mask_type=FLOAT),
    Shape(4, 16, 16, 1024, 1024, 64, mask="hst", mask_type=BOOL),
    Shape(1, 12, 12, 128, 128, 64), Shape(32, 12, 12, 128, 128, 64), Shape(1, 12, 12, 197, 197, 64), Shape(32, 12, 12, 197, 197, 64), Shape(8, 12, 12, 512, 512, 64),
    Shape(4, 16, 16, 1024, 1024, 64), Shape(4, 16, 16, 1024, 1024, 64, causal=True), Shape(1, 16, 16, 4096, 4096, 64), Shape(4, 16, 16, 1024, 1024, 128),
    Shape(4, 16, 16, 1024, 1024, 128, causal=True), Shape(1, 16, 16, 2048, 2048, 256), Shape(1, 16, 16, 2048, 2048, 256, causal=True),
    Shape(1, 32, 8, 4096, 4096, 128, causal=True), Shape(16, 16, 16, 2048, 2048, 64, causal=True),
    Shape(1, 12, 12, 128, 128, 64, FLOAT), Shape(8, 12, 12, 197, 197, 64, FLOAT), Shape(1, 16, 16, 1024, 1024, 64, FLOAT), Shape(1, 32, 8, 1, 4096, 128, FLOAT),
]  # fmt: skip


def torch_seconds(shape: Shape, copies: int) -> float:
    """Of one call, over ``copies`` of the tensors; TF32 is allowed. Torch wants masks of q's type, and a window or a causal mask beside another in it."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    kind = torch.float16 if shape.dtype is HALF else torch.float32
    visible = None
    if shape.window or (shape.mask and shape.causal):
        ahead = torch.arange(shape.keys, device="cuda") - torch.arange(shape.queries, device="cuda")[:, None] - (shape.keys - shape.queries)
        visible = (ahead <= 0) & (ahead > -(shape.window or shape.keys + 1))
    calls = []
    for _ in range(copies):
        mask = visible
        if shape.mask:
            mask = torch.rand(shape.mask_shape, device="cuda") > 0.3 if shape.mask_type is BOOL else torch.randn(shape.mask_shape, device="cuda", dtype=kind)
        sides = [torch.randn(*side, device="cuda", dtype=kind) for side in shape.sides]
        calls.append(partial(torch.nn.functional.scaled_dot_product_attention, *sides, attn_mask=mask, is_causal=shape.causal and mask is None,
                             enable_gqa=shape.heads != shape.kv_heads))  # fmt: skip
    return median(graph_times(calls))


def case_of(shape: Shape) -> Case:
    """The attention, of random q, k and v."""
    op = Attention(shape.size**-0.5, shape.causal, bool(shape.mask), window=shape.window)
    types = [TensorType(shape.dtype, side) for side in shape.sides]
    if shape.mask:
        types.append(TensorType(shape.mask_type, shape.mask_shape))
    return Case(shape.name, Workload(op, tuple(types), op.infer(types)))


def best_of(timings: Mapping[str, tuple[float, dict[str, int]]]) -> str:
    return ", ".join(f"{tactic.removeprefix('cuda.attention.')} {seconds * 1e6:.2f} {chosen}" for tactic, (seconds, chosen) in timings.items())


def main() -> None:
    options = parser(__doc__, "attention", 30)
    options.add_argument("--pin", default="", help="only this tactic, and no record")
    options.add_argument("--all", action="store_true", help="print every timing")
    given, device = options.parse_args(), open_device("0")
    driver = str(device.properties().get("driver", ""))
    shapes = {shape.name: shape for shape in CASES}
    for case, decision in decisions([case_of(shape) for shape in CASES], device, SelectOptions(level=given.level, pinned=given.pin), given):
        timed = sorted((row.seconds, row.tactic, dict(row.config)) for row in decision.timings if row.seconds is not None)
        best: dict[str, tuple[float, dict[str, int]]] = {}
        for seconds, tactic, chosen in timed:
            best.setdefault(tactic, (seconds, chosen))
        size = sum(map(tensor_bytes, (*case.workload.inputs, *case.workload.outputs)))
        ours = timed[0][0] * 1e6
        peer = torch_seconds(shapes[case.name], int(np.clip(-(-2 * device.spec.l2_bytes // size), 1, 20))) * 1e6
        floor = floor_seconds(case.workload, device.spec) * 1e6
        if not given.pin:
            record(given.results, [compare(case.name, [ours], "us", [peer], "torch SDPA", device=device.spec.name, driver=driver,
                                           note=f"{best_of(best)}; floor {floor:.1f} us")])  # fmt: skip
        print(f"{case.name}: {ours:.2f} us, torch {peer:.2f} ({peer / ours:.2f}x), floor {floor:.2f}; {best_of(best)}", flush=True)
        if given.all:
            print("    " + ", ".join(f"{seconds * 1e6:.2f} {'/'.join(map(str, chosen.values()))}" for seconds, _, chosen in timed), flush=True)


if __name__ == "__main__":
    main()
