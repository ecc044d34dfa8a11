"""What was measured, for people, for benchmarks/results, and for the estimate of tile_sm90."""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu.sm90.kernels import H200
from benchmarks.gpu.sm90.shapes import EPILOGUE_SHAPES, conv_problem, gemm_problem, item_label, items
from tactics.cuda.sm90 import tile_sm90
from tactics.cuda.sm90.tile_sm90 import Tile


@dataclass(frozen=True)
class Final:
    """What was measured of one shape in the end: the best variant and torch, in turns where both were raced."""

    shape: str
    torch: float  # us, median
    ours: float
    tflops: float
    config: str
    epilogue: str
    torch_us: tuple[float, ...]
    ours_us: tuple[float, ...]
    network: str = ""
    times: int = 1
    floor: float = 0.0

    @property
    def ratio(self):
        return self.torch / self.ours


def finished(rows):
    """One Final a shape that both sides were timed for."""
    found = []
    for shape in dict.fromkeys(r["shape"] for r in rows if "shape" in r):
        own = {who: [r for r in rows if r.get("shape") == shape and r.get("who") == who] for who in ("torch", "ours", "turns")}
        if not own["torch"] or not own["ours"]:
            continue
        best = min(own["ours"], key=lambda r: r["us"])
        last = own["turns"][-1] if own["turns"] else {**best, "ours_us": [best["us"]], "torch_us": [own["torch"][0]["us"]]}
        found.append(Final(shape, statistics.median(last["torch_us"]), statistics.median(last["ours_us"]), last["tflops"], last["config"],
                           last.get("epilogue", ""), tuple(last["torch_us"]), tuple(last["ours_us"]), last.get("network", ""), last.get("times", 1),
                           last.get("floor_us", 0.0)))
    return found


WRITTEN = {"": "", "bias": ", bias", "bias_relu": ", bias + ReLU", "bias_gelu": ", bias + GELU", "bias_residual": ", bias + residual",
           "bias_residual_relu": ", bias + residual + ReLU"}


def keep(path, rows):
    """Appends one line a shape to a file of results (benchmarks/runner.py)."""
    from importlib.metadata import version

    from cuda.bindings import nvrtc

    from benchmarks.runner import compare, record, versions

    device, driver = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True,
                                    text=True, check=True).stdout.splitlines()[0].split(", ")
    peer = f"torch {version('torch')} (cuDNN/cuBLASLt/SDPA)"
    tools = versions() | {"nvrtc": ".".join(map(str, nvrtc.nvrtcVersion()[1:]))}
    lines = []
    for one in finished(rows):
        label = one.shape.removeprefix(one.network).removesuffix(one.epilogue).removesuffix("residual").strip()
        line = compare(f"{label} fp16{WRITTEN[one.epilogue]}", one.ours_us, "us", one.torch_us, peer, device=device, driver=driver,
                       note=f"sm90 {one.config}" + (f"; {one.times}x in {one.network}" if one.network else ""))
        lines.append(replace(line, versions=tools))
    record(path.stem, lines, path.parent)


SHOWN = 3  # configurations that a report's line names


def report(group, rows):
    print(f"== {group}: {len(rows)} rows")
    if group.startswith("check"):
        bad = [r for r in rows if not r.get("ok")]
        print(f"passed {sum(bool(r.get('ok')) for r in rows)}, not {len(bad)}; largest relative error of the passed "
              f"{max((r['relative'] for r in rows if r.get('ok')), default=0):.2e}")
        for r in bad:
            print("  FAILED" + (" (expected)" if r.get("may_fail") else ""), r.get("label"), r.get("config", ""), r.get("error", ""),
                  *(f"{k}={r[k]:.3g}" for k in ("relative", "worst") if k in r), "" if r.get("intact", True) else "MARGINS TOUCHED",
                  r.get("stderr", "")[-200:].replace("\n", " | "))
        for r in rows:
            if r.get("may_fail") and r.get("ok"):
                print("  passed, though an alternative:", r["label"])
        return
    finals = finished(rows)
    for one in finals:
        ours = sorted((r for r in rows if r.get("shape") == one.shape and r.get("who") == "ours"), key=lambda r: r["us"])
        print(f"{one.shape:34s} torch {one.torch:8.2f}  ours {one.ours:8.2f} {one.tflops:6.0f}TF x{one.ratio:4.2f} | "
              + "  ".join(f"{r['config']} {r['us']:.2f}" for r in ours[:SHOWN]))
    print(f"sum: torch {sum(one.torch for one in finals):.1f} us, ours {sum(one.ours for one in finals):.1f} us")
    for network in dict.fromkeys(one.network for one in finals if one.network):
        own = [one for one in finals if one.network == network]
        theirs, mine, floor = (sum(getattr(one, key) * one.times for one in own) for key in ("torch", "ours", "floor"))
        print(f"{network}: {len(own)} shapes, {sum(one.times for one in own)} layers: torch {theirs:.0f} us, ours {mine:.0f} ({mine / theirs:.2f} of it), "
              f"floor {floor:.0f}; geometric mean x{statistics.geometric_mean([one.ratio for one in own]):.2f}, least x{min(one.ratio for one in own):.2f}")
    for family in ("gemm", "conv"):
        ratios = [one.ratio for one in finals if one.network and one.network.startswith("ResNet") == (family == "conv")]
        if ratios:
            print(f"{family}: {len(ratios)} shapes, geometric mean x{statistics.geometric_mean(ratios):.3f}, {sum(r < 1 for r in ratios)} under 1, least x{min(ratios):.2f}")
    for r in [r for r in rows if "error" in r or r.get("ok") is False][:12]:
        print("  FAILED", r.get("label"), r.get("error", ""), r.get("relative", ""), r.get("stderr", "")[-150:].replace("\n", " | "))


def judge(path):
    """Prints how well the estimate orders what was measured: the loss when only the first 1, 3, 6, 10 are timed, and the ratios."""
    shapes = {item_label(kind, shape): (gemm_problem if kind == "gemm" else conv_problem)(*shape) for kind, shape in items()}
    shapes |= {f"{m}x{n}x{k} {kind}": gemm_problem(m, n, k) for m, n, k, kind in EPILOGUE_SHAPES}
    measured = {}
    for row in map(json.loads, Path(path).read_text().splitlines()):
        if row.get("ok") and "tile" in row:
            measured.setdefault(row["shape"], {})[Tile(**row["tile"])] = row["us"]
    ratios, losses = [], {count: [] for count in (1, 3, 6, 10)}
    for shape, times in measured.items():
        guess = {tile: tile_sm90.estimate(tile, shapes[shape], H200) * 1e6 for tile in times}
        order, best = sorted(times, key=guess.__getitem__), min(times, key=times.__getitem__)
        ratios += [guess[tile] / times[tile] for tile in times]
        for count, found in losses.items():
            found.append(min(times[tile] for tile in order[:count]) / times[best])
        print(f"{shape:34s} best {times[best]:8.2f} estimated {guess[best]:8.2f}, rank {order.index(best)} of {len(order)}: {best.config()}")
    if len(ratios) < 2:
        raise SystemExit(f"{path}: no timed rows with a tile (those of the groups time, time-nets, time-epilogue and time-sweep)")
    print("estimate / measured, deciles:", [round(ratio, 2) for ratio in statistics.quantiles(ratios, n=10)])
    for count, found in losses.items():
        print(f"timing the first {count}: {statistics.mean(found):.3f} of the best on average, {max(found):.2f} at worst")
