"""Runs CUDA kernels on small and odd shapes under compute-sanitizer, all families and tools side by side.

    python benchmarks/gpu/sanitize.py [--tools memcheck,racecheck] [--families products,attention] [--seconds 55] [--configs 2] [--tool PATH]

Every tactic that serves a workload runs in its first configurations, on poisoned outputs, and is compared with the operation's NumPy
meaning. Kernels compile in parallel before. Prints a line for each tool and family (what ran, what was wrong, what the tool
reported); ends with 1 if anything was, or if a run did not end in time. ``--tools none`` runs without a tool.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.memory_bound_check import checks  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.expression import Operand, apply  # noqa: E402
from fusion.network import Op, TensorType  # noqa: E402
from fusion.ops import Attention, Convolution, Deconvolution, MatrixMultiply, PackedMatrixMultiply, Recurrence  # noqa: E402
from runtime.device import Binding, Device, Tensor  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from tactics.compiler import compile_cubin  # noqa: E402
from tactics.registry import tactics  # noqa: E402
from tactics.tactic import Config, DeviceSpec, Kernel, Launch, Plan, Tactic, Workload, tensor_bytes  # noqa: E402

F16, F32, BF16 = DataType.HALF, DataType.FLOAT, DataType.BF16
X, Y = Operand(0), Operand(1)
BIAS_RELU = apply("relu", apply("add", X, Y))
FAMILIES = ("products", "packed", "convolutions", "attention", "recurrences", "memory")

Case = tuple[str, Workload]


def case(op: Op, *types: tuple[DataType, tuple[int, ...]], constant: tuple[int, ...] = ()) -> Case:
    """A workload and its name."""
    inputs = tuple(TensorType(dtype, shape) for dtype, shape in types)
    name = f"{type(op).__name__} {types[0][0].label} {' '.join('x'.join(map(str, shape)) for _, shape in types)}"
    return name, Workload(op, inputs, op.infer(inputs), tuple(index in constant for index in range(len(inputs))))


def cases(family: str) -> list[Case]:
    """The small workloads of a family."""
    if family == "products":
        bias = MatrixMultiply(epilogue=BIAS_RELU)
        sizes = ((130, 200, 136), (9, 264, 72), (1, 512, 100), (77, 72, 67))
        found = [case(bias, (F16, (m, k)), (F16, (k, n)), (F16, (n,)), constant=(1, 2)) for m, k, n in sizes]
        found += [case(MatrixMultiply(), (F16, (2, 3, 70, 72)), (F16, (2, 3, 72, 40))), case(MatrixMultiply(), (BF16, (65, 136)), (BF16, (136, 200)))]
        return [*found, case(bias, (F32, (65, 33)), (F32, (33, 17)), (F32, (17,)), constant=(1, 2)), case(bias, (F16, (200, 1032)), (F16, (1032, 72)), (F16, (72,)))]
    if family == "packed":
        def packed(m: int, n: int, k: int, bits: int, block: int) -> Case:
            blocks = [(F16, (n, -(-k // block)))] * 2
            return case(PackedMatrixMultiply(bits, k, block, apply("add", X, Y)), (F16, (m, k)), (DataType.UINT8, (n, k * bits // 8)), *blocks, (F16, (m, n)), constant=(1, 2, 3))
        return [packed(1, 269, 1096, 4, 32), packed(9, 85, 1096, 4, 128), packed(5, 77, 456, 8, 16), packed(150, 72, 200, 8, 64)]
    if family == "convolutions":
        def conv(size: int, c: int, o: int, k: int, stride: int, groups: int = 1, dtype: DataType = F16) -> Case:
            op = Convolution((stride,) * 2, (k // 2,) * 2, (k // 2,) * 2, (1, 1), groups, True, BIAS_RELU)
            return case(op, (dtype, (2, size, size - 2, c)), (dtype, (o, c // groups, k, k)), (dtype, (o,)), constant=(1, 2))
        return [conv(9, 64, 72, 3, 1), conv(10, 64, 40, 3, 2), conv(9, 128, 64, 1, 1), conv(17, 3, 32, 7, 2), conv(11, 32, 32, 3, 1, 32), conv(12, 40, 40, 5, 2, 40),
                conv(9, 32, 32, 3, 1, 4), conv(9, 24, 20, 3, 1, 1, F32),
                case(Deconvolution((2, 2), (0, 0), (0, 0), (1, 1), (0, 0), 1, True), (F16, (2, 7, 7, 64)), (F16, (64, 32, 2, 2)), constant=(1,))]  # fmt: skip
    if family == "attention":
        plain = [case(Attention(0.125), *[(F16, (2, 3, length, 64))] * 3) for length in (70, 300)]
        causal = [case(Attention(0.125, causal=True), (F16, (1, 2, 200, 64)), *[(F16, (1, 2, keys, 64))] * 2) for keys in (90, 330)]
        # More tiles than multiprocessors: blocks go on from tile to tile.
        return [*plain, *causal, case(Attention(0.1), *[(BF16, (1, 2, 150, 128))] * 3), case(Attention(0.125), (F16, (3, 16, 600, 64)), *[(F16, (3, 16, 100, 64))] * 2)]
    if family == "recurrences":
        found = []
        for cell, gates, parts in (("lstm", 4, ("sigmoid", "tanh", "tanh")), ("gru", 3, ("sigmoid", "tanh"))):
            op = Recurrence(cell, 96, (False,), (tuple(apply(part, X) for part in parts),), **({"reset_after": True} if cell == "gru" else {}))
            found += [case(op, (dtype, (5, 9, gates * 96)), (dtype, (1, gates * 96, 96)), constant=(1,)) for dtype in (F16, F32)]
        return found
    return [case(op, *types) for name, op, types in checks() if (" FP16" in name or "INT" in name) and max(np.prod(shape) for _, shape in types) < 400_000]


def runs(family: str, count: int, device: DeviceSpec) -> list[tuple[str, Workload, Tactic, Config, Plan]]:
    """What is run: each tactic in its first configurations, and the first of each kind of cluster or meeting."""
    found = []
    for name, workload in cases(family):
        for tactic in tactics("cuda"):
            if not isinstance(workload.op, tactic.ops) or tactic.supports(workload, device) is not None:
                continue
            if type(tactic).__module__.startswith("tactics.cuda.libraries"):
                continue  # a vendor's kernels are the vendor's to check
            chosen = list(tactic.configs(workload, device))
            kinds = {tuple(dict(one).get(key) for key in ("scope", "tagged", "cluster", "cluster_x", "cluster_y", "split")): one for one in reversed(chosen)}
            more = list(kinds.values())[: 0 if family == "memory" else 6]
            found += [(name, workload, tactic, one, tactic.plan(workload, one, device)) for one in dict.fromkeys((*chosen[:count], *more))]
    return found


def kernels_of(plan: Plan) -> list[Kernel]:
    return [step.kernel for step in plan.steps if isinstance(step, Launch)]


def compiled(one: tuple[str, str, tuple[tuple[str, str], ...], str, str]) -> tuple[str, bytes]:
    """(key, cubin; empty when it does not compile) of (key, source, defines, architecture, file)."""
    key, source, defines, arch, file = one
    try:
        return key, compile_cubin(source, defines, arch, file).image
    except Exception as reason:
        print(f"{file} {dict(defines)}: {str(reason)[:300]}", flush=True)
        return key, b""


def values(workload: Workload, random: np.random.Generator) -> list[np.ndarray]:
    if isinstance(workload.op, PackedMatrixMultiply):
        a, weights, scales, zeros, added = (one.shape for one in workload.inputs)
        return [random.standard_normal(a).astype(np.float16), random.integers(0, 256, weights, np.uint8), (random.random(scales) * 0.01).astype(np.float16),
                random.integers(0, 1 << workload.op.bits, zeros).astype(np.float16), random.standard_normal(added).astype(np.float16)]  # fmt: skip
    limit = workload.inputs[0].shape[getattr(workload.op, "axis", 0)]
    scale = 0.1 if isinstance(workload.op, Recurrence) else 1.0
    return [
        (random.standard_normal(one.shape, np.float32) * scale).astype(one.dtype.numpy) if one.dtype.is_float  # type: ignore[arg-type]
        else random.integers(1, max(2, int(limit)), one.shape).astype(one.dtype.numpy)  # type: ignore[arg-type]
        for one in workload.inputs
    ]  # fmt: skip


def execute(device: Device, plan: Plan, inputs: Sequence[np.ndarray], workload: Workload, packed: Sequence[np.ndarray], cubins: dict[str, bytes]) -> list[np.ndarray]:
    """The outputs of ``plan``, which were poisoned before."""
    stream, kept = device.stream(), []

    def upload(array: np.ndarray) -> Tensor:
        memory = device.allocate(max(1, array.nbytes))  # exactly as much: what lies behind is not the tensor's
        kept.append(memory)
        if array.nbytes:
            device.upload(memory.address, np.ascontiguousarray(array))
        return Tensor(memory.address, TensorType(DataType(array.dtype.name), array.shape))

    keys = {kernel.key(device.spec.arch) for kernel in kernels_of(plan)}
    modules = device.load({key: cubins[key] for key in keys})
    outputs = [device.allocate(max(1, tensor_bytes(tensor))) for tensor in workload.outputs]
    workspace = device.allocate(max(1, plan.workspace))
    for memory, size in [*zip(outputs, map(tensor_bytes, workload.outputs), strict=True), (workspace, plan.workspace)]:
        device.fill(memory.address, 0xFF, size, stream)
    program = device.program(plan, Binding(
        inputs=tuple(map(upload, inputs)), packed=tuple(map(upload, packed)), workspace=workspace.address, workspace_size=workspace.size,
        outputs=tuple(Tensor(memory.address, tensor) for memory, tensor in zip(outputs, workload.outputs, strict=True))), modules)  # fmt: skip
    program.run(stream)
    stream.synchronize()
    found = [np.empty(tuple(tensor.shape), tensor.dtype.numpy) for tensor in workload.outputs]  # type: ignore[arg-type]
    for array, memory in zip(found, outputs, strict=True):
        if array.nbytes:
            device.download(array, memory.address)
    return found


def relative(result: np.ndarray, truth: np.ndarray) -> float:
    got, want = result.astype(np.float64), truth.astype(np.float64)
    error = float(np.linalg.norm(got - want) / max(1e-30, np.linalg.norm(want)))
    return float("inf") if error != error else error


def work(family: str, count: int, store: Path, seconds: float) -> int:
    """One family in this process, which the tool watches."""
    end, device, random = time.monotonic() + seconds, open_device("0"), np.random.default_rng(1)
    cubins = pickle.loads(store.read_bytes())
    right = wrong = 0
    found = runs(family, count, device.spec)
    known: dict[int, tuple[list[np.ndarray], Sequence[np.ndarray]]] = {}
    for name, workload, tactic, chosen, plan in found:
        if time.monotonic() > end:
            break
        if any(not cubins.get(kernel.key(device.spec.arch)) for kernel in kernels_of(plan)):
            continue
        if id(workload) not in known:
            inputs = values(workload, random)
            known[id(workload)] = (inputs, workload.op.evaluate(inputs))
        inputs, truth = known[id(workload)]
        constants = {index: inputs[index] for index, constant in enumerate(workload.constant) if constant}
        try:
            results = execute(device, plan, inputs, workload, tactic.prepare(workload, chosen, constants), cubins)
        except Exception as reason:
            wrong += 1
            print(f"WRONG {tactic.id} {dict(chosen)} {name}: {type(reason).__name__}: {str(reason)[:200]}", flush=True)
            continue
        error = max(relative(one, other) for one, other in zip(results, truth, strict=True))
        ok = error <= tactic.tolerance(workload)
        right, wrong = right + ok, wrong + (not ok)
        if not ok:
            print(f"WRONG {tactic.id} {dict(chosen)} {name}: {error:.2e}", flush=True)
    print(f"RAN {right} right, {wrong} wrong of {len(found)}", flush=True)
    return int(wrong > 0)


def judged(text: str) -> str:
    """What a tool said, in a line."""
    ran = re.findall(r"RAN (.*)", text) or ["did not end"]
    said = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text) or ["no summary"]
    return f"{ran[-1]}; {said[-1]}"


def main() -> int:
    """Compiles, starts every family under every tool, waits and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", default="memcheck,racecheck")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--seconds", type=float, default=55)
    parser.add_argument("--configs", type=int, default=1)
    parser.add_argument("--tool", default="compute-sanitizer", help="the program compute-sanitizer")
    parser.add_argument("--logs", default="", help="a folder for what the tools wrote")
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--store", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.configs, Path(options.store), options.seconds)
    start = time.monotonic()
    families = options.families.split(",")
    spec = open_device("0").spec
    kernels = {one.key(spec.arch): one for family in families for *_, plan in runs(family, options.configs, spec) for one in kernels_of(plan)}
    folder = Path(options.logs or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "cubins.pickle"
    command = [sys.executable, __file__, "--store", str(store), "--configs", str(options.configs)]
    # Without a GPU of its own: forked processes must not inherit the driver's state.
    with ProcessPoolExecutor(os.cpu_count(), __import__("multiprocessing").get_context("spawn")) as pool:
        store.write_bytes(pickle.dumps(dict(pool.map(compiled, [(key, one.source(), one.defines, spec.arch, one.file) for key, one in kernels.items()], chunksize=2))))
    left = options.seconds - (time.monotonic() - start)
    print(f"{len(kernels)} kernels compiled, {time.monotonic() - start:.0f} s", flush=True)
    processes = []
    for tool in options.tools.split(","):
        for family in families:
            under = [] if tool == "none" else [options.tool, "--tool", tool, "--report-api-errors", "no", "--target-processes", "application-only", "--print-limit", "8"]
            log = (folder / f"{tool}-{family}.txt").open("w")
            processes.append((tool, family, subprocess.Popen([*under, *command, "--work", family, "--seconds", str(left - 6)], stdout=log, stderr=log)))
    bad = False
    for tool, family, process in processes:
        try:
            process.wait(max(0.5, options.seconds - (time.monotonic() - start)))
        except subprocess.TimeoutExpired:
            process.kill()
        text = (folder / f"{tool}-{family}.txt").read_text(errors="replace")
        line = judged(text)
        clean = process.returncode == 0 and (tool == "none" or re.search(r"SUMMARY: 0 (errors|hazards)", text) is not None)
        bad |= not clean
        print(f"{tool:10s} {family:13s} {'clean' if clean else 'NOT CLEAN'}: {line}", flush=True)
        if not clean:
            print("\n".join(f"    {found[:150]}" for found in re.findall(r"(?m)^(?:=========\s+(?:Invalid|Error|Warning|Race|.*(?:hazard|at )).*|WRONG.*|\w*Error.*)", text)[:6]))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
