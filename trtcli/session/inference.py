"""What an inference needs: shapes, values, contexts, and the benchmark's options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtcli.config import Config, InferenceConfig
from trtcli.log import Log

if TYPE_CHECKING:
    from fusion.network import Network
    from runtime.benchmark import BenchmarkOptions
    from runtime.context import ExecutionContext
    from runtime.device import Device
    from runtime.engine import Engine, InputRange
    from runtime.nvtx import LayerRanges, Names

Shapes = Mapping[str, tuple[int, ...]]


def inference_shapes(config: Config, engine: Engine, log: Log) -> dict[str, tuple[int, ...]]:
    """The input shapes to run at, with a line for each dynamic input."""
    from trtcli import shapes

    count = len(engine.profiles)
    number = profile_number(config.inference, count)
    if config.inference.profile is None and count > 1:
        log.warning(f"The engine has {count} optimization profiles; profile 0 is used (--useProfile=N takes another)")
    chosen = shapes.inference_shapes(engine.network, engine.profiles[number], config.inference.shapes)
    asked = shapes.match_names(config.inference.shapes, chosen, "--shapes")
    for name, extents in chosen.items():
        if name in asked or not engine.network.tensors[name].is_static:
            log.info(f"Set shape of input tensor {name} to: {shapes.text(extents)}")
    return chosen


def check_request(inference: InferenceConfig, model: Network, network: Network, profiles: Sequence[Mapping[str, InputRange]]) -> None:
    """Refuse what the run could not do with such an engine, before minutes are spent on building it: ``model`` is as it was imported, ``network`` has
    the formats that its inputs and outputs will have.

    Raises:
        ValueError: ``--useProfile``, ``--shapes``, ``--loadInputs``, ``--loadRefOutputs``, ``--sweepBatch`` or ``--maxBatch`` do not fit.
        OSError: a file of ``--loadInputs`` cannot be read.
    """
    from trtcli import shapes
    from trtcli.accuracy import check_names
    from trtcli.inputs import check_inputs
    from trtcli.serving import check_batches

    profile = profiles[profile_number(inference, len(profiles))]
    chosen = shapes.inference_shapes(model, profile, inference.shapes)
    for inputs in (inference.load_inputs, *(pair.inputs for pair in inference.more_references)):
        check_inputs(network, chosen, inputs)
    for outputs in (inference.ref_outputs, *(pair.outputs for pair in inference.more_references)):
        if outputs:
            check_names(outputs, network.outputs)
    check_batches(inference, model, profile)


def profile_number(inference: InferenceConfig, count: int) -> int:
    """The optimization profile of ``--useProfile``, of ``count``.

    Raises:
        ValueError: the engine has fewer.
    """
    number = inference.profile or 0
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
    from tactics.tactic import tactic_label
    from trtcli.report.layers import verbosity

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
