"""What :mod:`benchmarks.gpu.portable_check` found, from its lines of JSON: a table, sums over networks, and lines for ``benchmarks/results``."""

from __future__ import annotations

import json
import math
from pathlib import Path

# (activation, channels, height and width, window, stride) and how often the network has the layer, images of 224 x 224.
DEPTHWISE = {
    "MobileNetV2": (
        (("relu", 32, 112, 3, 1), 1), (("relu", 96, 112, 3, 2), 1), (("relu", 144, 56, 3, 1), 1), (("relu", 144, 56, 3, 2), 1),
        (("relu", 192, 28, 3, 1), 2), (("relu", 192, 28, 3, 2), 1), (("relu", 384, 14, 3, 1), 4), (("relu", 576, 14, 3, 1), 2),
        (("relu", 576, 14, 3, 2), 1), (("relu", 960, 7, 3, 1), 3),
    ),
    "EfficientNet-B0": (
        (("swish", 32, 112, 3, 1), 1), (("swish", 96, 112, 3, 2), 1), (("swish", 144, 56, 3, 1), 1), (("swish", 144, 56, 5, 2), 1),
        (("swish", 240, 28, 5, 1), 1), (("swish", 240, 28, 3, 2), 1), (("swish", 480, 14, 3, 1), 2), (("swish", 480, 14, 5, 1), 1),
        (("swish", 672, 14, 5, 1), 2), (("swish", 672, 14, 5, 2), 1), (("swish", 1152, 7, 5, 1), 3), (("swish", 1152, 7, 3, 1), 1),
    ),
    "ConvNeXt, one layer": ((("relu", 96, 56, 7, 1), 1),),
}  # fmt: skip


def depthwise_case(activation: str, c: int, size: int, window: int, stride: int) -> str:
    """What a depthwise layer is called in the results."""
    return f"depthwise b32 {c}x{size} k{window} s{stride} {activation}"


def print_table(out: Path) -> None:
    """Checks by tactic with what is wrong, the best of each timed case, sums over networks."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    checks = [row for row in rows if row["kind"] == "check"]
    for tactic in sorted({row["tactic"] for row in checks}):
        mine = [row for row in checks if row["tactic"] == tactic]
        bad = [row for row in mine if not row["ok"]]
        worst = max((row["error"] for row in mine if row["ok"]), default=0)
        print(f"{tactic:24s} {len(mine) - len(bad):4d} ok {len(bad):4d} WRONG   worst error of the ok ones {worst:.1e}")
        for row in bad[:12]:
            print(f"    {row['case']} {row['config']} error {row['error']} {row.get('note', '')}")
    for case in dict.fromkeys(row["case"] for row in rows if row["kind"] == "time"):
        mine = sorted((row for row in rows if row["kind"] == "time" and row["case"] == case), key=lambda row: row["us"])
        torch_us = next((row["us"] for row in mine if row["tactic"] == "torch"), None)
        own = [row for row in mine if row["tactic"] != "torch"]
        if own:
            best, first = own[0], min(own, key=lambda row: row["rank"])
            print(f"{case:34s} best {best['us']:8.2f} us  torch {torch_us or math.nan:8.2f}  floor {best['floor']:7.2f}  first-guess "
                  f"{first['us']:8.2f}  {best['tactic']}{best['config']}{'' if best['ok'] else ' WRONG'}")  # fmt: skip
    _networks(rows)


def _best(rows: list[dict]) -> dict[str, dict]:
    """The fastest right configuration of each timed case."""
    found: dict[str, dict] = {}
    for row in rows:
        if row["kind"] == "time" and row["tactic"] != "torch" and row["ok"] and row["us"] < found.get(row["case"], {"us": math.inf})["us"]:
            found[row["case"]] = row
    return found


def _networks(rows: list[dict]) -> list[tuple[str, float, float, float]]:
    """(network, ours, torch, a copy of as many bytes), us: sums over all depthwise layers of each network that was timed; prints them."""
    best, sums = _best(rows), []
    torch = {row["case"]: row["us"] for row in rows if row["kind"] == "time" and row["tactic"] == "torch"}
    copies = {row["case"]: row["us"] for row in rows if row["kind"] == "copy"}
    for network, layers in DEPTHWISE.items():
        cases = [(depthwise_case(*layer), count) for layer, count in layers]
        if all(case in best and case in copies for case, _ in cases):
            ours, peer, copy = (sum(of(case) * count for case, count in cases) for of in
                                (lambda case: best[case]["us"], lambda case: torch.get(case, math.nan), copies.__getitem__))  # fmt: skip
            sums.append((network, ours, peer, copy))
            print(f"{network}: {sum(count for _, count in cases)} depthwise layers, {ours:.1f} us, torch {peer:.1f}, copying as many bytes "
                  f"{copy:.1f}: {copy / ours:.2f} of the copy rate")  # fmt: skip
    return sums


def results(out: Path) -> list:
    """What was timed, as lines for benchmarks/results."""
    import torch

    from benchmarks.runner import compare
    from runtime import cuda_driver
    from runtime.cuda_spec import cuda_properties

    cuda_driver.device_count()  # starts the driver: only the groups' own processes have used it
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    where = {key: str(cuda_properties(0)[name]) for key, name in (("device", "name"), ("driver", "driver"))}
    peers = {row["case"]: row["us"] for row in rows if row["kind"] == "time" and row["tactic"] == "torch"}
    copies = {row["case"]: row["us"] for row in rows if row["kind"] == "copy"}

    def result(name: str, ours: float, peer: float | None, note: str):  # noqa: ANN202
        known = peer is not None and not math.isnan(peer)
        return compare(name, [ours], "us", [peer] if known else (), f"torch {torch.__version__}" if known else "", note=note, **where)

    lines = [result(case, row["us"], peers.get(case), f"{row['tactic']} {row['config']}" + (
        f"; copying as many bytes takes {copies[case]:.2f} us: {copies[case] / row['us']:.2f} of the copy rate" if case in copies else ""))
        for case, row in _best(rows).items()]  # fmt: skip
    return lines + [result(f"depthwise layers of {network}, batch 32", ours, peer, f"copying as many bytes takes {copy:.2f} us: {copy / ours:.2f} of the copy rate")
                    for network, ours, peer, copy in _networks(rows)]  # fmt: skip
