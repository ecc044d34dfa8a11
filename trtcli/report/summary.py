"""The performance summary: trtexec's blocks, labels, order and warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.benchmark import Query
from trtcli.report.statistics import Summary, number, summarize


@dataclass(frozen=True)
class Performance:
    """All that the summary says, as numbers: times in milliseconds, totals in seconds, throughput in queries per second."""

    queries: int
    throughput: float
    latency: Summary
    enqueue: Summary
    h2d: Summary
    compute: Summary
    d2h: Summary
    host_walltime: float
    gpu_compute_time: float


def measure(queries: Sequence[Query], percentages: Sequence[float]) -> Performance:
    """The performance of the measured queries (those after the warm-up)."""
    walltime = (max(q.end_d2h for q in queries) - min(q.start_h2d for q in queries)) / 1e3 if queries else 0.0

    def of(metric: str) -> Summary:
        return summarize([getattr(one, metric) for one in queries], percentages)

    return Performance(
        queries=len(queries),
        throughput=len(queries) / walltime if walltime > 0 else math.inf if queries else 0.0,
        latency=of("latency"),
        enqueue=of("enqueue"),
        h2d=of("h2d"),
        compute=of("compute"),
        d2h=of("d2h"),
        host_walltime=walltime,
        gpu_compute_time=math.fsum(one.compute for one in queries) / 1e3,
    )


MOST_GROUPS = 200  # first and last groups of the trace that are printed, as by trtexec
FEW_GROUPS = 5  # at a terminal: what was said before them stays in sight


def trace_lines(queries: Sequence[Query], avg_runs: int, most: int = MOST_GROUPS) -> list[str]:
    """``=== Trace details ===``: averages over complete groups of ``avg_runs`` queries, the first and last ``most``."""
    groups = [queries[first : first + avg_runs] for first in range(0, len(queries) - avg_runs + 1, avg_runs)]
    lines = ["", "=== Trace details ===", f"Trace averages of {avg_runs} runs:"]
    omitted = len(groups) - 2 * most
    for index, group in enumerate(groups):
        if omitted > 0 and most <= index < len(groups) - most:
            if index == most:
                lines.append(f"... Omitting {omitted} lines")
            continue
        compute, latency, enqueue = (
            math.fsum(getattr(one, metric) for one in group) / avg_runs for metric in ("compute", "latency", "enqueue")
        )
        lines.append(
            f"Average on {avg_runs} runs - GPU latency: {number(compute)} ms - Host latency: {number(latency)} ms "
            f"(enqueue {number(enqueue)} ms)"
        )
    return lines


def summary_lines(performance: Performance) -> list[str]:
    """``=== Performance summary ===`` without its warnings."""
    return [
        "",
        "=== Performance summary ===",
        f"Throughput: {number(performance.throughput)} qps",
        performance.latency.line("Latency"),
        performance.enqueue.line("Enqueue Time"),
        performance.h2d.line("H2D Latency"),
        performance.compute.line("GPU Compute Time"),
        performance.d2h.line("D2H Latency"),
        f"Total Host Walltime: {number(performance.host_walltime)} s",
        f"Total GPU Compute Time: {number(performance.gpu_compute_time)} s",
    ]


def warning_lines(
    performance: Performance, *, cuda_graph: bool, transfers: bool, inf_streams: int, gpu: bool = True
) -> list[str]:
    """What makes the numbers doubtful or shows an easy gain, each with its advice.

    ``cuda_graph``: whether queries were graph launches; ``transfers``: whether they copied inputs and outputs; ``gpu``: False on
    the CPU device, where advice about graphs and clocks does not apply.
    """
    lines = []
    compute = performance.compute.median
    if gpu and performance.enqueue.median > 0.8 * compute:
        lines += [
            "* Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized.",
            "  The host's launches take as long as the GPU's work: "
            + ("larger batches help." if cuda_graph else "remove --noCudaGraph, or use larger batches."),
        ]
    for name, way, metric in (
        ("host-to-device transfers for the inputs", "H2D", performance.h2d),
        ("device-to-host transfers for the outputs", "D2H", performance.d2h),
    ):
        if transfers and metric.median >= compute:
            lines += [
                f"* Throughput may be bound by {name} rather than GPU Compute and the GPU may be under-utilized.",
                f"  {way} copies take as long as the computation: remove --includeDataTransfers to leave them out.",
            ]
    if performance.compute.variation > 2.5:
        lines += [
            f"* GPU compute time is unstable, with coefficient of variance = {number(performance.compute.variation)}%.",
            "  Lock the GPU's clocks (nvidia-smi -lgc), or keep other work off the GPU."
            if gpu
            else "  Keep other work off the CPU, or measure for longer (--duration).",
        ]
    if inf_streams > 1:
        lines += [
            "* Multiple inference streams are used. Latencies may not be accurate since they overlap.",
            "  Read Throughput instead.",
        ]
    return lines


EXPLANATIONS = (
    "",
    "=== Explanations of the performance metrics ===",
    "Total Host Walltime: from the start of the first measured query to the end of the last one.",
    "GPU Compute Time: time on the device to run the kernels of one query.",
    "Total GPU Compute Time: the sum of GPU Compute Time over all queries. Much below Total Host Walltime, the GPU idles.",
    "Throughput: queries divided by Total Host Walltime. One query is one inference, whatever its batch.",
    "Enqueue Time: host time to launch one query. When it nears GPU Compute Time, the host holds the GPU back.",
    "H2D Latency: time of the copies of one query's inputs to the device.",
    "D2H Latency: time of the copies of one query's outputs to the host.",
    "Latency: H2D Latency + GPU Compute Time + D2H Latency of one query.",
)
