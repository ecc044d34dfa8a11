"""Checks and times the portable CUDA kernels (gemm, conv, attention) on the GPU of this machine, beside torch.

    python benchmarks/gpu/portable_check.py [--groups gemm,conv,...] [--seconds 170] [--out results.jsonl] [--cubins FOLDER] [--record kernels-h100]

Every case runs a tactic's own plan: the kernels are compiled with NVRTC, launched through cuLaunchKernelEx on NaN-poisoned
outputs, and compared with float64 torch. Timings replay a CUDA graph of 24 launches over rotating buffers; the median counts.
Each group runs in its own process, so that a fault in one leaves the others alone. Needs torch and cuda-bindings.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.portable import attention, conv, depthwise, gemm  # noqa: E402
from benchmarks.gpu.portable.cases import Cases  # noqa: E402
from benchmarks.gpu.portable.device import Gpu  # noqa: E402
from benchmarks.gpu.portable.report import print_table, results  # noqa: E402

GROUPS = {
    "check_gemm": gemm.check_gemm, "check_conv": conv.check_conv, "check_deconv": conv.check_deconv, "check_depthwise": depthwise.check_depthwise,
    "check_attention": attention.check_attention, "time_gemm": gemm.time_gemm, "time_attention": attention.time_attention, "time_conv1": conv.time_conv1,
    "time_conv32": conv.time_conv32, "time_depthwise": depthwise.time_depthwise, "time_deconv": conv.time_deconv, "time_groups": conv.time_groups,
    "time_stem": conv.time_stem,
}  # fmt: skip
# What changed last: the groups of ``--groups changed``.
CHANGED = ("check_deconv", "check_depthwise", "check_attention", "time_depthwise", "time_attention", "time_deconv", "time_groups", "time_stem")


def main() -> int:
    """Run the groups, each in its own process; checks side by side, timings one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--seconds", type=float, default=170)
    parser.add_argument("--out", default="portable.jsonl")
    parser.add_argument("--cubins", default="", metavar="FOLDER", help="a folder that keeps compiled kernels")
    parser.add_argument("--record", default="", metavar="NAME", help="append the best of each timed case to benchmarks/results/NAME.jsonl")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        deadline = time.monotonic() + options.seconds
        Cases(Gpu(options.workers, Path(options.cubins) if options.cubins else None), deadline, options.out).run(GROUPS[options.one], timing=options.one.startswith("time"))
        return 0
    start = time.monotonic()
    out = Path(options.out)
    out.unlink(missing_ok=True)
    # All start at once and compile side by side; a lock lets checks share the GPU and each timing group have it alone.
    for name, process in [(name, _start(name, options)) for name in (CHANGED if options.groups == "changed" else options.groups.split(","))]:
        _finish(name, process, max(1.0, options.seconds - (time.monotonic() - start)))
    print_table(out)
    if options.record:
        from benchmarks.runner import record

        print(f"recorded in {record(options.record, results(out))}")
    print(f"total {time.monotonic() - start:.0f} s")
    return 0


def _start(name: str, options: argparse.Namespace) -> subprocess.Popen:
    seconds = options.seconds * (0.65 if name.startswith("check") else 0.95)
    workers = max(6, (os.cpu_count() or 6) // (2 if "," in options.groups or options.groups == "changed" else 1))
    command = [sys.executable, __file__, "--one", name, "--seconds", str(seconds), "--out", options.out, "--workers", str(workers), "--cubins", options.cubins]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(name: str, process: subprocess.Popen, seconds: float) -> None:
    try:
        text, _ = process.communicate(timeout=seconds)
        print(f"== {name}: exit {process.returncode}\n{text[-1500:]}", flush=True)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        print(f"== {name}: ran out of time\n{(text or '')[-800:]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
