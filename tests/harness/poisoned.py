"""Engines run in memory that was full of NaN."""

from __future__ import annotations

import numpy as np
import onnx

from runtime.device import Device
from runtime.engine import Engine
from tests.catalogue import Row, model
from tests.models import onnxruntime_outputs


def compare_poisoned(row: Row, engine: Engine, device: Device, tolerance: float, data: bytes | None = None) -> None:
    """Runs ``engine`` of ``row`` (or of the model ``data``) twice, the first time on an arena full of NaN, against ONNX Runtime."""
    random = np.random.default_rng(1)
    inputs = {name: random.standard_normal(shape).astype(np.float32) for name, shape in row.inputs.items()}
    context = engine.create_execution_context_without_device_memory(device)
    size = max(256, engine.device_memory_size)
    arena, stream = device.allocate(size), device.stream()
    device.fill(arena.address, 0xFF, size, stream)
    stream.synchronize()
    context.set_device_memory(arena.address, size)
    expected = onnxruntime_outputs(onnx.load_from_string(data or model(row)), inputs)
    for _ in range(2):
        found = context.execute(inputs)
        for name, wanted in expected.items():
            error = np.linalg.norm(found[name].astype(np.float64) - wanted) / np.linalg.norm(wanted)
            assert error <= tolerance, f"{row.name}: {name} is off by {error:.1e}"
