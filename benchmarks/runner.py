"""Records measurements: one JSON object per line, appended to ``benchmarks/results/<name>.jsonl``, never changed afterwards.

A line says what was measured with which command on what, so that any figure we quote can be traced and measured again.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("numpy", "onnx", "onnxruntime", "cupy-cuda13x", "cuda-bindings", "torch", "tensorrt", "triton")


@dataclass(frozen=True)
class Result:
    """One comparison.

    Attributes:
        workload: what was run, with its shapes and types.
        ours, peer: medians in ``unit``; ``peer`` is None when there is nothing to compare with.
        peer_name: what the peer is, with its version.
        ratio: peer / ours: above 1 we are faster (for times).
        spread: (largest - smallest) / median of our repetitions.
        unit: of ``ours`` and ``peer``.
        note: anything a reader must know.
    """

    workload: str
    ours: float
    unit: str
    peer: float | None = None
    peer_name: str = ""
    ratio: float | None = None
    spread: float = 0.0
    note: str = ""
    date: str = ""
    device: str = ""
    driver: str = ""
    commit: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def compare(
    workload: str,
    ours: Sequence[float],
    unit: str,
    peer: Sequence[float] = (),
    peer_name: str = "",
    *,
    device: str,
    driver: str = "",
    note: str = "",
) -> Result:
    """The result of repeated measurements (of times: smaller is better), stamped with where and when.

    Raises:
        ValueError: nothing was measured.
    """
    if not ours:
        raise ValueError(f"{workload}: nothing was measured")
    middle = statistics.median(ours)
    other = statistics.median(peer) if peer else None
    return Result(
        workload=workload,
        ours=middle,
        unit=unit,
        peer=other,
        peer_name=peer_name,
        ratio=other / middle if other is not None and middle else None,
        spread=(max(ours) - min(ours)) / middle if middle else 0.0,
        note=note,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device,
        driver=driver,
        commit=commit(),
        command=command_line(),
        versions=versions(),
    )


def command_line() -> str:
    """How this process was started, without the place of the checkout."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["-m", spec.name] if spec is not None else [os.path.relpath(sys.argv[0], ROOT)]
    return " ".join(["python", *start, *sys.argv[1:]])


def record(name: str, results: Sequence[Result], folder: Path = RESULTS) -> Path:
    """Append ``results`` to ``<folder>/<name>.jsonl`` and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(result), ensure_ascii=False) + "\n" for result in results)
    return path


def load(path: Path) -> list[Result]:
    """The results in a file, the oldest first.

    Raises:
        ValueError: a line is no result; the text names it.
    """
    results = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            results.append(Result(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return results


def commit() -> str:
    """The commit of the checkout, with ``+`` when files differ from it; empty outside of one."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Python's version and those of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
