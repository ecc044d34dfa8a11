"""``--requestRate``: latency of requests against throughput, and ``--sweepBatch``: a table of batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.batching import BatchingOptions, BatchingResult
from trtcli.report.statistics import number, summarize

SCHEMA = 1
MOST_SIZES = 8  # batch sizes that the summary lists


def request_lines(result: BatchingResult, options: BatchingOptions, percentages: Sequence[float]) -> list[str]:
    """``=== Request summary ===``."""
    count = sum(result.batches.values())
    mean = sum(size * times for size, times in result.batches.items()) / count if count else 0.0
    common = sorted(result.batches.items(), key=lambda item: -item[0] * item[1])[:MOST_SIZES]
    shares = ", ".join(f"{size}: {times}" for size, times in sorted(common))
    lines = [
        "",
        "=== Request summary ===",
        f"Offered: {number(options.rate)} requests/s (Poisson arrivals), queue delay at most {number(options.max_delay)} ms, "
        f"batch at most {options.max_batch}",
        f"Served: {len(result.requests)} requests in {count} batches over {number(result.walltime)} s, mean batch {number(mean)}",
        f"Throughput: {number(result.throughput)} requests/s",
    ]
    for name, metric in (("Request Latency", "latency"), ("Queue Time", "queue"), ("Batch Time", "compute")):
        lines.append(summarize([getattr(one, metric) for one in result.requests], percentages).line(name))
    lines.append(f"Batches (size: count): {shares or 'none'}" + (", ..." if len(result.batches) > MOST_SIZES else ""))
    if result.graphs:
        lines.append(f"CUDA graphs: {result.graphs}, {'of segments' if result.warnings else 'one per batch size'}")
    return lines


def request_warnings(result: BatchingResult) -> list[str]:
    """What makes the figures doubtful."""
    lines = [*result.warnings]
    if result.unserved > max(8, len(result.requests) // 100):
        lines += [
            f"* {result.unserved} requests were still waiting at the end: more arrive than can be served.",
            "  Latencies grow with --duration; lower --requestRate, or raise --maxBatch or --infStreams.",
        ]
    if result.late:
        lines.append(f"* {result.late} batches had a size that was not prepared ahead: they captured a graph first.")
    return lines


def requests_json(result: BatchingResult) -> list[dict[str, float | int]]:
    """One object per request, milliseconds."""
    return [
        {
            "arrivalMs": one.arrival,
            "startMs": one.start,
            "endMs": one.end,
            "queueMs": one.queue,
            "computeMs": one.compute,
            "latencyMs": one.latency,
            "batch": one.batch,
        }
        for one in result.requests
    ]


@dataclass(frozen=True)
class SweepRow:
    """One batch size: queries per second, median latency and GPU time and one high percentile of the latency, in ms."""

    batch: int
    throughput: float
    latency: float
    compute: float
    high: float
    percentage: float = 99.0

    @property
    def items(self) -> float:
        """Batch entries per second."""
        return self.batch * self.throughput


def sweep_lines(rows: Sequence[SweepRow]) -> list[str]:
    """The table, the fastest row marked, and where nine tenths of its throughput begin."""
    lines = ["", "=== Batch sweep ===", "  Batch  Latency(ms)  p99(ms)  Compute(ms)  Queries/s    Items/s  us/item"]
    if rows:
        lines[-1] = lines[-1].replace("p99", f"p{rows[0].percentage:g}")
    best = max(rows, key=lambda row: row.items, default=None)
    for row in rows:
        per_item = 1e6 / row.items if row.items else 0.0
        lines.append(
            f"{'*' if row is best else ' '} {row.batch:5}  {row.latency:11.4g}  {row.high:7.4g}  {row.compute:11.4g}  {row.throughput:9.5g}  "
            f"{row.items:9.5g}  {per_item:7.4g}"
        )
    if best is not None:
        enough = next(row for row in rows if row.items >= 0.9 * best.items)
        lines.append(
            f"Batch {best.batch} is the fastest: {number(best.items)} items/s; 90 % of that from batch {enough.batch} on, "
            f"at {number(enough.latency)} ms"
        )
    return lines


def sweep_json(rows: Sequence[SweepRow]) -> Mapping[str, Any]:
    """``schema`` and the rows."""
    return {
        "schema": SCHEMA,
        "batches": [
            {
                "batch": row.batch,
                "queriesPerSecond": row.throughput,
                "itemsPerSecond": row.items,
                "latencyMs": row.latency,
                "computeMs": row.compute,
                "percentile": row.percentage,
                "percentileMs": row.high,
            }
            for row in rows
        ],
    }
