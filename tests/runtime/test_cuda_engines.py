"""Engines on a GPU, with kernels as small as they come: timing, streams, graphs, benchmark, profile, memory of the caller's."""

from dataclasses import replace

import numpy as np
import pytest

from fusion.expression import Operand, apply
from fusion.network import TensorType
from fusion.ops import Pointwise
from runtime.benchmark import BenchmarkOptions, run_benchmark
from runtime.device import DeviceError
from runtime.graph import GraphRunner, compare_replay
from runtime.nvtx import layer_ranges
from runtime.profiler import profile_layers
from runtime.streams import event_cost, with_streams
from runtime.timer import Bench, Candidate
from tactics.tactic import (
    Buffer,
    Launch,
    Plan,
    Scalar,
    Workload,
)
from tests.runtime.cuda_kernels import FLOAT, branches, kernel, scale_step


def neg_workload(n):
    op = Pointwise(apply("neg", Operand(0)))
    types = (TensorType(FLOAT, (n,)),)
    return Workload(op, types, op.infer(types), (False,))


@pytest.mark.gpu
def test_timer(gpu, images):
    n = 1 << 16
    bench = Bench(gpu, neg_workload(n))
    spins = [
        Candidate(
            Plan((Launch(kernel("spin"), (1, 1, 1), (32, 1, 1), (Buffer("output"), Scalar(clocks, "i64"))),)),
            (),
            images,
        )
        for clocks in (20_000, 4_000, 400_000, 40_000)
    ]
    right = Candidate(Plan((scale_step(n, -1.0),)), (), images)
    impossible = Candidate(Plan((replace(scale_step(n, -1.0), shared_memory=1 << 24),)), (), images)
    seconds = bench.time([*spins, right, impossible])
    assert isinstance(seconds[-1], DeviceError)
    assert seconds[1] < seconds[0] < seconds[3] < seconds[2]
    assert 0.3e-6 < seconds[4] < 20e-6  # half a megabyte: a few microseconds, not the 8 of a lone event pair
    wanted = bench.reference(right)
    assert bench.check(right, wanted, 1e-6) is None
    assert "not written" in bench.check(spins[0], wanted, 1e-6)
    partly = Candidate(Plan((scale_step(n - 3, -1.0),)), (), images)
    assert "3 of 65536 elements are not written" in bench.check(partly, wanted, 1e-6)


@pytest.mark.gpu
def test_a_large_copy_runs_at_memory_speed(gpu, images):
    n = 1 << 26
    seconds = Bench(gpu, neg_workload(n)).time([Candidate(Plan((scale_step(n, -1.0),)), (), images)])[0]
    # One float a thread reaches a third of an H200's bandwidth; far less, or more than all of it, is a wrong time.
    assert 0.25 * gpu.spec.bandwidth < 8 * n / seconds < 1.05 * gpu.spec.bandwidth


@pytest.mark.gpu
@pytest.mark.parametrize("streams", [False, True])
def test_engines_streams_and_graphs(gpu, graph, on_gpu, streams):
    engine, outputs = branches(graph, streams)
    engine = on_gpu(engine, slow=("b1d0", "b2d2"))
    context = engine.create_execution_context(gpu)
    x = {"x": np.random.default_rng(3).standard_normal((64, 100)).astype(np.float32)}
    for name, found in context.execute(x).items():
        assert name in outputs
        np.testing.assert_array_equal(found, x["x"].reshape(100, 64))
    replay = compare_replay(context, x)
    assert replay.nodes == 14 and not replay.differing and not replay.warnings
    import cupy

    mine = cupy.asarray(-x["x"])
    context.set_tensor_address("x", mine)
    other = cupy.zeros((100, 64), cupy.float32)
    context.set_tensor_address(outputs[0], other)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    context.execute_async_v3(stream.ptr)
    stream.synchronize()
    np.testing.assert_array_equal(other.get(), -x["x"].reshape(100, 64))
    with pytest.raises(ValueError, match="memory is on cpu"):
        context.set_tensor_address("x", x["x"])
    with pytest.raises(ValueError, match="float64"):
        context.set_tensor_address("x", cupy.zeros((64, 100)))


@pytest.mark.gpu
def test_parallel_branches_overlap(gpu, graph, on_gpu):
    engine, _ = branches(graph, True)
    context = on_gpu(engine, slow=("b0d1", "b1d1", "b2d1")).create_execution_context(gpu)
    x = {"x": np.zeros((64, 100), np.float32)}
    result = run_benchmark([context], x, BenchmarkOptions(20, 0.0, 5.0))
    profile = profile_layers(context, x, BenchmarkOptions(20, 0.0, 5.0))
    slow = [layer.median for layer in profile.layers if layer.name.endswith("d1")]
    latency = float(np.median([query.compute for query in result.queries]))
    assert latency < 0.6 * sum(slow)


