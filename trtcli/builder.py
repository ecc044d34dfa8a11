"""The build, from top to bottom: model file -> network -> fused network -> workloads -> tactics -> engine."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from fusion.bind import fix_sizes
from fusion.dims import bind, symbols
from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.network import ControlFlow, Layer, Network, size_makers
from fusion.ops import Concatenation
from fusion.passes import OPTIONAL, FusionOptions, FusionResult, optimize, with_optional
from fusion.precision import LayerTypes
from fusion.rewrite import Miss
from runtime.columns import ask_tactics, copy_parts, parts_to_copy
from runtime.device import Device, DeviceError, DeviceLostError
from runtime.engine import CONTROL, IDLE, ON_HOST, Alternative, Engine, InputRange, LayerPlan, fixed_sizes
from runtime.parts import Part
from runtime.segments import parts_of
from runtime.streams import with_streams
from runtime.timer import Bench
from runtime.views import VIEW, Sharing, missed_views, share_memory, view_layers
from runtime.workloads import workload_of
from tactics import cache as timing_cache
from tactics.cache import CacheError, Entry, TimingCache
from tactics.compiler import nvrtc_version
from tactics.registry import source_of, tactics
from tactics.registry import tactic as tactic_by_id
from tactics.select import (
    AT_FLOOR,
    NEAR_FLOOR,
    Compilers,
    Decision,
    NoTacticError,
    Search,
    SelectOptions,
    decide_from,
    finish,
    question,
    start,
)
from tactics.tactic import (
    LAUNCH_FLOOR,
    Argument,
    Buffer,
    Copy,
    CpuCall,
    DeviceSpec,
    Launch,
    LibraryCall,
    Plan,
    Struct,
    TensorMap,
    Workload,
    floor_seconds,
    reachable_seconds,
    refusal,
    workload_bytes,
    workload_flops,
)
from trtcli.config import BuildConfig
from trtcli.debug_tensors import debug_tensors, marked_tensors
from trtcli.layouts import Alone, chosen_layouts, layout_record, measured_times
from trtcli.log import Silent
from trtcli.report.building import (
    activations,
    fused_line,
    fusion_lines,
    host_lines,
    parsed_line,
    profile_lines,
    saved_bytes,
    stream_lines,
    timing_line,
    weight_bytes,
)
from trtcli.shapes import optimization_profiles, shared_sizes
from trtcli.stream_timings import CachedTimings, NotCachedError, code_of
from trtcli.version import __version__
from trtcli.workloads import Outer, Profile, extremes, makes_nothing, named_sizes, workloads_at

Parts = Sequence[tuple[str, int]]  # inputs of concatenations that are copied: layer, input number


class BuildError(ValueError):
    """The build cannot go on; the text names the layer, the values found and the next step."""


class Log(Protocol):
    """Where the build says what it does."""

    def info(self, text: str) -> None:
        """A line that every user sees."""

    def verbose(self, text: str) -> None:
        """A line for ``--verbose``."""

    def warning(self, text: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Progress:
    """How far tactic selection is: distinct workloads done of all, tactics timed and refused, cache hits."""

    done: int = 0
    total: int = 0
    timed: int = 0
    cached: int = 0
    refused: int = 0
    layer: str = ""


def build(
    model: Path | bytes,
    config: BuildConfig,
    device: Device,
    *,
    log: Log,
    progress: Callable[[Progress], None] = lambda _: None,
    accept: Callable[[Network, Sequence[Profile]], None] = lambda *_: None,
) -> Engine:
    """An engine for ``model`` (a file, or a serialised ONNX model) on ``device``. ``accept`` sees the model and the optimization profiles
    before any work is done, and may raise.

    Raises:
        fusion.importer.ModelError: the model cannot be read, or holds unsupported operators.
        ValueError: shapes or options do not fit the model.
        BuildError: no tactic can compute some layer, or a cache miss was forbidden.
    """
    began = time.perf_counter()
    imported = import_onnx(model)
    log.info(parsed_line(model, imported, time.perf_counter() - began))
    profiles = optimization_profiles(imported, config, log)
    accept(imported, profiles)
    imported = fix_sizes(imported, shared_sizes(imported, profiles))  # what never varies is not dynamic
    for line in profile_lines(imported, profiles):
        log.info(line)
    config = replace(config, tactic_sources=available_sources(config.tactic_sources, device, log))

    fusing = time.perf_counter()
    marked = marked_tensors(imported, config, log)
    fuse_again = partial(_with_parts, imported, marked, profiles, config, device)
    fused, copied = fuse_again(log)
    network = fused.network
    optimum = {name: one.opt for name, one in profiles[0].items()}
    sharing, _ = shared_memory(network, profiles, config, device)
    log.info(fused_line(imported, fused, sharing, saved_bytes(imported, network, sharing, optimum), time.perf_counter() - fusing))
    for line in fusion_lines(fused):
        log.verbose(line)

    choices = _choose(network, profiles, config, device, log, progress)
    fused, copied, choices, layouts = _measured_layouts(fused, copied, choices, fuse_again, profiles, config, device, log, progress)
    optional = None
    if not marked:  # an optional rule might take a marked tensor away
        fused, choices, optional = _measured_fusions(fused, choices, profiles, config, device, log, progress)
    network = fused.network
    saved = saved_bytes(imported, network, choices.sharing, optimum)
    bodies = _bodies(network, profiles, {}, config, device, log, progress)
    engine = _assemble(network, choices, profiles, config, device, bodies)
    for line in host_lines(engine):
        log.warning(line)
    engine, streams = _with_streams(engine, choices, config, device, log)
    seconds = time.perf_counter() - began
    record = {
        **_record(model, imported, fused, config, device, choices),
        "importedLayers": len(imported.layers),
        "intermediateBytesSaved": saved,
        "copiedParts": [list(part) for part in copied],
        "optionalFusions": None if optional is None else {"enabled": list(optional.enabled), "disabled": list(optional.disabled)},
        "layouts": layouts,
        "streams": streams,
        "debugTensors": debug_tensors(imported, network, marked, config, log),
        "buildSeconds": seconds,
    }
    log.info(
        f"Built in {seconds:.1f} s: {sum(len(part.layers) for part, _ in parts_of(network))} layers, weights {weight_bytes(engine) / 2**20:.1f} MiB, "
        f"{activations(engine)}, {engine.num_aux_streams + 1} stream{'s' if engine.num_aux_streams else ''}"
    )
    return replace(engine, record=record)


def _with_streams(
    engine: Engine, choices: _Choices, config: BuildConfig, device: Device, log: Log, outer: Outer = MappingProxyType({})
) -> tuple[Engine, dict[str, Any]]:
    """:func:`runtime.streams.with_streams`, what it measures kept in the timing cache. ``engine`` is a body where there are ``outer`` sizes."""
    versions = _versions(device, config.tactic_sources)

    @cache
    def asked(profile: int) -> list[dict[str, Any]]:
        layers = zip(engine.network.layers, choices.workloads[profile], strict=True)
        return [question(workload, device.spec, _select_options(config, layer.name), versions) for layer, workload in layers]

    def code(part: Part) -> str:
        return code_of(part, asked(part.profile), choices.decisions[part.profile])

    # Without timings (level 0) or with --noBuilderCache nothing is looked up, and nothing kept.
    usable = config.builder_cache and config.optimization_level > 0
    kept = choices.cache if usable else TimingCache()
    timings = CachedTimings(kept, code, versions, config.optimization_level, config.error_on_timing_cache_miss)
    try:
        most = -1 if config.max_aux_streams is None else config.max_aux_streams
        found, record = with_streams(engine, device, most, timings, outer.get("opt", {}))
    except NotCachedError:
        raise BuildError(
            "the latency with auxiliary streams is not in the timing cache and --errorOnTimingCacheMiss is set; --maxAuxStreams=0 needs none"
        ) from None
    if usable and timings.misses:
        _save_cache(config, timings.cache, log)
    record = {**record, "timingCacheMisses": timings.misses}
    for line in stream_lines(record, log.verbose):
        log.info(line)
    return found, record


# --- network ---------------------------------------------------------------------------------------------------------


def layer_types(config: BuildConfig) -> tuple[DataType | None, LayerTypes]:
    """The narrow type that is used at all, and which layers are computed in it.

    Raises:
        BuildError: two narrow types in one engine.
    """
    general = DataType.HALF if config.fp16 else DataType.BF16 if config.bf16 else None
    if config.precision_constraints == "none":
        return general, LayerTypes()
    names = {"fp32": DataType.FLOAT, "fp16": DataType.HALF, "bf16": DataType.BF16}
    given, outputs = (
        tuple((layer, names[dtype]) for layer, dtype in pairs) for pairs in (config.layer_precisions, config.layer_output_types)
    )
    narrow = {dtype for _, dtype in (*given, *outputs) if dtype is not DataType.FLOAT} | ({general} if general else set())
    if len(narrow) > 1:
        raise BuildError("--layerPrecisions, --layerOutputTypes: FP16 and BF16 in one engine; use one of them beside FP32")
    others = None if general else DataType.FLOAT
    return next(iter(narrow), None), LayerTypes(given, others, config.precision_constraints == "obey", outputs)


def _with_parts(
    imported: Network,
    marked: Sequence[str],
    profiles: Sequence[Profile],
    config: BuildConfig,
    device: Device,
    log: Log,
    channels_last: tuple[str, ...] | None = None,
) -> tuple[FusionResult, Parts]:
    """:func:`fuse` with ``marked`` tensors kept from being fused away, and the parts that concatenations in place have copied."""
    fused = fuse(replace(imported, outputs=(*imported.outputs, *marked)), config, device.spec.kind, log, channels_last)
    network = replace(fused.network, outputs=imported.outputs)
    copied = parts_to_copy(network, lambda one: shared_memory(one, profiles, config, device)[0])
    return replace(fused, network=copy_parts(network, copied)), copied


def fuse(
    imported: Network, config: BuildConfig, device: str, log: Log, channels_last: tuple[str, ...] | None = None
) -> FusionResult:
    """``imported`` fused for a kind of device; ``channels_last`` are the layers that measurements gave this layout, None to estimate."""
    precision, types = layer_types(config)
    disabled = tuple(f"{rule}@{layer}" if layer else rule for rule, layer in config.disable_fusion)
    options = FusionOptions(disabled=disabled, device=device, precision=precision, layer_types=types, channels_last=channels_last)
    result = optimize(imported, options)
    for text in result.warnings:
        log.warning(text)
    return result


# --- tactics ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choices:
    """Per profile, the decision of every layer with its workload; and the cache's part in it."""

    workloads: tuple[tuple[Workload, ...], ...]
    decisions: tuple[tuple[Decision, ...], ...]
    kernels: Mapping[str, bytes] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    cache: TimingCache = field(default_factory=TimingCache)
    sharing: Sharing = field(default_factory=lambda: Sharing({}, {}))


