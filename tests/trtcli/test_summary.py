"""The performance summary: trtexec's statistics, blocks, numbers and warnings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.benchmark import BenchmarkResult, Query
from trtcli.config import Config
from trtcli.log import Log
from trtcli.report import summary
from trtcli.report.statistics import median, number, percentile, summarize
from trtcli.report.times import times_json
from trtcli.session.reporting import report_performance


def query(start: float, *, enqueue: float = 0.1, h2d: float = 0.0, compute: float = 1.0, d2h: float = 0.0) -> Query:
    first = start + h2d
    last = first + compute
    return Query(start, start + enqueue, start, first, first, last, last, last + d2h)


@pytest.mark.parametrize(
    ("count", "percentage", "index"),
    [(100, 99, 99), (10, 90, 8), (1000, 99, 990), (200, 99, 198), (10, 100, 9), (10, 0, 0), (1, 0, 0), (1, 50, 0),
     (1, 99, 0), (2, 50, 0), (3, 50, 1), (100, 90, 89), (100, 95, 94)],
)  # fmt: skip
def test_percentile_index(count: int, percentage: float, index: int) -> None:
    assert percentile(list(range(count)), percentage) == index


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.floats(0, 100))
def test_percentile_is_a_sample_between_the_extremes(values: list[float], percentage: float) -> None:
    ordered = sorted(values)
    assert percentile(ordered, percentage) in ordered
    assert percentile(ordered, 0) == ordered[0]
    assert percentile(ordered, 100) == ordered[-1]


def test_median() -> None:
    assert median([1, 2, 9]) == 2
    assert median([1, 2, 4, 9]) == 3
    assert median([]) == math.inf


def test_variation() -> None:
    assert summarize([5.0] * 7, ()).variation == 0
    assert summarize([0.0, 0.0], ()).variation == 0
    assert summarize([1.0, 3.0], ()).variation == pytest.approx(50)
    assert summarize([], (50,)).mean == math.inf


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1"), (0.74843751, "0.748438"), (1331.4321, "1331.43"), (3.0000004, "3"), (1234567.0, "1.23457e+06"),
     (0.00001234, "1.234e-05"), (math.inf, "inf")],
)  # fmt: skip
def test_six_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_golden_summary() -> None:
    queries = [query(2.0 * i, compute=1 + i / 8, h2d=0.25, d2h=0.125) for i in range(4)]
    performance = summary.measure(queries, (90, 95.5))
    assert summary.summary_lines(performance) == [
        "",
        "=== Performance summary ===",
        "Throughput: 516.129 qps",
        "Latency: min = 1.375 ms, max = 1.75 ms, mean = 1.5625 ms, median = 1.5625 ms, percentile(90%) = 1.75 ms, "
        "percentile(95.5%) = 1.75 ms",
        "Enqueue Time: min = 0.1 ms, max = 0.1 ms, mean = 0.1 ms, median = 0.1 ms, percentile(90%) = 0.1 ms, "
        "percentile(95.5%) = 0.1 ms",
        "H2D Latency: min = 0.25 ms, max = 0.25 ms, mean = 0.25 ms, median = 0.25 ms, percentile(90%) = 0.25 ms, "
        "percentile(95.5%) = 0.25 ms",
        "GPU Compute Time: min = 1 ms, max = 1.375 ms, mean = 1.1875 ms, median = 1.1875 ms, "
        "percentile(90%) = 1.375 ms, percentile(95.5%) = 1.375 ms",
        "D2H Latency: min = 0.125 ms, max = 0.125 ms, mean = 0.125 ms, median = 0.125 ms, "
        "percentile(90%) = 0.125 ms, percentile(95.5%) = 0.125 ms",
        "Total Host Walltime: 0.00775 s",
        "Total GPU Compute Time: 0.00475 s",
    ]


def test_no_queries_at_all() -> None:
    performance = summary.measure([], (99,))
    assert performance.queries == 0
    assert performance.throughput == 0
    assert performance.latency.median == math.inf
    assert summary.trace_lines([], 10)[-1] == "Trace averages of 10 runs:"


def test_trace_keeps_complete_groups_only() -> None:
    lines = summary.trace_lines([query(i, compute=i + 1) for i in range(5)], 2)
    assert lines == [
        "",
        "=== Trace details ===",
        "Trace averages of 2 runs:",
        "Average on 2 runs - GPU latency: 1.5 ms - Host latency: 1.5 ms (enqueue 0.1 ms)",
        "Average on 2 runs - GPU latency: 3.5 ms - Host latency: 3.5 ms (enqueue 0.1 ms)",
    ]


@pytest.mark.parametrize(("groups", "omitted"), [(400, 0), (401, 1), (1000, 600)])
def test_trace_omits_the_middle(groups: int, omitted: int) -> None:
    lines = summary.trace_lines([query(i) for i in range(groups)], 1)[3:]
    marks = [line for line in lines if line.startswith("...")]
    assert marks == ([f"... Omitting {omitted} lines"] if omitted else [])
    assert len(lines) == groups - omitted + len(marks)


@pytest.mark.parametrize(("terminal", "verbose", "shown"), [(True, False, 10), (True, True, 400), (False, False, 400)])
def test_a_terminal_shows_the_ends_of_the_trace(terminal: bool, verbose: bool, shown: int, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(Config(), report=replace(Config().report, avg_runs=1, verbose=verbose))
    report_performance(config, BenchmarkResult(tuple(query(i) for i in range(500)), 0, 0, (), {}), True, Log(terminal=terminal, verbose=verbose))
    out = capsys.readouterr().out
    assert out.count("Average on 1 runs") == shown and f"... Omitting {500 - shown} lines" in out


def warnings(queries: list[Query], **changes: bool | int) -> list[str]:
    options = {"cuda_graph": True, "transfers": True, "inf_streams": 1, "gpu": True, **changes}
    return [line for line in summary.warning_lines(summary.measure(queries, ()), **options) if line.startswith("*")]  # type: ignore[arg-type]


def test_enqueue_bound() -> None:
    assert not warnings([query(0, enqueue=0.5, compute=0.625)])  # exactly 0.8 times
    (line,) = warnings([query(0, enqueue=0.51, compute=0.625)])
    assert line.startswith("* Throughput may be bound by Enqueue Time rather than GPU Compute")
    assert not warnings([query(0, enqueue=0.51, compute=0.625)], gpu=False)
    text = "\n".join(
        summary.warning_lines(
            summary.measure([query(0, enqueue=9)], ()), cuda_graph=False, transfers=False, inf_streams=1
        )
    )
    assert "--noCudaGraph" in text


def test_transfer_bound() -> None:
    assert len(warnings([query(0, h2d=1, compute=1)])) == 1
    assert len(warnings([query(0, h2d=1, d2h=1, compute=1)])) == 2
    assert not warnings([query(0, h2d=0.99, compute=1)])
    assert not warnings([query(0, h2d=1, compute=1)], transfers=False)


def test_unstable() -> None:
    steady = [query(0, compute=0.975), query(1, compute=1.025)]  # 2.5 %
    shaky = [query(0, compute=0.974), query(1, compute=1.026)]  # 2.6 %
    assert summary.measure(steady, ()).compute.variation == pytest.approx(2.5)
    (line,) = warnings(shaky)
    assert line == "* GPU compute time is unstable, with coefficient of variance = 2.6%."


def test_several_streams() -> None:
    assert not warnings([query(0)], inf_streams=1)
    (line,) = warnings([query(0)], inf_streams=2)
    assert line.startswith("* Multiple inference streams are used.")


def test_times() -> None:
    assert times_json([query(2, h2d=0.5, compute=1, d2h=0.25)]) == [
        {
            "startEnqMs": 2.0, "endEnqMs": 2.1, "startH2dMs": 2.0, "endH2dMs": 2.5, "startComputeMs": 2.5,
            "endComputeMs": 3.5, "startD2hMs": 3.5, "endD2hMs": 3.75, "h2dMs": 0.5, "computeMs": 1.0, "d2hMs": 0.25,
            "latencyMs": 1.75,
        }
    ]  # fmt: skip
