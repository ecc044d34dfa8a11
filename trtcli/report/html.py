"""``--exportReport``: one self-contained HTML page; tables and hand-written SVG, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from runtime.batching import BatchingResult
from runtime.benchmark import Query
from runtime.engine import Engine
from runtime.profiler import Profile
from runtime.segments import layer_count
from trtcli.report.layers import Shapes, io_tensors, layer_objects
from trtcli.report.requests import SweepRow
from trtcli.report.statistics import Summary, number, summarize
from trtcli.report.summary import Performance

BINS = 48
MOST_POINTS = 800  # of the trace: more queries are drawn as the largest of each stretch
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 760, 240, 62, 34

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--paper:#fff;--soft:#6b7280;--line:#d6d9de;--main:#2f6f4f;--warm:#b4532a;--cool:#2b5f9e}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#15171a;--soft:#9aa1ab;--line:#363a41;--main:#6fbf94;--warm:#e08a5f;--cool:#7fb0ea}}
body{font:14px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;max-width:64rem;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.2rem .5rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}.soft{color:var(--soft)}code{font-size:.85em;overflow-wrap:anywhere}
.bar{display:inline-block;height:.6em;background:var(--main);min-width:1px}
svg{width:100%;height:auto}svg text{fill:var(--ink);font-size:11px}svg .axis{stroke:var(--line)}svg .soft{fill:var(--soft)}
.memory{fill:var(--main)}.compute{fill:var(--cool)}.launch{fill:var(--warm)}
"""


def report_html(
    engine: Engine,
    shapes: Shapes,
    command_line: str,
    performance: Performance,
    queries: Sequence[Query],
    profile: Profile | None,
    warnings: Sequence[str] = (),
) -> str:
    """The page: what ran where, its speed and distribution, every layer, and how far each stands from the hardware's limit."""
    layers = _layers(engine, shapes, profile)
    return _page(engine, command_line, [
        _facts(engine, shapes),
        "<h2>Performance</h2>",
        _performance(performance),
        *(f"<p>{escape(line.strip())}</p>" for line in warnings),
        "<h2>Latency</h2>",
        _histogram([one.latency for one in queries], performance.latency, "queries"),
        _trace(queries),
        "<h2>Layers against the hardware's limit</h2>",
        _roofline(layers),
        "<h2>Layers</h2>",
        _layer_table(layers),
    ])  # fmt: skip


def sweep_html(engine: Engine, shapes: Shapes, command_line: str, rows: Sequence[SweepRow]) -> str:
    """The page of ``--sweepBatch``: throughput and latency over the batch."""
    cells = [
        (str(row.batch), number(row.latency), number(row.high), number(row.compute), number(row.throughput), number(row.items))
        for row in rows
    ]
    high = f"p{rows[0].percentage:g} ms" if rows else "ms"
    head = ("Batch", "Latency ms", high, "Compute ms", "Queries/s", "Items/s")
    return _page(engine, command_line, [
        _facts(engine, shapes),
        "<h2>Batch sweep</h2>",
        _table(head, cells, numbers=range(len(head))),
        _curve("Throughput over the batch, items/s", [(row.batch, row.items) for row in rows], "batch", "items/s"),
        _curve("Median latency over the batch, ms", [(row.batch, row.latency) for row in rows], "batch", "ms"),
    ])  # fmt: skip


def requests_html(
    engine: Engine, shapes: Shapes, command_line: str, lines: Sequence[str], result: BatchingResult, percentages: Sequence[float]
) -> str:
    """The page of ``--requestRate``: the summary's lines, the distribution of latencies, how large batches were."""
    latencies = [one.latency for one in result.requests]
    batches = [(float(size), float(count)) for size, count in result.batches.items()]
    return _page(engine, command_line, [
        _facts(engine, shapes),
        "<h2>Requests</h2>",
        *(f"<p>{escape(line)}</p>" for line in lines if line and not line.startswith("===")),
        _histogram(latencies, summarize(latencies, percentages), "requests"),
        _curve("Batches by their number of requests", batches, "requests in a batch", "batches"),
    ])  # fmt: skip