VIEW_DECISION = Decision(VIEW, (), 0.0, (), False, {})  # of a layer whose output is its input's memory
_CONTROL = Decision(CONTROL, (), math.nan, (), False, {})  # of a branch or loop: its bodies have decisions of their own
_IDLE = Decision(IDLE, (), 0.0, (), False, {})  # of a layer that makes nothing, and for which the GPU has no kernel
_HOST = Decision(ON_HOST, (), math.nan, (), False, {})  # of a layer for which the GPU has no kernel


def shared_memory(
    network: Network, profiles: Sequence[Profile], config: BuildConfig, device: Device, outer: Outer = MappingProxyType({})
) -> tuple[Sharing, tuple[int, ...]]:
    """Which tensors are one piece of memory, and the layers (numbers) that the host computes: on a GPU those without a kernel in any profile."""
    per_profile = [workloads_at(network, profile, "opt", config, outer) for profile in profiles]
    plain = view_layers(network)
    host = [
        number
        for number, layer in enumerate(network.layers)
        if device.spec.kind == "cuda"
        and not isinstance(layer.op, ControlFlow)
        and layer.name not in plain
        and not all(_has_kernel(workloads[number], device) for workloads in per_profile)
        and not all(makes_nothing(workloads[number]) for workloads in per_profile)
    ]
    sharing = share_memory(
        network,
        host,
        ask=ask_tactics(network, per_profile, device.spec, dict(config.pin_tactic)),
        disabled=tuple(f"{rule}@{layer}" if layer else rule for rule, layer in config.disable_fusion),
    )
    return sharing, tuple(host)


