import dataclasses
import time

import numpy as np
import pytest

from fusion.bind import bind_op
from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.ops import Concatenation, Fill, Gather, MatrixMultiply, Pointwise, Reduce, Shuffle, Slice, TopK
from runtime.context import ExecutionContext
from runtime.engine import EngineError, sizes_of
from runtime.loaded import load_engine

RELU = Pointwise(apply("relu", Operand(0)))
ADD = Pointwise(apply("add", Operand(0), Operand(1)))
NEG = Pointwise(apply("neg", Operand(0)))


def evaluate(network, inputs):
    """The network by its layers' NumPy meaning, without engine or memory plan."""
    sizes = sizes_of(network, {name: array.shape for name, array in inputs.items()})
    values = {**network.constants, **inputs}
    for layer in network.layers:
        results = bind_op(layer.op, sizes).evaluate([values[name] for name in layer.inputs])
        values.update(zip(layer.outputs, results, strict=True))
    return {name: values[name] for name in network.outputs}


def check(build, outputs, cpu, inputs, **options):
    engine = build.engine(*outputs, **options)
    context = engine.create_execution_context(cpu)
    expected = evaluate(build.network(*outputs), inputs)
    for _ in range(2):  # the second run sees a dirty arena
        found = context.execute(inputs)
        assert list(found) == list(outputs)
        for name in outputs:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name], expected[name])
    return context


@pytest.mark.parametrize("tactic", ["test.reference", "test.packed"])
@pytest.mark.parametrize("workspace", [0, 1000])
def test_dynamic_shapes(mlp, cpu, tactic, workspace):
    build, outputs = mlp
    engine = build.engine(
        *outputs, sizes={"batch": (1, 4, 64)}, workspace=workspace, tactics={"fc1": tactic, "fc2": tactic}
    )
    context = engine.create_execution_context(cpu)
    random = np.random.default_rng(1)
    for batch in (4, 1, 64, 4, 7):
        x = random.standard_normal((batch, 8)).astype(np.float32)
        expected = evaluate(build.network(*outputs), {"x": x})
        found = context.execute({"x": x})
        np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found[outputs[1]], expected[outputs[1]], rtol=1e-6, atol=1e-6)
        assert context.get_tensor_shape("y") == (batch, 8)


@pytest.mark.parametrize(
    "streams", [{}, {"b1": 1}, {"b1": 1, "c1": 2, "c2": 2}, {"a1": 1, "b1": 1, "b2": 2, "join1": 2}]
)
@pytest.mark.parametrize("through_graph", [False, True])
def test_branches_on_streams(graph, cpu, streams, through_graph):
    """Whatever the streams, every layer sees its inputs; large tensors make memory sharing across streams dangerous."""
    x = graph.input("x", (16, 32))
    stem = graph.layer(RELU, x, name="stem")
    a = graph.layer(NEG, graph.layer(NEG, stem, name="a1"), name="a2")
    b = graph.layer(RELU, graph.layer(NEG, stem, name="b1"), name="b2")
    c = graph.layer(Reduce("sum", (1,), True), graph.layer(RELU, stem, name="c1"), name="c2")
    join = graph.layer(ADD, graph.layer(ADD, a, b, name="join1"), c, name="join2")
    values = np.random.default_rng(2).standard_normal((16, 32)).astype(np.float32)
    context = check(graph, (join,), cpu, {"x": values}, streams=streams, workspace=256)
    assert context.engine.num_aux_streams == max(streams.values(), default=0)
    if through_graph:
        stream = cpu.stream()
        captured = cpu.capture(stream, lambda: context.execute_async_v3(stream))
        context.write_tensor("x", -values)
        captured.launch(stream)
        np.testing.assert_array_equal(context.read_tensor(join), evaluate(graph.network(join), {"x": -values})[join])


