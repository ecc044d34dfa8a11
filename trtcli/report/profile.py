"""``--dumpProfile`` and ``--exportProfile``: the time of every layer, from a run of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtcli.report.statistics import median

_COLUMNS = ("Time(ms)", "Avg.(ms)", "Median(ms)", "Time(%)")
_GAP = "   "


@dataclass(frozen=True)
class LayerTime:
    """One layer's samples, milliseconds, one per iteration."""

    name: str
    samples: tuple[float, ...]

    @property
    def total(self) -> float:
        """Their sum."""
        return math.fsum(self.samples)


def profile_lines(layers: Sequence[LayerTime], iterations: int) -> list[str]:
    """The table: layers that took time, then their total."""
    lines = ["", f"=== Profile ({iterations} iterations ) ===", _GAP + _GAP.join((*_COLUMNS, "Layer"))]
    whole = math.fsum(layer.total for layer in layers)
    for layer in layers:
        if layer.total > 0:
            middle = median(sorted(layer.samples))
            lines.append(_row(layer.total, layer.total / iterations, middle, 100 * layer.total / whole, layer.name))
    sums = [math.fsum(one) for one in zip(*(layer.samples for layer in layers if layer.samples), strict=True)]
    share = 100.0 if whole > 0 else 0.0
    average, middle = whole / iterations if iterations else 0.0, median(sorted(sums)) if sums else 0.0
    lines.append(_row(whole, average, middle, share, "Total"))
    return lines


def aux_stream_warning(streams: int) -> str:
    """What to know about a profile of layers that ran in parallel."""
    return (
        f"The engine uses {streams} auxiliary stream{'s' * (streams > 1)}, so the \"Total\" latency may not be accurate: "
        "layers ran in parallel."
    )


def _row(total: float, average: float, middle: float, share: float, name: str) -> str:
    cells = (f"{total:.2f}", f"{average:.4f}", f"{middle:.4f}", f"{share:.1f}")
    return _GAP + _GAP.join((*(cell.rjust(len(head)) for cell, head in zip(cells, _COLUMNS, strict=True)), name))


def profile_json(layers: Sequence[LayerTime], iterations: int) -> list[dict[str, Any]]:
    """``{"count": n}``, then every layer (also those that never ran); milliseconds, unrounded."""
    whole = math.fsum(layer.total for layer in layers)
    return [
        {"count": iterations},
        *(
            {
                "name": layer.name,
                "timeMs": layer.total,
                "averageMs": layer.total / iterations if iterations else 0.0,
                "medianMs": median(sorted(layer.samples)) if layer.samples else 0.0,
                "percentage": 100 * layer.total / whole if whole > 0 else 0.0,
            }
            for layer in layers
        ),
    ]
