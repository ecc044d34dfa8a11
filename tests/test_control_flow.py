"""Networks in which the host steps in: branches, loops, shapes that depend on data; built, saved, loaded, run on the CPU device."""

from __future__ import annotations

import ctypes
import random
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx.parser import parse_model

from fusion.dtypes import DataType
from fusion.importer import UnsupportedModel, import_onnx
from fusion.reference import run
from runtime.benchmark import BenchmarkOptions, run_benchmark
from runtime.device import CaptureError, Device, DeviceMemoryError
from runtime.engine import IDLE, Engine, EngineError, InputRange, LayerPlan, sizes_of
from runtime.graph import GraphRunner, capture_obstacles, capture_segments, compare_replay, segments_line
from runtime.heap import Heap
from runtime.parts import parts_at_optimum
from runtime.profiler import profile_layers
from runtime.segments import segments_of
from runtime.timer import time_parts
from runtime.views import Sharing
from tests.harness.fiber import H100
from tests.harness.memory import OverwritingDevice
from tests.models import SPEECH_MODELS, onnxruntime_outputs, wheel_model
from tests.runtime.test_streams import LazyDevice
from trtcli.builder import build
from trtcli.builder.choose import given_decisions
from trtcli.builder.workloads import workloads_at
from trtcli.config import BuildConfig, ProfileShapes
from trtcli.log import Log
from trtcli.report.inspection import engine_json, engine_lines
from trtcli.report.layers import stream_branches


@pytest.fixture(scope="module")
def cpu():
    return OverwritingDevice()


@pytest.fixture(autouse=True)
def what_is_free_is_overwritten(monkeypatch, request):
    """On the CPU device work runs when it is enqueued: memory that is given back before its last reader ran shows as wrong results."""
    later = (test_segments_on_streams_in_any_order_that_events_allow, test_streams_are_chosen_per_segment_and_body)
    if request.node.get_closest_marker("gpu") or request.function in later:
        return
    take, drop = Heap.take, Heap.drop

    def taken(heap, size):
        address = take(heap, size)
        ctypes.memset(address, 0xFF, size)  # NaN, and large negative numbers
        return address

    def dropped(heap, address):
        block = heap._at(address)
        drop(heap, address)
        if block is not None and not block.holders:
            ctypes.memset(block.start, 0xFF, block.end - block.start)

    monkeypatch.setattr(Heap, "take", taken)
    monkeypatch.setattr(Heap, "drop", dropped)


QUICK = BuildConfig(optimization_level=0)


def parse(text: str, opset: int = 18) -> onnx.ModelProto:
    return parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')


def made(model: onnx.ModelProto, cpu, tmp_path, config: BuildConfig = QUICK) -> Engine:
    """The engine of ``model`` after a trip through a file."""
    path = tmp_path / "e.engine"
    build(model.SerializeToString(), config, cpu, log=Log(to_stderr=True)).save(path)
    return Engine.load(path)


def check(model: onnx.ModelProto, cpu, tmp_path, *cases: dict[str, np.ndarray], config: BuildConfig = QUICK):
    """Every case equals ONNX Runtime, plainly (twice) and through captured segments; returns a context that has run."""
    engine = made(model, cpu, tmp_path, config)
    context = engine.create_execution_context(cpu)
    for inputs in (*cases, *cases[:1]):
        expected = onnxruntime_outputs(model, inputs)
        for found in (context.execute(inputs), context.execute(inputs)):
            for name, array in expected.items():
                assert found[name].dtype == array.dtype and context.get_tensor_shape(name) == array.shape
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
        replay = compare_replay(context, inputs)
        assert replay.differing == ()
    return context


MASKED = """g (float[n, 4] x) => (float[k, 4] y) {
    zero = Constant<value_float = 0.0>()
    s = ReduceMax<keepdims = 0>(x, axes)
    m = Greater(s, zero) p = NonZero(m) q = Transpose<perm = [1, 0]>(p) z = GatherND(x, q) y = Relu(z)
}"""


def masked() -> onnx.ModelProto:
    return parse(MASKED.replace("g (float[n, 4] x) => (float[k, 4] y) {", "g (float[n, 4] x) => (float[k, 4] y) <int64[1] axes = {1}> {"))


N8 = BuildConfig(optimization_level=0, min_shapes={"x": (1, 4)}, opt_shapes={"x": (4, 4)}, max_shapes={"x": (64, 4)})


def test_non_zero_rows(cpu, tmp_path):
    random = np.random.default_rng(0)
    cases = [{"x": random.standard_normal((rows, 4)).astype(np.float32)} for rows in (5, 1, 33)]
    context = check(masked(), cpu, tmp_path, *cases, {"x": np.full((3, 4), -1, np.float32)}, config=N8)
    assert context.execute({"x": np.full((3, 4), -1, np.float32)})["y"].shape == (0, 4)


def test_shapes_are_unknown_until_an_inference_has_run(cpu, tmp_path):
    context = made(masked(), cpu, tmp_path, N8).create_execution_context(cpu)
    context.set_input_shape("x", (6, 4))
    assert context.get_tensor_shape("y") == (-1, 4)
    context.use_own_memory()
    with pytest.raises(ValueError, match="known after an inference"):
        context.read_tensor("y")
    context.write_tensor("x", np.float32([[1] * 4, [-1] * 4] * 3))
    context.execute_async_v3(cpu.stream())
    assert context.get_tensor_shape("y") == (3, 4)
    context.set_input_shape("x", (2, 4))
    assert context.get_tensor_shape("y") == (-1, 4)


