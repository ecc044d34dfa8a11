"""``trtcli inspect``: what an engine consists of, or what would become of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtcli.answer import answer
from trtcli.errors import PASSED
from trtcli.files import write_json
from trtcli.log import Log
from trtcli.parse import Parsed
from trtcli.session.given import check_files

if TYPE_CHECKING:
    from runtime.engine import Engine


# What a model's fusion depends on, of the flags about a build.
_OBEYED = ("disableFusion", "inputIOFormats", "outputIOFormats", "fp16", "bf16", "layerPrecisions", "layerOutputTypes", "precisionConstraints")


def run(parsed: Parsed, log: Log) -> int:
    """Print it as text or JSON."""
    check_files(parsed.config)
    return _engine(parsed, log) if parsed.config.model.load_engine else _model(parsed, log)


def _engine(parsed: Parsed, log: Log) -> int:
    from runtime.engine import Engine
    from trtcli.report.inspection import engine_json, engine_lines
    from trtcli.report.whynot import why_not_lines

    engine: Engine = Engine.load(parsed.config.model.load_engine)
    report = parsed.config.report
    if report.why_not:
        _answers(parsed, {node: why_not_lines(engine, node) for node in report.why_not})
    else:
        answer(parsed, lambda: engine_json(engine), lambda: engine_lines(engine))
    if report.export_layer_info:
        write_json(report.export_layer_info, engine_json(engine))
    return PASSED


def _model(parsed: Parsed, log: Log) -> int:
    """A model is imported and fused, not built: quick, and no tactic is known."""
    from fusion.importer import import_with_report
    from fusion.io_formats import with_io_types
    from runtime.columns import TYPICAL, ask_kind
    from runtime.views import share_memory, with_missed_views
    from trtcli import host
    from trtcli.builder.fuse import fuse
    from trtcli.builder.io_formats import chosen_types
    from trtcli.builder.names import by_nodes
    from trtcli.report.inspection import model_json, model_lines
    from trtcli.report.whynot import why_not_in_network

    config = parsed.config
    if idle := parsed.builds_in_vain(*_OBEYED):
        log.warning(f"A model is inspected, not built: no effect of {idle}")
    gpu = config.system.device != "cpu" and bool(host.cuda_version())
    network, facts = import_with_report(Path(config.model.onnx))
    network = with_io_types(network, chosen_types(network, config.build))
    device = "cuda" if gpu else "cpu"
    fused = fuse(network, config.build, device, log)
    build = by_nodes(network, fused, config.build)
    if build != config.build:
        fused = fuse(network, build, device, log)
    sharing = share_memory(fused.network, ask=ask_kind(fused.network, TYPICAL[device]), disabled=build.disabled_fusions)
    fused = replace(fused, misses=with_missed_views(fused.misses, fused.network, sharing))
    if config.report.why_not:
        _answers(parsed, {node: why_not_in_network(fused.network, fused.misses, node) for node in config.report.why_not})
    else:
        answer(parsed, lambda: model_json(facts, fused), lambda: model_lines(facts, network, fused))
    if config.report.export_layer_info:
        write_json(config.report.export_layer_info, model_json(facts, fused))
    return PASSED


def _answers(parsed: Parsed, answers: dict[str, list[str]]) -> None:
    """What ``--whyNot`` asked for, node by node."""
    answer(
        parsed,
        lambda: {"schema": 1, "WhyNot": [{"Node": node, "Lines": lines} for node, lines in answers.items()]},
        lambda: [line for lines in answers.values() for line in lines],
    )
