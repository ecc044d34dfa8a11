"""Runs CUDA kernels on small and odd shapes under compute-sanitizer, all families and tools side by side.

    python benchmarks/gpu/sanitize.py [--tools memcheck,racecheck] [--families products,attention] [--seconds 55] [--configs 2] [--tool PATH]
                                     [--cubins FILE [--compile-only]] [--record tools]

Every tactic that serves a workload of ``sanitize_cases.py`` runs in its first configurations and once with each of its kernels, on
poisoned outputs, and is compared with the operation's NumPy meaning. Kernels compile in parallel before. Prints a line for each tool and family (what ran, what was wrong, what the tool
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
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.sanitize_cases import FAMILIES, cases, cropped, values  # noqa: E402
from benchmarks.runner import Result, compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.network import TensorType  # noqa: E402
from runtime.cuda_spec import cuda_properties  # noqa: E402
from runtime.device import Binding, Device, Tensor  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from tactics.compiler import compile_cubin  # noqa: E402
from tactics.registry import tactics  # noqa: E402
from tactics.tactic import Config, DeviceSpec, Kernel, Launch, Plan, Tactic, Workload, tensor_bytes  # noqa: E402


def runs(family: str, count: int, device: DeviceSpec) -> list[tuple[str, Workload, Tactic, Config, Plan]]:
    """What is run: each tactic in its first configurations, and the first of each kind of cluster, meeting, kernel or number of rows."""
    found = []
    for name, workload in cases(family):
        for tactic in tactics("cuda"):
            if not isinstance(workload.op, tactic.ops) or tactic.supports(workload, device) is not None:
                continue
            if type(tactic).__module__.startswith("tactics.cuda.libraries"):
                continue  # a vendor's kernels are the vendor's to check
            chosen = list(tactic.configs(workload, device))
            plans = {one: tactic.plan(workload, one, device) for one in chosen}
            kinds = {tuple(dict(one).get(key) for key in ("scope", "tagged", "cluster", "cluster_x", "cluster_y", "split", "rows")): one for one in reversed(chosen)}
            entries = {tuple((kernel.file, kernel.entry) for kernel in kernels_of(plan)): one for one, plan in reversed(plans.items())}
            more = [*list(kinds.values())[: 0 if family == "memory" else 6], *entries.values()]
            found += [(name, workload, tactic, one, plans[one]) for one in dict.fromkeys((*chosen[:count], *more)) if kernels_of(plans[one])]
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
    """The error's norm over the truth's. 8-bit integers may differ by a step where one between rounded the other way."""
    if result.dtype == np.int8:
        steps = np.abs(result.astype(np.int16) - truth.astype(np.int16))
        return float("inf") if steps.max(initial=0) > 1 or np.count_nonzero(steps) > max(1, steps.size // 100) else 0.0
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
        error = max(relative(one, other) for one, other in zip(*cropped(workload, results, truth), strict=True))
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


def finding(tool: str, family: str, text: str, line: str) -> Result | None:
    """The number of errors or hazards that a tool found, for the records; None when it said none."""
    found = re.findall(r"SUMMARY: (\d+) (?:errors|hazards)", text)
    where = {key: str(cuda_properties(0)[name]) for key, name in (("device", "name"), ("driver", "driver"))}
    return compare(f"compute-sanitizer {tool}: {family}", [float(found[-1])], "findings", note=line, **where) if found else None


def main() -> int:
    """Compiles, starts every family under every tool, waits and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", default="memcheck,racecheck")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--seconds", type=float, default=55)
    parser.add_argument("--configs", type=int, default=1)
    parser.add_argument("--tool", default="compute-sanitizer", help="the program compute-sanitizer")
    parser.add_argument("--logs", default="", help="a folder for what the tools wrote")
    parser.add_argument("--cubins", default="", metavar="FILE", help="keeps compiled kernels, so that another machine can compile (--compile-only) beforehand")
    parser.add_argument("--record", default="", metavar="NAME", help="append what each tool found in each family to benchmarks/results/NAME.jsonl")
    parser.add_argument("--compile-only", action="store_true", help="for an H100, without one")
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--store", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.configs, Path(options.store), options.seconds)
    start = time.monotonic()
    families = options.families.split(",")
    if options.compile_only:
        from tests.harness.fiber import H100 as spec
    else:
        spec = open_device("0").spec
    kernels = {one.key(spec.arch): one for family in families for *_, plan in runs(family, options.configs, spec) for one in kernels_of(plan)}
    kept = Path(options.cubins) if options.cubins else None
    cubins: dict[str, bytes] = pickle.loads(kept.read_bytes()) if kept is not None and kept.exists() else {}
    missing = [(key, one.source(), one.defines, spec.arch, one.file) for key, one in kernels.items() if not cubins.get(key)]
    if missing:
        # Without a GPU of its own: forked processes must not inherit the driver's state.
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            cubins |= dict(pool.map(compiled, missing, chunksize=2))
        if kept is not None:
            kept.write_bytes(pickle.dumps(cubins))
    print(f"{len(kernels)} kernels, {len(missing)} of them compiled now, {time.monotonic() - start:.0f} s", flush=True)
    if options.compile_only:
        return 0
    folder = Path(options.logs or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "cubins.pickle"
    store.write_bytes(pickle.dumps({key: cubins[key] for key in kernels}))
    command = [sys.executable, __file__, "--store", str(store), "--configs", str(options.configs)]
    left = options.seconds - (time.monotonic() - start)
    processes = []
    for tool in options.tools.split(","):
        for family in families:
            under = [] if tool == "none" else [options.tool, "--tool", tool, "--report-api-errors", "no", "--target-processes", "application-only", "--print-limit", "8"]
            log = (folder / f"{tool}-{family}.txt").open("w")
            processes.append((tool, family, subprocess.Popen([*under, *command, "--work", family, "--seconds", str(left - 6)], stdout=log, stderr=log)))
    bad, results = False, []
    for tool, family, process in processes:
        try:
            process.wait(max(0.5, options.seconds - (time.monotonic() - start)))
        except subprocess.TimeoutExpired:
            process.kill()
        text = (folder / f"{tool}-{family}.txt").read_text(errors="replace")
        line = judged(text)
        clean = process.returncode == 0 and (tool == "none" or re.search(r"SUMMARY: 0 (errors|hazards)", text) is not None)
        bad |= not clean
        results.append(finding(tool, family, text, line))
        counts = [int(one) for one in re.findall(r"RAN (\d+) right, (\d+) wrong of (\d+)", text)[-1:] for one in one]
        whole = bool(counts) and counts[0] + counts[1] == counts[2]
        print(f"{tool:10s} {family:13s} {'NOT CLEAN' if not clean else 'clean' if whole else 'clean so far'}: {line}", flush=True)
        if not clean:
            print("\n".join(f"    {found[:150]}" for found in re.findall(r"(?m)^(?:=========\s+(?:Invalid|Error|Warning|Race|.*(?:hazard|at )).*|WRONG.*|\w*Error.*)", text)[:6]))
    if options.record:
        print(f"recorded in {record(options.record, [one for one in results if one is not None])}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