def test_output_allocators(cpu, tmp_path):
    context = made(masked(), cpu, tmp_path, N8).create_execution_context(cpu)
    x = np.float32([[1] * 4, [-1] * 4, [2] * 4])
    asked, memory = [], np.full(64, np.nan, np.float32)

    def allocate(name, size, shape):
        asked.append((name, size, shape))
        return memory.ctypes.data

    context.set_output_allocator("y", allocate)
    np.testing.assert_array_equal(context.execute({"x": x})["y"], x[[0, 2]])
    assert asked == [("y", 32, (2, 4))] and context.get_tensor_address("y") == memory.ctypes.data
    np.testing.assert_array_equal(memory[:8].reshape(2, 4), x[[0, 2]])

    class Allocator:
        def notify_shape(self, name, shape):
            self.shape = shape

        def reallocate_output_async(self, name, address, size, alignment, stream):
            return memory.ctypes.data + 128

    allocator = Allocator()
    context.set_output_allocator("y", allocator)
    context.execute({"x": x})
    assert allocator.shape == (2, 4)
    np.testing.assert_array_equal(memory[32:40].reshape(2, 4), x[[0, 2]])
    context.set_output_allocator("y", lambda *_: 0)
    with pytest.raises(EngineError, match="gave no memory"):
        context.execute({"x": x})
    context.set_output_allocator("y", None)
    np.testing.assert_array_equal(context.execute({"x": x})["y"], x[[0, 2]])
    with pytest.raises(ValueError, match="no output is named"):
        context.set_output_allocator("x", allocate)


BRANCH = """g (float[2, 3] x, float[3] w) => (float[a, 3] y) <float zero = {0.0}> {
    s = ReduceSum<keepdims = 0>(x) c = Greater(s, zero) r = Relu(x)
    z = If(c) <
        then_branch = t () => (float[2, 3] a) { e = Exp(x) a = Mul(e, w) },
        else_branch = f () => (float[4, 3] b) { d = Add(r, w) b = Concat<axis = 0>(d, x) }>
    y = Neg(z)
}"""


def test_branches_of_different_shapes(cpu, tmp_path):
    x, w = np.float32([[1, -2, 3], [0, 1, 2]]), np.float32([1, 2, 3])
    context = check(parse(BRANCH), cpu, tmp_path, {"x": x, "w": w}, {"x": -x, "w": w})
    (branch,) = (layer for layer in context.engine.network.layers if type(layer.op).__name__ == "If")
    assert [len(body.layers) for body in branch.op.bodies] == [1, 2]  # fused inside: exp and mul are one layer


NESTED = """g (float[3] x, bool p, bool q) => (float[3] y) {
    y = If(p) <
        then_branch = t () => (float[3] a) {
            h = Neg(x)
            a = If(q) <then_branch = tt () => (float[3] aa) { aa = Abs(h) }, else_branch = tf () => (float[3] ab) { ab = Add(h, x) }> },
        else_branch = f () => (float[3] b) { b = Identity(x) }>
}"""


def test_nested_branches(cpu, tmp_path):
    x = np.float32([1, -2, 3])
    cases = [{"x": x, "p": np.array(p), "q": np.array(q)} for p in (True, False) for q in (True, False)]
    check(parse(NESTED), cpu, tmp_path, *cases)


LOOP = """g (float[2] x, int64 n, float[2] w) => (float[2] last, float[k, 2] all) <bool yes = {1}> {
    last, all = Loop(n, yes, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o) {
        d = Identity(c) f = Cast<to = 1>(i) u = Mul(s, w) t = Add(u, f) o = Neg(t) }>
}"""


def test_loop_with_computed_trip_count(cpu, tmp_path):
    x, w = np.float32([1, 2]), np.float32([0.5, -0.5])
    check(parse(LOOP), cpu, tmp_path, *({"x": x, "n": np.array(count), "w": w} for count in (3, 0, 1, 7)))


WHILE = """g (float[1] x, float[1] limit) => (float[1] y, int64 steps) <bool yes = {1}, int64 zero = {0}, int64 one = {1}> {
    y, steps = Loop(, yes, x, zero) <body = b (int64 i, bool c, float[1] s, int64 m) => (bool d, float[1] t, int64 k) {
        t = Add(s, s) k = Add(m, one) e = Less(t, limit) d = ReduceMax<keepdims = 0>(e8) e8 = Cast<to = 3>(e) }>
}"""


def test_loop_that_decides_itself(cpu, tmp_path):
    text = WHILE.replace("d = ReduceMax<keepdims = 0>(e8) e8 = Cast<to = 3>(e)", "e8 = Cast<to = 6>(e) r = ReduceMax<keepdims = 0>(e8) d = Cast<to = 9>(r)")
    check(parse(text), cpu, tmp_path, {"x": np.float32([1]), "limit": np.float32([100])}, {"x": np.float32([1]), "limit": np.float32([0])})


GROWING = """g (float[1, 2] x, int64 n) => (float[k, 2] y) <bool yes = {1}> {
    z = Loop(n, yes, x) <body = b (int64 i, bool c, float[j, 2] s) => (bool d, float[m, 2] t) {
        d = Identity(c) e = Add(s, x) t = Concat<axis = 0>(s, e) }>
    y = Relu(z)
}"""


def test_slices_of_growing_tensors_begin_beyond_their_ends(cpu, tmp_path):
    """At every size that is guessed for the carried tensor the slice is empty; later it is not."""
    text = GROWING.replace("t = Concat<axis = 0>(s, e)", "p = Slice(s, far, end, axis) q = Exp(p) t = Concat<axis = 0>(s, e, q)")
    text = text.replace("<bool yes = {1}>", "<bool yes = {1}, int64[1] far = {20}, int64[1] end = {9999}, int64[1] axis = {0}>")
    context = check(parse(text), cpu, tmp_path, *({"x": np.float32([[0.1, -0.2]]), "n": np.array(count)} for count in (0, 2, 6)))
    (loop,) = (plan for plan in context.engine.layers if plan.bodies)
    body = loop.bodies[0]
    profile = body.profiles[0]
    for workload in workloads_at(body.network, profile, "opt", QUICK, {}):
        assert all(dim > 0 for tensor in workload.outputs for dim in tensor.shape)


