"""``--dumpProfile`` and ``--exportProfile``: the time of every layer, with trtexec's columns and keys."""

from __future__ import annotations

from typing import Any

from runtime.profiler import Profile
from trtcli.report.statistics import median

_COLUMNS = ("Time(ms)", "Avg.(ms)", "Median(ms)", "Time(%)")
_GAP = "   "


def profile_lines(profile: Profile) -> list[str]:
    """The table: layers that took time, then their total."""
    lines = ["", f"=== Profile ({profile.count} iterations ) ===", _GAP + _GAP.join((*_COLUMNS, "Layer"))]
    total = sum(layer.total for layer in profile.layers)
    for layer in profile.layers:
        if layer.total > 0:
            average = layer.total / profile.count
            lines.append(_row(layer.total, average, layer.median, profile.percentage(layer), layer.name))
    sums = sorted(float(one) for one in profile.iteration_totals)
    average = total / profile.count if profile.count else 0.0
    lines.append(_row(total, average, median(sums) if sums else 0.0, 100.0 if total > 0 else 0.0, "Total"))
    return lines


def _row(total: float, average: float, middle: float, share: float, name: str) -> str:
    cells = (f"{total:.2f}", f"{average:.4f}", f"{middle:.4f}", f"{share:.1f}")
    return _GAP + _GAP.join((*(cell.rjust(len(head)) for cell, head in zip(cells, _COLUMNS, strict=True)), name))


def aux_stream_warning(streams: int) -> str:
    """What to know about a profile of layers that ran in parallel."""
    return (
        f"The engine uses {streams} auxiliary stream{'s' * (streams > 1)}, so the \"Total\" latency may not be accurate: "
        "layers ran in parallel."
    )


def profile_json(profile: Profile) -> list[dict[str, Any]]:
    """``{"count": n}``, then every layer (also those that never ran); milliseconds, unrounded."""
    return [
        {"count": profile.count},
        *(
            {
                "name": layer.name,
                "timeMs": layer.total,
                "averageMs": layer.total / profile.count if profile.count else 0.0,
                "medianMs": layer.median,
                "percentage": profile.percentage(layer),
            }
            for layer in profile.layers
        ),
    ]
