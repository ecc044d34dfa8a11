"""Checks and times 8-bit products on the GPU of this machine beside our own float16 tactics (and torch, where it is installed).

    python benchmarks/gpu/quant_check.py [--device 0] [--seconds 95] [--level 3] [--tactics 8] [--no-record]

Part one: 8-bit cases of tests/tactics/cuda/test_quantized.py, and GEMMs with int32 sums of 4096 products, against the operation's NumPy
meaning, which is exact. Part two: the GEMMs of BERT-base and convolutions of ResNet-50 at batch 32, each with scale, bias, ReLU and
requantisation in the epilogue, as int8 and fp8, and as float16 with bias and ReLU: the tactics are tuned as a build tunes them, each
candidate is checked against the family's reference. One JSON line a shape (see benchmarks/runner.py): ``ours`` is 8 bits, the peer
float16 by our own tactics; the note has the tactic, and torch._int_mm or torch._scaled_mm where they serve. What does not fit
into --seconds is left out, and said.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.torch_times import graph_times  # noqa: E402
from benchmarks.runner import Result, compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.expression import Convert, Expression, Literal, Operand, apply  # noqa: E402
from fusion.network import TensorType  # noqa: E402
from fusion.ops import Convolution, MatrixMultiply  # noqa: E402
from runtime.device import Device  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from runtime.timer import Bench  # noqa: E402
from tactics.candidates import SelectOptions  # noqa: E402
from tactics.compilers import Compilers  # noqa: E402
from tactics.select import Decision, Search, finish, start  # noqa: E402
from tactics.tactic import Workload, floor_seconds, workload_flops  # noqa: E402

INT8, FP8, HALF, FLOAT = DataType.INT8, DataType.FP8, DataType.HALF, DataType.FLOAT
# M, N, K of BERT-base at batch 32, sequence 128.
GEMMS = {"qkv": (4096, 2304, 768), "projection": (4096, 768, 768), "up": (4096, 3072, 768), "down": (4096, 768, 3072), "square": (4096, 4096, 4096)}
# Input size, channels in and out, window, stride of ResNet-50.
CONVOLUTIONS = {
    "56x56 64->64 3x3": (56, 64, 64, 3, 1), "28x28 128->128 3x3": (28, 128, 128, 3, 1), "14x14 256->256 3x3": (14, 256, 256, 3, 1),
    "7x7 512->512 3x3": (7, 512, 512, 3, 1), "56x56 64->256 1x1": (56, 64, 256, 1, 1), "14x14 1024->256 1x1": (14, 1024, 256, 1, 1),
    "56x56 256->512 1x1/2": (56, 256, 512, 1, 2), "depthwise 56x56 144 3x3": (56, 144, 144, 3, 1),
}  # fmt: skip


def epilogue(dtype: DataType) -> Expression:
    """Bias and ReLU; for 8 bits behind the scale, and before the requantisation."""
    if dtype is HALF:
        return apply("relu", apply("add", Operand(0), Operand(1)))
    total: Expression = Operand(0) if dtype.is_float else Convert(FLOAT, Operand(0))
    real = apply("relu", apply("add", apply("mul", total, Operand(2)), Operand(1)))
    steps = apply("div", real, Literal(0.05, FLOAT))
    low, high = (-448.0, 448.0) if dtype is FP8 else (-128.0, 127.0)
    steps = steps if dtype is FP8 else apply("round", steps)
    return Convert(dtype, apply("clip", steps, Literal(low, FLOAT), Literal(high, FLOAT)))


def workload(op: Any, x: tuple[int, ...], w: tuple[int, ...], n: int, dtype: DataType) -> Workload:
    """A product with its epilogue's operands."""
    extras = [TensorType(HALF if dtype is HALF else FLOAT, (n,))] * (1 if dtype is HALF else 2)
    inputs = (TensorType(dtype, x), TensorType(dtype, w), *extras)
    return Workload(op, inputs, op.infer(inputs), (False, True, *(True for _ in extras)))


def gemm(sizes: tuple[int, int, int], dtype: DataType) -> Workload:
    m, n, k = sizes
    return workload(MatrixMultiply(False, True, epilogue(dtype)), (m, k), (n, k), n, dtype)