def test_carried_tensor_that_grows(cpu, tmp_path):
    x = np.float32([[1, -2]])
    check(parse(GROWING), cpu, tmp_path, *({"x": x, "n": np.array(count)} for count in (0, 1, 4)))


SCAN = """g (float[3] s, float[5, 3] x) => (float[3] last, float[3, 5] all) {
    last, all = Scan(s, x) <num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [1], scan_output_directions = [1],
        body = b (float[3] a, float[3] v) => (float[3] t, float[3] o) { t = Add(a, v) o = Mul(t, v) }>
}"""


def test_scan_backwards(cpu, tmp_path):
    random = np.random.default_rng(1)
    context = check(parse(SCAN), cpu, tmp_path, {"s": np.zeros(3, np.float32), "x": random.standard_normal((5, 3)).astype(np.float32)})
    assert capture_obstacles(context.engine)[0][1] == "the host decides what runs next"


def test_invariant_carried_tensors_become_captures():
    network = import_onnx(parse("""g (float[2] x, float[2] w, int64 n) => (float[2] y, float[2] v) <bool yes = {1}> {
        y, v = Loop(n, yes, x, w) <body = b (int64 i, bool c, float[2] s, float[2] u) => (bool d, float[2] t, float[2] r) {
            d = Identity(c) t = Mul(s, u) r = Identity(u) }>
    }"""))
    (loop,) = (layer.op for layer in network.layers if type(layer.op).__name__ == "Loop")
    assert loop.carried == 1 and not loop.counted and not loop.decides


def test_nms(cpu, tmp_path):
    model = parse("""g (float[1, 40, 4] boxes, float[1, 2, 40] scores) => (int64[k, 3] kept)
        <int64 most = {5}, float overlap = {0.4}, float least = {0.3}> { kept = NonMaxSuppression(boxes, scores, most, overlap, least) }""", 11)
    random = np.random.default_rng(2)
    corner = random.random((1, 40, 2))
    boxes = np.concatenate([corner, corner + random.random((1, 40, 2)) * 0.5], -1).astype(np.float32)
    scores = random.random((1, 2, 40)).astype(np.float32)
    check(model, cpu, tmp_path, {"boxes": boxes, "scores": scores}, {"boxes": boxes, "scores": scores * 0.2})


VALUES = {
    "Reshape": ("float[2, 12] x, int64[3] t", "y = Reshape(x, t)", "float[a, b, c] y", [(2, 3, 4), (-1, 4, 1), (0, 2, -1)], np.int64),
    "Slice": ("float[2, 12] x, int64[1] t", "y = Slice(x, t, end, axis)", "float[2, c] y", [(3,), (-4,), (99,)], np.int64),
    "Expand": ("float[1, 12] x, int64[2] t", "y = Expand(x, t)", "float[a, b] y", [(3, 12), (1, 1)], np.int64),
    "Tile": ("float[2, 12] x, int64[2] t", "y = Tile(x, t)", "float[a, b] y", [(3, 1), (1, 2), (0, 1)], np.int64),
    "TopK": ("float[2, 12] x, int64[1] t", "y, i = TopK(x, t)", "float[2, k] y", [(3,), (12,), (1,)], np.int64),
    "Pad": ("float[2, 12] x, int64[4] t", "y = Pad(x, t)", "float[a, b] y", [(0, 1, 2, 3), (1, 0, 0, 0)], np.int64),
    "OneHot": ("float[2, 12] x, int64[1] t", "z = Cast<to = 7>(x) y = OneHot(z, t, pair)", "float[2, 12, c] y", [(3,), (5,)], np.int64),
}


@pytest.mark.parametrize("name", VALUES)
def test_shapes_from_values(name, cpu, tmp_path):
    inputs, body, output, values, dtype = VALUES[name]
    extra = "<int64[1] end = {10}, int64[1] axis = {1}, float[2] pair = {0.0, 1.0}>"
    model = parse(f"g ({inputs}) => ({output}) {extra} {{ {body} }}")
    x = np.arange(24, dtype=np.float32).reshape(2, 12)[:, :12]
    x = x[:1] if name == "Expand" else x
    check(model, cpu, tmp_path, *({"x": x, "t": np.array(value, dtype)} for value in values))


def test_ranges_from_values(cpu, tmp_path):
    for kind, cases in (("int64", [(0, 5, 1), (7, -3, -3), (2, 2, 1)]), ("float", [(0.0, 1.0, 0.25), (3.0, 1.0, -0.5)])):
        model = parse(f"g ({kind} a, {kind} b, {kind} c) => ({kind}[n] y) {{ y = Range(a, b, c) }}")
        dtype = np.int64 if kind == "int64" else np.float32
        check(model, cpu, tmp_path, *({name: np.array(one, dtype) for name, one in zip("abc", case, strict=True)} for case in cases))


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
    assert runner.captures == len(capture_segments(engine)) == 2
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


PASSING = """g (float[2, 3] x, bool c, int64 n) => (float[2, 3] y, float[2, 3] a, float[2, 3] b) <bool yes = {1}> {
    h = Exp(x)
    y = If(c) <then_branch = t () => (float[2, 3] p) { p = Identity(h) }, else_branch = f () => (float[2, 3] q) { q = Identity(x) }>
    a, b = Loop(n, yes, h, x) <body = l (int64 i, bool d, float[2, 3] s, float[2, 3] u) => (bool e, float[2, 3] v, float[2, 3] w) {
        e = Identity(d) v = Identity(u) w = Identity(s) }>
}"""


