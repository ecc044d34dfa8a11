"""``trtcli inspect``: an engine or a model on one page of at most 100 columns, and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from fusion.importer import ImportReport
from fusion.network import ControlFlow, Network
from fusion.passes import FusionResult
from runtime.engine import ROW_MAJOR, Engine, EngineError, LayerPlan
from runtime.memory import MemoryPlan
from runtime.most_memory import UnboundedError, most_memory
from runtime.resolution import largest
from runtime.segments import layer_count
from runtime.views import VIEW
from tactics.tactic import tactic_label
from trtcli.report.building import activations, counted
from trtcli.report.layers import (
    SCHEMA,
    alignment_of,
    io_tensors,
    layer_info_json,
    layer_objects,
    stream_branches,
)
from trtcli.report.padding import padding_lines
from trtcli.report.reformats import reformat_reason
from trtcli.report.whynot import Missed, all_fates, megabytes, missed_fusions, missed_in_network, missed_json
from trtcli.shapes import text

WIDTH = 100


def engine_lines(engine: Engine) -> list[str]:
    """The engine: where it comes from, its inputs and outputs, its layers with tactic, time and floor."""
    record = engine.record
    total = _total(engine)
    lines = [
        f"Engine of {record.get('model', engine.network.name)}, built by trtcli {record.get('trtcli', '?')} "
        f"on {record.get('date', '?')}",
        f"for {engine.device.name} ({engine.device.arch}), {engine.num_aux_streams + 1} stream(s), "
        f"{_mebibytes(sum(array.nbytes for array in engine.weights.values()))} weights, "
        f"{len(engine.kernels)} kernels ({_mebibytes(sum(map(len, engine.kernels.values())))})",
        "",
    ]
    for one in io_tensors(engine):
        shapes = [
            text(tuple(profile[key])) for profile in one["ProfileInfo"][:1] for key in ("MinShape", "OptShape", "MaxShape")
        ]
        layout = f", {engine.network.formats[one['Name']]}" if one["Name"] in engine.network.formats else ""
        ranges = "" if len(set(shapes)) < 2 else f"  min {shapes[0]}, opt {shapes[1]}, max {shapes[2]}"
        lines.append(f"{one['IOMode']:<7} {one['Name']}  {one['DataType']} {text(tuple(one['Dimensions']))}{ranges}{layout}")
    lines += ["", *_memory_lines(engine)]
    lines += ["", *_layer_table(engine, total), *_profile_lines(engine), *_alignment_lines(engine), *padding_lines(engine), *_source_lines(engine), *_reformat_lines(engine), *_stream_lines(engine), "", _fates_line(engine.network)]
    return [*lines, *_missed_lines(missed_fusions(engine), total)]


def _memory_lines(engine: Engine) -> list[str]:
    """What activations and workspaces need at the largest shapes: the arena, all without sharing, and the largest live set."""
    several = len(engine.profiles) > 1
    if engine.is_segmented:
        return [f"Memory: {activations(engine)}"]
    return [
        f"Memory{f' (profile {number})' if several else ''}: peak {_mebibytes(plan.size)}, sum {_mebibytes(plan.total)}, "
        f"lower bound {_mebibytes(plan.lower_bound)}"
        for number, plan in enumerate(_memory_plans(engine))
    ]


def _memory_json(engine: Engine) -> list[dict[str, Any]]:
    """Per profile what is planned; where the host steps in a bound, or why there is none."""
    if not engine.is_segmented:
        return [
            {"Profile": number, "PeakBytes": plan.size, "SumBytes": plan.total, "LowerBoundBytes": plan.lower_bound}
            for number, plan in enumerate(_memory_plans(engine))
        ]
    found: list[dict[str, Any]] = []
    for number in range(len(engine.profiles)):
        try:
            found.append({"Profile": number, "BoundBytes": most_memory(engine, number)})
        except UnboundedError as error:
            found.append({"Profile": number, "Unbounded": error.why})
    return found


def _memory_plans(engine: Engine) -> list[MemoryPlan]:
    try:
        return [largest(engine, number).memory for number in range(len(engine.profiles))]
    except EngineError:  # an engine of another version: the rest of it can still be shown
        return []


def _stream_lines(engine: Engine) -> list[str]:
    """Which branches run on auxiliary streams, and why others do not: one line each, the first few."""
    branches = stream_branches(engine)
    lines = []
    for branch in branches[:_MOST_BRANCHES]:
        names = _cut(" -> ".join(branch["layers"]), 40)
        where = f"on stream {branch['stream']}" if branch["stream"] else f"on the main stream: {branch['reason']}"
        lines += wrap(f"branch {names} {where}", WIDTH, initial_indent="     ", subsequent_indent="       ")
    if len(branches) > _MOST_BRANCHES:
        lines.append(f"     and {len(branches) - _MOST_BRANCHES} more branches (--json shows all)")
    return lines


def _alignment_lines(engine: Engine) -> list[str]:
    """The layers whose dimensions tensor cores pad: one line each, the first few."""
    found = [(layer.name, note) for layer in engine.network.layers for note in alignment_of(engine, layer)]
    lines = [f"     {_cut(name, 40)}: {note}" for name, note in found[:_MOST_NOTES]]
    if len(found) > _MOST_NOTES:
        lines.append(f"     and {len(found) - _MOST_NOTES} more such dimensions (--json shows all)")
    return lines


def _reformat_lines(engine: Engine) -> list[str]:
    """What changes of layout cost, and why there are any: one line each, the first few."""
    run = [(layer, plan) for layer, plan in zip(engine.network.layers, engine.layers, strict=True) if plan.tactic != VIEW]
    found = [(plan.seconds, reason) for layer, plan in run if (reason := reformat_reason(engine, layer))]
    if not found:
        return []
    total = sum(seconds for seconds, _ in found if not math.isnan(seconds))
    lines = [f"     {len(found)} reformat{'s' if len(found) > 1 else ''}, {_time(total)}:"]
    for seconds, reason in found[:_MOST_NOTES]:
        lines += wrap(f"{seconds * 1e6:.1f} us {reason}", WIDTH, initial_indent="       ", subsequent_indent="         ")
    return [*lines, *([f"       and {len(found) - _MOST_NOTES} more (--json shows all)"] if len(found) > _MOST_NOTES else [])]


def _source_lines(engine: Engine) -> list[str]:
    """Which source won the layers that libraries competed for, and what each would take for all of them."""
    contested = [dict(plan.sources) for plan in engine.layers if len(plan.sources) > 1]
    if not contested:
        return []
    won = Counter(next(iter(one)) for one in contested)
    best = sum(min(one.values()) for one in contested)
    own = sum(one["own"] for one in contested if "own" in one)
    parts = ", ".join(f"{count} by {'kernels of our own' if name == 'own' else name}" for name, count in won.most_common())
    return [f"     libraries competed for {len(contested)} layers: {parts}; {_time(best)}, {_time(own)} without libraries"]


_MOST_NOTES = 6
_MOST_BRANCHES = 8
_HEAD = ("  #", "Layer", "Type", "Tactic", "us", "%", "of floor")


def _layer_table(engine: Engine, total: float) -> list[str]:
    rows = _layer_rows(engine, total)
    inner = len(rows) - len(engine.layers)
    inside = f" and {inner} inside of them" if inner else ""
    lines = _table(_HEAD, rows, stretch=1, right=(4, 5))
    times = f"{_time(total)} (each timed alone, at the optimal shapes)" if total else "not timed"
    return [*lines, f"     {counted(len(engine.layers), 'layer')}{inside}, {times}"]


def _layer_rows(engine: Engine, total: float, inside: bool = False) -> list[tuple[str, ...]]:
    """A row for every layer; those of the networks ``inside`` of a branch or loop follow it without a number, and without a share: nobody
    knows how often they run."""
    rows: list[tuple[str, ...]] = []
    for number, (layer, plan) in enumerate(zip(engine.network.layers, engine.layers, strict=True)):
        timed = not math.isnan(plan.seconds)
        kind = layer.op.layer_type or type(layer.op).__name__
        rows.append(
            (
                "" if inside else f"{number:3}",
                layer.name,
                kind,
                plan.tactic.removeprefix(f"{engine.device.kind}."),
                f"{plan.seconds * 1e6:.1f}" if timed else "-",
                f"{100 * plan.seconds / total:.1f}" if timed and total and not inside else "-",
                f"{plan.seconds / plan.floor:.1f}x {plan.bound}" if timed and plan.floor > 0 and plan.seconds else "-",
            )
        )
        for body in plan.bodies:
            rows += _layer_rows(body, total, inside=True)
    return rows


def _profile_lines(engine: Engine) -> list[str]:
    """Where other optimization profiles have another tactic than profile 0, whose tactics the table shows."""
    lines = []
    for number in range(1, len(engine.profiles)):
        plans = engine.decisions(number)
        others = [(layer, plan) for layer, plan, first in zip(engine.network.layers, plans, engine.layers, strict=True) if _choice(plan) != _choice(first)]
        total = math.fsum(plan.seconds for plan in plans if not math.isnan(plan.seconds))
        lines.append(f"     profile {number}: {_time(total)}; {len(others)} layers have another tactic or configuration")
        for layer, plan in others[:SHOWN]:
            label = tactic_label(plan.tactic.removeprefix(f"{engine.device.kind}."), plan.config)
            lines.append(f"       {_cut(layer.name, 40)}  {_cut(label, WIDTH - 49)}")
        if len(others) > SHOWN:
            lines.append(f"       and {len(others) - SHOWN} more (--json shows all)")
    return lines


def _choice(plan: LayerPlan) -> tuple[object, ...]:
    return plan.tactic, plan.config


SHOWN = 10  # missed fusions on the page; JSON has them all


def _missed_lines(missed: Sequence[Missed], total: float = 0.0) -> list[str]:
    """The dearest missed fusions: what their tensors cost to write and read again, the rule, where, and why not."""
    if not missed:
        return []
    lines = ["", "Missed fusions, and what their tensors cost to write and read:"]
    for one in missed[:SHOWN]:
        cost = "" if one.seconds is None else f"{one.seconds * 1e6:8.1f} us" + (f" {100 * one.seconds / total:5.1f} %" if total else "")
        traffic = "unknown size" if one.bytes is None else megabytes(one.bytes)
        head = f"{cost}  {traffic:>12}  {one.miss.rule}: "
        lines.append(head + _cut(", ".join(one.miss.layers), WIDTH - len(head)))
        reason = f"      {one.miss.condition}: {one.miss.detail}"
        lines.append(reason if len(reason) <= WIDTH else f"{reason[: WIDTH - 1]}…")
    return [*lines, f"  and {len(missed) - SHOWN} more: --json lists them all"] if len(missed) > SHOWN else lines


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-2 else f"{seconds * 1e3:.1f} ms"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], stretch: int, right: Sequence[int]) -> list[str]:
    """Columns two spaces apart; column ``stretch`` is cut so that lines fit the width."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    others = sum(width for column, width in enumerate(widths) if column != stretch) + 2 * (len(head) - 1)
    widths[stretch] = min(widths[stretch], max(20, WIDTH - others))
    lines = []
    for row in (head, *rows):
        cells = [
            _cut(cell, width).rjust(width) if column in right else _cut(cell, width).ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _cut(cell: str, width: int) -> str:
    """``cell`` in at most ``width`` columns: the middle gives way, since names differ at their ends."""
    if len(cell) <= width:
        return cell
    left = (width - 1) // 2
    return f"{cell[:left]}…{cell[len(cell) - (width - 1 - left):]}"


def _fates_line(network: Network) -> str:
    fates = all_fates(network)
    counts = Counter(fate.kind for fate in fates.values())
    words = {"layer": "in layers", "folded": "folded", "no-op": "did nothing", "dead": "removed"}
    parts = ", ".join(f"{counts[kind]} {word}" for kind, word in words.items() if counts[kind])
    return f"{counted(len(fates), 'ONNX node')}: {parts}"


def _total(engine: Engine) -> float:
    return math.fsum(plan.seconds for plan in engine.layers if not math.isnan(plan.seconds))


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def engine_json(engine: Engine) -> dict[str, Any]:
    """Layer information with every layer as an object, and what became of every ONNX node."""
    return {
        **layer_info_json(engine),
        "Layers": layer_objects(engine, {name: one.opt for name, one in engine.profiles[0].items()}),
        "Nodes": {name: {"Fate": fate.kind, "Layer": fate.layer} for name, fate in all_fates(engine.network).items()},
        "MissedFusions": missed_json(missed_fusions(engine)),
        "Memory": _memory_json(engine),
        "OtherProfiles": [
            {
                "Profile": number,
                "Layers": [
                    {
                        "Name": layer.name,
                        "TacticName": tactic_label(plan.tactic, plan.config),
                        "TimeMs": None if math.isnan(plan.seconds) else plan.seconds * 1e3,
                    }
                    for layer, plan in zip(engine.network.layers, engine.decisions(number), strict=True)
                ],
            }
            for number in range(1, len(engine.profiles))
        ],
        "WeightBytes": sum(array.nbytes for array in engine.weights.values()),
        "KernelBytes": sum(map(len, engine.kernels.values())),
        "Record": {key: value for key, value in engine.record.items() if key != "misses"},
    }


# --- models ----------------------------------------------------------------------------------------------------------


def model_lines(facts: ImportReport, imported: Network, fused: FusionResult) -> list[str]:
    """The model: its inputs and outputs, and the layers that its nodes become. Nothing is built or timed."""
    network = fused.network
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts.opsets.items())
    lines = [
        f"Model {facts.name}: {counted(facts.nodes, 'node')}, {counted(facts.weights, 'weight')} ({_mebibytes(facts.weight_bytes)}), "
        f"opset {opsets}, IR {facts.ir_version}" + (f", by {facts.producer}" if facts.producer else ""),
        "",
    ]
    for mode, names in (("Input", network.inputs), ("Output", network.outputs)):
        for name in names:
            tensor = network.tensors[name]
            layout = f", {network.formats[name]}" if name in network.formats else ""
            lines.append(f"{mode:<7} {name}  {tensor.dtype.label} {text(network.io_shape(name))}{layout}")
    lines += ["", *_table(("  #", "Layer", "Type", "Output", "nodes"), _network_rows(network), stretch=1, right=(4,)), ""]
    lines.append(f"{counted(layer_count(imported), 'layer')} became {layer_count(network)}; {_fates_line(network)}")
    lines += [f"  {count:4} x {rule}" for rule, count in sorted(fused.counts.items(), key=lambda item: (-item[1], item[0]))]
    return [*lines, *_missed_lines(missed_in_network(network, fused.misses))]


