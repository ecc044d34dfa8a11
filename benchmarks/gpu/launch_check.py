"""What launching costs and what streams gain, on the device of this machine: one JSON line per figure.

    python benchmarks/gpu/launch_check.py [--device 0] [--level 2] [--seconds 110] [--cache FILE] [--only WORDS] [--no-record]

For ResNet-50 and a BERT-base encoder in FP16 at batch 1: host time of a plain enqueue per launch beside a bare cuLaunchKernel loop through
cuda-python (goal: at most 1.2 times), of a graph launch; programmatic dependent launch on and off; graph replay against the sum of the
layers' times, each timed alone in a graph at build (goal: at most 3 % above; see NOTES-launch.md). For Inception-v1: auxiliary streams against one stream. Then two and four contexts on as many streams
against one, by one host thread and by one each; and copies of inputs and outputs, overlapped and exposed. No torch is needed. What does not fit into --seconds is left out, and said.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.runner import Result, compare, record  # noqa: E402
from runtime.benchmark import BenchmarkOptions, run_benchmark  # noqa: E402
from runtime.context import ExecutionContext  # noqa: E402
from runtime.device import Device, Stream  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from runtime.engine import Engine, sizes_of  # noqa: E402
from runtime.graph import GraphRunner  # noqa: E402
from runtime.profiler import profile_layers  # noqa: E402
from runtime.timer import Bench, Candidate, _Run  # noqa: E402
from runtime.workloads import workload_of  # noqa: E402
from tactics.tactic import Launch, Plan  # noqa: E402
from trtcli.builder import build  # noqa: E402
from trtcli.config import BuildConfig  # noqa: E402
from trtcli.inputs import make_inputs  # noqa: E402
from trtcli.log import Log  # noqa: E402

ROUNDS = 15


def bert(path: Path, layers: int = 12, length: int = 128, hidden: int = 768, heads: int = 12, batch: int | str = 1) -> Path:
    """A BERT encoder of random FP16 weights as an ONNX file: input ``x`` of batch (a name: a dynamic one) x length x hidden."""
    from onnx import TensorProto, helper, numpy_helper, save

    random, nodes, weights = np.random.default_rng(0), [], []

    def weight(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def small(count: int) -> np.ndarray:  # not zero: a neutral bias would be fused away
        return (0.05 * random.standard_normal(count, np.float32)).astype(np.float16)

    def node(kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def linear(x: str, name: str, columns: int, rows: int = hidden) -> str:
        matrix = random.standard_normal((rows, columns), np.float32) / np.sqrt(rows)
        product = node("MatMul", [x, weight(f"{name}.w", matrix.astype(np.float16))], name)
        return node("Add", [product, weight(f"{name}.b", small(columns))], f"{name}_bias")

    def norm(x: str, name: str) -> str:
        scale = (1 + small(hidden)).astype(np.float16)
        return node("LayerNormalization", [x, weight(f"{name}.g", scale), weight(f"{name}.b", small(hidden))], name, axis=-1)

    split = weight("split", np.array([-1, length, heads, hidden // heads], np.int64))
    joined = weight("joined", np.array([-1, length, hidden], np.int64))
    scale = weight("scale", np.array(1 / np.sqrt(hidden // heads), np.float16))
    half, root = weight("half", np.array(0.5, np.float16)), weight("root", np.array(np.sqrt(2), np.float16))
    one = weight("one", np.array(1, np.float16))
    x = "x"
    for number in range(layers):
        at = f"l{number}."
        q, k, v = (
            node("Transpose", [node("Reshape", [linear(x, at + part, hidden), split], f"{at}{part}_split")], f"{at}{part}_heads", perm=perm)
            for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
        )
        scores = node("Mul", [node("MatMul", [q, k], at + "scores"), scale], at + "scaled")
        mixed = node("MatMul", [node("Softmax", [scores], at + "soft", axis=-1), v], at + "mixed")
        flat = node("Reshape", [node("Transpose", [mixed], at + "back", perm=[0, 2, 1, 3]), joined], at + "flat")
        x = norm(node("Add", [linear(flat, at + "out", hidden), x], at + "res1"), at + "norm1")
        wide = linear(x, at + "up", 4 * hidden)
        error = node("Erf", [node("Div", [wide, root], at + "div")], at + "erf")
        gelu = node("Mul", [node("Mul", [wide, node("Add", [error, one], at + "plus")], at + "mul"), half], at + "gelu")
        x = norm(node("Add", [linear(gelu, at + "down", hidden, 4 * hidden), x], at + "res2"), at + "norm2")
    shape = [batch, length, hidden]
    graph = helper.make_graph(
        nodes, "bert", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT16, shape)], weights,
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def light(path: Path, name: str) -> Path:
    """One of the onnx package's light networks with random weights."""
    import onnx

    from trtcli.zoo import light_model

    onnx.save(light_model(name), path)
    return path


