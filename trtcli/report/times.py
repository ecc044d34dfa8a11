"""``--exportTimes``: every query's times, with trtexec's keys."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.benchmark import Query


def times_json(queries: Sequence[Query]) -> list[dict[str, float]]:
    """One object per query, milliseconds."""
    return [
        {
            "startEnqMs": query.start_enqueue,
            "endEnqMs": query.end_enqueue,
            "startH2dMs": query.start_h2d,
            "endH2dMs": query.end_h2d,
            "startComputeMs": query.start_compute,
            "endComputeMs": query.end_compute,
            "startD2hMs": query.start_d2h,
            "endD2hMs": query.end_d2h,
            "h2dMs": query.h2d,
            "computeMs": query.compute,
            "d2hMs": query.d2h,
            "latencyMs": query.latency,
        }
        for query in queries
    ]