def test_views_cost_nothing(graph, cpu):
    x = graph.input("x", (2, 3, 4))
    flat = graph.layer(Shuffle(reshape=(24,)), x, name="view of an input")
    y = graph.layer(RELU, flat)
    z = graph.layer(Shuffle(reshape=(4, 6)), y, name="view inside")
    w = graph.layer(Shuffle(first=(1, 0), second=(1, 0)), z, name="no view")
    v = graph.layer(Shuffle(reshape=(1, 4, 6, 1)), w, name="more axes")
    out = graph.layer(Shuffle(first=(3, 1, 0, 2)), v, name="moves axes of length 1")
    values = np.random.default_rng(3).standard_normal((2, 3, 4)).astype(np.float32)
    context = check(graph, (out,), cpu, {"x": values})
    names = [graph.layers[step.layer].name for step in context.resolution().steps]
    assert names == ["layer1", "no view"]


def test_views_between_inputs_and_outputs_are_copies(graph, cpu):
    x = graph.input("x", (2, 3))
    first = graph.layer(Shuffle(reshape=(6,)), x)
    second = graph.layer(Shuffle(reshape=(3, 2)), first)
    y = graph.layer(RELU, second)
    third = graph.layer(Shuffle(reshape=(6, 1)), y)
    constant = graph.constant("c", np.arange(4, dtype=np.int64))
    fourth = graph.layer(Shuffle(reshape=(2, 2)), constant)
    values = np.random.default_rng(3).standard_normal((2, 3)).astype(np.float32)
    check(graph, (first, second, y, third, fourth), cpu, {"x": values})


def test_outputs_that_are_constants_or_inputs(graph, cpu):
    x = graph.input("x", (2, 3), DataType.INT64)
    c = graph.constant("c", np.arange(5, dtype=np.float16))
    y = graph.layer(NEG, x)
    check(graph, (c, x, y), cpu, {"x": np.arange(6).reshape(2, 3)})


def test_empty_tensors(graph, cpu):
    n = symbol("n")
    x, i = graph.input("x", (n, 3)), graph.input("i", (symbol("m"),), DataType.INT32)
    y = graph.layer(RELU, x)
    total = graph.layer(Reduce("sum", (0,), True), y)
    picked = graph.layer(Gather(0), total, i)
    both = graph.layer(Concatenation(0), y, picked)
    engine = graph.engine(both, total, picked, sizes={"n": (0, 2, 4), "m": (0, 1, 2)})
    context = engine.create_execution_context(cpu)
    for rows, picks in ((0, 0), (2, 0), (0, 2), (4, 1)):
        inputs = {"x": np.ones((rows, 3), np.float32), "i": np.zeros(picks, np.int32)}
        found, expected = context.execute(inputs), evaluate(graph.network(both, total, picked), inputs)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_layers_without_inputs_and_unread_outputs(graph, cpu):
    n = symbol("n")
    x = graph.input("x", (n, 8))
    ones = graph.layer(Fill((n, 1), DataType.FLOAT, 1.0))
    values = graph.layer(TopK(3, 1), graph.layer(ADD, x, ones), outputs=("values", "indices"))
    engine = graph.engine(values, sizes={"n": (1, 2, 4)})
    given = {"x": np.random.default_rng(4).standard_normal((2, 8)).astype(np.float32)}
    expected = evaluate(graph.network(values), given)
    np.testing.assert_array_equal(engine.create_execution_context(cpu).execute(given)[values], expected[values])


def test_memory_is_shared(graph, cpu):
    y = graph.input("x", (1024,))
    for _ in range(10):
        y = graph.layer(NEG, y)
    context = graph.engine(y).create_execution_context(cpu)
    assert context.device_memory_size == 8192 == context.resolution().memory.lower_bound
    assert context.resolution().memory.total == 9 * 4096