class Check:
    """Figures of one device, as results."""

    def __init__(self, device: Device, seconds: float, level: int, cache: str, only: Sequence[str] = ()) -> None:
        self.device, self._only = device, only
        self.config = BuildConfig(optimization_level=level, timing_cache_file=cache, profiling_verbosity="detailed", fp16=True)
        self.results: list[Result] = []
        self._end = time.monotonic() + seconds

    def add(self, workload: str, ours: Sequence[float], unit: str, peer: Sequence[float] = (), peer_name: str = "", note: str = "") -> Result:
        """Keep a figure and print it."""
        driver = str(self.device.properties().get("driver", ""))
        found = compare(workload, ours, unit, peer, peer_name, device=self.device.spec.name, driver=driver, note=note)
        self.results.append(found)
        beside = f" | {found.peer:.4g} {unit} {peer_name} | ratio {found.ratio:.3f}" if found.peer is not None and found.ratio else ""
        print(f"{workload}: {found.ours:.4g} {unit}{beside}{f' | {note}' if note else ''}", flush=True)
        return found

    def wants(self, name: str) -> bool:
        """Whether a part was asked for."""
        return not self._only or any(word in name for word in self._only)

    def part(self, name: str, function: Callable[[], None], needs: float = 5.0) -> None:
        """Run one part, unless the time is over; a failure is printed and the others go on."""
        if time.monotonic() + needs > self._end:
            print(f"LEFT OUT (time): {name}", flush=True)
            return
        began = time.monotonic()
        try:
            function()
        except Exception as error:
            import traceback

            traceback.print_exc()
            print(f"FAILED: {name}: {error}", flush=True)
        print(f"  ({name}: {time.monotonic() - began:.1f} s)", flush=True)

    def build(self, path: Path) -> Engine:
        """The engine of a model."""
        return build(path, self.config, self.device, log=Log(to_stderr=True))

    def context(self, engine: Engine, device: Device | None = None) -> ExecutionContext:
        """A context at the optimal shapes with inputs, run once."""
        context = ExecutionContext(engine, device or self.device)
        inputs = inputs_of(engine)
        for name, array in inputs.items():
            context.set_input_shape(name, array.shape)
        context.use_own_memory()
        for name, array in inputs.items():
            context.write_tensor(name, array)
        stream = self.device.stream()
        context.execute_async_v3(stream)
        stream.synchronize()
        return context

    # --- the figures --------------------------------------------------------------------------------------------------

    def enqueue_cost(self, name: str, engine: Engine) -> None:
        """Host time of a plain enqueue per launch, beside as many bare launches; and of one graph launch."""
        context, stream = self.context(engine), self.device.stream()
        count = sum(len(step.plan.steps) for step in context.resolution().steps)
        bare = bare_loop(self.device, stream, count) if self.device.spec.kind == "cuda" else None
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(60):
            ours.append(host_seconds(partial(context.execute_async_v3, stream), stream) / count * 1e6)
            if bare is not None:
                theirs.append(host_seconds(bare, stream) / count * 1e6)
        self.add(f"{name}: plain enqueue, host time per launch", ours[10:], "us", theirs[10:], "bare cuLaunchKernel through cuda-python",
                 f"{count} launches; goal: at most 1.2 times the bare loop")  # fmt: skip
        graph = self.device.capture(stream, partial(context.execute_async_v3, stream))
        once = [host_seconds(partial(graph.launch, stream), stream) * 1e6 for _ in range(60)]
        self.add(f"{name}: graph launch, host time", once[10:], "us", note=f"{graph.nodes} nodes")

    def dependent_launch(self, name: str, engine: Engine) -> None:
        """Replays with and without programmatic dependent launch."""
        stream = self.device.stream()
        used = any(isinstance(step, Launch) and step.dependent for one in self.context(engine).resolution().steps for step in one.plan.steps)
        if not used:
            print(f"{name}: no kernel uses programmatic dependent launch here", flush=True)
            return
        contexts = [self.context(engine), self.context(engine, Undependent(self.device))]  # type: ignore[arg-type]
        graphs = [self.device.capture(stream, partial(context.execute_async_v3, stream)) for context in contexts]
        with_it, without = interleaved(self.device, stream, [partial(graph.launch, stream) for graph in graphs])
        self.add(f"{name}: graph replay with dependent launch", with_it, "us", without, "without dependent launch")

    def replay_against_layers(self, name: str, engine: Engine) -> None:
        """A graph's replay against the sum of its tactics' times, each alone in a graph, as the build took them.

        The profile's sum (events around each layer) is only noted: an event node ends the overlap of dependent launches.
        """
        context, stream = self.context(engine), self.device.stream()
        graph = self.device.capture(stream, partial(context.execute_async_v3, stream))
        (replay,) = interleaved(self.device, stream, [partial(graph.launch, stream)])
        options = BenchmarkOptions(iterations=50, duration=0.3, warm_up=50)
        profile = profile_layers(context, inputs_of(engine), options)
        layers = statistics.median(float(one) * 1e3 for one in profile.iteration_totals)
        alone = sum(plan.seconds for plan in engine.layers if plan.seconds == plan.seconds) * 1e6
        self.add(f"{name}: graph replay", replay, "us", [alone], "sum of tactics timed alone",
                 f"{graph.nodes} nodes; with events around each layer {layers:.1f} us; goal: at most 3 % above the sum")  # fmt: skip

    def pairs(self, name: str, engine: Engine, launches: int = 6, rows: int = 8) -> None:
        """Which launches cost more in the network than alone, by the launch before them.

        A launch costs what a graph of the network's first k launches takes longer than one of the first k - 1; each such graph holds the whole
        network before them, so that caches are as cold as in a series of inferences. Nothing is added between launches: dependent launch
        overlaps as ever. Means over all places of the same pair.
        """
        context, stream = self.context(engine), self.device.stream()
        actions = [action for action, _, layer in context._actions or () if layer >= 0]
        layers = [layer for _, _, layer in context._actions or () if layer >= 0]
        if engine.num_aux_streams:
            print(f"{name}: several streams, so no pairs", flush=True)
            return

        def first(count: int) -> None:
            for action in (*actions, *actions[:count]):
                action(stream)

        counts = range(len(actions) + 1)
        graphs = [self.device.capture(stream, partial(first, count)) for count in counts]
        samples = interleaved(self.device, stream, [partial(graph.launch, stream) for graph in graphs], launches)
        ends = [statistics.median(one) for one in samples]
        found: dict[tuple[str, str], list[float]] = {}
        for place, layer in enumerate(layers):
            plan = engine.layers[layer]
            extra = ends[place + 1] - ends[place] - plan.seconds * 1e6
            before = _kind(engine, layers[place - 1])
            found.setdefault((before, _kind(engine, layer)), []).append(extra)
        for (before, after), extras in sorted(found.items(), key=lambda item: -sum(item[1]))[:rows]:
            print(f"  {sum(extras):+7.2f} us in {len(extras)} places, {statistics.mean(extras):+.2f} each: {after} after {before}", flush=True)
        total = sum(map(sum, found.values()))
        self.add(f"{name}: launches in the network beyond their times alone", [total], "us", note=f"{len(layers)} launches, {len(found)} pairs of kinds")

    def transfers(self, name: str, engine: Engine) -> None:
        """Time per query with the copies of inputs and outputs (page-locked memory): overlapped, exposed, and without."""
        inputs = inputs_of(engine)
        found = {}
        for how, copies, exposed in (("without copies", False, False), ("copies overlapped", True, False), ("copies exposed", True, True)):
            options = BenchmarkOptions(iterations=10, duration=0.5, warm_up=100, transfers=copies, expose_dma=exposed)
            result = run_benchmark([ExecutionContext(engine, self.device)], inputs, options)
            found[how] = 1e6 / result.throughput
        bytes_moved = sum(array.nbytes for array in inputs.values()) + sum(array.nbytes for array in result.outputs.values())
        for how in ("copies overlapped", "copies exposed"):
            self.add(f"{name}: {how}, time per query", [found[how]], "us", [found["without copies"]], "without copies", f"{bytes_moved / 1e6:.2f} MB per query")

    def shape_change(self, name: str, path: Path, layers: int) -> None:
        """What the first inference after a change of shapes costs the host: a new batch, and one met before, with its graph."""
        model = bert(path, layers, batch="N") if self.device.spec.kind == "cuda" else bert(path, 1, 16, 32, 2, "N")
        rest = (128, 768) if self.device.spec.kind == "cuda" else (16, 32)
        shapes = {f"{which}_shapes": {"x": (batch, *rest)} for which, batch in (("min", 1), ("opt", 4), ("max", 64))}
        config = replace(self.config, optimization_level=0, fp16=False, **shapes)  # type: ignore[arg-type]
        engine = build(model, config, self.device, log=Log(to_stderr=True))
        context, stream = ExecutionContext(engine, self.device), self.device.stream()
        runner = GraphRunner(context)

        def change(batch: int) -> tuple[float, float]:
            began = time.perf_counter()
            context.set_input_shape("x", (batch, *rest))
            context.resolution()
            resolved = time.perf_counter()
            context.use_own_memory()
            runner.prepare()
            runner.enqueue(stream)
            stream.synchronize()
            return (resolved - began) * 1e3, (time.perf_counter() - resolved) * 1e3

        change(64)  # memory for all of them, kernels loaded
        new = [change(batch) for batch in range(2, 14)]
        known = [change(batch) for batch in range(2, 14)]
        for number, what in enumerate(("resolve the shapes", "the first inference, its graph included")):
            self.add(f"{name}: a new batch: {what}", [one[number] for one in new], "ms", [one[number] for one in known], "a batch met before")

    def switching(self, name: str, engine: Engine, rounds: int = 24) -> None:
        """What it costs to follow another kernel: the network's distinct layers in turns, against each many times in a row; same data, cold."""
        shapes = {one: extents.opt for one, extents in engine.profiles[0].items()}
        network, sizes = engine.network, sizes_of(engine.network, shapes)
        computed = {*network.inputs, *(one for layer in network.layers for one in layer.outputs)}
        constants = {one for layer in network.layers for one in layer.inputs} - computed
        programs: dict[Any, list[Any]] = {}
        keep = []
        for step in self.context(engine).resolution().steps:
            layer, plan = network.layers[step.layer], engine.layers[step.layer]
            workload = workload_of(network, layer, sizes, constants, engine.tf32)
            if (workload, plan.tactic, plan.config) not in programs:
                run = _Run(Bench(self.device, workload), Candidate(step.plan, tuple(engine.weights[one] for one in plan.packed), engine.kernels))
                programs[workload, plan.tactic, plan.config] = run.programs()
                keep.append(run)
        stream, distinct = self.device.stream(), list(programs.values())

        def in_a_row() -> None:
            for copies in distinct:
                for number in range(rounds):
                    copies[number % len(copies)].run(stream)

        def in_turns() -> None:
            for number in range(rounds):
                for copies in distinct:
                    copies[number % len(copies)].run(stream)

        graphs = [self.device.capture(stream, enqueue) for enqueue in (in_turns, in_a_row)]
        turns, row = interleaved(self.device, stream, [partial(graph.launch, stream) for graph in graphs], 2)
        launches = rounds * len(distinct)
        self.add(f"{name}: a launch after another kernel", [one / launches for one in turns], "us", [one / launches for one in row],
                 "after the same kernel", f"{len(distinct)} distinct layers, {rounds} launches each")  # fmt: skip

    def aux_streams(self, name: str, engine: Engine) -> None:
        """What the build found about auxiliary streams."""
        streams: Any = engine.record["streams"]
        print(f"  {name}: {dict(streams) | {'branches': len(streams.get('branches', ()))}}", flush=True)
        for branch in streams.get("branches", ())[:12]:
            print(f"    stream {branch['stream']}: {' -> '.join(branch['layers'])[:80]}: {branch['reason']}", flush=True)
        if "measuredMs" in streams:
            self.add(f"{name}: {streams['maxAuxStreams']} auxiliary streams allowed", [streams["measuredMs"] * 1e3], "us",
                     [streams["measuredSerialMs"] * 1e3], "one stream",
                     f"simulated {streams['simulatedMs'] * 1e3:.1f} of {streams['simulatedSerialMs'] * 1e3:.1f} us; an event costs "
                     f"{streams['eventMs'] * 1e3:.2f} us; {streams['used']} kept")  # fmt: skip

    def many_contexts(self, name: str, engine: Engine) -> None:
        """Time per query of several contexts on as many streams against one (wall time over queries)."""
        inputs = inputs_of(engine)
        one: float | None = None
        for count, threads in ((1, False), (2, False), (4, False), (2, True), (4, True)):
            contexts = [ExecutionContext(engine, self.device) for _ in range(count)]
            options = BenchmarkOptions(iterations=10, duration=0.7, warm_up=100, threads=threads)
            found = 1e6 / run_benchmark(contexts, inputs, options).throughput
            one = found if one is None else one
            how = "a host thread each" if threads else "one host thread"
            self.add(f"{name}: {count} context{'s' if count > 1 else ''}, {how}, time per query", [found], "us", [one], "one context",
                     f"{1e6 / found:.0f} queries/s")  # fmt: skip