def test_tensors_that_pass_through_bodies(cpu, tmp_path):
    """A branch and a loop that return their inputs, swapped or never run: one memory under several names."""
    x = np.float32([[1, -2, 3], [0, 1, 2]])
    check(parse(PASSING), cpu, tmp_path, *({"x": x, "c": np.array(c), "n": np.array(n)} for c in (True, False) for n in (0, 1, 2, 3)))


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


def test_debug_tensors_inside_of_loops_and_branches(cpu, tmp_path):
    context = made(parse(LOOP), cpu, tmp_path).create_execution_context(cpu)
    (loop,) = (layer.op for layer in context.engine.network.layers if layer.op.layer_type == "Loop")
    seen = {}
    context.set_debug_listener(lambda name, array: seen.update({name: array}))
    inner, outer = loop.body.outputs[0], loop.body.outputs[-1]
    for name in (inner, outer, "last"):
        context.set_tensor_debug_state(name, True)
    x, w = np.float32([1, 2]), np.float32([0.5, -0.5])
    found = context.execute({"x": x, "n": np.array(3), "w": w})
    assert list(seen) == [f"{name}[{number}]" for number in range(3) for name in (inner, outer)] + ["last"]
    states = [x]
    for number in range(3):
        states.append(states[-1] * w + np.float32(number))
        np.testing.assert_allclose(seen[f"{inner}[{number}]"], states[-1])
        np.testing.assert_allclose(seen[f"{outer}[{number}]"], -states[-1])
    np.testing.assert_array_equal(seen["last"], found["last"])
    with pytest.raises(ValueError, match="no layer writes it"):
        context.set_tensor_debug_state("nothing", True)
    assert context.get_max_output_size("all") == -1  # as many slices as the loop makes
    picker = made(masked(), cpu, tmp_path, N8).create_execution_context(cpu)
    picker.set_input_shape("x", (5, 4))
    assert picker.get_max_output_size("y") == 5 * 4 * 4 and picker.get_tensor_strides("y") == (4, 1)
    assert 0 < picker.update_device_memory_size_for_shapes() < picker.engine.device_memory_size


@pytest.mark.parametrize("graph", [True, False])
def test_layers_of_bodies_are_timed(graph, cpu, tmp_path):
    engine = made(parse(LOOP), cpu, tmp_path)
    context = engine.create_execution_context(cpu)
    inputs = {"x": np.float32([1, 2]), "n": np.array(5), "w": np.float32([0.5, -0.5])}
    profile = profile_layers(context, inputs, BenchmarkOptions(4, 0.0, 0.0, graph=graph))
    (plan,) = (plan for plan in engine.layers if plan.bodies)
    inner = [layer.name for layer in plan.bodies[0].network.layers]
    names = [layer.name for layer in profile.layers]
    assert profile.in_graph is graph and profile.count == 4 and set(inner) <= set(names)
    loop = names.index(engine.network.layers[engine.layers.index(plan)].name)
    assert names[loop + 1 : loop + 1 + len(inner)] == inner
    assert all(layer.samples.size == 4 and layer.total > 0 for layer in profile.layers[loop : loop + 1 + len(inner)])
    np.testing.assert_allclose(context.read_tensor("last"), onnxruntime_outputs(parse(LOOP), inputs)["last"], rtol=1e-6)


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


def test_fp16_keeps_control_flow_in_float32(cpu, tmp_path):
    config = BuildConfig(optimization_level=0, fp16=True)
    context = made(parse(BRANCH), cpu, tmp_path, config).create_execution_context(cpu)
    x, w = np.float32([[1, -2, 3], [0, 1, 2]]), np.float32([1, 2, 3])
    np.testing.assert_allclose(context.execute({"x": x, "w": w})["y"], -np.exp(x) * w, rtol=4e-3)


def test_bodies_are_legal_for_every_profile(cpu, tmp_path):
    """A size that each profile fixes, but not all at the same number, varies inside a body."""
    model = parse("""g (float[n, 4] x, bool c) => (float[n, 4] y) {
        y = If(c) <then_branch = t () => (float[n, 4] a) { a = Exp(x) }, else_branch = f () => (float[n, 4] b) { b = Neg(x) }> }""")
    profiles = tuple(ProfileShapes({"x": (n, 4)}, {"x": (n, 4)}, {"x": (n, 4)}) for n in (2, 5))
    engine = made(model, cpu, tmp_path, BuildConfig(optimization_level=0, profiles=profiles))
    (plan,) = (plan for plan in engine.layers if plan.bodies)
    assert [(one.min, one.opt, one.max) for one in plan.bodies[0].profiles[0].values()] == [((2, 4), (2, 4), (5, 4))]
    for number, rows in enumerate((2, 5)):
        context = engine.create_execution_context(cpu, number)
        x = np.ones((rows, 4), np.float32)
        np.testing.assert_allclose(context.execute({"x": x, "c": np.array(True)})["y"], np.exp(x), rtol=1e-6)