def test_allocation_strategies(mlp, cpu):
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (1, 4, 64)})
    static = ExecutionContext(engine, cpu)
    late = ExecutionContext(engine, cpu, allocation="runtime")
    assert static.device_memory_size > 0 and late.device_memory_size == 0
    late.execute({"x": np.zeros((4, 8), np.float32)})
    assert 0 < late.device_memory_size < static.device_memory_size
    with pytest.raises(ValueError, match="allocation strategy 'none'"):
        ExecutionContext(engine, cpu, allocation="none")


def test_contexts_share_weights(mlp, cpu):
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (1, 4, 64)})
    one, two = engine.create_execution_context(cpu), engine.create_execution_context(cpu)
    assert one.loaded is two.loaded is load_engine(engine, cpu)
    assert dataclasses.replace(engine).create_execution_context(cpu).loaded is not one.loaded


def test_enqueue_does_nothing_but_enqueue(mlp, cpu, monkeypatch):
    build, outputs = mlp
    context = build.engine(*outputs, sizes={"batch": (1, 4, 64)}).create_execution_context(cpu)
    x = np.ones((4, 8), np.float32)
    context.execute({"x": x})
    version, stream = context.binding_version, cpu.stream()
    for name in ("allocate", "program", "upload", "event", "stream"):
        monkeypatch.setattr(cpu, name, lambda *_: pytest.fail("an enqueue did more than enqueue"))
    monkeypatch.setattr("runtime.loaded.resolve", lambda *_: pytest.fail("an enqueue resolved shapes"))
    context.execute_async_v3(stream)
    context.set_input_shape("x", (4, 8))
    context.execute_async_v3(stream)
    assert context.binding_version == version


def test_addresses_of_other_arrays(mlp, cpu):
    build, outputs = mlp
    context = build.engine(*outputs, sizes={"batch": (1, 4, 64)}).create_execution_context(cpu)
    context.set_input_shape("x", (3, 8))
    x, y, mean = np.ones((3, 8), np.float32), np.zeros((3, 8), np.float32), np.zeros(3, np.float32)
    expected = evaluate(build.network(*outputs), {"x": x})
    for name, array in (("x", x), ("y", y), (outputs[1], mean)):
        context.set_tensor_address(name, array)
    context.execute_async_v3(0)
    np.testing.assert_allclose(y, expected["y"], rtol=1e-6)
    other = np.zeros_like(y)
    context.set_tensor_address("y", other.ctypes.data)
    x *= 2
    context.execute_async_v3(0)
    np.testing.assert_allclose(other, evaluate(build.network(*outputs), {"x": x})["y"], rtol=1e-6)
    np.testing.assert_allclose(y, expected["y"], rtol=1e-6)


def test_wrong_use(mlp, cpu):
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (2, 4, 8)})
    context = engine.create_execution_context(cpu)
    assert context.infer_shapes() == ["x"] and context.get_tensor_shape("y") == (-1, 8)
    with pytest.raises(ValueError, match="input 'x' has no shape"):
        context.prepare()
    with pytest.raises(ValueError, match="outside of profile 0"):
        context.set_input_shape("x", (1, 8))
    with pytest.raises(ValueError, match="outside of profile 0"):
        context.set_input_shape("x", (4, 8, 1))
    with pytest.raises(ValueError, match="Cannot find input tensor"):
        context.set_input_shape("y", (4, 8))
    context.set_input_shape("x", (4, 8))
    with pytest.raises(EngineError, match="has no address"):
        context.prepare()
    with pytest.raises(ValueError, match="float64, the engine wants float32"):
        context.set_tensor_address("x", np.zeros((4, 8)))
    with pytest.raises(ValueError, match="shape 4x4, the engine wants 4x8"):
        context.set_tensor_address("x", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="not contiguous"):
        context.set_tensor_address("x", np.zeros((4, 16), np.float32)[:, ::2])
    with pytest.raises(ValueError, match="no input or output"):
        context.set_tensor_address("w1", 256)
    with pytest.raises(TypeError, match="str"):
        context.set_tensor_address("x", "nowhere")
    with pytest.raises(ValueError, match="input 'x' is missing"):
        context.execute({})
    with pytest.raises(ValueError, match="no input 'z'"):
        context.execute({"x": np.zeros((4, 8), np.float32), "z": np.zeros(1)})
    with pytest.raises(ValueError, match="is int64, the engine wants float32"):
        context.execute({"x": np.zeros((4, 8), np.int64)})
    with pytest.raises(ValueError, match="profile index 1"):
        engine.create_execution_context(cpu, profile=1)


