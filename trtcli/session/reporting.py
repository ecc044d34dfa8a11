"""After an inference: what the flags of reports, profiles, debug tensors and references ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fusion.files import replacing
from trtcli.config import Config
from trtcli.files import FileNames, write_json, write_text
from trtcli.log import Log
from trtcli.session.inference import Shapes

if TYPE_CHECKING:
    from runtime.benchmark import BenchmarkResult
    from runtime.context import ExecutionContext
    from runtime.engine import Engine
    from runtime.profiler import Profile


def report_start(result: BenchmarkResult, gpu: bool, log: Log) -> None:
    """What came before the measured queries: the capture, or why there is none, and the first inference."""
    kind = "CUDA graph" if gpu else "graph of NumPy calls"
    if result.graph_nodes:
        log.info(f"{kind[0].upper()}{kind[1:]} captured: {result.graph_nodes} nodes")
    if result.segments:
        captured, replayed, plain = result.segments
        log.info(f"Segments: {captured} graphs captured; {replayed} segments replayed, {plain} enqueued layer by layer (sizes or addresses met once)")
    for text in result.warnings:
        log.warning(text)
    if result.first:
        capture = f", its {kind} {result.first.capture:.2f} ms" if result.first.capture else ""
        log.info(
            f"First inference after setting the shapes: {result.first.resolve:.2f} ms to resolve them, {result.first.run:.2f} ms to run"
            f"{capture} (not in the figures below)"
        )


def report_performance(config: Config, result: BenchmarkResult, gpu: bool, log: Log) -> None:
    """The performance summary, and the times of ``--exportTimes``."""
    from trtcli.report import summary
    from trtcli.report.statistics import number
    from trtcli.report.times import times_json

    report, inference = config.report, config.inference
    log.info(f"Warmup completed {result.warm_up_queries} queries over {number(inference.warm_up)} ms")
    performance = summary.measure(result.queries, report.percentiles)
    log.info(f"Timing trace has {performance.queries} queries over {number(performance.host_walltime)} s")
    most = summary.FEW_GROUPS if log.terminal and not report.verbose else summary.MOST_GROUPS
    lines = [*summary.trace_lines(result.queries, report.avg_runs, most), *summary.summary_lines(performance)]
    for line in lines:
        log.report(line)
    for line in summary.warning_lines(
        performance,
        cuda_graph=bool(result.graph_nodes),
        transfers=inference.data_transfers,
        inf_streams=inference.inf_streams,
        gpu=gpu,
    ):
        log.warning(line)
    if report.verbose:
        for line in summary.EXPLANATIONS:
            log.verbose(line)
    else:
        log.report("Explanations of the performance metrics are printed in the verbose logs.")
    if report.export_times:
        write_json(report.export_times, times_json(result.queries))


def report_page(
    config: Config, engine: Engine, shapes: Shapes, result: BenchmarkResult, profile: Profile | None, command_line: str, log: Log
) -> None:
    """The page of ``--exportReport``."""
    from trtcli.report.html import report_html
    from trtcli.report.summary import measure

    performance = measure(result.queries, config.report.percentiles)
    write_text(config.report.export_report, report_html(engine, shapes, command_line, performance, result.queries, profile, result.warnings))
    log.info(f"Wrote report {config.report.export_report}")


def report_layers(config: Config, engine: Engine, shapes: Shapes | None, log: Log) -> None:
    """``--dumpLayerInfo``, ``--dumpRefit``, ``--exportLayerInfo``, ``--dumpOptimizationProfile`` and ``--whyNot``."""
    from trtcli.report import layers, whynot
    from trtcli.shapes import text

    report = config.report
    if report.dump_optimization_profile:
        for number, profile in enumerate(engine.profiles):
            for name, one in profile.items():
                log.report(
                    f"Model input {name} (profile {number}): min={text(one.min)}, opt={text(one.opt)}, max={text(one.max)}"
                )
    if report.dump_layer_info:
        lines = layers.layer_info_lines(engine, shapes)
        if not lines:
            log.warning("--dumpLayerInfo: the engine was built with --profilingVerbosity=none and keeps no layer information")
        for line in lines:
            log.report(line)
    if report.dump_refit:
        for line in layers.refit_lines(engine):
            log.report(line)
    if report.export_layer_info:
        write_json(report.export_layer_info, layers.layer_info_json(engine, shapes))
    for node in report.why_not:
        for line in whynot.why_not_lines(engine, node):
            log.report(line)


def report_profile(config: Config, profile: Profile, log: Log) -> None:
    """``--dumpProfile`` and ``--exportProfile``."""
    from trtcli.report.profile import aux_stream_warning, profile_json, profile_lines

    if config.report.dump_profile:
        for line in profile_lines(profile):
            log.report(line)
        if profile.aux_streams:
            log.warning(aux_stream_warning(profile.aux_streams))
    if config.report.export_profile:
        write_json(config.report.export_profile, profile_json(profile))


def save_debug_tensors(
    config: Config, context: ExecutionContext, inputs: Mapping[str, np.ndarray], command_line: str, log: Log
) -> None:
    """``--saveDebugTensors`` and ``--saveAllDebugTensors``: one more query, whose debug tensors are written.

    Raises:
        ValueError: a tensor does not exist, or was fused away.
    """
    from trtcli.report.tensors import SUMMARY_FILE, Saver

    files, formats = config.report.save_debug, config.report.save_all_debug
    if not files and not formats:
        return
    saver = Saver(files, formats)
    context.set_debug_listener(saver)
    if formats:
        context.set_all_tensors_debug_state(True)
    for name in files:
        context.set_tensor_debug_state(name, True)
    context.execute(inputs)
    context.set_debug_listener(None)
    saver.finish(config.build.save_engine or config.model.load_engine or config.model.onnx, command_line)
    for name, written in saver.written.items():
        for path in written.values():
            log.info(f"Saved debug tensor {name} to {path}")
    if formats and not saver.written:
        log.warning("--saveAllDebugTensors: the engine has no debug tensors; build it with --markDebug or --markUnfusedTensorsAsDebugTensors")
    elif "summary" in formats:
        log.info(f"Saved the summary of {len(saver.written)} debug tensors to {SUMMARY_FILE}")


def compare_outputs(config: Config, context: ExecutionContext, shapes: Shapes, outputs: Mapping[str, np.ndarray], log: Log) -> bool:
    """``--loadRefOutputs``: whether the ``outputs`` of the benchmark are near enough to their references, and those of every further ``--refPair``."""
    if not config.inference.ref_outputs:
        return True
    from trtcli.accuracy import outputs_agree
    from trtcli.inputs import make_inputs as values_of

    formats = context.engine.network.formats
    agree = outputs_agree(config.inference, config.inference.ref_outputs, outputs, formats, log)
    for number, pair in enumerate(config.inference.more_references, 1):
        log.info(f"Reference pair {number}: inputs {', '.join(pair.inputs.values())}")
        found = context.execute(values_of(context.engine.network, shapes, pair.inputs))
        agree = outputs_agree(config.inference, pair.outputs, found, formats, log) and agree
    return agree


def report_outputs(
    config: Config, engine: Engine, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], log: Log
) -> None:
    """``--dumpOutput``, ``--exportOutput`` and ``--dumpRawBindingsToFile``."""
    from trtcli.report.outputs import output_json, output_lines, raw_name

    if config.report.dump_output:
        for line in output_lines(outputs):
            log.report(line)
    if config.report.export_output:
        write_text(config.report.export_output, output_json(outputs))
    if config.report.dump_raw_bindings:
        for kind, arrays in (("input", inputs), ("output", outputs)):
            names = FileNames()
            for name, array in arrays.items():
                file_name, layout = raw_name(names.of(name), kind, array), engine.network.formats.get(name)
                with replacing(file_name) as file:
                    file.write(np.ascontiguousarray(array if layout is None else layout.pack(array)).tobytes())
                log.info(f"Dumped {kind} tensor {name} to {file_name}")
