"""The steps that commands are made of: open the device, get the engine, run it, report."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusion.files import replacing
from trtcli import host
from trtcli.config import Config
from trtcli.errors import FAILED, PASSED
from trtcli.files import check_writable, write_json, write_text
from trtcli.log import Log

if TYPE_CHECKING:
    from fusion.network import Network
    from runtime.benchmark import BenchmarkOptions, BenchmarkResult
    from runtime.context import ExecutionContext
    from runtime.device import Device
    from runtime.engine import Engine, InputRange
    from runtime.nvtx import LayerRanges, Names
    from runtime.profiler import Profile
    from trtcli.memory_usage import MemoryUsage

Shapes = Mapping[str, tuple[int, ...]]


_SECTIONS = {
    "model": "Model Options",
    "build": "Build Options",
    "system": "System Options",
    "inference": "Inference Options",
    "report": "Reporting Options",
}


def echo_options(config: Config, log: Log) -> None:
    """Every setting, a line each, for ``--verbose``."""
    for section, title in _SECTIONS.items():
        log.verbose(f"=== {title} ===")
        for name, value in asdict(getattr(config, section)).items():
            log.verbose(f"{name}: {value}")


def check_files(config: Config) -> None:
    """Refuse missing inputs and unwritable outputs before any work is done, and load the plugins.

    Raises:
        ValueError, OSError: naming the flag and the file.
    """
    inference = config.inference
    given = [config.model.onnx, config.model.load_engine, config.model.refit_onnx, *inference.load_inputs.values(), *inference.ref_outputs.values()]
    given += [path for pair in inference.more_references for path in (*pair.inputs.values(), *pair.outputs.values())]
    for path in given:
        if path and not Path(path).is_file():
            what = "is a folder" if Path(path).is_dir() else "it does not exist"
            raise ValueError(f"Cannot open file {path}: {what}")
    build, report = config.build, config.report
    whole = (("--saveEngine", build.save_engine), ("--timingCacheFile", build.timing_cache_file))
    reports = (
        ("--exportTimes", report.export_times),
        ("--exportOutput", report.export_output),
        ("--exportProfile", report.export_profile),
        ("--exportLayerInfo", report.export_layer_info),
        ("--exportReport", report.export_report),
        *(("--saveDebugTensors", path) for path in report.save_debug.values()),
    )
    taken = {os.path.realpath(path): "is an input" for path in given if path}
    for flag, path in (*whole, *reports):
        if path:
            check_writable(flag, path, special=(flag, path) in reports)
            real = os.path.realpath(path)
            if real in taken and not path.startswith("/dev/"):
                raise ValueError(f"{flag}={path}: this file {taken[real]}; give another one")
            taken[real] = f"is also what {flag} writes"
    if config.system.plugins:
        from trtcli import plugins

        for path in config.system.plugins:
            plugins.load(path)


def open_device(config: Config, log: Log, engine: Engine | None = None) -> Device:
    """The device that ``--device`` names, else one of the kind that ``engine`` was built for; a line says which it is.

    Raises:
        runtime.device.DeviceError: there is no such device.
    """
    from runtime.devices import open_device as open_by_name

    name = config.system.device
    if name == "auto" and engine is not None and engine.device.kind == "cpu":
        name = "cpu"
    mps, warning = host.mps_share(os.environ)
    device = open_by_name(name, config.system.limit_sms, mps)
    log.info(device_line(device))
    if warning and device.spec.kind == "cuda":
        log.warning(warning)
    if engine is not None:
        from runtime.loaded import share_mismatch

        if told := share_mismatch(engine, device):
            log.warning(told)
    for name, value in device.properties().items():
        log.verbose(f"  {name}: {value}")
    return device


def device_line(device: Device) -> str:
    """``Device 0: NVIDIA H100 80GB HBM3 (sm_90a, 132 SMs, 79 GiB, driver 580.159)``"""
    spec = device.spec
    memory = f"{spec.memory_bytes / 2**30:.0f} GiB"
    if spec.kind == "cpu":
        threads = f"{spec.multiprocessors} thread{'s' if spec.multiprocessors != 1 else ''}"
        return f"Device cpu: {spec.name} ({spec.arch}, {threads}, {memory})"
    driver = device.properties().get("driver")
    return (
        f"Device {device.name}: {spec.name} ({spec.arch}, {spec.share or f'{spec.multiprocessors} SMs'}, {memory}"
        + (f", driver {driver})" if driver else ")")
    )


def engine_file_alone(config: Config, log: Log) -> int:
    """``--getPlanVersionOnly`` and ``--timeDeserialize``: what concerns the file of ``--loadEngine``; the exit code."""
    path = config.model.load_engine
    if config.model.version_only:
        from runtime.engine_file import versions_of

        version, form = versions_of(path)
        log.report(f"{path}: built by trtcli {version}, engine format {form}")
    if not config.model.time_deserialize:
        return PASSED
    from runtime.engine import Engine
    from trtcli.repeated import time_loading

    return PASSED if time_loading(path, open_device(config, log, Engine.load(path)), log) else FAILED


# --- the engine ------------------------------------------------------------------------------------------------------


def obtain_engine(config: Config, log: Log) -> tuple[Engine, Device, MemoryUsage]:
    """The engine (loaded, or built and saved), the device to run it on, and what goes on reporting for ``--monitorMemory``."""
    from trtcli.memory_usage import MemoryUsage

    memory = MemoryUsage(log if config.system.monitor_memory else None)
    if config.model.load_engine:
        engine = load_engine(config, log)
        memory.stage("Load engine")
        device = open_device(config, log, engine)
        memory.begin(device)
    else:
        device = open_device(config, log)
        memory.begin(device)
        engine = build_engine(config, device, log, memory)
        memory.peak("build")
    if config.build.time_refit:
        from trtcli.repeated import time_refits

        time_refits(engine, config.model.refit_onnx or config.model.onnx, log)
    return engine, device, memory


def load_engine(config: Config, log: Log) -> Engine:
    """The engine of ``--loadEngine``."""
    from runtime.engine import Engine

    began = time.perf_counter()
    path = config.model.load_engine
    engine = Engine.load(path)
    size = Path(path).stat().st_size / 2**20
    log.info(
        f"Loaded {path} ({size:.1f} MiB, {len(engine.layers)} layers, built for {engine.device.name}) "
        f"in {time.perf_counter() - began:.2f} s"
    )
    return _refitted(config, engine, log)


def _refitted(config: Config, engine: Engine, log: Log) -> Engine:
    """With the weights of ``--refitFromOnnx``."""
    if not config.model.refit_onnx:
        return engine
    from trtcli.refitting import refit

    began = time.perf_counter()
    engine = refit(engine, Path(config.model.refit_onnx), log)
    log.info(f"Refitted with the weights of {config.model.refit_onnx} in {time.perf_counter() - began:.2f} s")
    return engine


def build_engine(config: Config, device: Device, log: Log, memory: MemoryUsage) -> Engine:
    """An engine from ``--onnx``, saved where ``--saveEngine`` says."""
    from trtcli.builder import build
    from trtcli.progress import build_progress
    from trtcli.serving import check_batches

    def accept(network: Network, profiles: Sequence[Mapping[str, InputRange]]) -> None:
        number = config.inference.profile or 0
        if number < len(profiles) and not config.inference.skip_inference:
            check_batches(config.inference, network, profiles[number])

    with build_progress(log) as progress:
        engine = build(Path(config.model.onnx), config.build, device, log=log, progress=progress, accept=accept, stage=memory.stage)
    engine = _refitted(config, engine, log)
    if config.build.save_engine:
        from trtcli.refitting import save_engine

        size = save_engine(engine, config.build)
        bare = ", without weights: run it with --refitFromOnnx" if config.build.strip_weights else ""
        log.info(f"Saved {config.build.save_engine} ({size / 2**20:.1f} MiB{bare})")
        memory.stage("Save engine")
    return engine


# --- inference -------------------------------------------------------------------------------------------------------


def inference_shapes(config: Config, engine: Engine, log: Log) -> dict[str, tuple[int, ...]]:
    """The input shapes to run at, with a line for each dynamic input."""
    from trtcli import shapes

    number = use_profile(config, engine, log)
    chosen = shapes.inference_shapes(engine.network, engine.profiles[number], config.inference.shapes)
    asked = shapes.match_names(config.inference.shapes, chosen, "--shapes")
    for name, extents in chosen.items():
        if name in asked or not engine.network.tensors[name].is_static:
            log.info(f"Set shape of input tensor {name} to: {shapes.text(extents)}")
    return chosen


def use_profile(config: Config, engine: Engine, log: Log) -> int:
    """The optimization profile of ``--useProfile``.

    Raises:
        ValueError: the engine has fewer.
    """
    number, count = config.inference.profile, len(engine.profiles)
    if number is None:
        if count > 1:
            log.warning(f"The engine has {count} optimization profiles; profile 0 is used (--useProfile=N takes another)")
        return 0
    if number >= count:
        raise ValueError(
            f"Selected profile index {number} exceeds the number of profiles that the engine holds ({count}): "
            f"--useProfile takes 0..{count - 1}"
        )
    return number


def make_inputs(config: Config, engine: Engine, shapes: Shapes, log: Log) -> dict[str, np.ndarray]:
    """A value for every input."""
    from trtcli.inputs import make_inputs as values_of

    tensors = engine.network.tensors
    inputs = values_of(engine.network, shapes, config.inference.load_inputs)
    for name, array in inputs.items():
        source = config.inference.load_inputs.get(name)
        log.info(f"Using values loaded from {source} for input {name}" if source else f"Using random values for input {name}")
        log.verbose(f"Input binding for {name} with dimensions {_dims(array)} and type {tensors[name].dtype.label} is created.")
    return inputs


def make_contexts(config: Config, engine: Engine, device: Device, shapes: Shapes, log: Log) -> list[ExecutionContext]:
    """An execution context per inference stream, with its shapes set."""
    from runtime.context import ExecutionContext
    from runtime.debugging import check_written

    for name in config.report.save_debug:  # rather than after the benchmark
        check_written(engine.network, name)
    profile, allocation = config.inference.profile or 0, config.inference.allocation
    contexts = [ExecutionContext(engine, device, profile, allocation) for _ in range(config.inference.inf_streams)]
    for context in contexts:
        for name, extents in shapes.items():
            context.set_input_shape(name, extents)
        context.infer_shapes()
    if contexts[0].is_segmented:
        from trtcli.report.building import activations

        log.info(f"Created execution context: {activations(engine)}")
        if allocation != "static":
            log.warning(f"--allocationStrategy={allocation} has no effect where the host steps in: memory is taken as an inference goes")
    else:
        log.info(f"Created execution context with device memory size: {contexts[0].device_memory_size / 2**20:.1f} MiB")
    return contexts


def layer_ranges(config: Config, engine: Engine, log: Log) -> LayerRanges | None:
    """NVTX ranges with the layers' names (with their tactics where the engine is ``detailed``), when a profiler is attached."""
    from runtime.nvtx import layer_ranges as ranges_of
    from trtcli.report.layers import tactic_label, verbosity

    if not any(os.environ.get(name) for name in ("NVTX_INJECTION64_PATH", "NSYS_PROFILING_SESSION_ID")):
        log.verbose("NVTX: no profiler is attached, no ranges are written (nsys profile -t cuda,nvtx trtcli ... attaches one)")
        return None
    level = verbosity(engine)
    if level == "none":
        log.verbose("NVTX: the engine was built with --profilingVerbosity=none and names no layers")
        return None

    def names_of(part: Engine) -> Names:
        rows = list(zip(part.network.layers, part.layers, strict=True))
        labels = (f" [{tactic_label(plan.tactic, plan.config)}]" if level == "detailed" else "" for _, plan in rows)
        names = tuple(layer.name + label for (layer, _), label in zip(rows, labels, strict=True))
        return names, {number: tuple(map(names_of, plan.bodies)) for number, (_, plan) in enumerate(rows) if plan.bodies}

    found = ranges_of(*names_of(engine))
    if found is None:
        log.verbose("NVTX: neither nvtx nor cupy is installed, no ranges are written (pip install nvtx)")
    elif config.inference.cuda_graph:
        log.info("NVTX: a CUDA graph's launch is one range; --noCudaGraph shows the layers")
    return found


