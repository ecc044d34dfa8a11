"""If, Loop and Scan against ONNX Runtime, built, saved, loaded and run on the CPU device."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fusion.importer import UnsupportedModel, import_onnx
from fusion.reference import run
from runtime.benchmark import BenchmarkOptions
from runtime.graph import capture_obstacles, engine_parts, segments_line
from runtime.profiler import profile_layers
from tests.control_flow.networks import BRANCH, DEEP, GROWING, LOOP, N8, QUICK, SCAN, check, made, masked, parse
from tests.models import onnxruntime_outputs
from trtcli.builder.workloads import workloads_at
from trtcli.capture import verdict_of
from trtcli.config import BuildConfig, ProfileShapes
from trtcli.report.inspection import engine_lines


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


def test_scan_backwards(cpu, tmp_path):
    random = np.random.default_rng(1)
    inputs = {"s": np.zeros(3, np.float32), "x": random.standard_normal((5, 3)).astype(np.float32)}
    shapes = {"x": (5, 3)}
    config = BuildConfig(optimization_level=0, min_shapes={"x": (2, 3)}, opt_shapes=shapes, max_shapes={"x": (9, 3)})
    context = check(parse(SCAN.replace("5", "n")), cpu, tmp_path, inputs, {**inputs, "x": inputs["x"][:3]}, config=config)
    assert capture_obstacles(context.engine)[0][1] == "the host decides what runs next"
    context = check(parse(SCAN), cpu, tmp_path, inputs)  # five iterations are plain layers
    assert capture_obstacles(context.engine) == []


COUNTED = """g (float[2, 3] x, float[3, 3] w, float[3, 3] r) => (float[2, 3] last, float[4, 2, 3] all) <int64 four = {4}, bool yes = {1}> {
    last, all = Loop(four, yes, x) <body = b (int64 i, bool c, float[2, 3] s) => (bool d, float[2, 3] t, float[2, 3] o) {
        d = Identity(c) wr = MatMul(w, r) big = Constant<value = float[2, 3] {1, 2, 3, 4, 5, 6}>() f = Cast<to = 1>(i)
        p = MatMul(s, wr) q = Add(p, big) u = Mul(q, f) t = Tanh(u) o = Neg(t) }>
}"""


def counted_inputs() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in (("x", (2, 3)), ("w", (3, 3)), ("r", (3, 3)))}


def test_few_iterations_become_plain_layers(cpu, tmp_path, monkeypatch):
    context = check(parse(COUNTED), cpu, tmp_path, counted_inputs())
    assert capture_obstacles(context.engine) == [] and not any(layer.op.layer_type == "Loop" for layer in context.engine.network.layers)
    names = {origin for layer in context.engine.network.layers for origin in layer.origins}
    assert {"Loop_0/0/MatMul_4", "Loop_0/3/MatMul_4", "Loop_0/MatMul_1"} <= names and "Loop_0/0/MatMul_1" not in names
    monkeypatch.setattr("fusion.importer.loops.UNROLLED_NODES", 10)
    assert len(capture_obstacles(check(parse(COUNTED), cpu, tmp_path, counted_inputs()).engine)) == 1


@pytest.mark.parametrize("most", [3, 9223372036854775807])
def test_a_condition_that_the_counter_decides_is_known(most, cpu, tmp_path):
    """while i < 4: ends by the trip count or by itself; with a condition of data the loop stays, and nothing of the attempt is left."""
    text = f"""g (float[2] x) => (float[2] y, float[k, 2] all) <int64 most = {{{most}}}, bool yes = {{1}}, int64 three = {{3}}> {{
        y, all = Loop(most, yes, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o) {{
            d = Less(i, three) e = Exp(s) t = Tanh(e) o = Identity(t) }}> }}"""
    x = np.float32([0.5, -1])
    assert capture_obstacles(check(parse(text), cpu, tmp_path, {"x": x}).engine) == []
    decided = text.replace("int64 three = {3}", "float[1] three = {3}").replace("d = Less(i, three)", "m = ReduceMax<keepdims = 0>(s) d = Less(m, three)")
    network = import_onnx(parse(decided.replace("9223372036854775807", "5")))
    assert [layer.op.layer_type for layer in network.layers] == ["Loop"] and not any("/0/" in node for node in network.fates)


def test_what_never_changes_is_computed_before_the_loop(cpu, tmp_path):
    """A product and a constant in the body, of a loop whose trip count is an input; what draws random numbers, or reads the counter, stays."""
    text = COUNTED.replace("float[3, 3] r)", "float[3, 3] r, int64 four)").replace("int64 four = {4}, ", "").replace("float[4, 2", "float[k, 2")
    inputs = counted_inputs()
    context = check(parse(text), cpu, tmp_path, *({**inputs, "four": np.array(count)} for count in (4, 1, 0)))
    layers = {layer.name: layer.op for layer in context.engine.network.layers}
    (loop,) = (op for op in layers.values() if op.layer_type == "Loop")
    assert any("Loop_0/MatMul_1" in name for name in layers)
    inside = {origin for layer in loop.body.layers for origin in layer.origins}
    assert "Loop_0/MatMul_1" not in inside and "Loop_0/MatMul_4" in inside
    drawn = text.replace("wr = MatMul(w, r)", "n = RandomNormalLike<seed = 1.0>(r) wr = MatMul(w, n)")
    (op,) = (layer.op for layer in import_onnx(parse(drawn)).layers if layer.op.layer_type == "Loop")
    assert len({"Loop_0/RandomNormalLike_1", "Loop_0/MatMul_2"} & {origin for layer in op.body.layers for origin in layer.origins}) == 2


RECURRENT = """g (float[2, 4] h, float[{shape}] x, float[3, 4] w, float[4, 4] r) => (float[2, 4] last, float[n, 2, 4] all) {{
    last, all = Scan<num_scan_inputs = 1, scan_input_axes = [{axis}], scan_input_directions = [{back}],
        body = b (float[2, 4] s, float[2, 3] v) => (float[2, 4] t, float[2, 4] o) {{
            p = MatMul(v, w) q = MatMul(s, r) u = Add(p, q) t = Tanh(u) o = Identity(t) }}>(h, x)
}}"""


@pytest.mark.parametrize(("shape", "axis", "back"), [("n, 2, 3", 0, 1), ("2, n, 3", 1, 0), ("2, 3, n", 2, 0), ("5, 2, 3", 0, 0)])
def test_products_of_slices_are_one_product(shape, axis, back, cpu, tmp_path):
    """The product with the step's input leaves the body, that with the state stays; slices along the axis that is summed have no product in common."""
    random = np.random.default_rng(0)
    sizes = tuple(int(size) for size in shape.replace("n", "5").split(", "))
    inputs = {name: random.standard_normal(size).astype(np.float32) for name, size in (("h", (2, 4)), ("x", sizes), ("w", (3, 4)), ("r", (4, 4)))}
    config = BuildConfig(optimization_level=0, opt_shapes={"x": sizes} if "n" in shape else {})
    context = check(parse(RECURRENT.format(shape=shape, axis=axis, back=back)), cpu, tmp_path, inputs, config=config)
    outside = [layer.name for layer in context.engine.network.layers if "MatMul_0" in layer.name and layer.op.layer_type != "Shuffle"]
    assert len(outside) == (1 if axis < 2 else 0 if "n" in shape else 5)