@pytest.mark.gpu
def test_streams_are_chosen_by_measurement(gpu, graph, on_gpu):
    """Three branches, each with a layer that keeps one block busy for long: side by side they take a third of the time."""
    assert 0 <= event_cost(gpu) < 2e-5
    engine = on_gpu(branches(graph, False)[0], slow=("b0d1", "b1d1", "b2d1"))
    seconds = {layer.name: 2e-4 if layer.name.endswith("d1") else 2e-6 for layer in engine.network.layers}
    plans = [replace(plan, seconds=seconds[layer.name]) for layer, plan in zip(engine.network.layers, engine.layers, strict=True)]
    found, record = with_streams(replace(engine, layers=tuple(plans)), gpu)
    assert found.num_aux_streams == record["used"] == 2, record
    assert record["measuredMs"] < 0.7 * record["measuredSerialMs"], record
    x = {"x": np.random.default_rng(6).standard_normal((64, 100)).astype(np.float32)}
    replay = compare_replay(found.create_execution_context(gpu), x)
    assert replay.nodes and not replay.differing


@pytest.mark.gpu
@pytest.mark.parametrize("transfers", [False, True])
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("use_graph", [False, True])
def test_benchmark(gpu, graph, on_gpu, transfers, threads, use_graph):
    engine, _ = branches(graph, False)
    engine = on_gpu(engine)
    contexts = [engine.create_execution_context(gpu) for _ in range(2)]
    x = {"x": np.random.default_rng(4).standard_normal((64, 100)).astype(np.float32)}
    options = BenchmarkOptions(20, 0.02, 5.0, threads=threads, transfers=transfers, graph=use_graph, spin=not threads)
    result = run_benchmark(contexts, x, options)
    assert (result.graph_nodes == 12) == use_graph and len(result.queries) >= 40
    for query in result.queries:
        assert query.compute > 0 and (query.h2d > 0) == (query.d2h > 0) == transfers
        assert query.start_compute >= 5.0 and query.enqueue > 0
    for found in result.outputs.values():
        np.testing.assert_array_equal(found, x["x"].reshape(100, 64))


@pytest.mark.gpu
def test_ranges_can_be_written(gpu, graph, on_gpu):
    context = on_gpu(branches(graph, False)[0]).create_execution_context(gpu)
    ranges = layer_ranges(tuple(layer.name for layer in context.engine.network.layers))
    assert ranges is not None
    for use_graph in (False, True):
        result = run_benchmark([context], {"x": np.zeros((64, 100), np.float32)}, BenchmarkOptions(3, 0.0, 0.0, graph=use_graph, ranges=ranges))
        assert len(result.queries) == 3


@pytest.mark.gpu
def test_exposed_copies_take_turns_with_the_computation(gpu, graph, on_gpu):
    context = on_gpu(branches(graph, False)[0]).create_execution_context(gpu)
    x = {"x": np.zeros((64, 100), np.float32)}
    result = run_benchmark([context], x, BenchmarkOptions(30, 0.0, 0.0, transfers=True, expose_dma=True))
    for one, other in zip(result.queries, result.queries[1:], strict=False):
        assert other.start_h2d > one.end_d2h - 1e-3  # an event's resolution


@pytest.mark.gpu
def test_profile_adds_up(gpu, graph, on_gpu):
    engine, _ = branches(graph, False)
    context = on_gpu(engine, slow=("b1d2",)).create_execution_context(gpu)
    x = {"x": np.zeros((64, 100), np.float32)}
    result = run_benchmark([context], x, BenchmarkOptions(50, 0.0, 5.0))
    profile = profile_layers(context, x, BenchmarkOptions(50, 0.0, 5.0))
    assert profile.in_graph and profile.count >= 50
    slowest = max(profile.layers, key=lambda layer: layer.median)
    assert slowest.name == "b1d2"
    latency = float(np.median([query.compute for query in result.queries]))
    assert 0.8 * latency < float(np.median(profile.iteration_totals)) < 1.5 * latency
    assert 0 < profile.event_overhead < 0.01


@pytest.mark.gpu
def test_torch_tensors(gpu, graph, on_gpu):
    torch = pytest.importorskip("torch")
    engine, outputs = branches(graph, False)
    context = on_gpu(engine).create_execution_context(gpu)
    x = torch.randn(64, 100, device="cuda")
    found = {name: torch.empty(100, 64, device="cuda") for name in outputs}
    for name, tensor in {"x": x, **found}.items():
        context.set_tensor_address(name, tensor)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    context.execute_async_v3(stream)
    stream.synchronize()
    for tensor in found.values():
        assert torch.equal(tensor, x.reshape(100, 64))
    runner = GraphRunner(context)
    assert runner.prepare()


@pytest.mark.gpu
def test_managed_memory(gpu, graph, on_gpu):
    engine, _ = branches(graph, False)
    x = {"x": np.random.default_rng(5).standard_normal((64, 100)).astype(np.float32)}
    options = BenchmarkOptions(5, 0.0, 0.0, managed=True, transfers=True)
    result = run_benchmark([on_gpu(engine).create_execution_context(gpu)], x, options)
    for found in result.outputs.values():
        np.testing.assert_array_equal(found, x["x"].reshape(100, 64))
