"""Checks and times the memory-bound CUDA kernels on the GPU of this machine, beside a copy and torch.

    python benchmarks/gpu/memory_bound_check.py [--only softmax,reduce] [--seconds 170] [--out memory_bound.jsonl] [--record kernels-h100]

Checks: every configuration of every tactic on odd sizes, NaN-poisoned outputs, against the operation's NumPy meaning.
Timings: CUDA graphs of launches over rotating buffers; "of copy" is the rate of bytes read and written once, relative to a
device-to-device copy of the same size; at 64 MB and more the goal is GOAL. All kernels compile side by side before the first timing.
Needs the gpu extra; torch is optional.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.torch_times import graph_times  # noqa: E402
from benchmarks.runner import Result, compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.expression import Convert, Literal, Operand, apply  # noqa: E402
from fusion.network import Op, TensorType  # noqa: E402
from fusion.ops import (  # noqa: E402
    ArgReduce,
    Concatenation,
    Cumulative,
    Expand,
    Gather,
    GatherElements,
    GroupNormalization,
    LocalResponseNormalization,
    Normalization,
    Padding,
    Pointwise,
    Pooling,
    Reduce,
    Reformat,
    Resize,
    ScatterElements,
    ScatterND,
    Shuffle,
    Slice,
    Softmax,
    Tile,
    TopK,
)  # fmt: skip
from runtime.device import Binding, Graph, Memory, Tensor  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from tactics.compiler import compile_cubin  # noqa: E402
from tactics.registry import tactics  # noqa: E402
from tactics.tactic import Config, Launch, Plan, Tactic, Workload, tensor_bytes, workload_bytes  # noqa: E402

GOAL, LARGE = 0.85, 60e6  # of the copy rate, from these bytes on
F32, F16, BF16, I64, I32 = DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT64, DataType.INT32
X, Y, Z = Operand(0), Operand(1), Operand(2)
ADD_RELU = apply("relu", apply("add", X, Y))
SCALE_BIAS = apply("add", apply("mul", X, Y), Z)

Types = Sequence[tuple[DataType, tuple[int, ...]]]


def checks() -> list[tuple[str, Op, Types]]:
    """(name, operation, input types), small and odd."""
    found: list[tuple[str, Op, Types]] = []
    for dtype in (F32, F16, BF16):
        def add(op: Op, *shapes: tuple[int, ...], dtype: DataType = dtype) -> None:
            found.append((f"{type(op).__name__} {dtype.label} {shapes}", op, [(dtype, shape) for shape in shapes]))
        for n in (1, 7, 1023, 100_003):
            add(Pointwise(ADD_RELU), (n,), (n,))
        add(Pointwise(apply("gelu", apply("add", X, Y))), (33, 77, 64), (64,))
        add(Pointwise(apply("swish", apply("mul", X, Y), Literal(1.0, F32))), (5, 16, 7, 9), (16, 1, 1))
        for n in (1, 33, 64, 1000, 4096, 16_000, 50_257):
            add(Softmax(1), (13, n))
        add(Softmax(1, True), (3, 21, 19, 8))
        add(Softmax(2, prologue=apply("mul", X, Literal(0.125, F32))), (5, 12, 128))
        for n in (64, 768, 1023, 4096, 12_288, 20_000):
            add(Normalization((1,), 1e-5, True, SCALE_BIAS), (17, n), (n,), (n,))
            add(Normalization((1,), 1e-5, False, apply("mul", X, Y)), (17, n), (n,))
        add(Normalization((2, 3), 1e-5, True, SCALE_BIAS), (3, 5, 72, 64), (5, 1, 1), (5, 1, 1))
        add(GroupNormalization(8, 1e-5, True, SCALE_BIAS), (3, 33, 31, 64), (64,), (64,))
        add(GroupNormalization(8, 1e-5, False, SCALE_BIAS), (3, 64, 33, 31), (64, 1, 1), (64, 1, 1))
        for kind in ("sum", "mean", "max", "logsumexp"):
            add(Reduce(kind, (1,), False), (3, 100_001))
            add(Reduce(kind, (1,), False), (777, 257))
            add(Reduce(kind, (0,), True), (1999, 72))
            add(Reduce(kind, (1, 2), True), (5, 7, 7, 136))
            add(Reduce(kind, (0, 2), False), (9, 33, 21))
        add(Shuffle((0, 2, 3, 1)), (3, 67, 33, 35))
        add(Shuffle((0, 3, 1, 2)), (3, 33, 35, 64))
        add(Shuffle(None, (3, 50, 12, 64), (0, 2, 1, 3)), (3, 50, 768))
        add(Slice((1, 0, 16), (2, 9, 32), (1, 1, 1)), (4, 9, 64))
        add(Expand((7, 9, 64)), (9, 1))
        add(Tile((2, 3)), (5, 24))
        add(Concatenation(3), (2, 5, 7, 24), (2, 5, 7, 40), (2, 5, 7, 8))
        for mode in ("constant", "reflect", "edge", "wrap"):
            add(Padding((0, 2, 3, 0), (0, 1, 5, 0), mode, 1.5), (2, 9, 8, 24))
        add(Padding((0, 0, 0), (0, 0, 5), "constant", 1.5), (7, 9, 91))
        add(Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True), (3, 57, 55, 64))
        add(Pooling("average", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), True, True, channels_last=False), (3, 24, 57, 55))
        add(Pooling("average", (7, 7), (1, 1), (0, 0), (0, 0), (1, 1), channels_last=True), (3, 7, 7, 2048))
        add(LocalResponseNormalization(5, 1e-4, 0.75, 1.0, True), (2, 13, 13, 96))
        add(LocalResponseNormalization(5, 1e-4, 0.75, 1.0, False), (2, 96, 13, 13))
        for mode in ("nearest", "linear", "cubic"):
            add(Resize((2, 3, 37, 51), (1.0, 1.0, None, None), mode), (2, 3, 20, 23))
            add(Resize((2, 40, 46, 32), (1.0, 2.0, 2.0, 1.0), mode), (2, 20, 23, 32))
        for k in (1, 5, 100):
            add(TopK(k, 1), (7, 1000))
        add(ArgReduce(1, False), (7, 1001))
        add(ArgReduce(0, True, False, True), (50, 33))
        add(Cumulative(1), (7, 3001))
        add(Cumulative(0, "sum", True, True), (300, 33))
        found.append((f"Gather {dtype.label}", Gather(0), [(dtype, (999, 64)), (I64, (5, 77))]))
        found.append((f"GatherElements {dtype.label}", GatherElements(1), [(dtype, (9, 50)), (I64, (9, 33))]))
        found.append((f"ScatterElements {dtype.label}", ScatterElements(1, "add"), [(dtype, (9, 50)), (I64, (9, 33)), (dtype, (9, 33))]))
        found.append((f"ScatterND {dtype.label}", ScatterND("max"), [(dtype, (50, 24)), (I64, (33, 1)), (dtype, (33, 24))]))
    for source, target in ((F32, F16), (F32, BF16), (F16, F32)):
        for order, shape in (((0, 2, 3, 1), (3, 67, 33, 35)), ((0, 2, 3, 1), (3, 64, 36, 36)), ((0, 3, 1, 2), (3, 33, 35, 64)), ((0, 2, 1, 3), (3, 50, 12, 64))):
            found.append((f"Reformat {source.label} to {target.label} {shape}", Reformat(order, Convert(target, X)), [(source, shape)]))
    for dtype in (I64, I32):
        found.append((f"Pointwise {dtype.label}", Pointwise(apply("div", X, Y)), [(dtype, (1001,)), (dtype, (1001,))]))
        found.append((f"Reduce {dtype.label}", Reduce("mean", (1,), False), [(dtype, (33, 501))]))
    return found


def timings() -> list[tuple[str, Op, Types, Callable | None]]:
    """(name, operation, input types, the same in torch), large (64 MB and more) and small."""
    found: list[tuple[str, Op, Types, Callable | None]] = []

    def add(name: str, op: Op, types: Types, torch_function: Callable | None = None) -> None:
        found.append((name, op, types, torch_function))

    for dtype, rows in ((F16, 16384), (F32, 8192)):
        label = dtype.label
        add(f"relu(x+y) {label}", Pointwise(ADD_RELU), [(dtype, (rows, 2048))] * 2, lambda t, x, y: t.relu(x + y))
        add(f"gelu(x+bias) {label}", Pointwise(apply("gelu", apply("add", X, Y))), [(dtype, (rows, 2048)), (dtype, (2048,))],
            lambda t, x, y: t.nn.functional.gelu(x + y))  # fmt: skip
        add(f"scale per channel NCHW {label}", Pointwise(apply("mul", X, Y)), [(dtype, (32, rows // 64, 56, 56)), (dtype, (rows // 64, 1, 1))],
            lambda t, x, y: x * y)  # fmt: skip
        for n in (128, 1000, 4096, 32768):
            add(f"softmax n={n} {label}", Softmax(1), [(dtype, (rows * 2048 // n, n))], lambda t, x: t.softmax(x, 1))
        add(f"softmax axis 1 of 3 {label}", Softmax(1), [(dtype, (rows // 128, 256, 1024))], lambda t, x: t.softmax(x, 1))
        for n in (768, 4096):
            add(f"layernorm n={n} {label}", Normalization((1,), 1e-5, True, SCALE_BIAS),
                [(dtype, (rows * 2048 // n, n)), (dtype, (n,)), (dtype, (n,))],
                lambda t, x, y, z: t.nn.functional.layer_norm(x, x.shape[1:], y, z))  # fmt: skip
        add(f"groupnorm NHWC {label}", GroupNormalization(32, 1e-5, True, SCALE_BIAS), [(dtype, (8, rows // 128, 64, 512)), (dtype, (512,)), (dtype, (512,))])
        add(f"sum of rows {label}", Reduce("sum", (1,), False), [(dtype, (rows, 2048))], lambda t, x: x.sum(1))
        add(f"sum of all {label}", Reduce("sum", (0, 1), False), [(dtype, (rows, 2048))], lambda t, x: x.sum())
        add(f"sum of columns {label}", Reduce("sum", (0,), False), [(dtype, (rows, 2048))], lambda t, x: x.sum(0))
        add(f"mean of images NHWC {label}", Reduce("mean", (1, 2), True), [(dtype, (rows // 32, 7, 7, 2048))], lambda t, x: x.mean((1, 2), True))
        add(f"NHWC to NCHW {label}", Shuffle((0, 3, 1, 2)), [(dtype, (16, rows // 128, 64, 256))], lambda t, x: x.permute(0, 3, 1, 2).contiguous())
        add(f"NCHW to NHWC {label}", Shuffle((0, 2, 3, 1)), [(dtype, (16, 256, rows // 128, 64))], lambda t, x: x.permute(0, 2, 3, 1).contiguous())
        add(f"heads to the front {label}", Shuffle((0, 2, 1, 3)), [(dtype, (rows // 512, 1024, 16, 64))], lambda t, x: x.permute(0, 2, 1, 3).contiguous())
        add(f"max pool NHWC {label}", Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), channels_last=True), [(dtype, (rows // 256, 112, 112, 64))])
        add(f"concat {label}", Concatenation(1), [(dtype, (rows, 1024))] * 2, lambda t, x, y: t.cat((x, y), 1))
        add(f"slice {label}", Slice((0, 512), (rows, 1024), (1, 1)), [(dtype, (rows, 2048))], lambda t, x: x[:, 512:1536].contiguous())
        add(f"resize linear NHWC {label}", Resize((8, 256, 256, 64), (1.0, 2.0, 2.0, 1.0), "linear"), [(dtype, (8, 128, 128, 64))])
        add(f"resize nearest NCHW {label}", Resize((8, 64, 256, 256), (1.0, 1.0, 2.0, 2.0), coordinates="asymmetric", rounding="floor"),
            [(dtype, (8, 64, 128, 128))], lambda t, x: t.nn.functional.interpolate(x, scale_factor=2))  # fmt: skip
        add(f"embedding {label}", Gather(0), [(dtype, (30_000, 768)), (I64, (rows * 2,))], lambda t, x, i: t.nn.functional.embedding(i, x))
        # batch 1: latency
        add(f"small relu(x+y) {label}", Pointwise(ADD_RELU), [(dtype, (56 * 56 * 64,))] * 2, lambda t, x, y: t.relu(x + y))
        add(f"small softmax {label}", Softmax(1), [(dtype, (12 * 128, 128))], lambda t, x: t.softmax(x, 1))
        add(f"small layernorm {label}", Normalization((1,), 1e-5, True, SCALE_BIAS), [(dtype, (128, 768)), (dtype, (768,)), (dtype, (768,))],
            lambda t, x, y, z: t.nn.functional.layer_norm(x, x.shape[1:], y, z))  # fmt: skip
        add(f"small global average {label}", Reduce("mean", (1, 2), True), [(dtype, (1, 7, 7, 2048))], lambda t, x: x.mean((1, 2), True))
        add(f"small NCHW to NHWC {label}", Shuffle((0, 2, 3, 1)), [(dtype, (1, 3, 224, 224))], lambda t, x: x.permute(0, 2, 3, 1).contiguous())
    for shape in ((32, 64, 56, 56), (64, 256, 56, 56), (1, 64, 56, 56)):
        nchw, nhwc = (F32, shape), (F16, (shape[0], *shape[2:], shape[1]))
        add(f"reformat FP32 NCHW to FP16 NHWC {shape}", Reformat((0, 2, 3, 1), Convert(F16, X)), [nchw], lambda t, x: x.permute(0, 2, 3, 1).to(t.float16).contiguous())
        add(f"reformat, its cast alone {shape}", Pointwise(Convert(F16, X)), [nchw])
        add(f"reformat, its transpose alone {shape}", Shuffle((0, 2, 3, 1)), [(F16, shape)])
        add(f"reformat FP16 NHWC to FP32 NCHW {shape}", Reformat((0, 3, 1, 2), Convert(F32, X)), [nhwc])
    add("top 5 of 1000", TopK(5, 1), [(F32, (4096, 1000))], lambda t, x: t.topk(x, 5)[0])
    add("top 100 of 8400", TopK(100, 1), [(F32, (64, 8400))], lambda t, x: t.topk(x, 100)[0])
    add("argmax of 1000", ArgReduce(1, False), [(F32, (16384, 1000))], lambda t, x: x.argmax(1))
    add("cumsum", Cumulative(1), [(F32, (4096, 4096))], lambda t, x: x.cumsum(1))
    return found


def main() -> int:
    """Runs checks, then timings, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=170)
    parser.add_argument("--only", default="", help="words of case names, separated by commas")
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--out", default="memory_bound.jsonl")
    parser.add_argument("--record", default="", metavar="NAME", help="append each case's best to benchmarks/results/NAME.jsonl")
    options = parser.parse_args()
    words = [word.lower() for word in options.only.split(",") if word]
    session = Session(time.monotonic() + options.seconds, Path(options.out), words)
    if not options.skip_checks:
        session.run_checks(0.6)
    session.run_timings()
    if options.record and session.results:
        print(f"recorded in {record(options.record, session.results)}")
    return 0