def _kind(engine: Engine, layer: int) -> str:
    """A layer's kind with its tactic, short."""
    return f"{engine.network.layers[layer].op.layer_type} {engine.layers[layer].tactic.removeprefix('cuda.')}"


class Undependent:
    """A device whose programs launch without programmatic dependent launch."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def program(self, plan: Plan, binding: Any, modules: Any) -> Any:
        steps = tuple(replace(step, dependent=False) if isinstance(step, Launch) else step for step in plan.steps)
        return self._device.program(replace(plan, steps=steps), binding, modules)


def inputs_of(engine: Engine) -> dict[str, np.ndarray]:
    """Random inputs at the optimal shapes."""
    return make_inputs(engine.network, {name: one.opt for name, one in engine.profiles[0].items()}, {})


def host_seconds(call: Callable[[], None], stream: Stream) -> float:
    """Host time of ``call`` on an empty stream."""
    stream.synchronize()
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    stream.synchronize()
    return seconds


def interleaved(device: Device, stream: Stream, calls: Sequence[Callable[[], None]], launches: int = 20) -> list[list[float]]:
    """Microseconds of one launch of each, in turns of ``launches`` back to back."""
    samples: list[list[float]] = [[] for _ in calls]
    for turn in range(ROUNDS + 2):
        for number, call in enumerate(calls):
            marks = device.event(), device.event()
            marks[0].record(stream)
            for _ in range(launches):
                call()
            marks[1].record(stream)
            stream.synchronize()
            if turn >= 2:
                samples[number].append(marks[1].seconds_since(marks[0]) / launches * 1e6)
    return samples


def bare_loop(device: Device, stream: Stream, count: int) -> Callable[[], None]:
    """``count`` launches of an empty kernel by cuda-python's cuLaunchKernel, its arguments made once."""
    from cuda.bindings import driver

    from tactics.compiler import compile_cubin

    source = 'extern "C" __global__ void nothing(float* x, float* y, int n) { if (n > 1 << 30) y[n] = x[n]; }'
    image = compile_cubin(source, (), device.spec.arch).image
    code, module = driver.cuModuleLoadData(image)
    assert int(code) == 0, code
    code, function = driver.cuModuleGetFunction(module, b"nothing")
    assert int(code) == 0, code
    values = (ctypes.c_void_p(0), ctypes.c_void_p(0), ctypes.c_int(0))
    pointers = (ctypes.c_void_p * 3)(*(ctypes.addressof(value) for value in values))
    address, handle, launch = ctypes.addressof(pointers), driver.CUstream(stream.handle), driver.cuLaunchKernel
    keep = (values, pointers, module)

    def loop(_keep: object = keep) -> None:
        for _ in range(count):
            launch(function, 8, 1, 1, 128, 1, 1, 0, handle, address, 0)

    return loop


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--level", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--cache", default="")
    parser.add_argument("--only", default="", help="words of parts' names, separated by commas")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--small", action="store_true", help="a tiny encoder only: tries the script itself out")
    options = parser.parse_args(argv)
    device = open_device(options.device)
    only = [word for word in options.only.split(",") if word]
    check = Check(device, options.seconds, options.level, options.cache, only)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        models: list[tuple[str, Callable[[], Path]]] = [
            ("BERT-base, 1x128, FP16", partial(bert, folder / "bert.onnx")),
            ("ResNet-50, batch 1, FP16", partial(light, folder / "resnet50.onnx", "resnet50")),
        ]
        if options.small:
            models = [("tiny encoder", partial(bert, folder / "bert.onnx", 1, 16, 32, 2))]
        parts: dict[str, Callable[[str, Engine], None]] = {
            "enqueue": check.enqueue_cost,
            "dependent launch": check.dependent_launch,
            "replay": check.replay_against_layers,
            "pairs": check.pairs,
            "switching": check.switching,
            "contexts": check.many_contexts,
            "transfers": check.transfers,
        }
        for name, make in models:
            wanted = {what: part for what, part in parts.items() if check.wants(f"{name}: {what}")}
            engines: list[Engine] = []
            if wanted:
                check.part(f"{name}: build", lambda: engines.append(check.build(make())), 20)
            for engine in engines:
                for what, part in wanted.items():
                    check.part(f"{name}: {what}", partial(part, name, engine))
        name = "BERT-base, dynamic batch" if not options.small else "tiny encoder, dynamic batch"
        if check.wants(f"{name}: change of shapes"):
            check.part(f"{name}: change of shapes", lambda: check.shape_change(name, folder / "dynamic.onnx", 12), 15)
        name = "Inception-v1, batch 1, FP16"
        if not options.small and check.wants(name):
            check.part(name, lambda: check.aux_streams(name, check.build(light(folder / "inception.onnx", "inception_v1"))), 20)
    if check.results and not options.no_record:
        print(f"recorded in {record('launch', check.results)}")
    _goals(check.results)
    return 0


def _goals(results: Sequence[Result]) -> None:
    for one in results:
        if one.peer and "host time per launch" in one.workload:
            ratio = statistics.median([one.ours]) / one.peer
            print(f"{'OK  ' if ratio <= 1.2 else 'MISS'} {one.workload}: {ratio:.2f} times the bare loop (goal 1.2)")
        if one.peer and one.workload.endswith("graph replay"):
            print(f"{'OK  ' if one.ours / one.peer <= 1.03 else 'MISS'} {one.workload}: {one.ours / one.peer:.3f} of the sum (goal: at most 1.03)")


if __name__ == "__main__":
    raise SystemExit(main())
