"""A Markdown table of recorded results: ``python benchmarks/table.py benchmarks/results/light-cpu.jsonl``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.runner import Result, load


def latest(results: Sequence[Result]) -> list[Result]:
    """The newest result of every workload, peer and device, in the order in which they first appeared."""
    found: dict[tuple[str, str, str], Result] = {}
    for result in results:
        key = (result.workload, result.peer_name.split(" ")[0], result.device)
        found[key] = max(found.get(key, result), result, key=lambda one: one.date)
    return list(found.values())


def table(results: Sequence[Result]) -> str:
    """The newest results as Markdown, a line on where they come from above each device's rows."""
    rows = latest(results)
    parts = []
    for device in dict.fromkeys(row.device for row in rows):
        own = [row for row in rows if row.device == device]
        stamps = sorted({(row.date[:10], row.commit) for row in own})
        made = ", ".join(f"{date} (commit {commit or 'unknown'})" for date, commit in stamps)
        driver = f", driver {own[0].driver}" if own[0].driver else ""
        parts.append(
            "\n".join(
                [
                    f"{device}{driver}; measured {made}",
                    "",
                    "| workload | trtcli | peer | | peer / trtcli | spread |",
                    "|---|---:|---:|---|---:|---:|",
                    *(_row(row) for row in own),
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _row(row: Result) -> str:
    peer = "-" if row.peer is None else f"{row.peer:.4g} {row.unit}"
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    name = f"{row.workload} ({row.note})" if row.note else row.workload
    return f"| {name} | {row.ours:.4g} {row.unit} | {peer} | {row.peer_name} | {ratio} | {100 * row.spread:.1f} % |"


def main(paths: Sequence[str]) -> int:
    """Print one table for all files."""
    if not paths:
        print("usage: python benchmarks/table.py RESULTS.jsonl ...", file=sys.stderr)
        return 1
    print(table([result for path in paths for result in load(Path(path))]), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
