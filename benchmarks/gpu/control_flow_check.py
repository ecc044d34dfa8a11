"""What it costs when the host steps in during an inference, on the device of this machine: one JSON line per figure.

    python benchmarks/gpu/control_flow_check.py [--device 0] [--seconds 100] [--only WORD] [--no-record]

Every network is first compared with ONNX Runtime (plainly, and by replayed segments), then timed: wall time of one inference with its waits, median
of --rounds, launched layer by layer and with its segments captured. silero-vad with its branches stands beside the same network without
them; a loop of 1, 11 and 101 iterations gives the cost of one; a recurrent cell as a Scan stands as plain layers beside itself as a loop; NonZero, Unique and NonMaxSuppression stand beside torch and torchvision where these are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx.parser import parse_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.runner import Result, compare, record  # noqa: E402
from fusion.importer import loops  # noqa: E402
from runtime.context import ExecutionContext  # noqa: E402
from runtime.device import Device  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from runtime.graph import GraphRunner, compare_replay  # noqa: E402
from tests.models import onnxruntime_outputs, wheel_model  # noqa: E402
from trtcli.builder import build  # noqa: E402
from trtcli.config import BuildConfig  # noqa: E402
from trtcli.log import Log  # noqa: E402

Inputs = Mapping[str, np.ndarray]

LOOP = """g (float[256, 256] x, int64 n, float[256, 256] w) => (float[256, 256] y) <bool yes = {1}> {
    y = Loop(n, yes, x) <body = b (int64 i, bool c, float[256, 256] s) => (bool d, float[256, 256] t) {
        d = Identity(c) u = Tanh(s) t = MatMul(u, w) }>
}"""
CELL = """g (float[4, 256] h, float[64, 4, 256] x, float[256, 256] w, float[256, 256] r, float[256] b) => (float[4, 256] last, float[64, 4, 256] all) {
    last, all = Scan<num_scan_inputs = 1, body = step (float[4, 256] s, float[4, 256] v) => (float[4, 256] t, float[4, 256] o) {
        p = MatMul(v, w) q = MatMul(s, r) u = Add(p, q) z = Add(u, b) t = Tanh(z) o = Identity(t) }>(h, x)
}"""
NON_ZERO = "g (float[1024, 1024] x) => (int64[2, k] y) { y = NonZero(x) }"
UNIQUE = "g (int64[1048576] x) => (int64[k] y, int64[k] i, int64[1048576] j, int64[k] c) { y, i, j, c = Unique(x) }"
NMS = """g (float[1, 8400, 4] boxes, float[1, 80, 8400] scores) => (int64[k, 3] y)
    <int64 most = {100}, float overlap = {0.5}, float least = {0.6}> { y = NonMaxSuppression(boxes, scores, most, overlap, least) }"""


def parse(text: str) -> onnx.ModelProto:
    return parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')


def speech(rate: bool) -> Inputs:
    random = np.random.default_rng(0)
    inputs = {
        "input": random.standard_normal((1, 576)).astype(np.float32) * 0.1,
        "state": random.standard_normal((2, 1, 128)).astype(np.float32) * 0.1,
    }
    return {**inputs, "sr": np.array(16000)} if rate else inputs


def detections() -> Inputs:
    random = np.random.default_rng(0)
    corner = random.random((1, 8400, 2)) * 600
    boxes = np.concatenate([corner, corner + 10 + random.random((1, 8400, 2)) * 60], -1).astype(np.float32)
    scores = random.random((1, 80, 8400)).astype(np.float32) ** 8  # about 500 candidates a class
    return {"boxes": boxes, "scores": scores}


def ready(model: onnx.ModelProto | Path, inputs: Inputs, device: Device) -> ExecutionContext:
    """A context whose results equal ONNX Runtime's."""
    source = model if isinstance(model, Path) else model.SerializeToString()
    shapes = {name: array.shape for name, array in inputs.items()}
    engine = build(source, BuildConfig(optimization_level=2, tf32=False, opt_shapes=shapes), device, log=Log(to_stderr=True))
    context = engine.create_execution_context(device)
    found = context.execute(inputs)
    for name, array in onnxruntime_outputs(model, dict(inputs)).items():
        np.testing.assert_allclose(found[name], array, rtol=2e-3, atol=1e-4, err_msg=name)
    replay = compare_replay(context, inputs)
    assert not replay.differing, replay
    context.execute(inputs)
    return context


def seconds(run: Callable[[], None], rounds: int) -> list[float]:
    for _ in range(5):
        run()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return found