DEEP = """g (float[8] x, int64 n, bool p) => (float[k] y, float[m, 8] rows, float last) <bool yes = {1}, float half = {0.5}, int64[1] all = {-1}> {
    y, rows = Loop(n, yes, x) <body = b (int64 i, bool c, float[j] s) => (bool d, float[q] t, float[8] o) {
        d = Identity(c)
        g = Greater(s, half)
        t = If(p) <
            then_branch = tt () => (float[a] u) { u = Compress(s, g) },
            else_branch = ff () => (float[e] v) {
                z = NonZero(g) f = Reshape(z, all) w = Gather(s, f) v = Concat<axis = 0>(w, x) }>
        f2 = Cast<to = 1>(i) o = Add(x, f2) }>
    zero = Constant<value_float = 0.0>()
    last = Loop(n, yes, zero) <body = h (int64 i, bool c, float s) => (bool d, float t) {
        d = Identity(c)
        inner = Loop(i, c, s) <body = hh (int64 j, bool cc, float ss) => (bool dd, float tt) {
            dd = Identity(cc) one = Constant<value_float = 1.0>() tt = Add(ss, one) }>
        t = Add(inner, half) }>
}"""


def test_data_dependent_shapes_inside_branches_inside_loops(cpu, tmp_path):
    x = np.float32([0.1, 0.9, 0.6, -1, 2, 0.5, 0.7, 0.2])
    cases = [{"x": x, "n": np.array(count), "p": np.array(flag)} for flag in (True, False) for count in (3, 0, 1)]
    context = check(parse(DEEP), cpu, tmp_path, *cases)
    assert len(capture_obstacles(context.engine)) >= 5
    assert "in every inference" in segments_line(context.engine)


def test_layers_that_make_nothing_at_the_optimal_shapes_get_their_tactic_at_the_largest(cpu, tmp_path):
    model = parse("g (float[n] x) => (float[m] y) <int64[1] two = {2}, int64[1] far = {9999}> { y = Slice(x, two, far) }")
    config = BuildConfig(optimization_level=0, min_shapes={"x": (1,)}, opt_shapes={"x": (2,)}, max_shapes={"x": (8,)})
    (workload,) = workloads_at(import_onnx(model), {"x": InputRange((1,), (2,), (8,))}, "opt", config, {})
    assert workload.outputs[0].shape == (6,)
    check(model, cpu, tmp_path, *({"x": np.arange(size, dtype=np.float32)} for size in (2, 7)), config=config)


def test_layers_that_make_nothing_need_no_kernel(cpu, tmp_path):
    """A product without rows, which no GPU kernel takes, does not fall to the host; rows that come nevertheless are refused in plain words."""
    model = parse("g (float[n, 4] x, float[4, 3] w) => (float[n, 3] y) { y = MatMul(x, w) }")
    network, none = import_onnx(model), InputRange((0, 4), (0, 4), (0, 4))
    workloads = workloads_at(network, {"x": none, "w": InputRange((4, 3), (4, 3), (4, 3))}, "opt", QUICK, {})
    given = given_decisions(network, Sharing({}, {}), (), (workloads,), SimpleNamespace(spec=H100))  # type: ignore[arg-type]
    assert [one.tactic for one in given if one is not None] == [IDLE]
    for most in (0, 2):
        shapes = {"min_shapes": {"x": (0, 4)}, "opt_shapes": {"x": (0, 4)}, "max_shapes": {"x": (most, 4)}}
        engine = replace(made(model, cpu, tmp_path, BuildConfig(optimization_level=0, **shapes)), layers=(LayerPlan(IDLE),))
        if most:
            with pytest.raises(EngineError, match=r"layer 'MatMul_0' makes nothing at all sizes that the build looked at.*now it would make 2x3"):
                engine.create_execution_context(cpu)
        else:
            found = engine.create_execution_context(cpu).execute({"x": np.zeros((0, 4), np.float32), "w": np.ones((4, 3), np.float32)})
            assert found["y"].shape == (0, 3)


SQUEEZE = """g (float[n, k] x) => (float[n] y) {
    s = Shape<start = 1>(x) one = Constant<value_ints = [1]>() c = Equal(s, one) w = Constant<value_ints = [1]>()
    z = If(c) <then_branch = t () => (float[a] p) { p = Squeeze(x, w) }, else_branch = f () => (float[a, b] q) { q = Identity(x) }>
    y = Neg(z)
}"""


def test_squeeze_where_the_dimension_is_one(cpu, tmp_path):
    """Branches of different rank: the one that exporters mean is taken, and shapes that need the other are refused."""
    config = BuildConfig(optimization_level=0, min_shapes={"x": (1, 1)}, opt_shapes={"x": (4, 1)}, max_shapes={"x": (9, 1)})
    model = parse(SQUEEZE)
    assert not any(type(layer.op).__name__ == "If" for layer in import_onnx(model).layers)
    check(model, cpu, tmp_path, {"x": np.float32([[1], [2], [-3]])}, config=config)
    with pytest.raises(ValueError, match="squeezes a dimension only where it is 1"):
        run(import_onnx(model), {"x": np.ones((3, 2), np.float32)})
    wide = BuildConfig(optimization_level=0, min_shapes={"x": (1, 1)}, opt_shapes={"x": (4, 1)}, max_shapes={"x": (9, 2)})
    with pytest.raises(ValueError, match="squeezes a dimension only where it is 1"):
        made(model, cpu, tmp_path, wide).create_execution_context(cpu)


def test_branches_of_different_rank_are_refused():
    text = SQUEEZE.replace("c = Equal(s, one)", "r = ReduceMax<keepdims = 0>(x) c = Cast<to = 9>(r)")
    with pytest.raises(UnsupportedModel, match="1 dimensions in one branch and 2 in the other"):
        import_onnx(parse(text))


@pytest.mark.parametrize("name", SPEECH_MODELS)
def test_speech_detector(name, cpu, tmp_path):
    _speech(name, cpu, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPEECH_MODELS)
def test_speech_detector_on_a_gpu(name, tmp_path):
    from runtime.devices import open_device

    _speech(name, open_device("0"), tmp_path)


