"""``trtcli [FLAGS]``: trtexec's own mode. Build or load, benchmark, report; banners around it."""

from __future__ import annotations

from trtcli.config import Config
from trtcli.errors import FAILED, PASSED, report
from trtcli.log import Log
from trtcli.parse import Parsed
from trtcli.session.engines import engine_file_alone, obtain_engine
from trtcli.session.given import check_files, echo_options
from trtcli.session.inference import benchmark_options, inference_shapes, make_contexts, make_inputs
from trtcli.session.reporting import (
    compare_outputs,
    report_layers,
    report_outputs,
    report_page,
    report_performance,
    report_profile,
    report_start,
    save_debug_tensors,
)


def run(parsed: Parsed, log: Log) -> int:
    """Run it between the banners."""
    log.banner("RUNNING", parsed.command_line)
    try:
        code = execute(parsed.config, log, parsed.command_line)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        code = report(error, log)
    log.banner("PASSED" if code == PASSED else "FAILED", parsed.command_line)
    return code


def execute(config: Config, log: Log, command_line: str = "trtcli") -> int:
    """The run itself, top to bottom; ``command_line`` is for reports."""
    echo_options(config, log)
    check_files(config)
    if config.model.version_only or config.model.time_deserialize:
        return engine_file_alone(config, log)
    engine, device, memory = obtain_engine(config, log)
    if config.inference.skip_inference:
        report_layers(config, engine, None, log)
        log.info("Skipped inference phase since --skipInference is added.")
        return PASSED

    from runtime.benchmark import run_benchmark

    shapes = inference_shapes(config, engine, log)
    inputs = make_inputs(config, engine, shapes, log)
    contexts = make_contexts(config, engine, device, shapes, log)
    memory.stage("Create execution contexts")
    report_layers(config, engine, shapes, log)
    log.info("Starting inference")
    options = benchmark_options(config, engine, log)
    if config.inference.request_rate or config.inference.sweep_batch:
        from trtcli.serving import run_requests, run_sweep

        (run_requests if config.inference.request_rate else run_sweep)(config, contexts, shapes, options, command_line, log)
        memory.stage("Run inference")
        memory.peak("run")
        return PASSED
    result = run_benchmark(contexts, inputs, options)
    memory.stage("Run inference")
    report_start(result, device.spec.kind == "cuda", log)
    report_performance(config, result, device.spec.kind == "cuda", log)
    report_outputs(config, engine, inputs, result.outputs, log)
    agree = compare_outputs(config, contexts[0], shapes, result.outputs, log)
    save_debug_tensors(config, contexts[0], inputs, command_line, log)
    if config.report.wants_profile:
        from runtime.profiler import profile_layers

        profile = profile_layers(contexts[0], inputs, options)
        memory.stage("Profile layers")
        report_profile(config, profile, log)
        if config.report.export_report:
            report_page(config, engine, shapes, result, profile, command_line, log)
    memory.peak("run")
    return PASSED if agree else FAILED
