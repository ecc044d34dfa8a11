import numpy as np
import pytest

from fusion.expression import Operand, apply
from fusion.ops import Pointwise
from runtime.device import CaptureError
from runtime.graph import GraphRunner, capture_obstacles, compare_replay, engine_parts
from runtime.segments import captured_layers

RELU = Pointwise(apply("relu", Operand(0)))


@pytest.fixture
def context(mlp, cpu):
    build, outputs = mlp
    made = build.engine(*outputs, sizes={"batch": (1, 4, 64)}).create_execution_context(cpu)
    made.execute({"x": np.ones((4, 8), np.float32)})
    return made


def test_replay_equals_plain_execution(context):
    result = compare_replay(context, {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)})
    assert result.nodes == len(context.resolution().steps) == 6
    assert not result.differing and not result.warnings


def test_replay_that_differs_is_found(context, cpu, monkeypatch):
    capture = cpu.capture
    monkeypatch.setattr(cpu, "capture", lambda stream, enqueue: capture(stream, lambda: None))
    assert compare_replay(context, {"x": np.ones((4, 8), np.float32)}).differing == tuple(
        context.engine.network.outputs
    )


def test_a_graph_per_state(context, cpu, monkeypatch):
    captures = []
    capture = cpu.capture
    monkeypatch.setattr(cpu, "capture", lambda *args: captures.append(1) or capture(*args))
    runner, stream = GraphRunner(context), cpu.stream()
    for batch in (4, 8, 4, 8, 8):
        context.set_input_shape("x", (batch, 8))
        context.use_own_memory()
        runner.enqueue(stream)
    assert len(captures) == 3  # the first graph of batch 4 had smaller buffers of its own
    context.write_tensor("x", np.full((8, 8), 2, np.float32))
    runner.enqueue(stream)
    expected = context.execute({"x": np.full((8, 8), 2, np.float32)})
    np.testing.assert_array_equal(context.read_tensor("y"), expected["y"])


def test_failed_capture_falls_back(context, cpu, monkeypatch):
    def refuse(stream, enqueue):
        raise CaptureError("layer 3 synchronises")

    monkeypatch.setattr(cpu, "capture", refuse)
    runner, stream = GraphRunner(context), cpu.stream()
    assert not runner.prepare() and runner.nodes == 0
    assert len(runner.warnings) == 3 and "layer 3 synchronises" in runner.warnings[1]
    context.write_tensor("x", np.full((4, 8), 3, np.float32))
    runner.enqueue(stream)
    found = context.read_tensor("y")
    np.testing.assert_array_equal(found, context.execute({"x": np.full((4, 8), 3, np.float32)})["y"])
    assert compare_replay(context, {"x": np.ones((4, 8), np.float32)}).nodes == 0


def test_synchronising_while_capturing_is_an_error(cpu):
    stream = cpu.stream()
    with pytest.raises(CaptureError):
        cpu.capture(stream, stream.synchronize)
    stream.synchronize()  # usable again


def test_a_plain_network_is_one_segment(mlp):
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (1, 4, 64)})
    assert capture_obstacles(engine) == [] and captured_layers(engine_parts(engine)) == [tuple(range(8))]
