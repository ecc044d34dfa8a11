"""Checks and times LSTM and GRU engines on the GPU of this machine, beside torch's (cuDNN's) in CUDA graphs.

    python benchmarks/gpu/recurrent_check.py [--only lstm] [--seconds 55] [--cache FILE] [--results FILE]

Each case is a whole layer: the product with the inputs, then the recurrence. The result is compared with torch's in float64 on the CPU.
With ``--configurations`` every configuration of the recurrence is timed too. Needs the gpu extra; without torch there is no peer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.torch_times import graph_times  # noqa: E402
from benchmarks.runner import Result, compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.ops import Recurrence  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from trtcli.builder import build  # noqa: E402
from trtcli.config import BuildConfig  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One layer: ``time`` steps of ``batch`` rows of ``width`` inputs, ``hidden`` cells a direction."""

    name: str
    cell: str
    time: int
    batch: int
    width: int
    hidden: int
    dtype: str
    directions: int = 1

    def __str__(self) -> str:
        both = ", both directions" if self.directions == 2 else ""
        return f"{self.cell} {self.name} {self.dtype} b{self.batch} s{self.time} i{self.width} h{self.hidden}{both}"


CASES = [
    replace(case, dtype=dtype)
    for case in (
        Case("small", "LSTM", 100, 1, 256, 256, ""),
        Case("large batch", "LSTM", 100, 32, 512, 512, ""),
        Case("voice activity", "LSTM", 32, 1, 128, 128, ""),
        Case("speech", "LSTM", 100, 8, 1024, 1024, ""),
        Case("speech", "GRU", 100, 1, 1024, 1024, ""),
        Case("text", "LSTM", 64, 16, 256, 256, "", 2),
    )
    for dtype in ("float16", "float32")
]
# torch's gates in the order of ONNX
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


class _Log:
    def info(self, text: str) -> None: ...

    def verbose(self, text: str) -> None: ...

    def warning(self, text: str) -> None:
        print(f"  {text}")


def weights_of(case: Case) -> dict[str, np.ndarray]:
    """Weights and an input, with the gates in torch's order."""
    random, gates = np.random.default_rng(0), len(GATES[case.cell])
    shapes = {"w": (case.directions, gates, case.hidden, case.width), "r": (case.directions, gates, case.hidden, case.hidden),
              "wb": (case.directions, gates, case.hidden), "rb": (case.directions, gates, case.hidden)}  # fmt: skip
    found = {name: random.uniform(-1, 1, shape) * case.hidden**-0.5 for name, shape in shapes.items()}
    found["x"] = random.standard_normal((case.time, case.batch, case.width))
    return {name: value.astype(case.dtype) for name, value in found.items()}


