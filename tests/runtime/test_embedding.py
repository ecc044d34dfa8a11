"""The library as other programs use it: names, memory given from outside, threads, graphs of the caller's, bad use in words."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fusion.dtypes import DataType
from runtime.cpu import CpuDevice
from runtime.device import DeviceMemoryError
from runtime.engine import Engine, EngineError, TensorIOMode, TensorLocation
from runtime.watch import Watch

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


@pytest.fixture
def engine(mlp):
    build, outputs = mlp
    return build.engine(*outputs, sizes={"batch": (2, 4, 64)})


def test_names_that_tensorrt_users_know(engine):
    assert engine.num_io_tensors == len(engine) == 3 and list(engine) == ["x", "y", "m"] and engine[1] == "y"
    assert [engine.get_tensor_mode(name) for name in ("x", "y", "w1")] == [
        TensorIOMode.INPUT, TensorIOMode.OUTPUT, TensorIOMode.NONE,
    ]  # fmt: skip
    assert engine.get_tensor_profile_shape("x", 0) == ((2, 8), (4, 8), (64, 8))
    assert engine.num_optimization_profiles == 1 and engine.num_aux_streams == 0
    assert engine.get_tensor_location("x") is TensorLocation.DEVICE
    assert engine.get_tensor_dtype("m") is DataType.FLOAT and engine.get_tensor_bytes_per_component("m") == 4
    assert engine.get_tensor_shape("y") == (-1, 8) and not engine.is_shape_inference_io("x")
    assert engine.num_layers == len(engine.layers)
    with pytest.raises(ValueError, match="no input or output is named 'w1': they are x, y, m"):
        engine.get_tensor_shape("w1")
    with pytest.raises(ValueError, match="no input is named 'y'"):
        engine.get_tensor_profile_shape("y", 0)
    with pytest.raises(ValueError, match="profile index 1 exceeds"):
        engine.get_tensor_profile_shape("x", 1)


def test_bytes_there_and_back(engine, cpu, tmp_path):
    data = engine.serialize()
    engine.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    found = Engine.deserialize(data).create_execution_context(cpu).execute({"x": X})
    np.testing.assert_array_equal(found["y"], engine.create_execution_context(cpu).execute({"x": X})["y"])
    with pytest.raises(EngineError, match="it has only 3 bytes"):
        Engine.deserialize(b"abc")


def test_contexts_share_memory_that_the_caller_gave(engine, cpu):
    memory = np.empty(engine.device_memory_size + 256, np.uint8)
    start = -memory.ctypes.data % 256
    one, two = (engine.create_execution_context_without_device_memory(cpu) for _ in range(2))
    expected = engine.create_execution_context(cpu).execute({"x": X})
    with pytest.raises(DeviceMemoryError, match="set_device_memory gave 0"):
        one.execute({"x": X})
    one.set_device_memory(memory[start : start + engine.device_memory_size])
    two.set_device_memory(memory.ctypes.data + start, engine.device_memory_size)
    for context in (one, two, one):
        memory[:] = 0xFF
        found = context.execute({"x": X})
        np.testing.assert_array_equal(found["y"], expected["y"])
        assert not (memory == 0xFF).all(), "the activations lie elsewhere"
    with pytest.raises(ValueError, match="not a multiple of 256"):
        one.set_device_memory(memory[start + 1 :])
    with pytest.raises(ValueError, match="give the size in bytes"):
        one.set_device_memory(memory.ctypes.data + start)
    two.set_device_memory(memory[start : start + 256])
    with pytest.raises(DeviceMemoryError, match=r"set_device_memory gave 256: engine.device_memory_size \(\d+\) bytes"):
        two.execute({"x": np.zeros((64, 8), np.float32)})


def test_two_threads_in_one_context_are_refused(engine, cpu):
    context = engine.create_execution_context(cpu)
    context.execute({"x": X})
    inside, leave, said = threading.Event(), threading.Event(), []

    class Slow(Watch):
        def before(self, layer, stream):
            inside.set()
            leave.wait(10)

    def first() -> None:
        context.enqueue_watched(cpu.stream(), Slow())

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    try:
        for call in (lambda: context.execute_async_v3(0), lambda: context.set_input_shape("x", (2, 8))):
            with pytest.raises(RuntimeError, match="another thread is using this context"):
                call()
    finally:
        leave.set()
        thread.join()
    context.execute_async_v3(0)
    assert not said


def test_a_context_per_thread(engine, cpu):
    expected = engine.create_execution_context(cpu).execute({"x": X})["y"]
    failures = []

    def work() -> None:
        context = engine.create_execution_context(cpu)
        for _ in range(20):
            if not np.array_equal(context.execute({"x": X})["y"], expected):
                failures.append("wrong")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_captured_context_stays_as_it_is(engine, cpu):
    context = engine.create_execution_context(cpu)
    context.execute({"x": X})
    theirs = context._external[0] = cpu.stream()  # a stream that the caller captures
    context.set_aux_streams([])
    with pytest.raises(EngineError, match="enqueue it once before the capture starts"):
        cpu.capture(theirs, lambda: context.execute_async_v3(0))
    context.execute_async_v3(0)
    graph = cpu.capture(theirs, lambda: context.execute_async_v3(0))
    for change in (
        lambda: context.set_input_shape("x", (2, 8)),
        lambda: context.set_tensor_address("x", np.zeros((4, 8), np.float32)),
        lambda: context.set_optimization_profile(0),
        lambda: context.set_aux_streams([]),
        lambda: context.execute({"x": np.zeros((2, 8), np.float32)}),
    ):
        with pytest.raises(EngineError, match="this context is in a captured CUDA graph"):
            change()
    context.write_tensor("x", -X)
    graph.launch(theirs)
    np.testing.assert_array_equal(
        context.read_tensor("y"), engine.create_execution_context(cpu).execute({"x": -X})["y"]
    )
    context.release_graph()
    context.set_input_shape("x", (2, 8))


def test_a_buffer_that_is_too_small(engine, cpu):
    context = engine.create_execution_context(cpu)
    for name, shape in (("x", (4, 8)), ("y", (4, 8)), ("m", (4,))):
        context.set_tensor_address(name, np.zeros(shape, np.float32))
    context.set_input_shape("x", (4, 8))
    context.prepare()
    context.set_input_shape("x", (8, 8))
    with pytest.raises(EngineError, match=r"'x': the memory given holds 128 bytes, shape 8x8 needs 256"):
        context.execute_async_v3(0)
    context.execute({"x": X})
    context.set_input_shape("x", (64, 8))
    with pytest.raises(EngineError, match="holds 128 bytes, shape 64x8 needs 2048"):
        context.execute_async_v3(0)


def test_all_bindings_at_once(engine, cpu):
    context = engine.create_execution_context(cpu)
    context.set_input_shape("x", X.shape)
    y, m = np.empty((4, 8), np.float32), np.empty(4, np.float32)
    assert context.execute_v2([X, y, m.ctypes.data])
    np.testing.assert_array_equal(y, engine.create_execution_context(cpu).execute({"x": X})["y"])
    with pytest.raises(ValueError, match="1 bindings given, the engine has 3 tensors: x, y, m"):
        context.execute_v2([X])


def test_out_of_memory_for_an_input_names_it(engine, monkeypatch):
    device = CpuDevice()
    context = engine.create_execution_context(device)
    monkeypatch.setattr(device, "allocate", lambda *_: (_ for _ in ()).throw(DeviceMemoryError("no")))
    with pytest.raises(DeviceMemoryError, match=r"^tensor 'x' needs 0.0 MiB, .* MiB are free on device cpu: smaller --shapes or fewer"):
        context.execute({"x": X})


@pytest.mark.parametrize("what", ["weights", "activations"])
def test_out_of_memory_says_what_to_reduce(engine, what, monkeypatch):
    device = CpuDevice()
    real = device.allocate
    count = iter(range(100))

    def allocate(size, managed=False):
        if (next(count) == 0) is (what == "weights"):
            raise DeviceMemoryError("no")
        return real(size, managed)

    monkeypatch.setattr(device, "allocate", allocate)
    advice = {"weights": "choose another --device", "activations": "smaller --maxShapes, fewer --infStreams"}[what]
    with pytest.raises(DeviceMemoryError, match=rf"^{what}.* need .* MiB, .* MiB are free on device cpu: .*{advice}"):
        engine.create_execution_context(device)


def test_debug_tensors(engine, cpu):
    """Whatever a layer writes is shown as it is computed, views too; outputs stay the same."""
    context = engine.create_execution_context(cpu)
    plain = context.execute({"x": X})
    seen: dict[str, np.ndarray] = {}
    context.set_debug_listener(lambda name, array: seen.update({name: array}))
    context.execute({"x": X})
    assert not seen, "nothing was asked for"
    names = [name for layer in engine.network.layers for name in layer.outputs]
    for name in names:
        context.set_tensor_debug_state(name, True)
    found = context.execute({"x": X})
    assert set(seen) == set(names)
    hidden = np.maximum(X @ engine.weights["w1"], 0)
    np.testing.assert_allclose(seen["relu1_out0"], hidden, rtol=1e-6)
    np.testing.assert_allclose(seen["fold_out0"], hidden.reshape(4, 2, 8), rtol=1e-6)
    np.testing.assert_array_equal(seen["y"], found["y"])
    np.testing.assert_array_equal(found["y"], plain["y"])
    seen.clear()
    context.set_tensor_debug_state("fc2_out0", False)
    context.execute({"x": X})
    assert set(seen) == set(names) - {"fc2_out0"} and not context.get_debug_state("fc2_out0")
    with pytest.raises(ValueError, match=r"debug tensor 'gone': no layer writes it; .*--markDebug=gone"):
        context.set_tensor_debug_state("gone", True)


def test_a_debug_listener_of_tensorrts_kind(engine, cpu):
    class Collector:
        def process_debug_tensor(self, address, location, dtype, shape, name, stream):
            calls.append((address != 0, location, dtype, shape, name))

    calls: list[tuple] = []
    context = engine.create_execution_context(cpu)
    context.set_debug_listener(Collector())
    context.set_tensor_debug_state("relu1_out0", True)
    context.execute({"x": X})
    assert calls == [(True, TensorLocation.DEVICE, DataType.FLOAT, (4, 16), "relu1_out0")]
    context.set_all_tensors_debug_state(False)
    context.execute({"x": X})
    assert len(calls) == 1 and engine.debug_tensors == ()


def test_profile_names(engine, cpu):
    context = engine.create_execution_context(cpu)
    assert context.active_optimization_profile == 0 and context.set_optimization_profile_async(0, 0)


class Times:
    """What TensorRT calls an IProfiler."""

    def __init__(self):
        self.layers = []

    def report_layer_time(self, name, ms):
        self.layers.append((name, ms))


def test_a_profiler_is_told_the_time_of_every_layer(engine, cpu):
    context = engine.create_execution_context(cpu)
    plain = context.execute({"x": X})
    times = context.profiler = Times()
    for _ in range(2):
        for name, array in context.execute({"x": X}).items():
            np.testing.assert_array_equal(array, plain[name])
    ran = [engine.network.layers[number].name for number in context.layers()]
    assert [name for name, _ in times.layers] == 2 * ran and all(ms >= 0 for _, ms in times.layers)
    assert sum(ms for _, ms in times.layers) > 0
    context.enqueue_emits_profile = False
    times.layers.clear()
    seen = []
    context.set_debug_listener(lambda name, array: seen.append(name))
    context.set_tensor_debug_state("y", True)
    context.execute({"x": X})
    assert not times.layers and seen == ["y"]
    assert context.report_to_profiler() and [name for name, _ in times.layers] == ran
    assert not context.report_to_profiler()
    context.profiler = None
    context.execute({"x": X})
    assert not context.report_to_profiler() and len(times.layers) == len(ran)


def test_what_a_caller_may_want_to_know_of_a_tensor(engine, cpu):
    context = engine.create_execution_context(cpu)
    assert context.get_tensor_strides("x") == (8, 1) and context.get_max_output_size("y") == -1
    context.set_input_shape("x", (3, 8))
    assert context.get_max_output_size("y") == 3 * 8 * 4 and context.get_max_output_size("x") == -1
    assert context.update_device_memory_size_for_shapes() == context.resolution().memory.size > 0
    assert context.get_tensor_strides("m") == (1,)
