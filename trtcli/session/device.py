"""The device that a command runs on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trtcli import host
from trtcli.config import Config
from trtcli.log import Log

if TYPE_CHECKING:
    from runtime.device import Device
    from runtime.engine import Engine


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
    device.activate()
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
