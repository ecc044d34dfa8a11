import time
from types import SimpleNamespace

import numpy as np
import pytest

from fusion.expression import Operand, apply
from fusion.ops import Pointwise, Shuffle
from runtime.benchmark import BenchmarkOptions, BenchmarkResult, Query, run_benchmark
from runtime.cpu import CpuDevice, CpuStream
from runtime.profiler import profile_layers
from runtime.recorder import Recorder, own_seconds, span_cost
from tactics.tactic import CpuCall, Plan, Tactic

RELU = Pointwise(apply("relu", Operand(0)))
QUICK = BenchmarkOptions(iterations=5, duration=0.0, warm_up=0.0)
X = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}


@pytest.fixture
def engine(mlp):
    build, outputs = mlp
    return build.engine(*outputs, sizes={"batch": (1, 4, 64)})


def run(engine, cpu, options, lanes=1):
    contexts = [engine.create_execution_context(cpu) for _ in range(lanes)]
    return run_benchmark(contexts, X, options)


def check_order(query: Query):
    assert 0 <= query.start_enqueue <= query.end_enqueue
    assert (
        query.start_h2d <= query.end_h2d <= query.start_compute <= query.end_compute <= query.start_d2h <= query.end_d2h
    )


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("expose", [False, True])
@pytest.mark.parametrize("transfers", [False, True])
def test_queries(engine, cpu, graph, expose, transfers):
    result = run(engine, cpu, BenchmarkOptions(5, 0.0, 0.0, graph=graph, expose_dma=expose, transfers=transfers))
    assert len(result.queries) == 5 and result.warm_up_queries == 0
    for query in result.queries:
        check_order(query)
        assert query.compute > 0
        assert (query.h2d > 0 and query.d2h > 0) == transfers
        assert query.latency == query.h2d + query.compute + query.d2h
    assert (result.graph_nodes > 0) == graph and not result.warnings
    expected = engine.create_execution_context(cpu).execute(X)
    for name in expected:
        np.testing.assert_array_equal(result.outputs[name], expected[name])


def test_iterations_and_duration_both_hold(engine, cpu):
    begin = time.perf_counter()
    result = run(engine, cpu, BenchmarkOptions(iterations=1, duration=0.1, warm_up=20))
    assert time.perf_counter() - begin >= 0.12
    assert all(query.start_compute >= 20 for query in result.queries)
    assert result.warm_up_queries > 0 and len(result.queries) > 10
    assert 0.09 <= result.walltime < 0.5
    assert result.throughput == pytest.approx(len(result.queries) / result.walltime)
    few = run(engine, cpu, BenchmarkOptions(iterations=50, duration=0.0, warm_up=5))
    assert len(few.queries) >= 49


def test_lanes_and_threads(engine, cpu):
    for threads in (False, True):
        result = run(engine, cpu, BenchmarkOptions(7, 0.0, 0.0, threads=threads), lanes=3)
        assert len(result.queries) == 21
        starts = [query.start_h2d for query in result.queries]
        assert starts == sorted(starts)


def test_idle_and_sleep(engine, cpu):
    idle = run(engine, cpu, BenchmarkOptions(5, 0.0, 0.0, idle_time=5))
    gaps = np.diff([query.start_compute for query in idle.queries])
    assert (gaps >= 5).all() and all(query.compute < 5 for query in idle.queries)
    begin = time.perf_counter()
    slept = run(engine, cpu, BenchmarkOptions(5, 0.0, 0.0, sleep_time=50))
    assert time.perf_counter() - begin >= 0.05
    assert slept.queries[0].start_compute < 45


def test_failures_in_threads_reach_the_caller(engine, cpu, monkeypatch):
    contexts = [engine.create_execution_context(cpu) for _ in range(2)]
    monkeypatch.setattr(contexts[1], "execute_async_v3", lambda stream: 1 / 0)
    monkeypatch.setattr(contexts[1], "prepare", lambda: None)
    with pytest.raises(ZeroDivisionError):
        run_benchmark(contexts, X, BenchmarkOptions(5, 0.0, 0.0, threads=True, graph=False))


@pytest.mark.parametrize("graph", [False, True])
def test_ranges_and_the_first_inference(engine, cpu, graph):
    from runtime.nvtx import LayerRanges

    seen, names = [], tuple(layer.name for layer in engine.network.layers)
    ranges = LayerRanges(seen.append, lambda: seen.append("end"), names)
    result = run(engine, cpu, BenchmarkOptions(3, 0.0, 0.0, graph=graph, ranges=ranges))
    runs = [name for name in names if name not in ("fold", "unfold")]  # views have no range
    once = ["inference", "end"] if graph else [part for name in runs for part in (name, "end")]
    assert seen == 3 * once
    assert result.first.resolve > 0 and result.first.run > 0 and (result.first.capture > 0) == graph


