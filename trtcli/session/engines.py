"""The engine of a command: loaded, or built and saved."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtcli.config import Config
from trtcli.errors import FAILED, PASSED
from trtcli.log import Log
from trtcli.session.device import open_device

if TYPE_CHECKING:
    from fusion.network import Network
    from runtime.device import Device
    from runtime.engine import Engine, InputRange
    from trtcli.memory_usage import MemoryUsage


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
    from runtime.segments import layer_count

    began = time.perf_counter()
    path = config.model.load_engine
    engine = Engine.load(path)
    size = Path(path).stat().st_size / 2**20
    log.info(
        f"Loaded {path} ({size:.1f} MiB, {layer_count(engine.network)} layers, built for {engine.device.name}) "
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
    from trtcli.session.inference import check_request

    def accept(model: Network, network: Network, profiles: Sequence[Mapping[str, InputRange]]) -> None:
        if not config.inference.skip_inference:
            check_request(config.inference, model, network, profiles)

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
