"""What padded channels gain: convolutions with channel counts that are no multiple of 16 bytes, on the GPU of this machine.

    python benchmarks/gpu/padding_check.py [CASE ...] [--device 0] [--level 3] [--cache FILE] [--no-torch] [--no-record]

CASE: CHANNELS:KERNEL:BATCH[:int8]. The network is three convolutions with ReLU over 56 x 56 pixels, 64 -> CHANNELS -> CHANNELS -> 64, with windows of
KERNEL x KERNEL, in FP16 or with QuantizeLinear and DequantizeLinear around all of them. Two engines are built, with padded channels where they pay and with `--disableFusion=padded-channels`; their outputs are
compared (on an arena full of NaN), then both are timed in turns as graph replays. One
JSON line each; torch's time (channels_last, FP16, the same reformats, in a CUDA graph) stands in the note.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.engines import arguments, largest_error, outputs, raced  # noqa: E402
from benchmarks.gpu.torch_times import graph_times  # noqa: E402
from benchmarks.runner import record  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from trtcli.builder import build  # noqa: E402
from trtcli.config import BuildConfig  # noqa: E402
from trtcli.log import Log  # noqa: E402

CASES = tuple(f"{channels}:{kernel}:{batch}" for batch in (1, 32) for kernel in (1, 3) for channels in (37, 91, 255))
SIZE, OUTSIDE = 56, 64  # pixels along an axis; channels before and after


def weights_of(channels: int, kernel: int) -> list[np.ndarray]:
    """The weights of the three convolutions."""
    random, widths = np.random.default_rng(0), (OUTSIDE, channels, channels, OUTSIDE)
    shapes = [(o, i, kernel, kernel) for i, o in zip(widths, widths[1:], strict=False)]
    return [random.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5) for shape in shapes]


def model(channels: int, kernel: int, batch: int, int8: bool = False) -> bytes:
    """The case as ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {f"w{n}": w for n, w in enumerate(weights_of(channels, kernel))}
    nodes, x = [], "x"

    def quantised(name: str, of: str) -> str:
        """``of`` rounded to 8 bits; weights are there as such."""
        if of in constants:
            step = np.float32(np.abs(constants[of]).max() / 127)
            constants.update({f"{of}.scale": step, of: np.round(constants[of] / step).astype(np.int8), f"{of}.zero": np.int8(0)})
        else:
            constants.update({f"{name}.scale": np.float32(1 / 32), f"{name}.zero": np.int8(0)})
            nodes.append(helper.make_node("QuantizeLinear", [of, f"{name}.scale", f"{name}.zero"], [f"{name}.q"], f"quantize {name}"))
        given = [of, f"{of}.scale", f"{of}.zero"] if of in constants else [f"{name}.q", f"{name}.scale", f"{name}.zero"]
        nodes.append(helper.make_node("DequantizeLinear", given, [f"{name}.d"], f"dequantize {name}"))
        return f"{name}.d"

    for number in range(3):
        operands = [quantised(f"x{number}", x), quantised(f"v{number}", f"w{number}")] if int8 else [x, f"w{number}"]
        nodes.append(helper.make_node("Conv", operands, [f"c{number}"], f"conv{number}", pads=[kernel // 2] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"))
        x = f"r{number}"
    shape = [batch, OUTSIDE, SIZE, SIZE]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", x))
    graph = helper.make_graph(nodes, f"{channels}:{kernel}:{batch}", [given], [made], [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def torch_seconds(channels: int, kernel: int, batch: int) -> float:
    """The same with torch, from the float32 NCHW image to the float32 NCHW result; the median of graph replays."""
    import torch

    torch.backends.cudnn.benchmark = True
    weights = [torch.from_numpy(w).cuda().half().to(memory_format=torch.channels_last) for w in weights_of(channels, kernel)]
    images = [torch.rand(batch, OUTSIDE, SIZE, SIZE, device="cuda") for _ in range(2)]

    def call(image: torch.Tensor) -> torch.Tensor:
        x = image.to(torch.half, memory_format=torch.channels_last)
        for weight in weights:
            x = torch.relu_(torch.nn.functional.conv2d(x, weight, padding=kernel // 2))
        return x.to(torch.float, memory_format=torch.contiguous_format)

    return statistics.median(graph_times([lambda image=image: call(image) for image in images]))


def main() -> int:
    """Build, compare, time, record."""
    parser = arguments(__doc__, level=3)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--no-torch", action="store_true")
    given = parser.parse_args()
    device, wrong = open_device(given.device), 0
    with tempfile.TemporaryDirectory() as folder:
        cache = given.cache or str(Path(folder) / "timings.json")
        for case in given.cases or CASES:
            channels, kernel, batch = map(int, case.split(":")[:3])
            int8 = case.endswith(":int8")
            config = BuildConfig(fp16=True, optimization_level=given.level, timing_cache_file=cache, max_aux_streams=0)
            data, log = model(channels, kernel, batch, int8), Log(to_stderr=True)
            ours = build(data, config, device, log=log)
            plain = build(data, replace(config, disable_fusion=(("padded-channels", ""),)), device, log=log)
            found, wanted = outputs(ours, device), outputs(plain, device)
            error = largest_error(found, wanted)
            right = error < 2e-2
            wrong += not right
            held = ", ".join(f"{name} {real} as {size}" for name, (real, size) in ours.record["paddedChannels"]["channels"].items())
            tactics = [", ".join(f"{plan.tactic.removeprefix('cuda.')} {plan.seconds * 1e6:.1f}" for plan in engine.layers) for engine in (ours, plain)]
            peer = "" if given.no_torch or int8 else f"; torch channels_last {torch_seconds(channels, kernel, batch) * 1e6:.1f} us"
            workload = f"convolutions 64-{channels}-{channels}-64 {kernel}x{kernel}, 56x56, batch {batch}, {'INT8' if int8 else 'FP16'}, graph"
            note = f"padded: {held or 'none'}{peer}; outputs differ by {error:.1e}; layers {tactics[0]}; without {tactics[1]}"
            result = raced(device, ours, plain, workload, "us", "trtcli without padded channels", note)
            if not given.no_record:
                record("padding", [result])
            print(f"{'right' if right else 'WRONG'} {case}: {result.ours:.1f} us, not padded {result.peer:.1f} ({result.ratio:.2f}x); {result.note}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
