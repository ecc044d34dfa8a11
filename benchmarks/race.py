"""Whole models on one GPU: trtcli beside torch eager and torch.compile, each replayed as a CUDA graph, in one run.

    python benchmarks/race.py resnet50:1 bert_base:1,32 --peers eager,inductor --results benchmarks/results/race.jsonl

For every model and batch: export from torch in fp16, build an engine, compare its outputs with torch in float32, time both. Times are
medians of event pairs around single graph replays, the peers' and ours alternating in blocks. Each has a process of its own: they export and let
torch compile side by side, which needs cores; then one after the other has the GPU alone: to build, to let cuDNN choose its algorithms, and to time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.synchronize import Event as Signal
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.runner import compare


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return done.stdout.split("\n")[0].strip()


class _Log:
    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose

    def info(self, text: str) -> None:
        print("  [I]", text, flush=True)

    def verbose(self, text: str) -> None:
        if self._verbose:
            print("  [V]", text, flush=True)

    def warning(self, text: str) -> None:
        print("  [W]", text, flush=True)


def _torch_graph(module: Any, inputs: tuple[Any, ...]) -> tuple[Callable[[], None], Any]:
    """(replay, output) of ``module`` captured as a CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(3):
                output = module(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(*inputs)
    return graph.replay, output


def _median_ms(replay: Callable[[], None], count: int = 200) -> list[float]:
    import torch

    for _ in range(20):
        replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for start, end in events:
        start.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _ours(path: Path, inputs: dict[str, Any], level: int, cache: str, verbose: bool) -> tuple[Callable[[], None], Any, Any]:
    """(replay, outputs, engine): the engine of ``path``, captured with torch's tensors as its inputs and outputs."""
    import torch

    from runtime.devices import open_device
    from trtcli.builder import build
    from trtcli.config import BuildConfig

    device = open_device("0")
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    config = BuildConfig(
        shapes=shapes if "_dyn" in path.name else {}, optimization_level=level, timing_cache_file=cache,
        profiling_verbosity="detailed",
    )  # fmt: skip
    engine = build(path, config, device, log=_Log(verbose))
    context = engine.create_execution_context(device)
    for name, tensor in inputs.items():
        context.set_input_shape(name, tuple(tensor.shape))
        context.set_tensor_address(name, tensor)
    outputs = {}
    for name in engine.network.outputs:
        dtype = getattr(torch, engine.network.tensors[name].dtype.value)
        outputs[name] = torch.full(context.get_tensor_shape(name), float("nan"), device="cuda").to(dtype)
        context.set_tensor_address(name, outputs[name])
    stream = device.external_stream(torch.cuda.current_stream().cuda_stream)
    own = device.stream()
    context.execute_async_v3(own)
    own.synchronize()
    graph = device.capture(own, lambda: context.execute_async_v3(own))
    print(f"  graph of {graph.nodes} nodes", flush=True)
    return (lambda: graph.launch(stream)), outputs, (engine, context, graph)


def _layers(engine: Any, count: int = 12) -> None:


    rows = sorted(zip(engine.network.layers, engine.layers, strict=True), key=lambda pair: -np.nan_to_num(pair[1].seconds))
    total = sum(np.nan_to_num(plan.seconds) for _, plan in rows)
    print(f"  sum of layers {total * 1e6:.1f} us in {sum(p.tactic != 'view' for _, p in rows)} layers; slowest:")
    for layer, plan in rows[:count]:
        shape = "x".join(map(str, engine.network.tensors[layer.outputs[0]].shape))
        print(
            f"    {plan.seconds * 1e6:8.2f} us  floor {plan.floor * 1e6:7.2f}  {plan.tactic}{dict(plan.config)}  "
            f"{layer.op.layer_type} -> {shape}  {layer.name[:60]}"
        )


def race(name: str, batch: int, given: argparse.Namespace, ready: Signal, turn: Signal) -> None:
    """One model at one batch: a result for every peer. Sets ``ready`` when it is prepared, and begins to measure at ``turn``."""
    import torch
    import torch._inductor.config as inductor

    from benchmarks import models

    peers = given.peers.split(",")
    path = Path(given.folder) / f"{name}_b{batch}{'_dyn' if given.dynamic else ''}.onnx"
    if not path.exists():
        models.export(models.half(models.source(name)), path, batch, given.dynamic)
    made = models.half(models.source(name))
    torch.manual_seed(1)
    sample = tuple(one.cuda() for one in made.inputs(batch))
    module = made.module.cuda()
    wide = models.source(name).module.cuda()
    with torch.inference_mode():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        expected = wide(*(one.float() if one.is_floating_point() else one for one in sample)).float()
    del wide
    module, arranged = _memory_format(module, sample)
    inductor.freezing = True
    compiled = torch.compile(module, mode="default") if "inductor" in peers else None
    if compiled is not None:
        with torch.inference_mode():
            compiled(*arranged)
    torch.cuda.synchronize()
    ready.set()
    turn.wait()

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 5  # algorithms tried per layer; all of them take minutes for depthwise networks
    began = time.perf_counter()
    replay, outputs, (engine, *_kept) = _ours(
        path, dict(zip(made.input_names, sample, strict=True)), given.level, given.cache, given.verbose
    )
    build_seconds = time.perf_counter() - began
    replay()
    torch.cuda.synchronize()
    result = next(iter(outputs.values())).float()
    error = float((result - expected).norm() / expected.norm())
    runs: dict[str, Callable[[], None]] = {"trtcli": replay}
    torch_error = float("nan")
    if "eager" in peers:
        runs["eager"], out = _torch_graph(module, arranged)
        runs["eager"]()
        torch.cuda.synchronize()
        torch_error = float((out.float() - expected).norm() / expected.norm())
    if compiled is not None:
        runs["inductor"], _ = _torch_graph(compiled, arranged)
    samples: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(3):
        for who, run in runs.items():
            samples[who] += _median_ms(run)
    _layers(engine, given.layers)
    layers = sum(plan.tactic != "view" for plan in engine.layers)
    note = (
        f"{layers} launched layers, built in {build_seconds:.0f} s; relative error to fp32 {error:.1e} (eager {torch_error:.1e}); sum of "
        f"layers {1e3 * float(np.nansum([plan.seconds for plan in engine.layers])):.3f} ms, "
        f"floor {1e3 * float(np.nansum([plan.floor for plan in engine.layers])):.3f} ms"
    )
    peers_run = {"eager": f"torch {torch.__version__} eager + CUDA graph", "inductor": f"torch {torch.__version__} compile + CUDA graph"}
    results = [
        compare(
            f"{name} fp16 batch {batch}" + (", dynamic batch" if given.dynamic else ""), samples["trtcli"], "ms", samples[who],
            peers_run[who], device=torch.cuda.get_device_name(), driver=given.driver, note=note,
        )
        for who in runs
        if who != "trtcli"
    ]  # fmt: skip
    for one in results:
        print(f"  RESULT {one.workload}: {one.ours:.4f} ms, {one.peer_name} {one.peer:.4f} ms, {one.ratio:.2f}x faster; {note}", flush=True)
    if given.results:
        with Path(given.results).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in results)