def _speech(name: str, device, tmp_path) -> None:
    """silero-vad: a branch per sampling rate, each with nested ones, around an LSTM."""
    path = wheel_model(name)
    network = import_onnx(path)

    def shapes(samples):
        return {"input": (1, samples), "state": (2, 1, 128)}

    config = BuildConfig(optimization_level=0, tf32=False, min_shapes=shapes(288), opt_shapes=shapes(576), max_shapes=shapes(576))
    build(path, config, device, log=Log(to_stderr=True)).save(tmp_path / "e.engine")
    context = Engine.load(tmp_path / "e.engine").create_execution_context(device)
    random = np.random.default_rng(0)
    for rate, samples in ((16000, 576), (8000, 288), (16000, 576)):
        inputs = {
            "input": random.standard_normal((1, samples)).astype(np.float32) * 0.1,
            "state": random.standard_normal((2, 1, 128)).astype(np.float32) * 0.1,
            **({"sr": np.array(rate)} if "sr" in network.inputs else {}),
        }
        expected = onnxruntime_outputs(path, inputs)
        found = context.execute(inputs)
        for output, array in expected.items():
            assert found[output].shape == array.shape
            np.testing.assert_allclose(found[output], array, rtol=1e-3, atol=1e-5)
        assert compare_replay(context, inputs).differing == ()


@pytest.mark.gpu
@pytest.mark.parametrize("text", [BRANCH, LOOP, GROWING, SCAN, DEEP], ids=["branch", "loop", "growing", "scan", "deep"])
def test_control_flow_on_a_gpu(text, tmp_path):
    _on_a_gpu(parse(text), tmp_path)


@pytest.mark.gpu
def test_data_dependent_shapes_on_a_gpu(tmp_path):
    _on_a_gpu(masked(), tmp_path)
    _on_a_gpu(parse("g (float[2, 12] x) => (float[n] y, int64[m] i, int64[q] j, int64[c] k) { r = Floor(x) y, i, j, k = Unique(r) }"), tmp_path)
    _on_a_gpu(parse("""g (float[1, 40, 4] x, float[1, 2, 40] s) => (int64[k, 3] kept)
        <int64 most = {5}, float overlap = {0.4}, float least = {0.3}> { kept = NonMaxSuppression(x, s, most, overlap, least) }""", 11), tmp_path)


def _on_a_gpu(model: onnx.ModelProto, tmp_path) -> None:
    from runtime.devices import open_device

    device = open_device("0")
    shapes = {"x": (6, 4)} if model.graph.input[0].type.tensor_type.shape.dim[0].dim_param else {}
    config = BuildConfig(optimization_level=0, tf32=False, opt_shapes=shapes)
    engine = made(model, device, tmp_path, config)
    context = engine.create_execution_context(device)
    random = np.random.default_rng(3)
    for sign in (1, -1):
        inputs = {}
        for name in engine.network.inputs:
            kind = engine.network.tensors[name]
            shape = shapes.get(name, tuple(int(dim) for dim in kind.shape) if name not in shapes else ())
            values = np.array(3) if kind.dtype.is_integer else sign * (random.random(shape) - 0.3)
            inputs[name] = np.asarray(values > 0 if kind.dtype is DataType.BOOL else values, kind.dtype.numpy)
        expected = onnxruntime_outputs(model, inputs)
        found = context.execute(inputs)
        for name, array in expected.items():
            assert found[name].shape == array.shape
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
        assert compare_replay(context, inputs).differing == ()


FORKED = """g (float[n, 8] x, int64 steps) => (float[k, 8] y, float[n, 8] s) <bool yes = {1}, int64[1] axes = {1}, float zero = {0.0}> {
    a = Sin(x) b = Softmax(a) c = Cos(x) d = Softmax(c) e = Add(b, d)
    m = ReduceMax<keepdims = 0>(x, axes) g = Greater(m, zero) p = NonZero(g) q = Transpose<perm = [1, 0]>(p)
    v = GatherND(e, q) f = Softmax(v) h = Sin(v) i = Softmax(h) o = Transpose(i) r = MatMul(f, o) y = MatMul(r, v)
    s = Loop(steps, yes, e) <body = l (int64 j, bool c1, float[n, 8] t) => (bool c2, float[n, 8] u) {
        c2 = Identity(c1) t1 = Sin(t) t2 = Softmax(t1) t3 = Cos(t) t4 = Softmax(t3) t5 = Transpose(t4) t6 = MatMul(t2, t5) u = MatMul(t6, t) }>
}"""
FORKED_SHAPES = BuildConfig(optimization_level=0, min_shapes={"x": (1, 8)}, opt_shapes={"x": (16, 8)}, max_shapes={"x": (64, 8)})