def _network_rows(network: Network, inside: bool = False) -> list[tuple[str, ...]]:
    """A row for every layer; those ``inside`` of a branch or loop follow it without a number."""
    rows: list[tuple[str, ...]] = []
    for number, layer in enumerate(network.layers):
        kind = layer.op.layer_type or type(layer.op).__name__
        shape = text(network.tensors[layer.outputs[0]].shape) if layer.outputs else ""
        rows.append(("" if inside else f"{number:3}", layer.name, kind, shape, str(len(layer.origins))))
        for body in layer.op.bodies if isinstance(layer.op, ControlFlow) else ():
            rows += _network_rows(body, inside=True)
    return rows


def model_json(facts: ImportReport, fused: FusionResult) -> dict[str, Any]:
    """The same for programs."""
    network = fused.network
    return {
        "schema": SCHEMA,
        "Model": {
            "Name": facts.name,
            "Nodes": facts.nodes,
            "Opsets": dict(facts.opsets),
            "IRVersion": facts.ir_version,
            "Producer": facts.producer,
            "Weights": facts.weights,
            "WeightBytes": facts.weight_bytes,
        },
        "Layers": [
            {
                "Name": layer.name,
                "LayerType": layer.op.layer_type or type(layer.op).__name__,
                "Inputs": [name for name in layer.inputs if name not in network.constants],
                "Constants": [name for name in layer.inputs if name in network.constants],
                "Outputs": list(layer.outputs),
                "Origins": list(layer.origins),
                "Fusions": list(layer.fusions),
            }
            for layer in network.layers
        ],
        "I/O Tensors": [
            {
                "Name": name,
                "IOMode": mode,
                "DataType": network.tensors[name].dtype.label,
                "Dimensions": [dim if isinstance(dim, int) else str(dim) for dim in network.io_shape(name)],
                "Format": str(network.formats.get(name, ROW_MAJOR)),
            }
            for mode, names in (("Input", network.inputs), ("Output", network.outputs))
            for name in names
        ],
        "Nodes": {name: {"Fate": fate.kind, "Layer": fate.layer} for name, fate in all_fates(network).items()},
        "Fusions": dict(fused.counts),
        "MissedFusions": missed_json(missed_in_network(network, fused.misses)),
    }
