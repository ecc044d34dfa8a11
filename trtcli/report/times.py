"""``--exportTimes``: every query's times, with trtexec's keys."""

from __future__ import annotations

from collections.abc import Sequence

from trtcli.report.summary import Query, times_of

_STAMPS = ("enq", "h2d", "compute", "d2h")


def times_json(queries: Sequence[Query]) -> list[dict[str, float]]:
    """One object per query, milliseconds."""
    found = []
    for query in queries:
        stamps = {
            f"{edge}{part.capitalize()}Ms": float(getattr(query, f"{edge}_{part}"))
            for part in _STAMPS
            for edge in ("start", "end")
        }
        times = times_of(query)
        found.append(
            {
                **stamps,
                "h2dMs": times.h2d,
                "computeMs": times.compute,
                "d2hMs": times.d2h,
                "latencyMs": times.latency,
            }
        )
    return found
