"""Checks and times the sm_90a matrix kernels on a Hopper GPU, beside torch (cuBLASLt, cuDNN) in the same run.

    python3 benchmarks/gpu/sm90_check.py [--seconds 100] [--only REGEX] [--out results.jsonl] [--top 8] [--record results/kernels-h100.jsonl]
                                         [--groups check-gemm,check-conv,check-window,check-stem,check-attention,check-short,time-stem,time-attention,
                                                   time-short,time-epilogue,time-nets,time]
    python3 benchmarks/gpu/sm90_check.py --judge results.jsonl

Needs torch and cuda.bindings; compiles with NVRTC in parallel first. ``time`` measures what the tactics would offer first (``--top``
configurations of tile_sm90.candidates), the most important shapes first, until the time is up; ``time-nets`` the layers of whole networks, with sums
over the network; it is not among the groups that run by default. The best and torch then take turns, replay by replay. The groups run in a child process: a
variant that crashes or hangs is noted, and a new child goes on after it. Every timed result is compared with torch's first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.sm90 import shapes  # noqa: E402
from benchmarks.gpu.sm90.device import Gpu  # noqa: E402
from benchmarks.gpu.sm90.groups import run_group, units_of  # noqa: E402
from benchmarks.gpu.sm90.kernels import compile_one  # noqa: E402
from benchmarks.gpu.sm90.report import judge, keep, report  # noqa: E402


def drive(groups, arguments, sink, deadline):
    """Runs the groups in a child process until they end; a new child goes on after what killed or hung the last one."""
    skip, rows = [], []
    for _ in range(8):
        left = deadline - time.monotonic()
        if left < 3:
            break
        command = [sys.executable, __file__, "--child", ",".join(groups), "--only", arguments.only, "--seconds", str(left - 2), "--top",
                   str(arguments.top), "--skip", json.dumps(skip)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        begun = None
        state = {"last": time.monotonic() + 40}  # torch's import and the context take their time

        def watch(child=child, state=state):
            while child.poll() is None:
                if time.monotonic() - state["last"] > 10:
                    child.kill()
                    return
                time.sleep(0.5)

        errors = []
        threading.Thread(target=watch, daemon=True).start()
        reader = threading.Thread(target=lambda child=child: errors.append(child.stderr.read()), daemon=True)
        reader.start()
        for line in child.stdout:
            state["last"] = max(state["last"], time.monotonic()) if begun is None else time.monotonic()
            if not line.startswith("{"):
                continue
            row = json.loads(line)
            if "begin" in row:
                begun = row["begin"]
            elif "label" in row:
                rows.append(row)
                skip.append(f"{row['group']} {row['label']}")
                sink.write(json.dumps(row) + "\n")
                sink.flush()
        child.wait()
        reader.join(2)
        if child.returncode == 0:
            break
        if begun is None:
            print("child did not start:", "".join(errors)[-800:], flush=True)
            break
        if begun not in skip:
            group, label = begun.split(" ", 1)
            rows.append({"group": group, "label": label, "error": f"child ended with {child.returncode}", "stderr": "".join(errors)[-600:]})
            sink.write(json.dumps(rows[-1]) + "\n")
            skip.append(begun)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--only", default="")
    parser.add_argument("--top", type=int, default=shapes.TOP)
    parser.add_argument("--groups", default="check-gemm,check-conv,check-window,check-stem,check-attention,check-short,time-stem,time-attention,"
                        "time-short,time-epilogue,time")
    parser.add_argument("--out", default=str(Path(os.environ.get("OUT", "/tmp")) / "sm90.jsonl"))
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--record", type=Path, help="append one line a timed shape to this file, as benchmarks/results has them")
    parser.add_argument("--judge", default="", help="a file of results: compare the estimate with it, without a GPU")
    parser.add_argument("--child", default="")
    parser.add_argument("--skip", default="[]")
    arguments = parser.parse_args()
    shapes.TOP = arguments.top
    if arguments.judge:
        judge(arguments.judge)
        return
    begin = time.monotonic()
    deadline = begin + arguments.seconds
    if arguments.child:
        gpu = Gpu()
        for group in arguments.child.split(","):
            run_group(gpu, group, arguments.only, set(json.loads(arguments.skip)), deadline, lambda row: print(json.dumps(row), flush=True))
        return
    groups = arguments.groups.split(",")
    units = list(dict.fromkeys(u for g in groups for u in units_of(g, arguments.only)))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        notes = [note for note in pool.map(compile_one, units, chunksize=2) if note]
    for note in notes[:8]:
        print("COMPILE", note)
    if len(notes) > 8:
        print(f"COMPILE ... {len(notes)} in all")
    print(f"compiled {len(units)} kernels in {time.monotonic() - begin:.1f} s", flush=True)
    if arguments.compile_only:
        return
    with open(arguments.out, "w") as sink:
        rows = drive(groups, arguments, sink, deadline)
    print(f"done at {time.monotonic() - begin:.0f} s", flush=True)
    for group in groups:
        report(group, [row for row in rows if row["group"] == group])
    if arguments.record:
        keep(arguments.record, [row for row in rows if row["group"].startswith("time")])


if __name__ == "__main__":
    main()
