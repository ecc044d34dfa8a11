import random
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.expression import Operand, apply
from fusion.ops import Pointwise, Shuffle
from runtime.benchmark import BenchmarkOptions, run_benchmark
from runtime.context import ExecutionContext
from runtime.cpu import CpuDevice, CpuEvent, CpuStream
from runtime.device import DeviceMemoryError
from runtime.parts import parts_at_optimum
from runtime.streams import Work, event_cost, occupancy, schedule, simulate, with_streams
from runtime.timer import time_parts
from tactics.tactic import CpuCall, DeviceSpec, Kernel, Launch, Plan, Tactic
from tests.harness.memory import OverwritingDevice
from tests.runtime.conftest import MATMUL, TACTICS

NEG = Pointwise(apply("neg", Operand(0)))
ADD = Pointwise(apply("add", Operand(0), Operand(1)))


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 14))
    return [
        Work(
            draw(st.floats(0, 1e-4)),
            tuple(draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True).map(sorted))) if i else (),
            draw(st.sampled_from([0.1, 0.3, 0.5, 1.0])),
        )
        for i in range(count)
    ]


@settings(max_examples=100, deadline=None)
@given(graphs(), st.integers(0, 3))
def test_streams_only_where_they_help(work, most):
    found = schedule(work, most)
    streams = found.streams
    assert found.latency == pytest.approx(simulate(work, streams)) and all(one.stream or one.reason for one in found.branches)
    assert len(streams) == len(work) and min(streams) >= 0 and max(streams) <= most
    serial = simulate(work, [0] * len(work))
    assert serial == pytest.approx(sum(one.seconds for one in work))
    assert any(streams) == (simulate(work, streams) < serial) or not any(streams)
    if any(streams):
        assert simulate(work, streams) < 0.98 * serial


@settings(max_examples=100, deadline=None)
@given(graphs(), st.data())
def test_no_schedule_beats_the_laws(work, data):
    """Never faster than the longest path, nor than all the work spread over the whole device."""
    streams = data.draw(st.lists(st.integers(0, 2), min_size=len(work), max_size=len(work)))
    found = simulate(work, streams)
    paths: list[float] = []
    for one in work:
        paths.append(one.seconds + max((paths[other] for other in one.needs), default=0.0))
    assert found >= max(paths) * (1 - 1e-9)
    assert found >= sum(one.seconds * one.occupancy for one in work) * (1 - 1e-9)


def test_small_branches_run_together_and_full_ones_do_not():
    def fork(share):
        branches = [Work(1e-4, (0,), share) for _ in range(3)]
        return [Work(1e-5), *branches, Work(1e-5, (1, 2, 3))]

    small = schedule(fork(0.25), 3).streams
    assert len(set(small[1:4])) == 3
    assert simulate(fork(0.25), small) == pytest.approx(1.2e-4, rel=0.05)
    full = schedule(fork(1.0), 3)
    assert full.streams == (0,) * 5
    assert all("fills 100% of the device" in branch.reason for branch in full.branches)
    assert len(set(schedule(fork(0.25), 1).streams)) == 2
    assert schedule([Work(1e-6, (), 0.1), Work(1e-6, (), 0.1)], 3).streams == (0, 0)  # events cost more than that
    assert schedule([], 3).streams == ()


def test_occupancy():
    device = DeviceSpec("cuda", "x", multiprocessors=100)
    launch = Launch(Kernel("", "k"), (5, 2, 1), (32, 1, 1), ())
    assert occupancy(Plan((launch, replace(launch, grid=(30, 1, 1)))), device) == 0.3
    assert occupancy(Plan((replace(launch, grid=(1000, 1, 1)),)), device) == 1.0
    assert occupancy(Plan((replace(launch, grid=(200, 1, 1), block=(256, 1, 1)),)), device, resident=True) == 0.5
    heavy = replace(launch, grid=(200, 1, 1), shared_memory=100)
    assert occupancy(Plan((heavy,)), replace(device, shared_memory=250), resident=True) == 1.0
    assert occupancy(Plan(()), device) == 1.0
    assert occupancy(Plan((CpuCall(lambda *_: None),)), device) == 0.01


@pytest.fixture
def forked(graph):
    """An engine whose two branches sleep, a view inside one of them."""
    x = graph.input("x", (8, 8))
    a = graph.layer(NEG, graph.layer(Shuffle(reshape=(64,)), graph.layer(NEG, x, name="a1"), name="view"), name="a2")
    b = graph.layer(NEG, graph.layer(NEG, x, name="b1"), name="b2")
    engine = graph.engine(graph.layer(ADD, graph.layer(Shuffle(reshape=(8, 8)), a), b, name="join"))
    return replace(engine, layers=tuple(replace(plan, seconds=1e-3, stream=2) for plan in engine.layers))