def test_ranges_come_from_nvtx_or_cupy(monkeypatch):
    import sys
    import types

    from runtime.nvtx import layer_ranges

    for name in ("nvtx", "cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    assert layer_ranges(("a",)) is None
    calls = []
    fake = types.SimpleNamespace(
        push_range=lambda message, domain: calls.append((message, domain)), pop_range=lambda domain: calls.append(domain)
    )
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    found = layer_ranges(("a", "b"))
    found.before(1, None)
    found.after(1, None, None)
    assert calls == [("b", "trtcli"), "trtcli"]


def test_an_endless_run_keeps_no_queries(engine, cpu, monkeypatch):
    """It has no report; a small network would otherwise fill the memory within the hour."""
    from runtime import benchmark

    lanes, count = [], iter(range(300))
    real = benchmark._Lane.enqueue

    def enqueue(lane):
        lanes.append(lane)
        if next(count) == 299:
            raise KeyboardInterrupt
        real(lane)

    monkeypatch.setattr(benchmark._Lane, "enqueue", enqueue)
    with pytest.raises(KeyboardInterrupt):
        run(engine, cpu, BenchmarkOptions(iterations=1, duration=-1, warm_up=0))
    assert len(lanes) == 300 and not lanes[0].queries


def test_managed_memory_is_asked_for(engine, cpu, monkeypatch):
    asked = []
    allocate = cpu.allocate
    monkeypatch.setattr(cpu, "allocate", lambda size, managed=False: asked.append(managed) or allocate(size, managed))
    run(engine, cpu, BenchmarkOptions(2, 0.0, 0.0, managed=True))
    assert sum(asked) == 3  # an input and two outputs


def test_empty_result():
    assert BenchmarkResult((), 3, 0, (), {}).throughput == 0


def test_profile_finds_the_slow_layer(graph, cpu, monkeypatch):
    class Sleep(Tactic):
        id = "test.sleep"
        device = "cpu"

        def plan(self, workload, config, device):
            def run(inputs, outputs, packed, workspace):
                time.sleep(0.003)
                np.copyto(outputs[0], inputs[0])

            return Plan((CpuCall(run),))

    from runtime import resolution

    real = resolution.registry.tactic
    monkeypatch.setattr(resolution.registry, "tactic", lambda name: Sleep() if name == "test.sleep" else real(name))
    x = graph.input("x", (4, 8))
    y = graph.layer(RELU, graph.layer(RELU, x, name="quick"), name="slow")
    z = graph.layer(RELU, graph.layer(Shuffle(reshape=(32,)), y, name="view"), name="last")
    engine = graph.engine(z)
    from dataclasses import replace

    plans = [replace(plan, tactic="test.sleep") if i == 1 else plan for i, plan in enumerate(engine.layers)]
    engine = replace(engine, layers=tuple(plans))
    for captured in (True, False):
        context = engine.create_execution_context(cpu)
        profile = profile_layers(context, X, BenchmarkOptions(4, 0.0, 0.0, graph=captured))
        assert profile.count == 4 and profile.in_graph == captured
        assert [layer.name for layer in profile.layers] == ["quick", "slow", "view", "last"]
        times = {layer.name: layer for layer in profile.layers}
        assert times["slow"].median >= 2.9 and times["slow"].total >= 4 * 2.9
        assert times["quick"].average < 2 and times["view"].samples.size == 0 and times["view"].average == 0
        assert profile.percentage(times["slow"]) > 50
        assert sum(profile.percentage(layer) for layer in profile.layers) == pytest.approx(100)
        assert profile.iteration_totals.shape == (4,)


def test_layers_beside_other_programs_have_times_of_their_own(engine):
    """An empty span that holds another program's time slice says nothing of what an event costs; a layer's own slice is its own misfortune."""
    cost = span_cost([{(): [1e-6, 2e-3]}, {(): [1e-6, 1e-6]}, {}])
    assert cost == 1e-6 and span_cost([{}]) == 0.0
    names = [layer.name for layer in engine.network.layers]
    times = dict(own_seconds(engine, {(): [2e-3], (0,): [3e-6, 4e-6], (1,): [5e-7]}, cost))
    assert times[names[0]] == pytest.approx(5e-6) and times[names[1]] == 0.0 and times[names[2]] is None


def test_events_of_a_graph_are_read_when_its_launch_has_ended():
    class Late(CpuDevice):
        """A graph's events show their last launch until someone waits for the stream."""

        def capture(self, stream, enqueue):
            graph = super().capture(stream, enqueue)
            return SimpleNamespace(launch=lambda target: target.later.append(lambda: graph.launch(target)))

    class LateStream(CpuStream):
        def __init__(self):
            super().__init__()
            self.later = []

        def synchronize(self):
            while self.later:
                self.later.pop(0)()

    device, stream, naps = Late(), LateStream(), [0.004, 0.002]
    recorder = Recorder(device)

    def layer():
        recorder.start((0,), stream)
        stream.add(lambda: time.sleep(naps.pop()))
        recorder.stop((0,), stream)

    launch = recorder.capture(stream, layer)
    launch(stream)
    launch(stream)
    stream.synchronize()
    first, second = recorder.collect()[(0,)]
    assert first >= 0.002 and second >= 0.004
