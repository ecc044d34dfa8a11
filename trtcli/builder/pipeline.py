"""The build, from top to bottom: model file -> network -> fused network -> workloads -> tactics -> engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fusion.bind import fix_sizes
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.passes import FusionOptions, check_rules
from runtime.device import Device
from runtime.engine import Engine
from runtime.segments import layer_count
from trtcli.builder.assemble import assemble
from trtcli.builder.bodies import bodies_of
from trtcli.builder.choose import choose, shared_memory
from trtcli.builder.debug_tensors import debug_tensors, marked_tensors
from trtcli.builder.fuse import fuse, fuse_with_parts
from trtcli.builder.io_formats import with_io_formats
from trtcli.builder.measured import Chosen, measured_fusions, measured_layouts
from trtcli.builder.names import by_nodes, unknown_pins
from trtcli.builder.padding import PaddedChannels, measured_padding
from trtcli.builder.record import build_record
from trtcli.builder.setting import Log, Progress, available_sources, new_setting
from trtcli.builder.streams import with_streams
from trtcli.builder.workloads import Profile
from trtcli.config import BuildConfig
from trtcli.log import Silent
from trtcli.report.building import (
    activations,
    counted,
    fused_line,
    fusion_lines,
    host_lines,
    parsed_line,
    profile_lines,
    saved_bytes,
    weight_bytes,
)
from trtcli.shapes import optimization_profiles, shared_sizes

PADDING_DEVICES = ("cuda",)  # those whose kernels want rows of whole vectors


def build(
    model: Path | bytes,
    config: BuildConfig,
    device: Device,
    *,
    log: Log,
    progress: Callable[[Progress], None] = lambda _: None,
    accept: Callable[[Network, Network, Sequence[Profile]], None] = lambda *_: None,
    stage: Callable[[str], None] = lambda _: None,
) -> Engine:
    """An engine for ``model`` (a file, or a serialised ONNX model) on ``device``. ``accept`` sees the model's network, the same with
    fixed sizes and the formats of inputs and outputs, and the optimization profiles before any work is done, and may raise; ``stage`` is told of every
    stage that has ended.

    Raises:
        fusion.importer.ModelError: the model cannot be read, or holds unsupported operators.
        ValueError: shapes or options do not fit the model.
        BuildError: no tactic can compute some layer, or a cache miss was forbidden.
    """
    began = time.perf_counter()
    check_rules(FusionOptions(config.disabled_fusions))  # before a large model is read
    original = imported = import_onnx(model)
    log.info(parsed_line(model, imported, time.perf_counter() - began))
    stage("Import model")
    profiles = optimization_profiles(imported, config, log)
    imported = fix_sizes(imported, shared_sizes(imported, profiles))  # what never varies is not dynamic
    for line in profile_lines(imported, profiles):
        log.info(line)
    imported, config = with_io_formats(imported, profiles, config, lambda one: fuse(one, config, device.spec.kind, Silent()).network, log)
    accept(original, imported, profiles)
    config = replace(config, tactic_sources=available_sources(config.tactic_sources, device, log))

    fusing = time.perf_counter()
    marked = marked_tensors(imported, config, log)
    fused, copied = fuse_with_parts(imported, marked, profiles, config, device, log)
    named, config = config, by_nodes(imported, fused, config)
    fuse_again = partial(fuse_with_parts, imported, marked, profiles, config, device)
    if config != named:
        fused, copied = fuse_again(log)
    optimum = {name: one.opt for name, one in profiles[0].items()}
    sharing, _ = shared_memory(fused.network, profiles, config, device)
    log.info(fused_line(imported, fused, sharing, saved_bytes(imported, fused.network, sharing, optimum), time.perf_counter() - fusing))
    for line in fusion_lines(fused):
        log.verbose(line)
    stage("Fuse layers")

    setting = new_setting(config, device, log, progress)
    chosen = Chosen(fused, copied, choose(fused.network, profiles, setting))
    chosen, layouts = measured_layouts(chosen, fuse_again, profiles, setting)
    padding, optional = PaddedChannels(), None
    if not marked and device.spec.kind in PADDING_DEVICES:
        chosen, padding = measured_padding(chosen, profiles, setting)
    if not marked:  # an optional rule might take a marked tensor away
        chosen, optional = measured_fusions(chosen, profiles, setting)
    network = chosen.network
    for line in unknown_pins((fused.network, network), config):
        log.warning(line)
    engine = assemble(network, chosen.choices, profiles, setting, bodies_of(network, profiles, setting))
    log.info(setting.timings.summary)
    if setting.timings.untimed:
        log.warning(f"--buildBudget={config.build_budget:g} was used up: {setting.timings.untimed} workloads took their first legal tactic")
    stage("Select tactics")
    for line in host_lines(engine):
        log.warning(line)
    engine, streams = with_streams(engine, chosen.choices, setting)
    stage("Choose streams")

    seconds = time.perf_counter() - began
    record = {
        **build_record(model, imported, chosen, padding, setting),
        "intermediateBytesSaved": saved_bytes(imported, network, chosen.choices.sharing, optimum),
        "optionalFusions": None if optional is None else {"enabled": list(optional.enabled), "disabled": list(optional.disabled)},
        "layouts": layouts,
        "streams": streams,
        "debugTensors": debug_tensors(imported, network, marked, config, log),
        "buildSeconds": seconds,
    }
    log.info(
        f"Built in {seconds:.1f} s: {counted(layer_count(network), 'layer')}, weights {weight_bytes(engine) / 2**20:.1f} MiB, "
        f"{activations(engine)}, {counted(engine.num_aux_streams + 1, 'stream')}"
    )
    return replace(engine, record=record)
