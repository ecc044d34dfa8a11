"""Shapes that depend on data: tables with a count, and operators whose shape is a computed tensor."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fusion.importer import import_onnx
from runtime.engine import IDLE, EngineError, InputRange, LayerPlan
from runtime.views import Sharing
from tests.control_flow.networks import N8, QUICK, check, made, masked, parse
from tests.harness.fiber import H100
from trtcli.builder.choose import given_decisions
from trtcli.builder.workloads import workloads_at
from trtcli.config import BuildConfig


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