def compiled(one: tuple[str, str, tuple[tuple[str, str], ...], str, str]) -> tuple[str, bytes | str]:
    """(key, cubin, or why there is none) of (key, source, defines, architecture, file)."""
    key, source, defines, arch, file = one
    try:
        return key, compile_cubin(source, defines, arch, file).image
    except Exception as error:
        return key, str(error)


class Session:
    """One run: compiled kernels, device memory, results."""

    def __init__(self, deadline: float, out: Path, words: list[str]) -> None:
        self.start, self.deadline, self.out, self.words = time.monotonic(), deadline, out, words
        self.device = open_device("0")
        self.stream = self.device.stream()
        self.cubins: dict[str, bytes] = {}
        self.pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"))  # threads would compile one at a time
        self.random = np.random.default_rng(5)
        self.results: list[Result] = []
        self.below: list[str] = []
        out.unlink(missing_ok=True)
        try:
            import torch

            self.torch = torch if torch.cuda.is_available() else None
        except ImportError:
            self.torch = None

    def wanted(self, name: str) -> bool:
        return not self.words or any(word in name.lower() for word in self.words)

    def record(self, **row: object) -> None:
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    # --- plans -------------------------------------------------------------------------------------------------------

    def candidates(self, workload: Workload) -> list[tuple[Tactic, Config, Plan]]:
        """Every tactic and configuration that serves the workload."""
        found = []
        for tactic in tactics("cuda"):
            if isinstance(workload.op, tactic.ops) and tactic.supports(workload, self.device.spec) is None:
                found += [(tactic, config, tactic.plan(workload, config, self.device.spec)) for config in tactic.configs(workload, self.device.spec)]
        return found

    def compile(self, plans: Sequence[Plan]) -> dict[str, str]:
        """Compiles what is new, in parallel; the errors by kernel key."""
        arch = self.device.spec.arch
        kernels = {step.kernel.key(arch): step.kernel for plan in plans for step in plan.steps if isinstance(step, Launch)}
        errors = {}
        new = [(key, one.source(), one.defines, arch, one.file) for key, one in kernels.items() if key not in self.cubins]
        for key, result in self.pool.map(compiled, new, chunksize=2):
            if isinstance(result, bytes):
                self.cubins[key] = result
            else:
                errors[key] = result
        return errors

    def program(self, plan: Plan, binding: Binding):  # noqa: ANN201
        arch = self.device.spec.arch
        keys = {step.kernel.key(arch) for step in plan.steps if isinstance(step, Launch)}
        return self.device.program(plan, binding, self.device.load({key: self.cubins[key] for key in keys}))

    def upload(self, array: np.ndarray) -> Memory:
        memory = self.device.allocate(array.nbytes)
        if array.nbytes:
            self.device.upload(memory.address, np.ascontiguousarray(array))
        return memory

    def array(self, dtype: DataType, shape: tuple[int, ...], limit: int, scale: float = 1.0) -> np.ndarray:
        if dtype.is_float:
            return (self.random.standard_normal(shape, np.float32) * scale).astype(dtype.numpy)
        return self.random.integers(1, max(2, limit), shape).astype(dtype.numpy)

    def inputs(self, op: Op, types: Types) -> list[np.ndarray]:
        limit = types[0][1][getattr(op, "axis", 0)] if types[0][1] else 2
        return [self.array(dtype, shape, limit) for dtype, shape in types]

    # --- checks ------------------------------------------------------------------------------------------------------

    def run_checks(self, share: float) -> None:
        end = self.start + (self.deadline - self.start) * share
        cases = []
        for name, op, types in checks():
            if self.wanted(name):
                tensors = tuple(TensorType(dtype, shape) for dtype, shape in types)
                workload = Workload(op, tensors, op.infer(tensors))
                cases.append((name, workload, self.candidates(workload)))
        errors = self.compile([plan for _, _, found in cases for _, _, plan in found])
        print(f"{len(self.cubins)} kernels compiled, {len(errors)} refused, {time.monotonic() - self.start:.0f} s", flush=True)
        for text in list(errors.values())[:5]:
            print(text[:600])
        good, bad, served = 0, 0, 0
        for name, workload, found in cases:
            if time.monotonic() > end:
                print(f"out of time for checks at {name}")
                break
            served += bool(found)
            if not found:
                print(f"  NO TACTIC {name}")
                continue
            arrays = self.inputs(workload.op, [(tensor.dtype, tensor.shape) for tensor in workload.inputs])  # type: ignore[misc]
            expected = workload.op.evaluate(arrays)
            memories = [self.upload(array) for array in arrays]
            for tactic, config, plan in found:
                note, error = "", math.inf
                try:
                    error = self.one_check(workload, plan, memories, expected, self.packed(tactic, workload, config))
                except Exception as reason:
                    note = f"{type(reason).__name__}: {str(reason)[:200]}"
                ok = error <= tactic.tolerance(workload)
                good, bad = good + ok, bad + (not ok)
                self.record(kind="check", case=name, tactic=tactic.id, config=dict(config), error=repr(error), ok=ok, note=note)
                if not ok:
                    print(f"  WRONG {tactic.id} {dict(config)} {name}: error {error:.2e} {note}", flush=True)
                if "Lost" in note:
                    sys.exit(3)
        print(f"checks: {good} right, {bad} wrong, {served} cases served, {time.monotonic() - self.start:.0f} s", flush=True)

    def one_check(
        self, workload: Workload, plan: Plan, inputs: list[Memory], expected: Sequence[np.ndarray], packed: list[tuple[Memory, TensorType]]
    ) -> float:
        outputs = [self.device.allocate(tensor_bytes(tensor)) for tensor in workload.outputs]
        workspace = self.device.allocate(plan.workspace + 256)
        for memory, size in [*zip(outputs, map(tensor_bytes, workload.outputs), strict=True), (workspace, plan.workspace)]:
            self.device.fill(memory.address, 0xFF, size, self.stream)
        self.program(plan, self.binding(workload, inputs, outputs, workspace, packed)).run(self.stream)
        self.stream.synchronize()
        worst = 0.0
        for memory, truth, tensor in zip(outputs, expected, workload.outputs, strict=True):
            result = np.empty(truth.shape, tensor.dtype.numpy)
            self.device.download(result, memory.address)
            if not tensor.dtype.is_float:
                if (result != truth).any():
                    return math.inf
                continue
            got, want = result.astype(np.float64), truth.astype(np.float64)
            worst = max(worst, float(np.linalg.norm(got - want) / max(1e-30, np.linalg.norm(want))))
            if math.isnan(worst):
                return math.inf
        return worst

    def packed(self, tactic: Tactic, workload: Workload, config: Config) -> list[tuple[Memory, TensorType]]:
        """What the tactic's ``prepare`` makes without constants, on the device."""
        arrays = tactic.prepare(workload, config, {})
        return [(self.upload(array), TensorType(DataType(array.dtype.name), array.shape)) for array in arrays]

    @staticmethod
    def binding(
        workload: Workload, inputs: Sequence[Memory], outputs: Sequence[Memory], workspace: Memory, packed: Sequence[tuple[Memory, TensorType]]
    ) -> Binding:
        return Binding(
            inputs=tuple(Tensor(memory.address, tensor) for memory, tensor in zip(inputs, workload.inputs, strict=True)),
            outputs=tuple(Tensor(memory.address, tensor) for memory, tensor in zip(outputs, workload.outputs, strict=True)),
            packed=tuple(Tensor(memory.address, tensor) for memory, tensor in packed), workspace=workspace.address, workspace_size=workspace.size,
        )  # fmt: skip

    # --- timings -----------------------------------------------------------------------------------------------------

    def time_graph(self, graph: Graph, launches: int) -> float:
        graph.launch(self.stream)
        seconds = []
        for _ in range(7):
            first, second = self.device.event(), self.device.event()
            first.record(self.stream)
            graph.launch(self.stream)
            second.record(self.stream)
            second.synchronize()
            seconds.append(second.seconds_since(first) / launches)
        return median(seconds)

    def run_timings(self) -> None:
        cases = []
        for name, op, types, function in timings():
            if self.wanted(name):
                tensors = tuple(TensorType(dtype, shape) for dtype, shape in types)
                workload = Workload(op, tensors, op.infer(tensors))
                found = self.candidates(workload)
                if len(found) > 12:
                    found = [one for rank, one in enumerate(found) if not one[0].reference or rank <= 12]
                cases.append((name, workload, types, function, found))
        errors = self.compile([plan for *_, found in cases for _, _, plan in found])
        print(f"{len(self.cubins)} kernels compiled, {len(errors)} refused, {time.monotonic() - self.start:.0f} s", flush=True)
        print(f"{'case':34s} {'us':>9s} {'of copy':>8s} {'first us':>9s} {'torch us':>9s}  best")
        for name, workload, types, function, found in cases:
            if time.monotonic() > self.deadline:
                print(f"out of time for timings at {name}")
                break
            try:
                self.time_case(name, workload, types, function, found, errors)
            except Exception as reason:
                print(f"{name:34s} {type(reason).__name__}: {str(reason)[:200]}", flush=True)
        print(f"below {GOAL} of the copy rate at {LARGE / 1e6:.0f} MB and more: {', '.join(self.below) or 'none'}; "
              f"{time.monotonic() - self.start:.0f} s")  # fmt: skip

    def time_case(
        self, name: str, workload: Workload, types: Types, function: Callable | None, found: Sequence[tuple[Tactic, Config, Plan]],
        errors: dict[str, str],
    ) -> None:  # fmt: skip
        if not found:
            print(f"{name:34s} NO TACTIC")
            return
        moved = workload_bytes(workload)
        copies = max(1, min(8, math.ceil(2.5 * (self.device.spec.l2_bytes or 50 << 20) / moved)))
        launches = max(4, copies) if moved > 32 << 20 else 24
        arrays = self.large_inputs(workload.op, types)
        sets = []
        for index in range(copies):
            inputs = [self.device.allocate(array.nbytes) if index else self.upload(array) for array in arrays]
            if index:
                for target, source, array in zip(inputs, sets[0][0], arrays, strict=True):
                    self.device.copy(target.address, source.address, array.nbytes, self.stream)
            sets.append((inputs, [self.device.allocate(tensor_bytes(one)) for one in workload.outputs]))
        self.stream.synchronize()
        workspace = self.device.allocate(max(plan.workspace for _, _, plan in found) + 256)
        rows = []
        for rank, (tactic, config, plan) in enumerate(found):
            keys = [step.kernel.key(self.device.spec.arch) for step in plan.steps if isinstance(step, Launch)]
            if any(key in errors for key in keys):
                continue
            packed = self.packed(tactic, workload, config)
            programs = [self.program(plan, self.binding(workload, one, two, workspace, packed)) for one, two in sets]
            def enqueue(programs=programs) -> None:  # noqa: ANN001
                for index in range(launches):
                    programs[index % copies].run(self.stream)
            graph = self.device.capture(self.stream, enqueue)
            rows.append((self.time_graph(graph, launches) * 1e6, rank, tactic.id, dict(config)))
            self.record(kind="time", case=name, tactic=tactic.id, config=dict(config), rank=rank, us=rows[-1][0])
        half = moved // 2
        source, target = self.device.allocate(half), self.device.allocate(half)
        def copy() -> None:
            for _ in range(launches):
                self.device.copy(target.address, source.address, half, self.stream)
        copy_us = self.time_graph(self.device.capture(self.stream, copy), launches) * 1e6
        torch_us = self.time_torch(function, arrays, copies, launches) if function and self.torch else math.nan
        best = min(rows)
        first = min(rows, key=lambda row: row[1])
        share = copy_us / best[0]
        if moved >= LARGE and share < GOAL:
            self.below.append(f"{name} {share:.2f}")
        self.record(kind="best", case=name, us=best[0], copy_us=copy_us, torch_us=torch_us, tactic=best[2], config=best[3], bytes=moved)
        known = torch_us == torch_us
        self.results.append(compare(
            f"{name} {' '.join('x'.join(map(str, shape)) for _, shape in types)}", [best[0]], "us", [torch_us] if known else (),
            f"torch {self.torch.__version__}" if known and self.torch else "", device=self.device.spec.name, driver=str(self.device.properties().get("driver", "")),
            note=f"{best[2]} {best[3]}; copying {moved / 1e6:.1f} MB takes {copy_us:.2f} us: {share:.2f} of the copy rate"))  # fmt: skip
        print(f"{name:34s} {best[0]:9.2f} {share:8.2f} {first[0]:9.2f} {torch_us:9.2f}  {best[2]} {best[3]}", flush=True)

    def large_inputs(self, op: Op, types: Types) -> list[np.ndarray]:
        """As ``inputs``, of a million random elements over and over."""
        limit = types[0][1][getattr(op, "axis", 0)] if types[0][1] else 2
        return [np.resize(self.array(dtype, (min(math.prod(shape), 1_000_003),), limit), shape) for dtype, shape in types]

    def time_torch(self, function: Callable, arrays: list[np.ndarray], copies: int, launches: int) -> float:
        torch = self.torch
        try:
            first = [torch.from_numpy(array).cuda() for array in arrays]
            sets = [first, *([one.clone() for one in first] for _ in range(copies - 1))]
            return median(graph_times([partial(function, torch, *one) for one in sets], launches)) * 1e6
        except Exception as reason:
            print(f"  torch: {type(reason).__name__}: {str(reason)[:120]}")
            return math.nan


if __name__ == "__main__":
    sys.exit(main())