ROUNDS = """g (float[n, 4] x, bool c, int64 t) => (float[n, 4] y, float[5, n, 4] all, float[k, 4] z)
    <bool yes = {1}, int64[1] axes = {1}, int64 five = {5}, float zero = {0.0}> {
    h = Exp(x)
    picked = If(c) <
        then_branch = a1 () => (float[a, 4] u) { m = ReduceMax<keepdims = 0>(x, axes) g = Greater(m, zero) p = NonZero(g) q = Transpose<perm = [1, 0]>(p)
            v = GatherND(h, q) w = Softmax(v) u = Neg(w) },
        else_branch = a2 () => (float[b, 4] o) { o = Identity(h) }>
    more = If(c) <
        then_branch = b1 () => (float[d, 4] u2) { u2 = Identity(picked) },
        else_branch = b2 () => (float[e, 4] o2) { m2 = ReduceMax<keepdims = 0>(picked, axes) g2 = Greater(m2, zero) p2 = NonZero(g2)
            q2 = Transpose<perm = [1, 0]>(p2) v2 = GatherND(picked, q2) r2 = GatherND(h, q2) w2 = Add(v2, r2) o2 = Concat<axis = 0>(w2, w2) }>
    y = Loop(t, yes, h) <body = l (int64 i, bool c1, float[n, 4] s) => (bool c2, float[n, 4] next) {
        c2 = Identity(c1) ms = ReduceMax<keepdims = 0>(s, axes) gs = Greater(ms, zero) ps = NonZero(gs) qs = Transpose<perm = [1, 0]>(ps)
        vs = GatherND(s, qs) mean = ReduceMean<keepdims = 0>(vs)
        turned = Loop(i, c1, s) <body = ll (int64 j, bool c3, float[n, 4] ss) => (bool c4, float[n, 4] tt) {
            c4 = Identity(c3) f = Cast<to = 1>(j) t1 = Add(ss, f) tt = Sin(t1) }>
        t2 = Add(turned, mean) next = Tanh(t2) }>
    last, all = Loop(five, yes, x) <body = r (int64 k1, bool c5, float[n, 4] s2) => (bool c6, float[n, 4] t3, float[n, 4] slice) {
        c6 = Identity(c5) t3 = Sin(s2) slice = Cos(s2) }>
    e2 = Softmax(more) zz = Concat<axis = 0>(e2, last) z = Neg(zz)
}"""


@pytest.mark.parametrize("text", [ROUNDS, FORKED], ids=["rounds", "forked"])
def test_the_most_memory_of_loops_and_branches_is_enough(text, cpu, tmp_path):
    """In exactly so much memory of the caller's, any sizes and counts in any order; and it is not many times what an inference takes."""
    _in_the_most_memory(text, cpu, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("text", [ROUNDS, FORKED], ids=["rounds", "forked"])
def test_the_most_memory_is_enough_on_a_gpu(text, tmp_path):
    from runtime.devices import open_device

    _in_the_most_memory(text, open_device("0"), tmp_path)


def _in_the_most_memory(text: str, device: Device, tmp_path) -> None:
    model = parse(text)
    width, count = (4, "t") if text is ROUNDS else (8, "steps")
    config = BuildConfig(optimization_level=0, min_shapes={"x": (1, width)}, opt_shapes={"x": (8, width)}, max_shapes={"x": (64, width)})
    engine = made(model, device, tmp_path, replace(config, tf32=False))
    need = engine.device_memory_size
    context = engine.create_execution_context_without_device_memory(device)
    context.set_device_memory(device.allocate(need))
    own = engine.create_execution_context(device)
    draw = np.random.default_rng(1)
    for rows, times in ((64, 4), (7, 3), (64, 0), (33, 5), (1, 2), (64, 3)):
        inputs = {"x": draw.standard_normal((rows, width)).astype(np.float32), count: np.array(times), "c": np.array(bool(times % 2))}
        inputs = {name: inputs[name] for name in engine.network.inputs}
        wanted = onnxruntime_outputs(model, inputs)
        for one in (context, own):
            for name, array in one.execute(inputs).items():
                np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)
    assert own._heap.peak <= need <= 6 * own._heap.peak
    for one in (context, own):
        one.set_input_shape("x", (5, width))
        assert 0 < one.update_device_memory_size_for_shapes() < need


def test_a_branch_that_the_largest_sizes_never_take(cpu, tmp_path):
    """Its shapes would be negative there: it has no bound, and the engine is as good as any."""
    model = parse("""g (float[1, 1, n] x, bool c) => (float[1, 1, k] y) {
        y = If(c) <then_branch = t () => (float[1, 1, a] p) { q = MaxPool<kernel_shape = [4]>(x) p = Neg(q) }, else_branch = f () => (float[1, 1, b] r) { r = Exp(x) }>
    }""")
    shapes = {name: {"x": (1, 1, 2)} for name in ("min_shapes", "opt_shapes", "max_shapes")}
    engine = made(model, cpu, tmp_path, BuildConfig(optimization_level=0, **shapes))
    with pytest.raises(EngineError, match="is not known: not all of it can run at the largest sizes"):
        _ = engine.device_memory_size
    x = np.float32([[[0, 1]]])
    np.testing.assert_allclose(engine.create_execution_context(cpu).execute({"x": x, "c": np.array(False)})["y"], np.exp(x), rtol=1e-6)


def test_memory_that_nobody_can_bound_is_said(cpu, tmp_path):
    for model, config, why in ((parse(LOOP), QUICK, "decides size"), (parse(GROWING), QUICK, "a branch or loop decides size")):
        engine = made(model, cpu, tmp_path, config)
        with pytest.raises(EngineError, match=f"the most memory that activations may need is not known: .*{why}.*run the largest inference once"):
            _ = engine.device_memory_size
        (told,) = engine_json(engine)["Memory"]
        assert why in told["Unbounded"] and told["Unbounded"] in "\n".join(engine_lines(engine)).replace("\n", " ")
    bounded = made(parse(ROUNDS), cpu, tmp_path, BuildConfig(optimization_level=0, opt_shapes={"x": (8, 4)}))
    assert engine_json(bounded)["Memory"] == [{"Profile": 0, "BoundBytes": bounded.device_memory_size}]


def on_streams(engine: Engine, draw: random.Random) -> Engine:
    """``engine``, bodies included, with every layer on some stream."""
    plans = (
        replace(plan, stream=draw.randint(0, 2), bodies=tuple(on_streams(body, draw) for body in plan.bodies)) for plan in engine.layers
    )
    return replace(engine, layers=tuple(plans))