def _page(engine: Engine, command_line: str, parts: Sequence[str]) -> str:
    title = f"{engine.record.get('model', engine.network.name)} on {engine.device.name}"
    parts = [f"<h1>{escape(str(title))}</h1>", f"<p class=soft><code>{escape(command_line)}</code></p>", *parts]
    return (
        f"<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(str(title))}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


@dataclass(frozen=True)
class _Layer:
    name: str
    kind: str
    tactic: str
    stream: int
    ms: float  # NaN when it was not timed
    floor: float
    bound: str
    origins: tuple[str, ...]
    fusions: tuple[str, ...]


def _layers(engine: Engine, shapes: Shapes, profile: Profile | None) -> list[_Layer]:
    """Every layer with its time: as profiled, else as its tactic was timed alone."""
    profiled = {} if profile is None else {one.name: one.median for one in profile.layers}
    found = []
    for one in layer_objects(engine, shapes):
        alone = math.nan if one["TimeMs"] is None else one["TimeMs"]
        found.append(
            _Layer(
                one["Name"], one["LayerType"], one["TacticName"], one["StreamId"], profiled.get(one["Name"], alone),
                one["FloorMs"] or 0.0, one["Bound"], tuple(one["Origins"]), tuple(one["Fusions"]),
            )
        )  # fmt: skip
    return found


# --- tables ----------------------------------------------------------------------------------------------------------


def _facts(engine: Engine, shapes: Shapes) -> str:
    record = engine.record
    device = engine.device
    rows = [
        ("Device", f"{device.name} ({device.arch}{', ' + device.share if device.share else ''})"),
        ("Engine", f"{layer_count(engine.network)} layers from {record.get('nodes', '?')} ONNX nodes, {engine.num_aux_streams + 1} stream(s), "
                   f"built by trtcli {record.get('trtcli', '?')} on {record.get('date', '?')}"),
    ]  # fmt: skip
    for one in io_tensors(engine, shapes):
        layout = f", {engine.network.formats[one['Name']]}" if one["Name"] in engine.network.formats else ""
        rows.append((one["IOMode"], f"{one['Name']}: {one['DataType']} {'x'.join(map(str, one['Dimensions'])) or 'scalar'}{layout}"))
    return _table((), [(escape(name), escape(text)) for name, text in rows])


def _performance(performance: Performance) -> str:
    rows = []
    for name, one in (("Latency", performance.latency), ("GPU compute", performance.compute), ("Enqueue", performance.enqueue),
                      ("Copy to device", performance.h2d), ("Copy to host", performance.d2h)):  # fmt: skip
        values = [one.minimum, one.mean, one.median, *(value for _, value in one.percentiles), one.maximum]
        rows.append((name, *(number(value) for value in values)))
    head = ("ms", "min", "mean", "median", *(f"p{percentage:g}" for percentage, _ in performance.latency.percentiles), "max")
    return (
        f"<p><b>{number(performance.throughput)}</b> queries/s, {performance.queries} queries over {number(performance.host_walltime)} s</p>"
        + _table(head, rows, numbers=range(1, len(head)))
    )


def _layer_table(layers: Sequence[_Layer]) -> str:
    total = math.fsum(one.ms for one in layers if not math.isnan(one.ms)) or 1.0
    rows = []
    for index, one in enumerate(layers):
        timed = not math.isnan(one.ms)
        share = 100 * one.ms / total if timed else 0.0
        what = f"<b>{escape(one.name)}</b><br><span class=soft>{escape(one.kind)} · <code>{escape(one.tactic)}</code></span>"
        if one.fusions:
            what += f"<br><span class=soft>{escape(', '.join(one.fusions))}: {escape(', '.join(one.origins))}</span>"
        rows.append(
            (
                str(index), what, str(one.stream),
                f"{one.ms * 1e3:.2f}" if timed else "-",
                f"<span class=bar style='width:{share:.1f}px'></span> {share:.1f} %" if timed else "-",
                f"{one.floor * 1e3:.2f}",
                f"{one.ms / one.floor:.1f}x {escape(one.bound)}" if timed and one.floor else "-",
            )
        )  # fmt: skip
    return _table(("#", "Layer", "Stream", "us", "Share", "Floor us", "Of floor"), rows, numbers=(0, 2, 3, 5))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] | range = ()) -> str:
    """Cells are HTML already."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' if column in numbers else ''}>{cell}</{tag}>" for column, cell in enumerate(row))

    top = f"<tr>{cells('th', head)}</tr>" if head else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


# --- pictures --------------------------------------------------------------------------------------------------------


def _histogram(latencies: Sequence[float], summary: Summary, what: str) -> str:
    """How often each latency came, up to the 99.9th percentile, with the percentiles marked."""
    if not latencies:
        return f"<p>No {what} were measured.</p>"
    ordered = sorted(latencies)
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(len(ordered) * 0.999))]
    width = (high - low) / BINS or 1e-9
    counts = [0] * BINS
    for value in ordered:
        counts[min(BINS - 1, int((value - low) / width))] += 1
    most = max(counts)
    step = (_WIDTH - _LEFT) / BINS
    bars = "".join(
        f"<rect class=memory x={_LEFT + index * step:.1f} y={_HEIGHT - _BOTTOM - _tall(count, most):.1f} width={max(1.0, step - 1):.1f} "
        f"height={_tall(count, most):.1f}><title>{low + index * width:.4g} to {low + (index + 1) * width:.4g} ms: {count}</title></rect>"
        for index, count in enumerate(counts) if count
    )  # fmt: skip
    marks = ""
    for name, value in (("median", summary.median), *((f"p{p:g}", value) for p, value in summary.percentiles)):
        if low <= value <= high:
            x = _LEFT + (value - low) / (BINS * width) * (_WIDTH - _LEFT)
            marks += f"<line class=axis x1={x:.1f} x2={x:.1f} y1=14 y2={_HEIGHT - _BOTTOM} /><text x={x + 2:.1f} y=22>{name}</text>"
    return _picture(f"Latency distribution of {len(ordered)} {what}", bars + marks, (low, low + BINS * width), "ms", f"{most} {what}")


def _curve(title: str, points: Sequence[tuple[float, float]], across: str, up: str) -> str:
    """Points joined by lines, both axes from zero."""
    if not points:
        return ""
    right, top = max(x for x, _ in points) or 1.0, max(y for _, y in points) or 1.0
    places = [
        (_LEFT + x / right * (_WIDTH - _LEFT - 8), _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 24) * y / top, x, y) for x, y in sorted(points)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    dots = "".join(f"<circle class=compute cx={x:.1f} cy={y:.1f} r=3><title>{a:g}: {b:.5g}</title></circle>" for x, y, a, b in places)
    drawn = f"<polyline points='{line}' fill=none stroke='var(--cool)' stroke-width=1 />{dots}"
    return _picture(title, drawn, (0.0, right), across, f"{top:.5g} {up}")


def _tall(count: int, most: int) -> float:
    return (_HEIGHT - _BOTTOM - 24) * count / most


def _trace(queries: Sequence[Query]) -> str:
    """Latency over time."""
    if len(queries) < 2:
        return ""
    stretch = math.ceil(len(queries) / MOST_POINTS)
    points = [max(queries[first : first + stretch], key=lambda one: one.latency) for first in range(0, len(queries), stretch)]
    begin, end = points[0].start_compute, points[-1].start_compute or 1.0
    top = max(one.latency for one in points) or 1.0
    line = " ".join(
        f"{_LEFT + (one.start_compute - begin) / ((end - begin) or 1.0) * (_WIDTH - _LEFT):.1f},"
        f"{_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 24) * one.latency / top:.1f}"
        for one in points
    )
    line = f"<polyline points='{line}' fill=none stroke='var(--cool)' stroke-width=1 />"
    what = "Latency over time" + (f" (the largest of every {stretch} queries)" if stretch > 1 else "")
    return _picture(what, line, (begin, end), "ms since the start", f"{top:.4g} ms")


def _roofline(layers: Sequence[_Layer]) -> str:
    """Measured time over the floor, both logarithmic: a point on the lower diagonal is at the hardware's limit."""
    points = [one for one in layers if one.floor > 0 and not math.isnan(one.ms) and one.ms > 0]
    if not points:
        return "<p>No layer was timed.</p>"
    values = [value for one in points for value in (one.floor, one.ms)]
    low, high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1
    side, height = _WIDTH - _LEFT, 420

    def place(floor: float, ms: float) -> tuple[float, float]:
        x = _LEFT + (math.log10(floor) - low) / (high - low) * side
        y = height - _BOTTOM - (math.log10(ms) - low) / (high - low) * (height - _BOTTOM - 16)
        return x, y

    drawn = ""
    for factor in (1, 2, 4):
        (x1, y1), (x2, y2) = place(10**low, factor * 10**low), place(10**high / factor, 10**high)
        drawn += f"<line class=axis x1={x1:.1f} y1={y1:.1f} x2={x2:.1f} y2={y2:.1f} /><text class=soft x={x2 - 24:.1f} y={y2 + 24:.1f}>{factor}x</text>"
    for one in points:
        x, y = place(one.floor, one.ms)
        drawn += (
            f"<circle class={escape(one.bound)} cx={x:.1f} cy={y:.1f} r=4><title>{escape(one.name)}: {one.ms * 1e3:.2f} us, "
            f"floor {one.floor * 1e3:.2f} us ({one.ms / one.floor:.1f}x, {escape(one.bound)} bound)</title></circle>"
        )
    x = _LEFT
    for bound in ("memory", "compute", "launch"):
        drawn += f"<circle class={bound} cx={x + 8} cy=12 r=4 /><text x={x + 16} y=16>{bound} bound</text>"
        x += 110
    frame = (10 ** (low + 3), 10 ** (high + 3))
    return _picture("Measured time (up) over the floor (right), us, logarithmic", drawn, frame, "us floor", f"{frame[1]:.3g} us", height)


def _picture(title: str, content: str, across: tuple[float, float], unit: str, top: str, height: int = _HEIGHT) -> str:
    """A frame with its title, the ends of the horizontal axis and the top of the vertical one."""
    bottom = height - _BOTTOM
    return (
        f"<figure style='margin:1rem 0'><figcaption class=soft>{escape(title)}</figcaption>"
        f"<svg viewBox='0 0 {_WIDTH} {height}' role=img aria-label='{escape(title, quote=True)}'>"
        f"<line class=axis x1={_LEFT} x2={_WIDTH} y1={bottom} y2={bottom} /><line class=axis x1={_LEFT} x2={_LEFT} y1=14 y2={bottom} />"
        f"<text class=soft x=2 y=24>{escape(top)}</text><text x={_LEFT} y={height - 14}>{across[0]:.4g}</text>"
        f"<text x={_WIDTH - 4} y={height - 14} text-anchor=end>{across[1]:.4g} {escape(unit)}</text>{content}</svg></figure>"
    )
