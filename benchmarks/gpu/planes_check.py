"""What an output costs that is wanted channels-first and in float32, of a network that computes in float16, channels-last; on the GPU of this machine.

    python benchmarks/gpu/planes_check.py [CASE ...] [--device 0] [--level 3] [--cache FILE] [--no-record]

CASE: CHANNELS:SIZE:BATCH[:KERNEL]. The network is two convolutions: 64 -> 64 channels (3 x 3, ReLU) -> CHANNELS, over SIZE x SIZE pixels, from an FP16 channels-last
input. Three engines are built: as the builder wants it; with `--disableFusion=convolution-planes,transpose-epilogue` (the convolution stores FP32,
a transpose follows); and, for what the note says, with `--outputIOFormats=fp16:hwc`. The first two are compared (on an arena full of NaN) and timed in
turns as graph replays. One JSON line each.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.engines import arguments, largest_error, outputs, raced  # noqa: E402
from benchmarks.runner import record  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from runtime.parts import parts_at_optimum  # noqa: E402
from runtime.timer import time_parts  # noqa: E402
from trtcli.builder import build  # noqa: E402
from trtcli.config import BuildConfig  # noqa: E402
from trtcli.log import Log  # noqa: E402

CASES = ("3:256:1", "21:128:1", "21:128:8", "64:56:32", "85:40:1:1", "255:40:8:1")
WITHOUT = (("convolution-planes", ""), ("transpose-epilogue", ""))


def model(channels: int, size: int, batch: int, kernel: int) -> bytes:
    """The case as ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        name: (random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
        for name, shape in (("w", (64, 64, 3, 3)), ("v", (channels, 64, kernel, kernel)))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv0", pads=[1] * 4), helper.make_node("Relu", ["c"], ["r"], "relu0"),
        helper.make_node("Conv", ["r", "v"], ["y"], "conv1", pads=[kernel // 2] * 4),
    ]  # fmt: skip
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, count, size, size]) for name, count in (("x", 64), ("y", channels)))
    given, made = ends
    graph = helper.make_graph(nodes, "planes", [given], [made], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def main() -> int:
    """Build, compare, time, record."""
    parser = arguments(__doc__, level=3)
    parser.add_argument("cases", nargs="*", default=CASES)
    given = parser.parse_args()
    device, wrong = open_device(given.device), 0
    with tempfile.TemporaryDirectory() as folder:
        cache = given.cache or str(Path(folder) / "timings.json")
        for case in given.cases or CASES:
            channels, size, batch, kernel = (*map(int, case.split(":")), 3)[:4]
            config = BuildConfig(fp16=True, optimization_level=given.level, timing_cache_file=cache, max_aux_streams=0, input_io_formats=("fp16:hwc",))
            data, log = model(channels, size, batch, kernel), Log(to_stderr=True)
            ours = build(data, config, device, log=log)
            plain = build(data, replace(config, disable_fusion=WITHOUT), device, log=log)
            last = build(data, replace(config, output_io_formats=("fp16:hwc",)), device, log=log)
            error = largest_error(outputs(ours, device), outputs(plain, device))
            right = error < 2e-3
            wrong += not right
            alone = time_parts(device, [parts_at_optimum(last, 0, {})[0]])[0] * 1e6
            layers = [", ".join(f"{plan.tactic.removeprefix('cuda.')} {plan.seconds * 1e6:.1f}" for plan in engine.layers) for engine in (ours, plain)]
            lost = [one["detail"] for near in ours.record["misses"].values() for one in near if (one["rule"], one["condition"]) == ("convolution-planes", "measured")]
            workload = f"convolutions 64-64 3x3, 64-{channels} {kernel}x{kernel}, {size}x{size}, batch {batch}, FP16 channels-last to FP32 NCHW, graph"
            note = f"outputs differ by {error:.1e}; layers {layers[0]}; without {layers[1]}; {f'planes lose: {lost[0]}; ' if lost else ''}with an FP16 channels-last output {alone:.1f} us"
            result = raced(device, ours, plain, workload, "us", "trtcli without convolution-planes and transpose-epilogue", note)
            if not given.no_record:
                record("planes", [result])
            print(f"{'right' if right else 'WRONG'} {case}: {result.ours:.1f} us, without {result.peer:.1f} ({result.ratio:.2f}x); {note}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
