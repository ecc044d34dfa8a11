"""Two profiles, layer informations or engines, layer by layer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
CHANGED = 1.0  # per cent of its own time from which a layer's row is shown


@dataclass(frozen=True)
class Row:
    """One layer: its time in A and in B, in milliseconds; None where it does not exist or was not timed."""

    name: str
    a: float | None
    b: float | None

    @property
    def delta(self) -> float:
        """B minus A; a layer that only one has counts in full."""
        return (self.b or 0.0) - (self.a or 0.0)


@dataclass(frozen=True)
class Comparison:
    """All layers, those with the largest change first, and the totals in milliseconds."""

    rows: tuple[Row, ...]
    a: float
    b: float

    @property
    def percent(self) -> float:
        """How much slower B is as a whole; negative when it is faster."""
        return 100 * (self.b - self.a) / self.a if self.a else (math.inf if self.b else 0.0)


def read_times(path: str) -> dict[str, float | None]:
    """Milliseconds by layer name, from ``--exportProfile``, ``--exportLayerInfo`` (detailed) or an engine file.

    Raises:
        ValueError: the file is none of these, or holds no times.
        OSError: it cannot be read.
    """
    if path.lower().endswith(".onnx"):
        raise ValueError(f"{path}: a model has no layer times; build an engine of it, or profile it with --exportProfile")
    with Path(path).open("rb") as file:
        start = file.read(64).lstrip()[:1]
    if start not in (b"[", b"{"):
        from runtime.engine import Engine

        engine = Engine.load(path)
        pairs = zip(engine.network.layers, engine.layers, strict=True)
        return {layer.name: None if math.isnan(plan.seconds) else plan.seconds * 1e3 for layer, plan in pairs}
    try:
        return _times(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path}: no layer times ({reason}); give a file of --exportProfile, of --exportLayerInfo with "
            "--profilingVerbosity=detailed, or an engine"
        ) from error


def _times(content: Any) -> dict[str, float | None]:
    if isinstance(content, list):
        found = {str(one["name"]): _time(one["name"], one["averageMs"]) for one in content if "count" not in one}
    else:
        layers: Sequence[Mapping[str, Any]] = content["Layers"]
        if not all(isinstance(layer, Mapping) for layer in layers):
            raise ValueError("it holds layer names only")
        found = {str(one["Name"]): _time(one["Name"], one["TimeMs"]) for one in layers}
    if not found:
        raise ValueError("it names no layer")
    return found


def _time(name: Any, value: Any) -> float | None:
    if value is None:
        return None
    time = float(value)
    if not 0 <= time < math.inf:
        raise ValueError(f"layer {str(name)!r} took {time} ms")
    return time


def compare(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> Comparison:
    """The comparison of two sets of layer times."""
    rows = [Row(name, a.get(name), b.get(name)) for name in dict.fromkeys((*a, *b))]
    rows.sort(key=lambda row: -abs(row.delta))
    return Comparison(tuple(rows), _sum(a), _sum(b))


def _sum(times: Mapping[str, float | None]) -> float:
    return math.fsum(time for time in times.values() if time is not None)


def comparison_lines(found: Comparison) -> list[str]:
    """A table of the layers that changed, and the totals."""
    shown = [row for row in found.rows if abs(row.delta) >= CHANGED / 100 * max(row.a or 0.0, row.b or 0.0) and row.delta]
    lines = [f"{'A (ms)':>10}  {'B (ms)':>10}  {'change':>9}  layer"]
    lines += [f"{_ms(row.a)}  {_ms(row.b)}  {_change(row)}  {row.name}" for row in shown]
    same = len(found.rows) - len(shown)
    if same:
        lines.append(f"{'':>10}  {'':>10}  {'':>9}  ({same} layer{'s' if same > 1 else ''} within {CHANGED:g} %)")
    lines.append(f"{_ms(found.a)}  {_ms(found.b)}  {_percent(found.percent):>9}  total")
    return lines


def _ms(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.4f}':>10}"


def _change(row: Row) -> str:
    if row.a is None or row.b is None:
        return f"{'only B' if row.a is None else 'only A':>9}"
    return f"{_percent(100 * row.delta / row.a) if row.a else 'new':>9}"


def _percent(value: float) -> str:
    return f"{value:+.1f} %"


def comparison_json(found: Comparison, threshold: float) -> dict[str, Any]:
    """The same for programs."""
    return {
        "schema": SCHEMA,
        "aMs": found.a,
        "bMs": found.b,
        "percent": found.percent,
        "threshold": threshold,
        "regression": found.percent > threshold,
        "layers": [{"name": row.name, "aMs": row.a, "bMs": row.b} for row in found.rows],
    }
