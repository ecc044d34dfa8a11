"""What all steps of one build share: its options, the device, where it says what it does, and what it has timed so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from runtime.device import Device, DeviceError
from tactics.candidates import SelectOptions
from tactics.compiler import nvrtc_version
from trtcli.builder.timings import BuildTimings
from trtcli.config import BuildConfig
from trtcli.log import Silent


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


@dataclass(frozen=True)
class Setting:
    """What every step of a build is given.

    Attributes:
        timings: the build's timing cache; the one thing in here that changes.
        versions: what measured times depend on beside the device, by name.
        deadline: of ``--buildBudget``, on the clock of ``time.perf_counter``; None: there is no hurry.
    """

    config: BuildConfig
    device: Device
    log: Log
    progress: Callable[[Progress], None]
    timings: BuildTimings
    versions: Mapping[str, str]
    deadline: float | None = None

    @property
    def late(self) -> bool:
        """Whether ``--buildBudget`` is used up."""
        return self.deadline is not None and time.perf_counter() > self.deadline

    @property
    def quiet(self) -> Setting:
        """The same for layers that the user did not ask about."""
        return replace(self, log=Silent(), progress=lambda _: None)

    def select_options(self, layer: str = "") -> SelectOptions:
        """How much to search for a layer of that name."""
        config = self.config
        return SelectOptions(
            config.optimization_level, config.workspace, config.tactic_shared_memory, config.max_tactics,
            next((tactic for name, tactic in config.pin_tactic if name == layer), ""), config.avg_timing, config.tactic_sources,
        )  # fmt: skip


def new_setting(config: BuildConfig, device: Device, log: Log, progress: Callable[[Progress], None]) -> Setting:
    """The setting of a build whose tactic selection begins now; the timing cache is read."""
    deadline = None if config.build_budget is None else time.perf_counter() + config.build_budget
    return Setting(config, device, log, progress, BuildTimings(config, log), _versions(device, config.tactic_sources), deadline)


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


def _versions(device: Device, sources: Sequence[str]) -> dict[str, str]:
    """Our own kernels are covered by fingerprints, libraries (``sources``) are not."""
    if device.spec.kind == "cuda":
        known = {"nvrtc": ".".join(map(str, nvrtc_version())), "driver": str(device.properties().get("driver", ""))}
        return known | {name: str(device.library(name).version) for name in sources}
    return {"numpy": np.__version__}