@pytest.mark.parametrize("seed", range(12))
def test_segments_on_streams_in_any_order_that_events_allow(seed, cpu, tmp_path):
    """The shared memory of segments holds for every order in which streams may run, over several inferences and sizes."""
    engine = made(parse(FORKED), cpu, tmp_path, FORKED_SHAPES)
    device = LazyDevice(seed)
    context = on_streams(engine, random.Random(seed)).create_execution_context(device)
    assert context.engine.num_aux_streams == 2
    stream, plain = device.stream(), engine.create_execution_context(cpu)
    for rows in (16, 5, 16):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)
        wanted = plain.execute({"x": x, "steps": np.array(3)})
        context.set_input_shape("x", x.shape)
        context.use_own_memory()
        for name, array in (("x", x), ("steps", np.array(3))):
            context.write_tensor(name, array)
        context.execute_async_v3(stream)
        context.execute_async_v3(stream)  # a second inference queued behind the first
        stream.synchronize()
        for name, array in wanted.items():
            np.testing.assert_array_equal(context.read_tensor(name), array)


def test_streams_are_chosen_per_segment_and_body(cpu, tmp_path, monkeypatch):
    timed = []

    def time_parts(device, parts):
        timed.append([[part.engine.decisions(part.profile)[number].stream for number in part.segment.layers] for part in parts])
        return [2e-3, *(1e-3 for _ in parts[1:])]

    monkeypatch.setattr("runtime.streams.time_parts", time_parts)
    monkeypatch.setattr("runtime.streams.event_cost", lambda device: 0.0)
    monkeypatch.setattr("runtime.streams.occupancy", lambda plan, device, resident=False: 0.2)
    config = replace(FORKED_SHAPES, optimization_level=1, max_aux_streams=2)
    engine = made(parse(FORKED), cpu, tmp_path, config)
    (body,) = (body for plan in engine.layers for body in plan.bodies)
    assert len(timed) == 3 and all(not any(first) and all(map(any, others)) for first, *others in timed)
    assert body.num_aux_streams >= 1 and body.record["streams"]["used"] >= 1
    assert engine.num_aux_streams == max(engine.record["streams"]["used"], body.num_aux_streams)
    streams = {layer.name: plan.stream for layer, plan in zip(engine.network.layers, engine.layers, strict=True)}
    assert {name for branch in engine.record["streams"]["branches"] for name in branch["layers"]} <= set(streams)
    assert sum(map(bool, streams.values())) >= 2
    shown = {name for branch in stream_branches(engine) for name in branch["layers"]}
    assert shown & set(streams) and shown & {layer.name for layer in body.network.layers}
    x = np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)
    inputs = {"x": x, "steps": np.array(3)}
    context, wanted = engine.create_execution_context(cpu), onnxruntime_outputs(parse(FORKED), inputs)
    for name, array in context.execute(inputs).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)
    assert compare_replay(context, inputs).differing == ()
    aux = [cpu.stream(concurrent=True) for _ in range(engine.num_aux_streams)]
    context.set_aux_streams(aux)
    for name, array in context.execute(inputs).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)


def test_parts_are_really_timed(cpu, tmp_path):
    """Every segment and body runs alone on made-up values, whatever reads its results."""
    engine = made(parse(FORKED), cpu, tmp_path, FORKED_SHAPES)
    bodies = [body for plan in engine.layers for body in plan.bodies]
    around = sizes_of(engine.network, {"x": (16, 8), "steps": ()})
    for one, sizes in ((engine, {}), *((body, around) for body in bodies)):
        parts = parts_at_optimum(one, 0, sizes)
        assert parts and all(0 < seconds < 1 for seconds in time_parts(cpu, parts, rounds=1))


@pytest.mark.gpu
def test_streams_in_segments_and_bodies_on_a_gpu(tmp_path):
    """Plainly and as graphs, with sizes that change; then its layers are timed in graphs and shown as debug tensors."""
    from runtime.devices import open_device

    device = open_device("0")
    built = made(parse(FORKED), device, tmp_path, replace(FORKED_SHAPES, optimization_level=1, tf32=False, max_aux_streams=2))
    for engine in (built, on_streams(built, random.Random(4))):
        context = engine.create_execution_context(device)
        for rows in (16, 5, 16):
            inputs = {"x": np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32), "steps": np.array(3)}
            wanted = onnxruntime_outputs(parse(FORKED), inputs)
            for name, array in context.execute(inputs).items():
                np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)
            assert compare_replay(context, inputs).differing == ()
    seen = []
    context.set_debug_listener(lambda name, array: seen.append((name, bool(np.isfinite(array).all()))))
    (inner,) = {body.network.outputs[0] for plan in engine.layers for body in plan.bodies}
    context.set_tensor_debug_state(inner, True)
    context.execute(inputs)
    assert seen == [(f"{inner}[{number}]", True) for number in range(3)]
    context.set_tensor_debug_state(inner, False)
    begin = time.perf_counter()
    profile = profile_layers(context, inputs, BenchmarkOptions(20, 0.0, 5.0))
    elapsed = 1e3 * (time.perf_counter() - begin)
    assert profile.in_graph
    times = {layer.name: layer.median for layer in profile.layers}
    bodies = [body for plan in engine.layers for body in plan.bodies]
    inside = {layer.name: times[layer.name] for body in bodies for layer, one in zip(body.network.layers, body.layers, strict=True) if one.tactic != "view"}
    assert inside and all(median > 0 for median in inside.values()), (inside, profile.event_overhead)
    total = sum(layer.total for layer in profile.layers)  # others may share the GPU, and layers run beside each other on three streams
    assert total <= 3 * elapsed, (total, elapsed, times)