def _given_decisions(
    network: Network, sharing: Sharing, host: Sequence[int], per_profile: Sequence[Sequence[Workload]], device: Device
) -> list[Decision | None]:
    """Per layer the decision where there is nothing to choose. What makes nothing at any guess needs no kernel: such a layer does not run."""
    found: list[Decision | None] = []
    for number, layer in enumerate(network.layers):
        given = _CONTROL if isinstance(layer.op, ControlFlow) else _HOST if number in host else VIEW_DECISION if layer.name in sharing.views else None
        workloads = [one[number] for one in per_profile]
        if given is None and device.spec.kind == "cuda" and all(map(makes_nothing, workloads)) and not all(_has_kernel(one, device) for one in workloads):
            given = _IDLE
        found.append(given)
    return found


def _has_kernel(workload: Workload, device: Device) -> bool:
    return any(refusal(one, workload, device.spec) is None for one in tactics("cuda"))


def _choose(
    network: Network,
    profiles: Sequence[Profile],
    config: BuildConfig,
    device: Device,
    log: Log,
    progress: Callable[[Progress], None],
    outer: Outer = MappingProxyType({}),
    timings: TimingCache | None = None,
) -> _Choices:
    """The tactic of every layer. ``timings`` is the timing cache of an earlier choice of this build, in place of the file's."""
    sharing, host = shared_memory(network, profiles, config, device, outer)
    per_profile = tuple(workloads_at(network, profile, "opt", config, outer, sharing.pitches) for profile in profiles)
    limits = [limit for profile in profiles for limit in extremes(network, profile, config, outer, sharing.pitches)]
    # From here on one list: all layers of profile 0, then those of profile 1, ...
    layers = network.layers * len(profiles)
    workloads = [workload for one in per_profile for workload in one]
    options = [_select_options(config, layer.name) for layer in layers]
    cache = _load_cache(config, log) if timings is None else timings
    compilers = Compilers(device.spec.arch, os.cpu_count() or 1, cache.kernels)
    deadline = None if config.build_budget is None else time.perf_counter() + config.build_budget
    decided: dict[tuple[Any, ...], Decision] = {}
    keys = [
        (workload, limit, option) if config.builder_cache else (index, workload, limit, option)
        for index, (workload, limit, option) in enumerate(zip(workloads, limits, options, strict=True))
    ]
    given = _given_decisions(network, sharing, host, per_profile, device) * len(profiles)
    first = {key: index for index, key in reversed(list(enumerate(keys))) if given[index] is None}
    state = Progress(total=len(first))
    try:
        searches = {}
        questions: dict[tuple[Any, ...], dict[str, Any]] = {}
        versions = _versions(device, config.tactic_sources)
        for key, index in first.items():
            asked = questions[key] = question(workloads[index], device.spec, options[index], versions)
            level = options[index].level
            entry = cache.find(asked, level) if config.builder_cache and level else None
            hit = (
                decide_from(entry, workloads[index], device.spec, compilers, options[index], limits[index])
                if entry
                else None
            )
            if hit is not None:
                decided[key] = hit
                state = replace(state, done=state.done + 1, cached=state.cached + 1, layer=layers[index].name)
                continue
            if config.error_on_timing_cache_miss:
                raise BuildError(
                    f"layer {layers[index].name!r} is not in the timing cache ({cache.nearest_difference(asked, level)}) "
                    "and --errorOnTimingCacheMiss is set"
                )
            if config.timing_cache_file and cache.entries:
                log.verbose(f"Timing cache miss: {layers[index].name}: {cache.nearest_difference(asked, level)}")
            searches[key] = _named(
                layers[index].name, start, workloads[index], device.spec, options[index], compilers, limits[index]
            )
        progress(state)
        for key, search in searches.items():
            index = first[key]
            layer = layers[index]
            option = options[index]
            if deadline is not None and time.perf_counter() > deadline:
                option = replace(option, level=0)
            values = {
                number: network.constants[name]
                for number, name in enumerate(layer.inputs)
                if name in network.constants
            }
            bench = partial(Bench, device, search.workload, values)
            decision = _named(layer.name, finish, search, values, device.spec, option, bench, compilers)
            decided[key] = decision
            for timing in decision.timings:
                log.verbose(timing_line(layer.name, timing, decision))
            if option.level:
                cache = cache.with_entry(Entry(questions[key], decision.timings, option.level), decision.kernels)
            counted = sum(timing.seconds is not None for timing in decision.timings)
            state = replace(
                state,
                done=state.done + 1,
                timed=state.timed + counted,
                refused=state.refused + len(decision.timings) - counted,
                layer=layer.name,
            )
            progress(state)
    finally:
        compilers.close()
        _save_cache(config, cache, log)
    if deadline is not None and time.perf_counter() > deadline:
        log.warning(f"--buildBudget={config.build_budget:g} was used up: the layers after it took the first legal tactic")
    early = sum(any(timing.reason == AT_FLOOR for timing in decided[key].timings) for key in searches)
    if early:
        log.info(f"The search ended early for {early} of {len(searches)} workloads: the best stood within {NEAR_FLOOR - 1:.0%} of its floor")
    misses = len(first) - state.cached
    where = config.timing_cache_file or "this build only; --timingCacheFile=FILE keeps them for the next one"
    (log.verbose if outer or timings is not None else log.info)(f"Timing cache: {state.cached} hits, {misses} misses ({where})")
    decisions = [known or decided[key] for known, key in zip(given, keys, strict=True)]
    kernels = {key: image for decision in decisions for key, image in decision.kernels.items()}
    count = len(network.layers)
    by_profile = tuple(tuple(decisions[n * count : (n + 1) * count]) for n in range(len(profiles)))
    return _Choices(per_profile, by_profile, kernels, state.cached, misses, cache, sharing)


