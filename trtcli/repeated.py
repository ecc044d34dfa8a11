"""``--timeDeserialize`` and ``--timeRefit``: how long it takes to load an engine, or to give it new weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.device import Device
from runtime.engine import Engine
from runtime.loaded import LoadedEngine
from trtcli.log import Log, Silent
from trtcli.refitting import refit

LOADS, WARM_UP_LOADS, REFITS = 20, 2, 10
SLOW_FIRST = 2.0  # times the average that the first load may take


@dataclass(frozen=True)
class Times:
    """Seconds of several runs of the same."""

    seconds: tuple[float, ...]

    @property
    def average(self) -> float:
        """Their mean."""
        return sum(self.seconds) / len(self.seconds)

    def __str__(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        return f"average {self.average * 1e3:.2f} ms, min {low * 1e3:.2f}, max {high * 1e3:.2f} ({len(self.seconds)} runs)"


def time_loading(path: str, device: Device, log: Log) -> bool:
    """Read the engine file and put weights and kernels on the device, again and again; whether the first time was no exception.

    Raises:
        EngineError: the engine cannot be loaded here.
    """

    def load() -> None:
        LoadedEngine(Engine.load(path), device)

    first, *others = _seconds(load, WARM_UP_LOADS + LOADS)
    times = Times(tuple(others[WARM_UP_LOADS - 1 :]))
    log.report(f"Deserialization and upload of {path}: {times}, first {first * 1e3:.2f} ms")
    if first > SLOW_FIRST * times.average:
        log.error(f"The first deserialization took {first / times.average:.1f} times the average: files were not in memory yet, or the machine is busy")
        return False
    return True


def time_refits(engine: Engine, model: str, log: Log) -> None:
    """Give ``engine`` the weights of ``model`` again and again.

    Raises:
        BuildError: the model does not fit.
    """
    refit(engine, Path(model), log)  # it may warn, once
    times = Times(tuple(_seconds(lambda: refit(engine, Path(model), Silent()), REFITS)))
    log.report(f"Refit with the weights of {model}: {times}")


def _seconds(call: Callable[[], object], count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found