def streams_of(engine):
    return {layer.name: plan.stream for layer, plan in zip(engine.network.layers, engine.layers, strict=True)}


def test_streams_are_kept_when_the_measured_latency_falls(forked, cpu, monkeypatch):
    four = replace(cpu.spec, multiprocessors=4)
    monkeypatch.setattr(cpu, "spec", four)
    for most, wanted in ((-1, 0), (0, 0)):
        engine, record = with_streams(forked, cpu, most)
        assert engine.num_aux_streams == wanted == record["used"] and "measuredMs" not in record
    for measured, kept in (((2e-3, 1e-3), True), ((1e-3, 2e-3), False)):
        monkeypatch.setattr("runtime.streams.time_parts", lambda device, engines, measured=measured: list(measured))
        engine, record = with_streams(forked, cpu, 3)
        found = streams_of(engine)
        assert (record["measuredSerialMs"], record["measuredMs"]) == tuple(1e3 * one for one in measured)
        assert (record["used"] == 1) is kept and record["simulatedMs"] < record["simulatedSerialMs"]
        if kept:
            assert found["a1"] == found["a2"] != found["b1"] == found["b2"] and max(found.values()) == 1
        else:
            assert set(found.values()) == {0}
            assert "measured 2000.0 us with streams" in record["branches"][0]["reason"]
        assert {name for branch in record["branches"] for name in branch["layers"]} <= set(found)
    monkeypatch.setattr(cpu, "spec", replace(four, multiprocessors=1))
    engine, record = with_streams(forked, cpu, 3)
    assert set(streams_of(engine).values()) == {0} and "fills 100%" in record["branches"][0]["reason"]


def test_each_profile_gets_streams_of_its_own(forked, cpu, monkeypatch):
    """Side by side in the second profile only: there streams are faster."""
    monkeypatch.setattr(cpu, "spec", replace(cpu.spec, multiprocessors=4))
    timed = []

    def time_parts(device, parts):
        timed.append(parts[0].profile)
        return [1e-3, *((2e-3, 5e-4)[part.profile] for part in parts[1:])]

    monkeypatch.setattr("runtime.streams.time_parts", time_parts)
    two = replace(forked, profiles=forked.profiles * 2)
    for engine in (two, replace(two, more_layers=(two.layers,))):
        timed.clear()
        found, record = with_streams(engine, cpu, 3)
        assert timed == [0, 1] and found.num_aux_streams == record["used"] == 1
        assert {plan.stream for plan in found.decisions(0)} == {0} and {plan.stream for plan in found.decisions(1)} == {0, 1}
        assert [one["used"] for one in record["profiles"]] == [0, 1]
        assert (record["measuredMs"], record["profiles"][1]["measuredMs"]) == (2.0, 0.5)
        x = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
        for profile in (0, 1):
            (result,) = found.create_execution_context(cpu, profile).execute(x).values()
            np.testing.assert_array_equal(result, 2 * x["x"])
    assert with_streams(two, cpu, 0)[0].more_layers == ()


def test_kernels_that_wait_leave_room_for_others(forked, cpu, monkeypatch):
    """Layers whose blocks fill the device but which stand far from its limit: the second guess tries them side by side."""
    monkeypatch.setattr(cpu, "spec", replace(cpu.spec, multiprocessors=4))
    monkeypatch.setattr("runtime.streams.occupancy", lambda plan, device, resident=False: 0.2 if resident else 1.0)
    seen = []
    monkeypatch.setattr("runtime.streams.time_parts", lambda device, engines: seen.append(len(engines)) or [2e-3, 1e-3])
    idle = replace(forked, layers=tuple(replace(plan, floor=1e-4) for plan in forked.layers))
    assert with_streams(idle, cpu, 3)[1]["used"] == 1 and seen == [2]
    full = replace(forked, layers=tuple(replace(plan, floor=1e-3) for plan in forked.layers))
    assert with_streams(full, cpu, 3)[1]["used"] == 0 and seen == [2]


def test_no_memory_to_measure_in_means_one_stream(forked, cpu, monkeypatch):
    def refuse(device, engines):
        raise DeviceMemoryError("cannot allocate")

    monkeypatch.setattr(cpu, "spec", replace(cpu.spec, multiprocessors=4))
    monkeypatch.setattr("runtime.streams.time_parts", refuse)
    engine, record = with_streams(forked, cpu, 3)
    assert engine.num_aux_streams == 0 and "cannot allocate" in record["branches"][0]["reason"]