# --- what a measurement decides --------------------------------------------------------------------------------------

MEASURED_LEVEL = 3  # the builder optimisation level from which on layouts and optional fusions are tried


def _measured_layouts(
    fused: FusionResult,
    copied: Parts,
    choices: _Choices,
    fuse_again: Callable[[Log, tuple[str, ...]], tuple[FusionResult, Parts]],
    profiles: Sequence[Profile],
    config: BuildConfig,
    device: Device,
    log: Log,
    progress: Callable[[Progress], None],
) -> tuple[FusionResult, Parts, _Choices, dict[str, Any]]:
    """``fused`` with the layouts that measured times ask for, where the whole network is faster with them than with the estimated ones; its copied parts, the
    choices for it, and what the engine's record says of it."""
    planar = fused.planar
    if planar is None or config.optimization_level < MEASURED_LEVEL or not config.builder_cache:
        return fused, copied, choices, layout_record(None, None)
    sizes, fixed, constants = named_sizes(planar, profiles[0], "opt", {}), fixed_sizes(planar, profiles[0]), set(planar.constants)
    cache = choices.cache
    misses = 0

    def workload(network: Network, layer: Layer) -> Workload:
        return workload_of(network, layer, sizes, constants | set(network.constants), config.tf32, fixed)

    def seconds(layers: Sequence[Alone]) -> list[float]:
        nonlocal cache, misses
        found, cache, misses = _seconds_alone(layers, config, device, cache, log)
        return found

    times = measured_times(planar, workload, seconds)
    if times is None:
        return fused, copied, choices, layout_record(None, None)
    wanted = chosen_layouts(planar, times)
    count = len(times.layers)
    choices = replace(choices, cache=cache, misses=choices.misses + misses)
    if wanted is None:
        log.info(f"Layouts: the estimate is the fastest by measured times, too ({count} layers timed in both)")
        return fused, copied, choices, layout_record(times, None)
    changed, parts = fuse_again(Silent(), wanted)
    try:
        timed = _choose(changed.network, profiles, config, device, log, progress, timings=cache)
    except BuildError as error:
        log.verbose(f"Layouts by measured times were not tried: {error}")
        return fused, copied, choices, layout_record(times, None)
    timed = replace(timed, hits=choices.hits, misses=choices.misses + timed.misses)
    before, after = _different(choices, timed)
    log.verbose(f"Layouts by measured times: {before * 1e6:.1f} us before, {after * 1e6:.1f} us after")
    if after >= before * (1 - MIN_GAIN):
        log.info(f"Layouts: as estimated; by single layers' times another choice ({count} layers timed in both) looked faster, and was not")
        return fused, copied, replace(choices, cache=timed.cache, misses=timed.misses), layout_record(times, None)
    log.info(f"Layouts: measured times save {(before - after) * 1e6:.1f} us against the estimate ({count} layers timed in both)")
    return changed, parts, timed, layout_record(times, wanted)


