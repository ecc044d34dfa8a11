"""Layers by themselves -> their tactics: known from the timing cache, or compiled all together, timed one after the other."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from runtime.device import DeviceLostError
from runtime.timer import Bench
from tactics.cache import Entry
from tactics.candidates import NoTacticError, SelectOptions
from tactics.compilers import Compilers
from tactics.select import AT_FLOOR, NEAR_FLOOR, Decision, Search, decide_from, finish, question, start
from tactics.tactic import Workload
from trtcli.builder.setting import BuildError, Progress, Setting
from trtcli.report.building import timing_line


@dataclass(frozen=True)
class Ask:
    """A layer whose tactic is wanted: its name, what it computes, the values of its constant inputs by number, and its ``limits``: the same
    layer at other sizes that it must serve."""

    layer: str
    workload: Workload
    constants: Mapping[int, np.ndarray]
    limits: tuple[Workload, ...] = ()


def decide(asks: Sequence[Ask], setting: Setting, optional: bool = False) -> list[Decision | None]:
    """The tactic of each of ``asks``; None where nothing can compute it, if they are ``optional``. Equal ones are searched once (each, with
    ``--noBuilderCache``); what is measured goes to the build's timing cache.

    Raises:
        BuildError: nothing can compute one that is not ``optional``, a cache miss was forbidden, or the device was lost.
    """
    device, timings, log = setting.device.spec, setting.timings, setting.log
    keys: list[Hashable] = []
    distinct: dict[Hashable, tuple[Ask, SelectOptions]] = {}
    for number, one in enumerate(asks):
        options = setting.select_options(one.layer)
        keys.append((one.workload, one.limits, options) if setting.config.builder_cache else number)
        distinct.setdefault(keys[-1], (one, options))
    compilers = Compilers(device.arch, os.cpu_count() or 1, timings.cache.kernels)
    found: dict[Hashable, Decision | None] = {}
    searches: dict[Hashable, tuple[Search, dict[str, Any]]] = {}
    state = Progress(total=len(distinct))
    early = 0
    try:
        for key, (one, options) in distinct.items():
            asked = question(one.workload, device, options, setting.versions)
            hit = _known(one, asked, options, setting, compilers)
            if hit is not None:
                found[key] = hit
                state = replace(state, done=state.done + 1, cached=state.cached + 1, layer=one.layer)
                continue
            timings.misses += 1
            with _failing(one, optional):
                found[key] = None
                searches[key] = start(one.workload, device, options, compilers, one.limits), asked
        setting.progress(state)
        for key, (search, asked) in searches.items():
            one, options = distinct[key]
            if setting.late:
                timings.untimed += 1
                options = replace(options, level=0)
            bench = partial(Bench, setting.device, search.workload, one.constants)
            with _failing(one, optional):
                found[key] = decision = finish(search, one.constants, device, options, bench, compilers)
                timings.add(Entry(asked, decision.timings, options.level), decision.kernels)
                for timing in decision.timings:
                    log.verbose(timing_line(one.layer, timing, decision))
                early += any(timing.reason == AT_FLOOR for timing in decision.timings)
                state = _after(state, one, decision)
                setting.progress(state)
    finally:
        compilers.close()
        timings.save()
    if early:
        log.info(f"The search ended early for {early} of {len(searches)} workloads: the best stood within {NEAR_FLOOR - 1:.0%} of its floor")
    return [found[key] for key in keys]


@contextmanager
def _failing(one: Ask, optional: bool) -> Iterator[None]:
    """Errors of a layer's search name the layer; that nothing can compute it is none where it is ``optional``."""
    try:
        yield
    except (NoTacticError, DeviceLostError) as error:
        if not optional or isinstance(error, DeviceLostError):
            raise BuildError(f"layer {one.layer!r}: {error}") from error


def _known(one: Ask, asked: Mapping[str, Any], options: SelectOptions, setting: Setting, compilers: Compilers) -> Decision | None:
    """The decision that the timing cache holds for a layer.

    Raises:
        BuildError: it holds none, and that was forbidden.
    """
    timings, level, config = setting.timings, options.level, setting.config
    entry = timings.find(asked, level)
    hit = decide_from(entry, one.workload, setting.device.spec, compilers, options, one.limits) if entry else None
    if entry is not None and hit is not None:
        return replace(hit, cached=timings.hit(entry))
    if config.error_on_timing_cache_miss or (config.timing_cache_file and timings.cache.entries):
        difference = timings.cache.nearest_difference(asked, level)
        if config.error_on_timing_cache_miss:
            raise BuildError(f"layer {one.layer!r} is not in the timing cache ({difference}) and --errorOnTimingCacheMiss is set")
        setting.log.verbose(f"Timing cache miss: {one.layer}: {difference}")
    return None


def _after(state: Progress, one: Ask, decision: Decision) -> Progress:
    counted = sum(timing.seconds is not None for timing in decision.timings)
    refused = state.refused + len(decision.timings) - counted
    return replace(state, done=state.done + 1, timed=state.timed + counted, refused=refused, layer=one.layer)