class Sleep(Tactic):
    id = "test.sleep"
    device = "cpu"

    def plan(self, workload, config, device):
        def run(inputs, outputs, packed, workspace):
            time.sleep(0.008)
            outputs[0][...] = -inputs[0]

        return Plan((CpuCall(run),))


def test_branches_really_overlap(forked, cpu, monkeypatch):
    """Four sleeping layers in two branches: half the time with an auxiliary stream, plainly and as a graph, and the same results."""
    from runtime import resolution

    real = resolution.registry.tactic
    monkeypatch.setattr(resolution.registry, "tactic", lambda name: Sleep() if name == "test.sleep" else real(name))
    monkeypatch.setattr(cpu, "spec", replace(cpu.spec, multiprocessors=4))
    names = [layer.name for layer in forked.network.layers]
    plans = [replace(one, tactic="test.sleep") if name[0] in "ab" else one for name, one in zip(names, forked.layers, strict=True)]
    engine, record = with_streams(replace(forked, layers=tuple(plans)), cpu, 1)
    assert record["used"] == 1, str(record)
    assert 16 < record["measuredMs"] < 0.85 * record["measuredSerialMs"]
    x = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
    context = engine.create_execution_context(cpu)
    (found,) = context.execute(x).values()
    np.testing.assert_array_equal(found, 2 * x["x"])
    for graph_used in (False, True):
        result = run_benchmark([context], x, BenchmarkOptions(5, 0.0, 0.0, graph=graph_used))
        assert 16 < np.median([query.compute for query in result.queries]) < 28
        np.testing.assert_array_equal(next(iter(result.outputs.values())), 2 * x["x"])


def test_the_callers_streams_wait_for_the_main_one_and_it_for_them(forked, cpu):
    """Work queued on the main stream before the enqueue feeds the branches; work queued after it sees their results."""
    names = [layer.name for layer in forked.network.layers]
    plans = [replace(plan, stream=1 if name[0] == "b" else 0) for name, plan in zip(names, forked.layers, strict=True)]
    context = ExecutionContext(replace(forked, layers=tuple(plans)), cpu)
    aux, main = cpu.stream(concurrent=True), cpu.stream(concurrent=True)
    context.set_aux_streams([aux])
    context.set_input_shape("x", (8, 8))
    context.use_own_memory()
    context.prepare()
    x, found = np.full((8, 8), 3, np.float32), np.zeros((8, 8), np.float32)
    context.write_tensor("x", np.zeros((8, 8), np.float32))
    (output,) = forked.network.outputs
    main.add(lambda: time.sleep(0.02))
    cpu.upload(context.get_tensor_address("x"), x, main)
    context.execute_async_v3(main)
    cpu.download(found, context.get_tensor_address(output), main)
    main.synchronize()
    np.testing.assert_array_equal(found, 2 * x)
    with pytest.raises(ValueError, match="0 auxiliary streams given, the engine uses 1"):
        context.set_aux_streams([])


def test_engines_that_differ_in_streams_share_their_weights(mlp, cpu):
    from runtime.loaded import load_engine

    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (1, 4, 64)})
    other = replace(engine, layers=tuple(replace(plan, stream=1) for plan in engine.layers))
    first, second = load_engine(engine, cpu), load_engine(other, cpu)
    assert first is not second and first.weight_bytes == second.weight_bytes > 0
    assert {name: one.address for name, one in first.weights.items()} == {name: one.address for name, one in second.weights.items()}
    third = load_engine(replace(engine, weights=dict(engine.weights)), cpu)
    assert all(third.weights[name].address != first.weights[name].address for name in first.weights)


@pytest.mark.parametrize("tactic", ["test.reference", "test.packed"])
def test_a_part_that_is_timed_keeps_its_weights(graph, monkeypatch, tactic):
    """Tables of indices among them: another part that takes their memory would send kernels to wild addresses."""
    finite = []

    class Watching(type(TACTICS[tactic])):
        def plan(self, workload, config, device):
            (step,) = super().plan(workload, config, device).steps

            def run(inputs, outputs, packed, workspace):
                finite.append(all(np.isfinite(array).all() for array in (packed or inputs)))
                step.function(inputs, outputs, packed, workspace)

            return Plan((CpuCall(run),))

    monkeypatch.setitem(TACTICS, tactic, Watching())
    w = graph.constant("w", np.ones((8, 16), np.float32))
    engine = graph.engine(graph.layer(MATMUL, graph.input("x", (4, 8)), w, name="fc"), tactics={"fc": tactic})
    parts = [part for one in (engine, replace(engine, weights=dict(engine.weights))) for part in parts_at_optimum(one, 0, {})]
    time_parts(OverwritingDevice(), parts, rounds=1)
    assert len(finite) > 4 and all(finite)