def _different(a: _Choices, b: _Choices) -> tuple[float, float]:
    """The seconds of the layers that only one of two choices for a network has, at the optimal shapes of profile 0."""
    counts = [Counter(one.workloads[0]) for one in (a, b)]
    totals = []
    for choices, other in zip((a, b), reversed(counts), strict=True):
        left, total = Counter(other), 0.0
        for workload, decision in zip(choices.workloads[0], choices.decisions[0], strict=True):
            if left[workload]:
                left[workload] -= 1
            elif not math.isnan(decision.seconds):
                total += decision.seconds
        totals.append(total)
    return totals[0], totals[1]


def _seconds_alone(
    layers: Sequence[Alone], config: BuildConfig, device: Device, cache: TimingCache, log: Log
) -> tuple[list[float], TimingCache, int]:
    """The best seconds of each layer by itself (infinite where nothing can compute it), the timing cache with them, and how many it lacked."""
    compilers = Compilers(device.spec.arch, os.cpu_count() or 1, cache.kernels)
    options, versions = _select_options(config, ""), _versions(device, config.tactic_sources)
    found: dict[Workload, float] = {}
    searches: dict[Workload, tuple[Alone, Search]] = {}
    try:
        for one in layers:
            if one.workload in found or one.workload in searches:
                continue
            entry = cache.find(question(one.workload, device.spec, options, versions), options.level)
            hit = decide_from(entry, one.workload, device.spec, compilers, options) if entry else None
            if hit is not None:
                found[one.workload] = hit.seconds
                continue
            if config.error_on_timing_cache_miss:
                raise BuildError(f"layer {one.name!r}, timed for its layout, is not in the timing cache and --errorOnTimingCacheMiss is set")
            try:
                searches[one.workload] = one, start(one.workload, device.spec, options, compilers)
            except NoTacticError:
                found[one.workload] = math.inf
        for workload, (one, search) in searches.items():
            try:
                decision = finish(search, one.constants, device.spec, options, partial(Bench, device, workload, one.constants), compilers)
            except NoTacticError as error:
                log.verbose(f"  {one.name}: {error}")
                found[workload] = math.inf
                continue
            except DeviceLostError as error:
                raise BuildError(f"layer {one.name!r}: {error}") from error
            found[workload] = decision.seconds
            asked = question(workload, device.spec, options, versions)
            cache = cache.with_entry(Entry(asked, decision.timings, options.level), decision.kernels)
    finally:
        compilers.close()
        _save_cache(config, cache, log)
    return [found[one.workload] for one in layers], cache, len(searches)