def convolution(sizes: tuple[int, int, int, int, int], dtype: DataType, name: str) -> Workload:
    size, c, o, window, stride = sizes
    groups = c if name.startswith("depthwise") else 1
    pad = (window // 2,) * 2
    op = Convolution((stride,) * 2, pad, pad, (1, 1), groups, True, epilogue(dtype))
    return workload(op, (32, size, size, c), (o, c // groups, window, window), o, dtype)


def constants(one: Workload) -> dict[int, np.ndarray]:
    """Weights, biases, and scales that bring sums into the range of 8 bits."""
    random = np.random.default_rng(0)
    found: dict[int, np.ndarray] = {}
    depth = workload_flops(one) / 2 / np.prod([int(dim) for dim in one.outputs[0].shape])  # type: ignore[arg-type]
    for number, kind in list(enumerate(one.inputs))[1:]:
        shape = tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]
        if kind.dtype is INT8:
            found[number] = random.integers(-128, 128, shape).astype(np.int8)
        elif number == 3:
            found[number] = np.full(shape, (5000.0 if one.inputs[0].dtype is INT8 else 0.6) ** -1 * depth**-0.5, np.float32)
        else:
            found[number] = (random.standard_normal(shape) * (depth**-0.5 if number == 1 and kind.dtype is HALF else 1)).astype(kind.dtype.numpy)
    return found


def tune(device: Device, search: Search, options: SelectOptions, compilers: Compilers) -> Decision:
    """The winner, as a build finds it."""
    one = search.workload
    values = constants(one)
    return finish(search, values, device.spec, options, partial(Bench, device, one, values), compilers)


def torch_seconds(name: str, dtype: DataType, sizes: tuple[int, int, int]) -> str:
    """What torch's own 8-bit product takes (without any epilogue), in words; empty without torch."""
    try:
        import torch
    except ImportError:
        return ""
    m, n, k = sizes
    try:
        if dtype is INT8:
            a = torch.randint(-128, 128, (m, k), dtype=torch.int8, device="cuda")
            b = torch.randint(-128, 128, (n, k), dtype=torch.int8, device="cuda").t()
            call = partial(torch._int_mm, a, b)
        else:
            a, b = (torch.randn(shape, device="cuda").to(torch.float8_e4m3fn) for shape in ((m, k), (n, k)))
            scale = torch.ones((), device="cuda")
            call = partial(torch._scaled_mm, a, b.t(), scale_a=scale, scale_b=scale, out_dtype=torch.float16)
        return f"; torch {'_int_mm' if dtype is INT8 else '_scaled_mm'} alone {statistics.median(graph_times([call])) * 1e6:.1f} us"
    except Exception as error:
        return f"; torch: {type(error).__name__}"


def check(device: Device) -> int:
    """Part one; how many cases are wrong."""
    from tests.harness.gpu import run_on_gpu
    from tests.tactics.cuda import test_quantized as cases

    wrong = 0
    made = [(name, *cases.ON_GPU[name]) for name in ("fp8", "wgmma fp8", "conv", "wgmma conv", "wgmma uint8", "depthwise")]
    sums = partial(cases.product, 1024, 1024, 4096, INT8, DataType.INT32)
    made += [(f"sums 1024x1024x4096 {tactic.id}", tactic, sums) for tactic in (cases.MmaGemm(), cases.Sm90Gemm())]
    for name, tactic, make in made:
        one, inputs, expected = make()
        if tactic.supports(one, device.spec) is not None:
            print(f"  {name}: refused")
            continue
        for configuration in tactic.configs(one, device.spec)[:1]:
            try:
                plan = tactic.plan(one, configuration, device.spec)
                (result,) = run_on_gpu(plan, inputs, one.outputs, tactic.prepare(one, configuration, {1: inputs[1]}))
                cases.compare(result, expected[0], name)
            except Exception as error:
                wrong += 1
                print(f"  WRONG {name} {tactic.id} {dict(configuration)}: {str(error)[:300]}")
    print(f"checked {len(made)} cases, {wrong} wrong", flush=True)
    return wrong


def main() -> int:
    """Both parts; 1 when a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="0")
    parser.add_argument("--seconds", type=float, default=95)
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--tactics", type=int, default=8, help="candidates a shape")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    begin = time.monotonic()
    device = open_device(options.device)
    compilers = Compilers(device.spec.arch, os.cpu_count() or 8, {})
    choice = SelectOptions(level=options.level, max_tactics=options.tactics)
    made: list[tuple[str, tuple[int, ...], dict[DataType, Workload]]] = []
    for name, sizes in GEMMS.items():
        made.append((f"gemm {name} {'x'.join(map(str, sizes))}", sizes, {d: gemm(sizes, d) for d in (HALF, INT8, FP8)}))
    for name, window in CONVOLUTIONS.items():
        made.append((f"conv b32 {name}", window, {d: convolution(window, d, name) for d in (HALF, INT8)}))
    searches = {id(one): start(one, device.spec, choice, compilers) for _, _, kinds in made for one in kinds.values()}  # they compile meanwhile
    wrong = check(device)
    results: list[Result] = []
    for name, sizes, kinds in made:
        if time.monotonic() - begin > options.seconds - 6:
            print("left out:", name)
            continue
        times: dict[DataType, Decision] = {}
        for dtype, one in kinds.items():
            try:
                times[dtype] = tune(device, searches[id(one)], choice, compilers)
            except Exception as error:
                wrong += 1
                print(f"  {name} {dtype.label}: {type(error).__name__}: {str(error)[:400]}")
                continue
            wrong_rows = [row for row in times[dtype].timings if row.seconds is None and "output" in (row.reason or "")]
            for row in wrong_rows:
                wrong += 1
                print(f"  WRONG {name} {dtype.label} {row.tactic} {row.config}: {row.reason}")
        for dtype in (INT8, FP8):
            if dtype not in times or HALF not in times:
                continue
            ours, half = times[dtype], times[HALF]
            beside = torch_seconds(name, dtype, sizes) if name.startswith("gemm") else ""  # type: ignore[arg-type]
            floor = floor_seconds(kinds[dtype], device.spec) * 1e6
            note = f"{ours.tactic}; float16 {half.tactic}; floor {floor:.1f} us{beside}"
            result = compare(f"{name} {dtype.label}", [ours.seconds * 1e6], "us", [half.seconds * 1e6], "our float16 tactics",
                             device=device.spec.name, note=note)  # fmt: skip
            print(f"{name:36s} {dtype.label:5s} {ours.seconds * 1e6:8.1f} us, float16 {half.seconds * 1e6:8.1f} us ({result.ratio:.2f}x)  {note}", flush=True)
            results.append(result)
    compilers.close()
    if results and not options.no_record:
        print("recorded in", record("quant", results).name)
    print(f"total {time.monotonic() - begin:.0f} s, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
