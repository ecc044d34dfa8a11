"""The light networks on this machine's device beside ONNX Runtime on its CPU: ``python -m benchmarks.light [NAME ...]``."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.runner import Result, compare, record
from benchmarks.table import table

NETWORKS = ("squeezenet", "resnet50", "inception_v1", "shufflenet")
REPETITIONS = 5
SECONDS = 1.0


def measure(name: str, folder: Path) -> Result:
    """Median latency of one network, batch 1, in milliseconds, alternating with the peer."""
    import onnx
    import onnxruntime

    from runtime.benchmark import BenchmarkOptions, run_benchmark
    from runtime.context import ExecutionContext
    from runtime.devices import open_device
    from trtcli.builder import build
    from trtcli.config import BuildConfig
    from trtcli.inputs import make_inputs
    from trtcli.log import Log
    from trtcli.zoo import light_model

    path = folder / f"{name}.onnx"
    onnx.save(light_model(name), path)
    device = open_device("auto")
    engine = build(path, BuildConfig(), device, log=Log(to_stderr=True))
    context = ExecutionContext(engine, device)
    inputs = make_inputs(engine.network, {one: extents.opt for one, extents in engine.profiles[0].items()}, {})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    options = BenchmarkOptions(duration=SECONDS, warm_up=100)
    ours, peer = [], []
    for _ in range(REPETITIONS):
        queries = run_benchmark([context], inputs, options).queries
        ours.append(statistics.median(query.compute for query in queries))
        peer.append(_median_ms(lambda: session.run(None, inputs)))
    return compare(
        f"{name}, batch 1, FP32",
        ours,
        "ms",
        peer,
        f"onnxruntime {onnxruntime.__version__} (CPU)",
        device=device.spec.name,
        driver=str(device.properties().get("driver", "")),
    )


def _median_ms(function: Callable[[], object]) -> float:
    function()
    samples: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(samples) < 3:
        began = time.perf_counter()
        function()
        samples.append((time.perf_counter() - began) * 1e3)
    return float(np.median(samples))


def main(names: Sequence[str]) -> int:
    """Measure, record, print the table."""
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(name, Path(folder)) for name in names or NETWORKS]
    path = record("light", results)
    print(table(results), end="")
    print(f"recorded in {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