def _memory_format(module: Any, sample: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Channels-last for convolutional networks, which is what torch is fastest with."""
    import torch

    if not any(isinstance(one, torch.nn.Conv2d) for one in module.modules()):
        return module, sample
    return (
        module.to(memory_format=torch.channels_last),
        tuple(one.to(memory_format=torch.channels_last) if one.dim() == 4 else one for one in sample),
    )


def main() -> None:
    """Run the races given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="name:batch[,batch]")
    parser.add_argument("--peers", default="eager", help="eager,inductor")
    parser.add_argument("--folder", default="/tmp")
    parser.add_argument("--cache", default="/tmp/trtcli.cache")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dynamic", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--results", default="")
    parser.add_argument("--driver", default=_driver())
    parser.add_argument("--seconds", type=float, default=500)
    given = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    deadline = time.monotonic() + given.seconds
    racers = []
    for item in given.models:
        name, _, batches = item.partition(":")
        for batch in batches.split(","):
            ready, turn = processes.Event(), processes.Event()
            process = processes.Process(target=race, args=(name, int(batch), given, ready, turn), daemon=False)
            process.start()
            racers.append((f"{name}:{batch}", process, ready, turn))
    for _, process, ready, _ in racers:
        while process.is_alive() and time.monotonic() < deadline and not ready.wait(0.2):
            pass
    for job, process, _, turn in racers:
        left = deadline - time.monotonic()
        print(f"== {job} ({left:.0f} s left)", flush=True)
        turn.set()
        process.join(max(0.0, left))
        if process.is_alive():
            print("  out of time", flush=True)
            process.kill()


if __name__ == "__main__":
    main()