def _measured_fusions(
    fused: FusionResult,
    choices: _Choices,
    profiles: Sequence[Profile],
    config: BuildConfig,
    device: Device,
    log: Log,
    progress: Callable[[Progress], None],
) -> tuple[FusionResult, _Choices, FusionOptions | None]:
    """``fused`` after those optional rules, where they make the layers that they touch faster; the choices for it; and what :func:`with_optional`
    was told, None when all stayed as it was.

    Both forms are timed; what they have in common the timing cache knows already.
    """
    if config.optimization_level < MEASURED_LEVEL or not config.builder_cache:
        return fused, choices, None
    free = [layer.name for layer in fused.network.layers if isinstance(layer.op, Concatenation) and layer.name in choices.sharing.elided]
    disabled = (
        *(f"{rule}@{layer}" if layer else rule for rule, layer in config.disable_fusion),
        *(f"convolution-concatenation@{name}" for name in free),  # nothing to save
    )
    options = FusionOptions(disabled=disabled, enabled=tuple(rule.name for rule in OPTIONAL), device=device.spec.kind)
    changed = with_optional(fused, options)
    if changed.network is fused.network:
        return changed, choices, None
    sites = changed.applied[len(fused.applied) :]
    try:
        timed = _choose(changed.network, profiles, config, device, log, progress, timings=choices.cache)
    except BuildError as error:
        log.verbose(f"Optional fusions were not tried: {error}")
        return fused, choices, None
    misses = choices.misses + timed.misses
    losers: dict[str, str] = {}
    for site in sites:
        nodes = _nodes_of(fused.network, site.layers)
        before, after = (_seconds_of(one.network, chosen, nodes) for one, chosen in ((fused, choices), (changed, timed)))
        times = f"{before * 1e6:.1f} us before, {after * 1e6:.1f} us after"
        log.verbose(f"{site.rule}: {', '.join(site.layers)}: {times}")
        if after >= before * (1 - MIN_GAIN):
            losers |= {f"{site.rule}@{node}": times for node in nodes}
    if losers:
        options = replace(options, disabled=(*disabled, *losers))
        changed = _with_times(with_optional(fused, options), losers)
        if changed.network is fused.network:
            return changed, replace(choices, cache=timed.cache, misses=misses), None
        timed = _choose(changed.network, profiles, config, device, log, progress, timings=timed.cache)
        misses += timed.misses
    kept = changed.applied[len(fused.applied) :]
    counts = ", ".join(f"{count} {rule}" for rule, count in Counter(one.rule for one in kept).items())
    before = _seconds_of(fused.network, choices)
    saved = before - _seconds_of(changed.network, timed)
    if saved <= min(0.0, MIN_GAIN * before):  # a concatenation may have lost its place
        log.info(f"Measured fusions: none; what {len(kept)} of them save, other layers lose")
        return fused, replace(choices, cache=timed.cache, misses=misses), None
    log.info(f"Measured fusions: {counts} save {saved * 1e6:.1f} us; {len(sites) - len(kept)} others were no faster")
    for one in kept:
        log.verbose(f"{one.rule}: {', '.join(one.layers)} -> {one.result}")
    return changed, replace(timed, hits=choices.hits, misses=misses), options


MIN_GAIN = 0.02  # share of the time of the layers at a site that a measured fusion must save


def _with_times(result: FusionResult, losers: Mapping[str, str]) -> FusionResult:
    """``result`` whose measured fusions that did not pay (``losers``: rule@node -> its times) say so, rather than that they are switched off."""
    nodes = {layer.name: layer.origins for layer in result.network.layers}

    def said(miss: Miss) -> Miss:
        places = (f"{miss.rule}@{node}" for name in miss.layers for node in nodes.get(name, ()))
        times = next((losers[place] for place in places if place in losers), "") if miss.condition == "disabled" else ""
        return replace(miss, condition="measured", detail=times) if times else miss

    return replace(result, misses={name: said(miss) for name, miss in result.misses.items()})


def _nodes_of(network: Network, layers: Sequence[str]) -> tuple[str, ...]:
    """The ONNX nodes that ``layers`` compute."""
    return tuple(dict.fromkeys(node for layer in network.layers if layer.name in layers for node in layer.origins))


def _seconds_of(network: Network, choices: _Choices, nodes: Sequence[str] | None = None) -> float:
    """The seconds of all layers together, or of those that compute any of ``nodes``, at the optimal shapes of profile 0."""
    wanted = None if nodes is None else set(nodes)
    return sum(
        decision.seconds
        for layer, decision in zip(network.layers, choices.decisions[0], strict=True)
        if (wanted is None or wanted & set(layer.origins)) and not math.isnan(decision.seconds)
    )


def available_sources(wanted: Sequence[str], device: Device, log: Log) -> tuple[str, ...]:
    """The libraries of ``--tacticSources`` that are there for ``device``; of each other one a warning says why it is skipped."""
    found = []
    for name in wanted:
        try:
            device.library(name)
        except DeviceError as error:
            log.warning(f"{error}; building without it")
            continue
        found.append(name)
    return tuple(found)


def _select_options(config: BuildConfig, layer: str) -> SelectOptions:
    pinned = next((tactic for name, tactic in config.pin_tactic if name == layer), "")
    return SelectOptions(
        config.optimization_level, config.workspace, config.tactic_shared_memory, config.max_tactics, pinned, config.avg_timing,
        sources=config.tactic_sources,
    )


