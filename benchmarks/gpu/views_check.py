"""What channels in place gain: networks that join and cut channels, built with and without views, on the GPU of this machine.

    python benchmarks/gpu/views_check.py [NAME ...] [--device 0] [--level 2] [--cache FILE] [--fp32] [--no-record]

NAME: squeezenet, inception_v1, densenet121, shufflenet (light models of the onnx package, batch 1) or unet:BATCH (64 to 512 channels,
256 x 256). Both engines are compared (outputs, on an arena full of NaN), then timed in turns as graph replays; one JSON line each: ours is the
engine as it is built, the peer the one with `--disableFusion=concatenation-view,slice-view`. No torch is needed. --fp32 keeps float32 (TF32).
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
from fusion.ops import Concatenation, Slice  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from runtime.engine import Engine  # noqa: E402
from runtime.views import VIEW  # noqa: E402
from trtcli.builder import build  # noqa: E402
from trtcli.config import BuildConfig  # noqa: E402
from trtcli.log import Log  # noqa: E402

NAMES = ("squeezenet", "inception_v1", "densenet121", "unet:1", "unet:8")


def unet(batch: int, widths: tuple[int, ...] = (64, 128, 256, 512), size: int = 256) -> bytes:
    """A U-Net of random weights: two convolutions a level, transposed convolutions on the way up, skips joined."""
    from onnx import TensorProto, helper, numpy_helper

    random, nodes, weights = np.random.default_rng(0), [], []

    def node(kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def weight(*shape: int) -> str:
        value = random.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        weights.append(numpy_helper.from_array(value, f"w{len(weights)}"))
        return weights[-1].name

    def double(x: str, inside: int, outside: int) -> str:
        for channels in (inside, outside):
            x = node("Relu", [node("Conv", [x, weight(outside, channels, 3, 3)], pads=[1, 1, 1, 1])])
        return x

    x, inside, skips = "x", 3, []
    for width in widths:
        if skips:
            x = node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
        x = double(x, inside, width)
        skips.append(x)
        inside = width
    for width, skip in zip(widths[-2::-1], skips[-2::-1], strict=True):
        up = node("ConvTranspose", [x, weight(2 * width, width, 2, 2)], strides=[2, 2])
        x = double(node("Concat", [up, skip], axis=1), 2 * width, width)
    y = node("Conv", [x, weight(2, widths[0], 1, 1)])
    shape = [batch, 3, size, size]
    graph = helper.make_graph(
        nodes, "unet", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [batch, 2, size, size])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def model(name: str) -> bytes:
    """The ONNX model ``name``."""
    from trtcli.zoo import light_model

    if name.startswith("unet"):
        return unet(int(name.partition(":")[2] or 1))
    return light_model(name).SerializeToString()


def moving(engine: Engine) -> int:
    """How many layers join or cut tensors."""
    plans = zip(engine.network.layers, engine.layers, strict=True)
    return sum(isinstance(layer.op, Concatenation | Slice) and plan.tactic != VIEW for layer, plan in plans)


def main() -> int:
    """Build, compare, time, record."""
    parser = arguments(__doc__, level=2)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--fp32", action="store_true")
    given = parser.parse_args()
    device, results, wrong = open_device(given.device), [], 0
    with tempfile.TemporaryDirectory() as folder:
        cache = given.cache or str(Path(folder) / "timings.json")
        for name in given.names or NAMES:
            config = BuildConfig(fp16=not given.fp32, optimization_level=given.level, timing_cache_file=cache, max_aux_streams=0)
            data, log = model(name), Log(to_stderr=True)
            ours = build(data, config, device, log=log)
            plain = build(data, replace(config, disable_fusion=(("concatenation-view", ""), ("slice-view", ""))), device, log=log)
            found, wanted = outputs(ours, device), outputs(plain, device)
            error = largest_error(found, wanted)
            right = error < (5e-3 if given.fp32 else 2e-2)
            wrong += not right
            note = (
                f"{moving(ours)} layers join or cut, {moving(plain)} without views; "
                f"activations {ours.device_memory_size / 1e6:.1f} MB, {plain.device_memory_size / 1e6:.1f} without; outputs differ by {error:.1e}"
            )
            result = raced(device, ours, plain, f"{name}, {'FP32' if given.fp32 else 'FP16'}, graph", "ms", "trtcli without views", note)
            results.append(result)
            print(f"{'right' if right else 'WRONG'} {name}: {result.ours:.4f} ms, without views {result.peer:.4f} ({result.ratio:.3f}x); {result.note}", flush=True)
    if not given.no_record:
        record("views", results)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
