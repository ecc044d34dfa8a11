import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.expression import Operand, apply
from fusion.ops import Pointwise, Shuffle
from runtime.context import ExecutionContext
from runtime.cpu import CpuDevice, CpuEvent, CpuStream
from runtime.streams import Work, occupancy, schedule, simulate, with_streams
from tactics.tactic import DeviceSpec, Kernel, Launch, Plan

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
    streams = schedule(work, most)
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

    small = schedule(fork(0.25), 3)
    assert len(set(small[1:4])) == 3
    assert simulate(fork(0.25), small) == pytest.approx(1.2e-4, rel=0.05)
    assert schedule(fork(1.0), 3) == (0,) * 5
    assert len(set(schedule(fork(0.25), 1))) == 2
    assert schedule([Work(1e-6, (), 0.1), Work(1e-6, (), 0.1)], 3) == (0, 0)  # events cost more than that
    assert schedule([], 3) == ()


def test_occupancy():
    device = DeviceSpec("cuda", "x", multiprocessors=100)
    launch = Launch(Kernel("", "k"), (5, 2, 1), (32, 1, 1), ())
    assert occupancy(Plan((launch, replace(launch, grid=(30, 1, 1)))), device) == 0.3
    assert occupancy(Plan((replace(launch, grid=(1000, 1, 1)),)), device) == 1.0
    assert occupancy(Plan(()), device) == 1.0


def test_engines_get_streams(graph, cpu, monkeypatch):
    x = graph.input("x", (8, 8))
    a = graph.layer(NEG, graph.layer(Shuffle(reshape=(64,)), graph.layer(NEG, x, name="a1"), name="view"), name="a2")
    b = graph.layer(NEG, graph.layer(NEG, x, name="b1"), name="b2")
    engine = graph.engine(graph.layer(ADD, graph.layer(Shuffle(reshape=(8, 8)), a), b, name="join"))
    engine = replace(engine, layers=tuple(replace(plan, seconds=1e-3, stream=2) for plan in engine.layers))

    def streams(device, most=-1):
        found = with_streams(replace(engine, device=device), most)
        assert found.num_aux_streams == max(plan.stream for plan in found.layers)
        return {layer.name: plan.stream for layer, plan in zip(engine.network.layers, found.layers, strict=True)}

    gpu = replace(cpu.spec, kind="cuda")
    assert set(streams(cpu.spec).values()) == set(streams(gpu, 0).values()) == {0}
    assert set(streams(gpu, 3).values()) == {0}  # NumPy steps fill the device
    monkeypatch.setattr("runtime.streams.occupancy", lambda plan, device: 0.3)
    found = streams(gpu)
    assert found["a1"] == found["a2"] != found["b1"] == found["b2"] and max(found.values()) == 1


class LazyDevice(CpuDevice):
    """Streams that run only when someone waits, then in a random order that events allow: what a GPU may do."""

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

    def run_all(self):
        while any(one.queue for one in self.streams):
            able = [one for one in self.streams if one.queue and (one.queue[0][0] is None or one.queue[0][0]())]
            assert able, "streams wait for each other"
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