def _named(layer: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (NoTacticError, DeviceLostError) as error:
        raise BuildError(f"layer {layer!r}: {error}") from error


def _load_cache(config: BuildConfig, log: Log) -> TimingCache:
    if not config.timing_cache_file or not config.builder_cache:
        return TimingCache()
    path = Path(config.timing_cache_file)
    if not path.exists():
        log.info(f"Timing cache {path} does not exist yet; it will be made")
        return TimingCache()
    try:
        found = timing_cache.load(path)
    except CacheError as error:
        log.warning(f"{error}. Building without it; the build's own timings will replace it")
        return TimingCache()
    log.info(f"Loaded timing cache {path}: {len(found.entries)} entries, {len(found.kernels)} kernels")
    return found


def _save_cache(config: BuildConfig, cache: TimingCache, log: Log) -> None:
    if not config.timing_cache_file or not config.builder_cache or not cache.entries:
        return
    try:
        saved = timing_cache.save(Path(config.timing_cache_file), cache if config.compilation_cache else replace(cache, kernels={}))
    except OSError as error:
        log.warning(f"--timingCacheFile={config.timing_cache_file}: cannot write it ({error.strerror or error})")
        return
    log.verbose(f"Saved timing cache {config.timing_cache_file}: {len(saved.entries)} entries")


def _versions(device: Device, sources: Sequence[str]) -> dict[str, str]:
    """What measured times depend on beside the device: our own kernels are covered by fingerprints, libraries (``sources``) are not."""
    if device.spec.kind == "cuda":
        known = {"nvrtc": ".".join(map(str, nvrtc_version())), "driver": str(device.properties().get("driver", ""))}
        return known | {name: str(device.library(name).version) for name in sources}
    return {"numpy": np.__version__}


# --- engine ----------------------------------------------------------------------------------------------------------


def _bodies(
    network: Network,
    profiles: Sequence[Profile],
    outer: Outer,
    config: BuildConfig,
    device: Device,
    log: Log,
    progress: Callable[[Progress], None],
) -> dict[str, tuple[Engine, ...]]:
    """Per control-flow layer, an engine for each network in it, with tactics chosen as for any other: at the optimal shapes of the first
    profile, legal over the range of all."""
    around = size_ranges(network, profiles, outer)
    found = {}
    for layer in network.layers:
        if isinstance(layer.op, ControlFlow):
            engines = []
            for body in layer.op.bodies:
                ranges = {name: _body_range(body, name, around) for name in body.inputs}
                choices = _choose(body, (ranges,), config, device, log, progress, around)
                inner = _bodies(body, (ranges,), around, config, device, log, progress)
                engine, streams = _with_streams(_assemble(body, choices, (ranges,), config, device, inner), choices, config, device, log, around)
                engines.append(replace(engine, record={"streams": streams}))
            found[layer.name] = tuple(engines)
    return found


def size_ranges(network: Network, profiles: Sequence[Profile], outer: Outer) -> dict[str, dict[str, int]]:
    """The least, usual and greatest value of every named size over all profiles; sizes of which nothing is known get a range, too."""
    found = {which: [named_sizes(network, profile, which, outer) for profile in profiles] for which in ("min", "opt", "max")}
    least = {name: min(sizes[name] for sizes in found["min"]) for name in found["min"][0]}
    most = {name: max(sizes[name] for sizes in found["max"]) for name in found["max"][0]}
    for name in size_makers(network):
        if least[name] == most[name]:
            least[name], most[name] = min(1, least[name]), max(8, 2 * most[name])
    return {"min": least, "opt": found["opt"][0], "max": most}


def _body_range(body: Network, name: str, around: Outer) -> InputRange:
    """The range of a body's input; sizes that only the body's iterations tell are guessed."""

    def shape(which: str, guess: int) -> tuple[int, ...]:
        dims = body.tensors[name].shape
        return tuple(bind(dim, around[which]) if symbols(dim) <= around[which].keys() else guess for dim in dims)

    return InputRange(shape("min", 1), shape("opt", 4), shape("max", 8))


def _assemble(
    network: Network,
    choices: _Choices,
    profiles: Sequence[Profile],
    config: BuildConfig,
    device: Device,
    bodies: Mapping[str, tuple[Engine, ...]],
) -> Engine:
    weights: dict[str, np.ndarray] = {}
    packed_names: dict[tuple[Any, ...], tuple[str, ...]] = {}
    first, *more = (
        tuple(layer_plans(network, workloads, decisions, config, device.spec, weights, packed_names, bodies))
        for workloads, decisions in zip(choices.workloads, choices.decisions, strict=True)
    )
    for name in network.outputs:  # an output may be a constant itself
        if name in network.constants:
            weights[name] = network.constants[name]
    bare = replace(network, constants={})
    return Engine(bare, first, weights, dict(choices.kernels), tuple(profiles), device.spec, {}, config.tf32, tuple(more))


def layer_plans(
    network: Network,
    workloads: Sequence[Workload],
    decisions: Sequence[Decision],
    config: BuildConfig,
    device: DeviceSpec,
    weights: dict[str, np.ndarray],
    packed_names: dict[tuple[Any, ...], tuple[str, ...]],
    bodies: Mapping[str, tuple[Engine, ...]],
) -> list[LayerPlan]:
    """The record of one profile's decisions; what they read is added to ``weights`` (packed arrays by ``packed_names``)."""
    layers = []
    for layer, workload, decision in zip(network.layers, workloads, decisions, strict=True):
        if decision is VIEW_DECISION:
            layers.append(LayerPlan(VIEW, seconds=0.0))
            weights.update((name, network.constants[name]) for name in layer.inputs if name in network.constants)
            continue
        if decision.tactic in (CONTROL, ON_HOST, IDLE):
            weights.update({name: network.constants[name] for name in layer.inputs if name in network.constants})
            layers.append(LayerPlan(decision.tactic, bodies=bodies.get(layer.name, ())))
            continue
        tactic = tactic_by_id(decision.tactic)
        plan = tactic.plan(workload, decision.config, device)
        values = {n: network.constants[name] for n, name in enumerate(layer.inputs) if name in network.constants}
        shared = (decision.tactic, decision.config, workload, tuple(layer.inputs[n] for n in values))
        if shared not in packed_names:
            arrays = tactic.prepare(workload, decision.config, values)
            packed_names[shared] = tuple(_store(weights, f"{layer.name}#{n}", array) for n, array in enumerate(arrays))
        for number in _inputs_read(plan, len(layer.inputs)):
            if number in values:
                weights[layer.inputs[number]] = values[number]
        floor = floor_seconds(workload, device)
        layers.append(
            LayerPlan(
                tactic=decision.tactic,
                config=decision.config,
                packed=packed_names[shared],
                seconds=decision.seconds,
                floor=reachable_seconds(workload, device) if plan.steps else floor,
                bound=_bound(workload, floor, device),
                workspace=plan.workspace,
                cached=decision.cached,
                sources=_sources(decision),
                alternatives=tuple(
                    Alternative(t.tactic, t.config, t.seconds, t.reason)
                    for t in (decision.timings if config.profiling_verbosity == "detailed" else ())
                ),
            )
        )
    return layers


def _sources(decision: Decision) -> tuple[tuple[str, float], ...]:
    """The best time of our own kernels and of each library that competed, the fastest first; empty without libraries."""
    best: dict[str, float] = {}
    for timing in decision.timings:
        if timing.seconds is not None:
            name = source_of(timing.tactic) or "own"
            best[name] = min(timing.seconds, best.get(name, math.inf))
    return tuple(sorted(best.items(), key=lambda item: item[1])) if set(best) - {"own"} else ()


def _store(weights: dict[str, np.ndarray], name: str, array: np.ndarray) -> str:
    """Add a packed array under ``name``, with a number when another profile packed the weights otherwise; its name."""
    found, unique, number = np.ascontiguousarray(array), name, 0
    while unique in weights and not _same_bytes(weights[unique], found):
        number += 1
        unique = f"{name}.{number}"
    weights[unique] = found
    return unique


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _inputs_read(plan: Plan, count: int) -> set[int]:
    """The input numbers that the steps of a plan read directly, beside what ``prepare`` packed."""
    numbers: set[int] = set()
    for step in plan.steps:
        if isinstance(step, CpuCall):
            numbers |= set(range(count)) - set(step.unread)
        elif isinstance(step, Copy):
            numbers |= _input_numbers(step.source)
        elif isinstance(step, LibraryCall):
            numbers |= {number for _, buffer in step.buffers for number in _input_numbers(buffer)}
        elif isinstance(step, Launch):
            numbers |= {number for argument in step.arguments for number in _input_numbers(argument)}
    return numbers


def _input_numbers(argument: Argument) -> set[int]:
    if isinstance(argument, Struct):
        return {number for one in argument.fields for number in _input_numbers(one)}
    buffer = argument.buffer if isinstance(argument, TensorMap) else argument
    return {buffer.index} if isinstance(buffer, Buffer) and buffer.kind == "input" else set()


def _bound(workload: Workload, floor: float, spec: DeviceSpec) -> str:
    if spec.kind == "cuda" and floor < LAUNCH_FLOOR:
        return "launch"
    compute = workload_flops(workload)
    return "compute" if compute and workload_bytes(workload) / spec.bandwidth < floor else "memory"


# --- what reports show -----------------------------------------------------------------------------------------------


def _record(
    model: Path | bytes, imported: Network, fused: FusionResult, config: BuildConfig, device: Device, choices: _Choices
) -> dict[str, Any]:
    data = model.read_bytes() if isinstance(model, Path) else model
    return {
        "trtcli": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": str(model) if isinstance(model, Path) else imported.name,
        "modelSha256": hashlib.sha256(data).hexdigest(),
        "options": _plain(asdict(config)),
        "versions": _versions(device, config.tactic_sources),
        "nodes": len(imported.fates),
        "layers": len(fused.network.layers),
        "fusions": fusion_lines(fused),
        "misses": {layer: _plain(asdict(miss)) for layer, miss in {**fused.misses, **missed_views(fused.network, choices.sharing)}.items()},  # for --whyNot
        "cacheHits": choices.hits,
        "cacheMisses": choices.misses,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
