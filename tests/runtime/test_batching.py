"""Opportunistic batching on the CPU device: who waits for whom, how long, and what it counts."""

import numpy as np
import pytest

from runtime.batching import BatchingOptions, batch_range, batched_inputs, poisson, serve
from runtime.benchmark import BenchmarkOptions

X = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}


@pytest.fixture
def engine(mlp):
    build, outputs = mlp
    return build.engine(*outputs, sizes={"batch": (1, 4, 64)})


def run(engine, cpu, rate, delay, most, lanes=1, **options):
    contexts = [engine.create_execution_context(cpu) for _ in range(lanes)]
    return serve(contexts, X, BenchmarkOptions(**{"iterations": 5, "duration": 0.15, "warm_up": 20.0} | options), BatchingOptions(rate, delay, most))


def check(result, delay, most):
    assert sum(size * count for size, count in result.batches.items()) >= len(result.requests)
    for one in result.requests:
        assert one.arrival <= one.start <= one.end and 1 <= one.batch <= most
        assert one.latency == pytest.approx(one.queue + one.compute)
    arrivals = [one.arrival for one in result.requests]
    assert arrivals == sorted(arrivals) and arrivals[0] >= 20


def oldest(result):
    """Per batch whose first request was counted: how long that one waited, and the batch's size."""
    found = {}
    for one in result.requests:
        found.setdefault(one.start, []).append(one)
    return [(max(one.queue for one in batch), batch[0].batch) for batch in found.values() if len(batch) == batch[0].batch]


def test_arrivals_are_poisson_and_repeatable():
    options = BenchmarkOptions(iterations=10, duration=2.0, warm_up=500)
    times = poisson(BatchingOptions(1000, 1, 8), options)
    np.testing.assert_array_equal(times, poisson(BatchingOptions(1000, 1, 8), options))
    gaps = np.diff(times)
    assert 2300 < len(times) < 2700 and times[-1] <= 2.5 and (gaps > 0).all()
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # exponential gaps
    few = poisson(BatchingOptions(10, 1, 8), BenchmarkOptions(iterations=50, duration=0.1, warm_up=100))
    assert np.count_nonzero(few >= 0.1) == 50


def test_requests_wait_for_others_no_longer_than_the_delay(engine, cpu):
    result = run(engine, cpu, rate=400, delay=10, most=8)
    check(result, 10, 8)
    assert np.mean([one.batch for one in result.requests]) > 2  # four arrive in ten milliseconds, on average
    assert all(wait >= 9.99 for wait, size in oldest(result) if size < 8)  # those that are not full wait the whole delay
    assert result.graphs == 8 and not result.late and not result.warnings and result.unserved <= 8
    alone = run(engine, cpu, rate=400, delay=0, most=8)
    check(alone, 0, 8)
    assert min(wait for wait, _ in oldest(alone)) < 9


def test_a_full_batch_leaves_at_once(engine, cpu):
    result = run(engine, cpu, rate=2000, delay=200, most=4)
    full = [wait for wait, size in oldest(result) if size == 4]
    assert full and min(full) < 100


def test_more_than_can_be_served_is_told(engine, cpu):
    result = run(engine, cpu, rate=200_000, delay=0, most=1, iterations=1)
    assert result.unserved > 100 and result.throughput < 200_000


@pytest.mark.parametrize("graph", [False, True])
def test_transfers_and_several_contexts(engine, cpu, graph):
    result = run(engine, cpu, rate=800, delay=2, most=8, lanes=2, transfers=True, graph=graph)
    check(result, 2, 8)
    assert (result.graphs == 8) == graph


def test_a_smallest_batch_is_padded(mlp, cpu):
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (8, 8, 8)})
    assert batch_range(engine) == (8, 8) and batched_inputs(engine.network) == ["x"]
    result = run(engine, cpu, rate=300, delay=1, most=3)
    check(result, 1, 3)
    assert result.graphs == 1


def test_refusals(engine, graph, cpu):
    with pytest.raises(ValueError, match="--maxBatch=65: the engine takes batches of 1 to 64"):
        run(engine, cpu, 10, 1, 65)
    with pytest.raises(ValueError, match="needs an end"):
        run(engine, cpu, 10, 1, 4, duration=-1)
    from fusion.expression import Operand, apply
    from fusion.ops import Pointwise

    add = Pointwise(apply("add", Operand(0), Operand(1)))
    a, b = graph.input("a", (2, 4)), graph.input("b", (4,))
    with pytest.raises(ValueError, match="no common batch"):
        batch_range(graph.engine(graph.layer(add, a, b)))


def test_failures_reach_the_caller(engine, cpu, monkeypatch):
    from runtime.batching import _Server

    monkeypatch.setattr(_Server, "run", lambda self, count: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(engine, cpu, 1000, 0, 4, lanes=2)