def test_engines_of_another_device_or_version(mlp, cpu):
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (2, 4, 8)})
    gpu = dataclasses.replace(engine, device=dataclasses.replace(engine.device, kind="cuda", arch="sm_90a"))
    with pytest.raises(EngineError, match=r"built for .*, a GPU, and this device is a CPU"):
        gpu.create_execution_context(cpu)
    plans = (dataclasses.replace(engine.layers[0], tactic="cpu.gone"), *engine.layers[1:])
    with pytest.raises(EngineError, match=r"layer 'fc1'.*no tactic 'cpu.gone'"):
        dataclasses.replace(engine, layers=plans).create_execution_context(cpu)


def test_a_plan_that_fails_names_the_layer(graph, cpu):
    n = symbol("n")
    x = graph.input("x", (n, 4))
    y = graph.layer(Slice((0, 0), (n - 2, 4), (1, 1)), x, name="cut")
    context = graph.engine(y, sizes={"n": (1, 4, 8)}).create_execution_context(cpu)
    context.set_input_shape("x", (1, 4))
    with pytest.raises(EngineError, match=r"would have shape \(-1, 4\)"):
        context.infer_shapes()


def test_a_saved_engine_runs(mlp, cpu, tmp_path):
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (2, 4, 8)}, tactics={"fc1": "test.packed"})
    engine.save(tmp_path / "a")
    x = {"x": np.random.default_rng(5).standard_normal((4, 8)).astype(np.float32)}
    before = engine.create_execution_context(cpu).execute(x)
    after = type(engine).load(tmp_path / "a").create_execution_context(cpu).execute(x)
    for name in outputs:
        np.testing.assert_array_equal(before[name], after[name])


def test_matmul_of_two_inputs_keeps_both(graph, cpu):
    n = symbol("n")
    a, b = graph.input("a", (n, 4)), graph.input("b", (4, n))
    out = graph.layer(MatrixMultiply(), a, b)
    engine = graph.engine(out, sizes={"n": (1, 2, 4)})
    with pytest.raises(ValueError, match="n is 2 in another input"):
        engine.create_execution_context(cpu).execute({"a": np.zeros((2, 4), "f"), "b": np.zeros((4, 3), "f")})


@pytest.mark.parametrize("change", ["grow", "elsewhere", "inputs"])
def test_memory_is_given_back_when_nothing_uses_it_any_more(mlp, cpu, change):
    """An inference that runs on while its context gets other memory ends first: the old memory may be somebody else's at once."""
    build, outputs = mlp
    engine = build.engine(*outputs, sizes={"batch": (1, 2, 64)})
    context = engine.create_execution_context(cpu, strategy="runtime")
    stream, ended, x = cpu.stream(concurrent=True), [], np.ones((2, 8), np.float32)
    context.execute({"x": x})
    stream.add(lambda: time.sleep(0.05))
    context.execute_async_v3(stream)
    stream.add(lambda: ended.append(True))
    if change == "elsewhere":
        context.set_device_memory(cpu.allocate(engine.device_memory_size))
    else:
        context.set_input_shape("x", (64, 8))
        if change == "inputs":
            context.use_own_memory()
        else:
            for name in ("x", *outputs):
                context.set_tensor_address(name, cpu.allocate(64 * 8 * 4))
            context.prepare()
    assert ended
    stream.synchronize()
