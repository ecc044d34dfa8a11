"""Segments between the places where the host steps in: what waits, what is captured, what shares memory."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.importer import import_onnx
from runtime.benchmark import BenchmarkOptions, run_benchmark
from runtime.device import CaptureError, DeviceMemoryError
from runtime.engine import sizes_of
from runtime.graph import GraphRunner, engine_parts
from runtime.parts import parts_at_optimum
from runtime.segments import captured_layers, segments_of
from runtime.timer import time_parts
from tests.control_flow.networks import FORKED, FORKED_SHAPES, LOOP, N8, check, made, masked, parse
from tests.models import onnxruntime_outputs


def test_layers_wait_only_for_what_they_need():
    """The layer that needs no count runs in the first segment, wherever it stands."""
    network = import_onnx(parse("""g (float[9] x) => (int64[1, k] p, float[9] y, int64[1, j] q) {
        p = NonZero(x) e = Exp(x) y = Log(e) q = NonZero(e) }"""))
    first, *rest = segments_of(network)
    assert {network.layers[number].origins[0] for number in first.layers} == {"NonZero_0", "Exp_1", "Log_2", "NonZero_3"}
    assert len(rest) == 1 and len(rest[0].reads) == 2  # both counts are read at once


def test_segments_are_captured_and_their_graphs_kept(cpu, tmp_path):
    engine = made(masked(), cpu, tmp_path, N8)
    context = engine.create_execution_context(cpu)
    x = np.float32([[1] * 4, [-1] * 4, [2] * 4])
    context.execute({"x": x})
    runner, stream = GraphRunner(context), cpu.stream()
    assert runner.prepare() and runner.nodes
    assert runner.captures == len(captured_layers(engine_parts(engine))) == 2
    assert "2 segments" in runner.warnings[-1] and "NonZero" in runner.warnings[-1] and "waits" in runner.warnings[-1]
    hits = runner.hits
    runner.enqueue(stream)
    assert runner.hits == hits + 2 and runner.captures == 2
    context.write_tensor("x", np.float32([[1] * 4, [3] * 4, [2] * 4]))  # another count: the second segment is bound and captured anew
    runner.enqueue(stream)
    runner.enqueue(stream)
    assert runner.captures == 3
    np.testing.assert_array_equal(context.read_tensor("y"), np.float32([[1] * 4, [3] * 4, [2] * 4]))
    context.write_tensor("x", x)
    runner.enqueue(stream)
    assert runner.captures == 3 and runner.plain == 4  # three met for the first time, one with its output moved: that had grown
    np.testing.assert_array_equal(context.read_tensor("y"), x[[0, 2]])
    with pytest.raises(CaptureError, match="the host steps in"):
        cpu.capture(stream, lambda: context.execute_async_v3(stream))


STEPS = """g (float[64, 64] x) => (float[k] y) {
    a = Softmax(x) b = MatMul(a, x) m = Greater(b, x) i = NonZero(m) j = Transpose<perm = [1, 0]>(i)
    v = GatherND(b, j) n = Greater(v, zero) p = NonZero(n) q = Transpose<perm = [1, 0]>(p) y = GatherND(v, q)
}""".replace("(float[k] y)", "(float[k] y) <float zero = {0.0}>")


def test_segments_share_memory(cpu, tmp_path):
    """All segments lie in one piece of memory, which may come from outside and serve several contexts."""
    model, x = parse(STEPS), np.random.default_rng(5).standard_normal((64, 64)).astype(np.float32)
    context = check(model, cpu, tmp_path, {"x": x})
    engine, (expected,) = context.engine, onnxruntime_outputs(model, {"x": x}).values()
    heap, need = context._heap, engine.device_memory_size
    assert len(heap._pieces) == 1 and heap.peak <= heap.size and heap.peak <= need and context.device_memory_size == heap.size
    first, second = (engine.create_execution_context_without_device_memory(cpu) for _ in range(2))
    with pytest.raises(DeviceMemoryError, match="set_device_memory gave 0"):
        first.execute({"x": x})
    memory = cpu.allocate(need)
    for one in (first, second, first):
        one.set_device_memory(memory)
        np.testing.assert_allclose(one.execute({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
        assert one.device_memory_size == need
    first.set_device_memory(cpu.allocate(1024))
    with pytest.raises(DeviceMemoryError, match="beside the"):
        first.execute({"x": x})


def test_graphs_of_segments_are_kept_for_several_shapes(cpu, tmp_path):
    """A change of shape costs nothing the second time; results are those of plain runs."""
    engine = made(masked(), cpu, tmp_path, N8)
    runner, stream = GraphRunner(engine.create_execution_context(cpu)), cpu.stream()
    arrays = {rows: np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32) + 0.5 for rows in (3, 6)}
    captures = []
    for rows in (6, 3, 6, 3):  # the largest first: memory that grows moves
        runner.context.set_input_shape("x", (rows, 4))
        runner.context.use_own_memory()
        runner.context.write_tensor("x", arrays[rows])
        assert runner.prepare()
        runner.enqueue(stream)
        np.testing.assert_array_equal(runner.context.read_tensor("y"), np.maximum(arrays[rows], 0)[arrays[rows].max(axis=1) > 0])
        captures.append(runner.captures)
    assert captures[-1] == captures[1] <= 4


def test_the_benchmark_counts_graphs_of_segments(cpu, tmp_path):
    engine = made(parse(LOOP), cpu, tmp_path)
    inputs = {"x": np.float32([1, 2]), "n": np.array(5), "w": np.float32([0.5, -0.5])}
    for graph in (True, False):
        result = run_benchmark([engine.create_execution_context(cpu)], inputs, BenchmarkOptions(10, 0.0, 0.0, graph=graph))
        if not graph:
            assert result.segments is None
            continue
        captured, replayed, plain = result.segments
        assert captured > 0 and replayed > 10 * captured and 0 < plain < replayed


def test_parts_are_really_timed(cpu, tmp_path):
    """Every segment and body runs alone on made-up values, whatever reads its results."""
    engine = made(parse(FORKED), cpu, tmp_path, FORKED_SHAPES)
    bodies = [body for plan in engine.layers for body in plan.bodies]
    around = sizes_of(engine.network, {"x": (16, 8), "steps": ()})
    for one, sizes in ((engine, {}), *((body, around) for body in bodies)):
        parts = parts_at_optimum(one, 0, sizes)
        assert parts and all(0 < seconds < 1 for seconds in time_parts(cpu, parts, rounds=1))