def test_an_events_cost_is_measured(cpu):
    assert 0 <= event_cost(cpu) < 1e-2 and event_cost(cpu) == event_cost(cpu)


class LazyDevice(OverwritingDevice):
    """Streams that run only when someone waits, then in a random order that events allow: what a GPU may do. So memory that is given back before its
    last reader ran is lost."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.streams: list[LazyStream] = []

    def stream(self, concurrent=False):
        made = LazyStream(self)
        self.streams.append(made)
        return made

    def event(self, timing=True, spin=True):
        return LazyEvent()

    def synchronize(self):
        self.run_all()

    def run_all(self):
        while any(one.queue for one in self.streams):
            able = [one for one in self.streams if one.queue and (one.queue[0][0] is None or one.queue[0][0]())]
            assert able, "streams wait for each other"
            self.overwrite()
            self.random.choice(able).queue.pop(0)[1]()


class LazyStream(CpuStream):
    def __init__(self, device):
        super().__init__()
        self.device, self.queue = device, []

    def add(self, work):
        self.queue.append((None, work))

    def wait(self, event):
        wanted = event.recorded  # the record that is the latest now
        self.queue.append((lambda: event.reached >= wanted, lambda: None))

    def synchronize(self):
        self.device.run_all()


class LazyEvent(CpuEvent):
    def __init__(self):
        super().__init__()
        self.recorded = self.reached = 0

    def record(self, stream):
        self.recorded += 1
        number = self.recorded
        stream.add(lambda: setattr(self, "reached", number))


@pytest.mark.parametrize("seed", range(40))
def test_results_do_not_depend_on_the_order_that_streams_allow(graph, seed):
    """Random networks on random streams, run in random legal orders, twice over: memory sharing and events must hold."""
    draw = random.Random(seed)
    tensors = [graph.input("x", (16, 8))]
    for number in range(draw.randint(3, 25)):
        if draw.random() < 0.5:
            graph.layer(ADD, draw.choice(tensors[-6:]), draw.choice(tensors[-6:]), name=f"l{number}")
        else:
            graph.layer(NEG, draw.choice(tensors[-6:]), name=f"l{number}")
        tensors.append(f"l{number}_out0")
        if draw.random() < 0.2:
            tensors.append(graph.layer(Shuffle(reshape=(16, 8)), tensors[-1], name=f"v{number}"))
    outputs = list(dict.fromkeys([tensors[-1], draw.choice(tensors[1:])]))
    engine = graph.engine(*outputs, streams={f"l{i}": draw.randint(0, 2) for i in range(25)}, workspace=128)
    expected = replace(engine, layers=tuple(replace(plan, stream=0) for plan in engine.layers))
    device = LazyDevice(seed)
    context = ExecutionContext(engine, device)
    stream = device.stream()
    for turn in range(2):
        x = np.random.default_rng(seed + turn).standard_normal((16, 8)).astype(np.float32)
        context.use_own_memory()
        context.write_tensor("x", x)
        context.execute_async_v3(stream)
        if turn:
            context.execute_async_v3(stream)  # a second inference queued behind the first
        stream.synchronize()
        wanted = ExecutionContext(expected, CpuDevice()).execute({"x": x})
        for name in outputs:
            np.testing.assert_array_equal(context.read_tensor(name), wanted[name])


@pytest.mark.parametrize("grows", ["arena", "inputs and outputs"])
def test_sizes_change_while_inferences_are_queued(mlp, grows):
    """Nothing waits for the stream but the runtime itself: memory that it gives back must have had its last reader."""
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (1, 4, 64)}, streams={"relu1": 1, "relu2": 2})
    device, random = LazyDevice(3), np.random.default_rng(2)
    context, plain = ExecutionContext(engine, device, allocation="runtime"), ExecutionContext(engine, CpuDevice())
    if grows == "arena":
        context.set_input_shape("x", (64, 8))
        context.use_own_memory()
    stream, found = device.stream(), []
    arrays = [random.standard_normal((rows, 8)).astype(np.float32) for rows in (2, 9, 64, 3, 40)]
    for x in arrays:
        context.set_input_shape("x", x.shape)
        context.use_own_memory()
        device.upload(context.get_tensor_address("x"), x, stream)
        context.execute_async_v3(stream)
        found.append({name: np.empty(context.get_tensor_shape(name), np.float32) for name in outputs})
        for name, array in found[-1].items():
            device.download(array, context.get_tensor_address(name), stream)
    stream.synchronize()
    for x, results in zip(arrays, found, strict=True):
        wanted = plain.execute({"x": x})
        for name, array in results.items():
            np.testing.assert_array_equal(array, wanted[name])