def test_iterations_whose_shapes_only_data_tell_stay_a_loop(cpu, tmp_path):
    text = """g (float[6] x) => (float[k] y) <int64 two = {2}, bool yes = {1}, float half = {0.5}> {
        y = Loop(two, yes, x) <body = b (int64 i, bool c, float[j] s) => (bool d, float[m] t) {
            d = Identity(c) g = Greater(s, half) t = Compress<axis = 0>(s, g) }> }"""
    context = check(parse(text), cpu, tmp_path, {"x": np.float32([0, 1, 2, 0.2, 0.7, 0.1])})
    assert [layer.op.layer_type for layer in context.engine.network.layers] == ["Loop"]


def test_invariant_carried_tensors_become_captures():
    network = import_onnx(parse("""g (float[2] x, float[2] w, int64 n) => (float[2] y, float[2] v) <bool yes = {1}> {
        y, v = Loop(n, yes, x, w) <body = b (int64 i, bool c, float[2] s, float[2] u) => (bool d, float[2] t, float[2] r) {
            d = Identity(c) t = Mul(s, u) r = Identity(u) }>
    }"""))
    (loop,) = (layer.op for layer in network.layers if type(layer.op).__name__ == "Loop")
    assert loop.carried == 1 and not loop.counted and not loop.decides


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


def test_data_dependent_shapes_inside_branches_inside_loops(cpu, tmp_path):
    x = np.float32([0.1, 0.9, 0.6, -1, 2, 0.5, 0.7, 0.2])
    cases = [{"x": x, "n": np.array(count), "p": np.array(flag)} for flag in (True, False) for count in (3, 0, 1)]
    context = check(parse(DEEP), cpu, tmp_path, *cases)
    obstacles = capture_obstacles(context.engine)
    assert len(obstacles) >= 5
    assert "in every inference" in segments_line(context.engine)
    # check, inspect and the run count the same layers
    verdict = verdict_of(engine_parts(context.engine))
    assert f"{len(verdict.segments)} segments ({sum(verdict.segments)} layers) captured around" in segments_line(context.engine)
    (line,) = (line for line in engine_lines(context.engine) if "inside of them" in line)
    assert verdict.layers == sum(map(int, re.findall(r"(\d+) (?:layers|inside)", line)))
    assert verdict.layers >= sum(verdict.segments) + len(obstacles)


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