def both(context: ExecutionContext, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of an inference, layer by layer and with graphs; the context's inputs are in place."""
    stream = context.device.stream()

    def plain() -> None:
        context.execute_async_v3(stream)
        stream.synchronize()

    runner = GraphRunner(context)
    runner.prepare()

    def captured() -> None:
        runner.enqueue(stream)
        stream.synchronize()

    return seconds(plain, rounds), seconds(captured, rounds)


def peer_of(name: str, inputs: Inputs, rounds: int) -> tuple[list[float], str]:
    """Seconds of torch's operator, with its own wait for the size."""
    try:
        import torch

        if name == "NonZero":
            x = torch.from_numpy(inputs["x"]).cuda()
            return seconds(lambda: (torch.nonzero(x), torch.cuda.synchronize())[1], rounds), f"torch {torch.__version__} nonzero"
        if name == "Unique":
            x = torch.from_numpy(inputs["x"]).cuda()

            def distinct() -> None:
                torch.unique(x, return_inverse=True, return_counts=True)
                torch.cuda.synchronize()

            return seconds(distinct, rounds), f"torch {torch.__version__} unique (no first indices)"
        from torchvision.ops import batched_nms

        classes = torch.arange(80).repeat_interleave(8400).cuda()
        boxes = torch.from_numpy(np.tile(inputs["boxes"][0], (80, 1))).cuda()
        scores = torch.from_numpy(inputs["scores"][0].reshape(-1)).cuda()

        def run() -> None:
            kept = scores > 0.6
            batched_nms(boxes[kept], scores[kept], classes[kept], 0.5)
            torch.cuda.synchronize()

        return seconds(run, rounds), f"torchvision batched_nms, torch {torch.__version__}"
    except ImportError as error:
        print(f"{name}: no peer ({error})")
        return [], ""


def _with_unrolled(most: int, run: Callable[[], list[float]]) -> list[float]:
    """``run`` where loops of up to ``most`` nodes become plain layers."""
    usual, loops.UNROLLED_NODES = loops.UNROLLED_NODES, most
    try:
        return run()
    finally:
        loops.UNROLLED_NODES = usual


def main() -> None:
    """Runs what fits into the time given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="0")
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", default="", help="cases whose name holds this word")
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args()
    device = open_device(given.device)
    about = {"device": device.spec.name, "driver": str(device.properties().get("driver", ""))}
    deadline, results = time.monotonic() + given.seconds, []

    def add(workload: str, ours: list[float], peer: Sequence[float] = (), peer_name: str = "", note: str = "") -> Result:
        found = compare(workload, [1e6 * one for one in ours], "us", [1e6 * one for one in peer], peer_name, note=note, **about)
        results.append(found)
        print(f"{workload}: {found.ours:.1f} us" + (f" ({peer_name}: {found.peer:.1f})" if found.peer else ""), flush=True)
        return found

    def case(name: str, model: Callable[[], onnx.ModelProto | Path], inputs: Inputs, peer: bool = False) -> list[float]:
        if given.only not in name:
            return []
        if time.monotonic() > deadline:
            print(f"{name}: no time left")
            return []
        try:
            context = ready(model(), inputs, device)
            plain, captured = both(context, given.rounds)
            add(f"{name}, layer by layer", plain)
            add(f"{name}, segments captured", captured, *(peer_of(name, inputs, given.rounds) if peer else ()))
            return captured
        except Exception as error:  # a figure that cannot be had does not cost the others
            print(f"{name}: {type(error).__name__}: {str(error)[:400]}", flush=True)
            return []

    random = np.random.default_rng(0)
    x = random.standard_normal((256, 256)).astype(np.float32)
    case("silero-vad 16 kHz with branches", lambda: wheel_model("speech"), speech(True))
    case("silero-vad 16 kHz without branches", lambda: wheel_model("speech_half"), speech(False))
    w = (x / 16).astype(np.float32)
    counts = {count: case(f"Loop of {count}", lambda: parse(LOOP), {"x": x, "n": np.array(count), "w": w}) for count in (1, 11, 101)}
    if counts[11] and counts[101]:
        each = (statistics.median(counts[101]) - statistics.median(counts[11])) / 90
        add("Loop, one more iteration (tanh, matmul 256)", [each])
    cell = {name: random.standard_normal(shape).astype(np.float32) / 16 for name, shape in
            (("h", (4, 256)), ("x", (64, 4, 256)), ("w", (256, 256)), ("r", (256, 256)), ("b", (256,)))}  # fmt: skip
    steps = {most: _with_unrolled(most, lambda: case("Scan of 64 cells, 4 x 256", lambda: parse(CELL), cell)) for most in (0, loops.UNROLLED_NODES)}
    if all(steps.values()):
        repeated, layers = steps.values()
        add("Scan of 64 cells, 4 x 256, as plain layers", layers, repeated, "the same as a loop of segments, captured")
    case("NonZero", lambda: parse(NON_ZERO), {"x": np.maximum(random.standard_normal((1024, 1024)), 0).astype(np.float32)}, peer=True)
    case("Unique", lambda: parse(UNIQUE), {"x": random.integers(0, 100_000, 1 << 20)}, peer=True)
    case("NonMaxSuppression 80 x 8400", lambda: parse(NMS), detections(), peer=True)
    if results and not given.no_record:
        print(f"written to {record('control-flow', results)}")


if __name__ == "__main__":
    main()
