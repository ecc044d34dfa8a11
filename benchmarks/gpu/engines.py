"""An engine beside the one that is built without some rules, for checks on a GPU: outputs compared, then graph replays timed in turns."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np

from benchmarks.runner import Result, compare
from runtime.device import Device
from runtime.engine import Engine
from runtime.parts import parts_at_optimum
from runtime.timer import time_parts
from trtcli.inputs import make_inputs

REPETITIONS = 5
UNITS = {"ms": 1e3, "us": 1e6}


def arguments(doc: str, level: int) -> argparse.ArgumentParser:
    """What all of these checks take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", default="0")
    parser.add_argument("--level", type=int, default=level)
    parser.add_argument("--cache", default="")
    parser.add_argument("--no-record", action="store_true")
    return parser


def outputs(engine: Engine, device: Device) -> dict[str, np.ndarray]:
    """The outputs for random inputs, with activations that were NaN before."""
    inputs = make_inputs(engine.network, {name: one.opt for name, one in engine.profiles[0].items()}, {})
    context = engine.create_execution_context_without_device_memory(device)
    size, stream = max(256, engine.device_memory_size), device.stream()
    arena = device.allocate(size)
    device.fill(arena.address, 0xFF, size, stream)
    stream.synchronize()
    context.set_device_memory(arena.address, size)
    return {name: np.array(value, np.float64) for name, value in context.execute(inputs).items()}


def largest_error(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """The largest relative error of the outputs."""
    return max(float(np.linalg.norm(found[name] - value) / np.linalg.norm(value)) for name, value in wanted.items())


def raced(device: Device, ours: Engine, plain: Engine, workload: str, unit: str, peer: str, note: str) -> Result:
    """``ours`` beside ``plain``, in turns."""
    parts = [parts_at_optimum(engine, 0, {})[0] for engine in (ours, plain)]
    times, factor = [time_parts(device, parts) for _ in range(REPETITIONS)], UNITS[unit]
    where = {"device": device.spec.name, "driver": str(device.properties().get("driver", ""))}
    return compare(workload, [one * factor for one, _ in times], unit, [one * factor for _, one in times], peer, note=note, **where)