def benchmark_options(config: Config, engine: Engine, log: Log) -> BenchmarkOptions:
    """The runtime's options."""
    from runtime.benchmark import BenchmarkOptions

    inference = config.inference
    return BenchmarkOptions(
        iterations=inference.iterations,
        duration=inference.duration,
        warm_up=inference.warm_up,
        sleep_time=inference.sleep_time,
        idle_time=inference.idle_time,
        threads=inference.threads,
        transfers=inference.data_transfers,
        expose_dma=inference.expose_dma,
        graph=inference.cuda_graph,
        spin=inference.spin_wait,
        managed=inference.managed_memory,
        ranges=layer_ranges(config, engine, log),
    )


def _dims(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape)) or "scalar"


# --- reports ---------------------------------------------------------------------------------------------------------


def report_performance(config: Config, result: BenchmarkResult, gpu: bool, log: Log) -> None:
    """The performance summary, and the times of ``--exportTimes``."""
    from trtcli.report import summary
    from trtcli.report.statistics import number
    from trtcli.report.times import times_json

    report, inference = config.report, config.inference
    log.info(f"Warmup completed {result.warm_up_queries} queries over {number(inference.warm_up)} ms")
    performance = summary.measure(result.queries, report.percentiles)
    log.info(f"Timing trace has {performance.queries} queries over {number(performance.host_walltime)} s")
    lines = [*summary.trace_lines(result.queries, report.avg_runs), *summary.summary_lines(performance)]
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

    agree = outputs_agree(config.inference, config.inference.ref_outputs, outputs, log)
    for number, pair in enumerate(config.inference.more_references, 1):
        log.info(f"Reference pair {number}: inputs {', '.join(pair.inputs.values())}")
        found = context.execute(values_of(context.engine.network, shapes, pair.inputs))
        agree = outputs_agree(config.inference, pair.outputs, found, log) and agree
    return agree


def report_outputs(
    config: Config, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], log: Log
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
            for name, array in arrays.items():
                file_name = raw_name(name, kind, array)
                with replacing(file_name) as file:
                    file.write(np.ascontiguousarray(array).tobytes())
                log.info(f"Dumped {kind} tensor {name} to {file_name}")