def model_of(case: Case, arrays: dict[str, np.ndarray]) -> bytes:
    """The layer as an ONNX model."""
    from onnx import TensorProto, helper, numpy_helper

    order = list(GATES[case.cell])
    w, r, wb, rb = (arrays[name][:, order] for name in ("w", "r", "wb", "rb"))
    flat = {"w": w.reshape(case.directions, -1, case.width), "r": r.reshape(case.directions, -1, case.hidden),
            "b": np.concatenate([wb.reshape(case.directions, -1), rb.reshape(case.directions, -1)], 1)}  # fmt: skip
    extra = {"linear_before_reset": 1} if case.cell == "GRU" else {}
    direction = "bidirectional" if case.directions == 2 else "forward"
    node = helper.make_node(case.cell, ["x", "w", "r", "b"], ["y"], hidden_size=case.hidden, direction=direction, **extra)
    kind = TensorProto.FLOAT16 if case.dtype == "float16" else TensorProto.FLOAT
    graph = helper.make_graph(
        [node], str(case), [helper.make_tensor_value_info("x", kind, arrays["x"].shape)], [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in flat.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def module_of(case: Case, arrays: dict[str, np.ndarray], torch: Any) -> Any:
    """The layer as a torch module on the CPU, in float64."""
    module = getattr(torch.nn, case.cell)(case.width, case.hidden, bidirectional=case.directions == 2).double()
    with torch.no_grad():
        for direction in range(case.directions):
            suffix = "_l0" + ("_reverse" if direction else "")
            for name, key in (("weight_ih", "w"), ("weight_hh", "r"), ("bias_ih", "wb"), ("bias_hh", "rb")):
                target = getattr(module, name + suffix)
                target.copy_(torch.from_numpy(arrays[key][direction].reshape(tuple(target.shape)).astype(np.float64)))
    return module


def torch_times(case: Case, module: Any, x: np.ndarray, torch: Any) -> list[float]:
    """Milliseconds of torch's layer in a CUDA graph."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    dtype = getattr(torch, case.dtype)
    module, given = module.to("cuda", dtype), torch.from_numpy(x).to("cuda")
    module.flatten_parameters()
    return [seconds * 1e3 for seconds in graph_times([lambda: module(given)], launches=1, replays=40)[10:]]


def run(case: Case, torch: Any, cache: str, configurations: bool) -> Result:
    """Builds, checks, times."""
    device, arrays = open_device("0"), weights_of(case)
    began = time.perf_counter()
    config = BuildConfig(optimization_level=3, timing_cache_file=cache, tf32=False, profiling_verbosity="detailed")
    engine = build(model_of(case, arrays), config, device, log=_Log())
    seconds = time.perf_counter() - began
    context = engine.create_execution_context(device)
    found = context.execute({"x": arrays["x"]})["y"].astype(np.float64)
    error = peer_error = float("nan")
    peer: list[float] = []
    if torch is not None:
        module = module_of(case, arrays, torch)
        with torch.inference_mode():
            truth = module(torch.from_numpy(arrays["x"].astype(np.float64)))[0].numpy()
        truth = truth.reshape(case.time, case.batch, case.directions, case.hidden).transpose(0, 2, 1, 3)
        error = float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
        assert error < (4e-3 if case.dtype == "float16" else 1e-5), f"{case}: relative error {error:.1e}"
        peer = torch_times(case, module, arrays["x"], torch)
        with torch.inference_mode():
            theirs = module(torch.from_numpy(arrays["x"]).cuda())[0].double().cpu().numpy()
        peer_error = float(np.linalg.norm(theirs.reshape(case.time, case.batch, case.directions, case.hidden).transpose(0, 2, 1, 3) - truth))
        peer_error /= float(np.linalg.norm(truth))
    stream = device.stream()
    for name in (*engine.network.inputs, *engine.network.outputs):
        shape, dtype = context.get_tensor_shape(name), engine.network.tensors[name].dtype
        memory = device.allocate(int(np.prod(shape)) * dtype.itemsize)
        if name == "x":
            device.upload(memory.address, arrays["x"])
        context.set_tensor_address(name, memory.address)
        _KEPT.append(memory)
    context.execute_async_v3(stream)
    stream.synchronize()
    graph = device.capture(stream, lambda: context.execute_async_v3(stream))
    ours = []
    for _ in range(40):
        first, second = device.event(), device.event()
        first.record(stream)
        graph.launch(stream)
        second.record(stream)
        second.synchronize()
        ours.append(1e3 * second.seconds_since(first))
    step = next(
        (layer, plan) for layer, plan in zip(engine.network.layers, engine.layers, strict=True) if isinstance(layer.op, Recurrence)
    )
    note = (
        f"built in {seconds:.1f} s; error to float64 {error:.1e} (peer {peer_error:.1e}); recurrence {step[1].seconds * 1e6:.1f} us with "
        f"{step[1].tactic} {dict(step[1].config)}"
    )
    name = f"torch {torch.__version__} cuDNN {torch.backends.cudnn.version()}, CUDA graph" if torch is not None else ""
    result = compare(str(case), ours[10:], "ms", peer, name, device=device.spec.name, note=note)
    ratio = f", {name} {median(peer):.4f} ms, {result.ratio:.2f}x" if peer and result.ratio else ""
    print(f"{case}: {result.ours:.4f} ms{ratio}; {note}", flush=True)
    if configurations:
        times_of_configurations(case, arrays)
    return result


def times_of_configurations(case: Case, arrays: dict[str, np.ndarray]) -> None:
    """Prints the time of every configuration of the recurrence alone."""
    from benchmarks.gpu.memory_bound_check import Session
    from fusion.importer import import_onnx
    from fusion.network import TensorType
    from tactics.registry import tactics
    from tactics.tactic import Workload, tensor_bytes

    network = import_onnx(model_of(case, arrays))
    layer = next(one for one in network.layers if isinstance(one.op, Recurrence))
    types = tuple(network.tensors[name] for name in layer.inputs)
    workload = Workload(layer.op, types, layer.op.infer(types), tuple(name in network.constants for name in layer.inputs))
    session = Session(time.monotonic() + 60, Path(tempfile.gettempdir()) / "recurrent.jsonl", [])
    inputs = [session.upload(network.constants.get(name, np.zeros(tuple(kind.shape), kind.dtype.numpy)))  # type: ignore[arg-type]
              for name, kind in zip(layer.inputs, types, strict=True)]  # fmt: skip
    outputs = [session.device.allocate(tensor_bytes(one)) for one in workload.outputs]
    for tactic in tactics("cuda"):
        if not isinstance(layer.op, tactic.ops) or tactic.supports(workload, session.device.spec) is not None:
            continue
        for config in tactic.configs(workload, session.device.spec):
            plan = tactic.plan(workload, config, session.device.spec)
            errors = session.compile([plan])
            packed = [
                (session.upload(array), TensorType(DataType(array.dtype.name), array.shape))
                for array in tactic.prepare(workload, config, {1: network.constants[layer.inputs[1]]})
            ]
            workspace = session.device.allocate(plan.workspace + 256)
            try:
                assert not errors, next(iter(errors.values()))[:200]
                program = session.program(plan, session.binding(workload, inputs, outputs, workspace, packed))
                graph = session.device.capture(session.stream, lambda program=program: program.run(session.stream))  # type: ignore[misc]
                us = session.time_graph(graph, 1) * 1e6
                guess = tactic.estimate(workload, config, session.device.spec) * 1e6
                print(f"    {us:9.1f} us (guess {guess:7.0f})  {tactic.id} {dict(config)}", flush=True)
            except Exception as reason:
                print(f"    {tactic.id} {dict(config)}: {type(reason).__name__}: {str(reason)[:200]}", flush=True)


_KEPT: list[Any] = []  # memory that captured graphs use


def main() -> None:
    """Runs the cases given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="words, one of which must be in a case's name")
    parser.add_argument("--seconds", type=float, default=55)
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "trtcli-recurrent.cache"))
    parser.add_argument("--configurations", action="store_true")
    parser.add_argument("--results", default="recurrent", help="name of the file of results; empty for none")
    given = parser.parse_args()
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]
    deadline, results = time.monotonic() + given.seconds, []
    words = [word for word in given.only.lower().split(",") if word]
    for case in CASES:
        if words and not any(word in str(case).lower() for word in words):
            continue
        if time.monotonic() > deadline:
            print(f"out of time at {case}")
            break
        try:
            results.append(run(case, torch, given.cache, given.configurations))
        except Exception as reason:
            print(f"{case}: {type(reason).__name__}: {str(reason)[:400]}", flush=True)
    if given.results and results:
        print(f"written to {record(given.results, results)}")


if __name__ == "__main__":
    main()
