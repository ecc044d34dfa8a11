"""NVIDIA's own tools beside trtcli: a build under an MPS share, and layer names in an Nsight Systems report.

    python benchmarks/gpu/tools_check.py [--only mps|nsys] [--percentage 50] [--no-record]

MPS: starts a control daemon of its own, builds under CUDA_MPS_ACTIVE_THREAD_PERCENTAGE, shows what engine and timing cache say of the share, that
a whole GPU is told of it, and what two such processes serve together against one alone. Nsight Systems: profiles a run and looks for every layer's
name among the NVTX ranges. What is not installed, or may not be started, is said and skipped. Exit code 1 when something is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.launch_check import bert  # noqa: E402
from benchmarks.runner import Result, compare, record  # noqa: E402
from runtime.engine import Engine  # noqa: E402
from tactics.cache import load  # noqa: E402

LAYERS = 2  # of the encoder: small, and quick to build


class Check:
    """What was found to be as it should, or not."""

    def __init__(self) -> None:
        self.failures = 0
        self.results: list[Result] = []

    def that(self, holds: bool, text: str) -> None:
        """Print ``text`` with its verdict."""
        self.failures += not holds
        print(f"{'OK  ' if holds else 'FAIL'} {text}", flush=True)


def trtcli(*flags: str, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A trtcli process with its output piped."""
    command = [*prefix, sys.executable, "-m", "trtcli", *flags]
    settings = {**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """Exit code and everything that it printed."""
    text, _ = process.communicate(timeout=seconds)
    return process.returncode, text


def mps(check: Check, folder: Path, percentage: int) -> None:
    """A build under a share of an MPS daemon."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        print("SKIP MPS: nvidia-cuda-mps-control is not installed", flush=True)
        return
    places = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}
    for place in places.values():
        Path(place).mkdir()
    share = {**places, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percentage)}
    started = subprocess.run([control, "-d"], env={**os.environ, **places}, capture_output=True, text=True, check=False)
    if started.returncode:
        print(f"SKIP MPS: the daemon does not start ({(started.stderr or started.stdout).strip()[:200]})", flush=True)
        return
    try:
        model, engine, cache = bert(folder / "bert.onnx", LAYERS), folder / "half.engine", folder / "t.cache"
        code, text = output(trtcli("build", str(model), f"--saveEngine={engine}", f"--timingCacheFile={cache}",
                                   "--builderOptimizationLevel=2", environment=share))  # fmt: skip
        if code:
            check.that(False, f"build under MPS: exit {code}\n{text[-1500:]}")
            return
        device = Engine.load(engine).device
        print(f"     engine: {device.name}, share {device.share!r}, {device.multiprocessors} multiprocessors", flush=True)
        check.that(device.share == f"MPS {percentage}%", "the share is in the engine")
        asked = {str(entry.asked["device"]) for entry in load(cache).entries.values()}
        print(f"     timing cache: {', '.join(sorted(asked))}", flush=True)
        check.that(all(f"MPS {percentage}%" in one for one in asked), "the share is in the timing cache's questions")
        code, text = output(trtcli("build", str(model), f"--timingCacheFile={cache}", "--errorOnTimingCacheMiss", "--builderOptimizationLevel=2"))
        check.that(code == 1 and "is not in the timing cache" in text, "a build on the whole GPU does not take those timings")
        run = (f"--loadEngine={engine}", "--duration=1", "--warmUp=100")
        code, text = output(trtcli(*run))
        check.that(code == 0 and f"chosen for MPS {percentage}%" in text, "a run on the whole GPU says that the tactics were chosen for a share")
        alone = throughput(output(trtcli(*run, environment=share))[1])
        pair = [trtcli(*run, environment=share) for _ in range(2)]
        together = sum(throughput(output(one)[1]) for one in pair)
        check.results.append(compare(f"BERT, {LAYERS} layers: two processes of {percentage} % under MPS, time per query", [1e6 / together], "us",
                                     [1e6 / alone], "one such process", device=device.name, note=f"{together:.0f} and {alone:.0f} queries/s"))  # fmt: skip
        print(f"     one process {alone:.0f} queries/s, two together {together:.0f}", flush=True)
    finally:
        subprocess.run([control], input="quit\n", env={**os.environ, **places}, capture_output=True, text=True, check=False)


def throughput(text: str) -> float:
    """Queries per second of a report.

    Raises:
        ValueError: it has none.
    """
    found = re.search(r"Throughput: ([\d.e+]+) qps", text)
    if found is None:
        raise ValueError(f"no throughput in:\n{text[-1500:]}")
    return float(found[1])


def nsys(check: Check, folder: Path) -> None:
    """Names of layers in a report of Nsight Systems."""
    tool = shutil.which("nsys")
    if tool is None:
        print("SKIP Nsight Systems: nsys is not installed (tests/trtcli/test_nvtx.py listens to the same ranges by a library of its own)", flush=True)
        return
    model, engine, report = bert(folder / "nsys.onnx", 1), folder / "nsys.engine", folder / "report"
    code, text = output(trtcli("build", str(model), f"--saveEngine={engine}", "--builderOptimizationLevel=0"))
    check.that(code == 0, "a small engine is built" + ("" if code == 0 else f"\n{text[-1000:]}"))
    prefix = (tool, "profile", "-t", "cuda,nvtx", "-o", str(report), "--force-overwrite", "true")
    code, text = output(trtcli(f"--loadEngine={engine}", "--noCudaGraph", "--duration=0", "--iterations=5", "--warmUp=0", prefix=prefix))
    check.that(code == 0, "the run under nsys passes" + ("" if code == 0 else f"\n{text[-1000:]}"))
    done = subprocess.run([tool, "stats", "--report", "nvtx_sum", "--format", "csv", f"{report}.nsys-rep"], capture_output=True, text=True, check=False)
    loaded = Engine.load(engine)
    ran = [layer.name for layer, plan in zip(loaded.network.layers, loaded.layers, strict=True) if plan.tactic != "view"]
    missing = [name for name in ran if name not in done.stdout]
    check.that(bool(ran) and not missing, f"{len(ran)} layers have ranges in the report" + (f"; missing: {', '.join(missing)[:300]}" if missing else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("mps", "nsys"))
    parser.add_argument("--percentage", type=int, default=50)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args(argv)
    check = Check()
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "nsys":
            mps(check, Path(folder), options.percentage)
        if options.only != "mps":
            nsys(check, Path(folder))
    if check.results and not options.no_record:
        print(f"recorded in {record('tools', check.results)}")
    return int(check.failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
