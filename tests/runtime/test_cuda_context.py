"""Which GPU is the thread's: a device sets its own while it works, and gives back what it found."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import onnx.parser
import pytest

import trtcli
from runtime import cuda_context, cuda_driver
from runtime.cuda_context import InContext, current_context, select_context
from runtime.device import DeviceError
from runtime.devices import open_device
from runtime.exclusive import Guarded, exclusive

MODEL = onnx.parser.parse_model("""
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[64, 96] x) => (float[64, 80] y) <float[96, 80] w> {
    product = MatMul (x, w)
    y = Softmax (product)
}""")
RANDOM = np.random.default_rng(5)
MODEL.graph.initializer.append(onnx.numpy_helper.from_array(RANDOM.standard_normal((96, 80)).astype(np.float32) * 0.1, "w"))
X = RANDOM.standard_normal((64, 96)).astype(np.float32)
WEIGHT = onnx.numpy_helper.to_array(MODEL.graph.initializer[0]).astype(np.float64)
EXACT = trtcli.BuildConfig(tf32=False)
EXPONENTIALS = np.exp(X.astype(np.float64) @ WEIGHT)
EXPECTED = EXPONENTIALS / EXPONENTIALS.sum(-1, keepdims=True)


@pytest.fixture
def driver(monkeypatch):
    """A driver with one thread: ``current`` is its context, ``calls`` counts the changes."""
    state = SimpleNamespace(current=None, calls=0, code=0)

    def get(pointer):
        pointer._obj.value = state.current
        return 0

    def put(handle):
        state.current, state.calls = handle.value, state.calls + 1
        return state.code

    monkeypatch.setattr(cuda_context.cuda_driver, "library", lambda: SimpleNamespace(cuCtxGetCurrent=get, cuCtxSetCurrent=put))
    return state


def test_a_body_runs_in_its_context_and_the_thread_gets_its_own_back(driver):
    for before in (None, 7):
        driver.current = before
        with InContext(3):
            assert current_context() == 3
            with InContext(5):
                assert current_context() == 5
            assert current_context() == 3
        assert driver.current == before
    driver.current = 7
    with pytest.raises(ZeroDivisionError), InContext(3):
        assert driver.current == 3 and 1 / 0
    assert driver.current == 7


def test_a_context_in_place_is_not_set_again(driver):
    driver.current = 3
    with InContext(3), InContext(3):
        pass
    assert driver.current == 3 and driver.calls == 0


def test_a_refusal_of_the_driver_is_an_error(driver, monkeypatch):
    driver.code = 201
    monkeypatch.setattr(cuda_driver, "error_text", lambda code: f"error {code}")
    with pytest.raises(DeviceError, match="selecting the GPU: error 201"):
        select_context(3)


def test_exclusive_methods_run_on_the_objects_device():
    seen = []

    @contextmanager
    def current():
        seen.append("in")
        yield
        seen.append("out")

    class Worker(Guarded):
        @exclusive
        def outer(self):
            self.inner()
            seen.append("outer")

        @exclusive
        def inner(self):
            seen.append("inner")

    Worker(SimpleNamespace(current=current)).outer()
    assert seen == ["in", "in", "inner", "out", "outer", "out"]


def _right(found):
    np.testing.assert_allclose(found["y"], EXPECTED, rtol=1e-4, atol=1e-6)


def _gpus(count):
    found = cuda_driver.device_count()
    if found < count:
        pytest.skip(f"{found} GPUs here, the test needs {count}")


@pytest.mark.gpu
def test_a_context_runs_in_a_thread_that_never_saw_a_gpu():
    _gpus(1)
    context = trtcli.build(MODEL, EXACT, device="0").create_execution_context(0)
    _right(context.execute({"x": X}))
    stream = context.device.stream()

    def enqueue():
        before = current_context()
        context.execute_async_v3(stream.handle)
        return before, current_context()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enqueue).result() == (0, 0)
    stream.synchronize()
    _right({"y": context.read_tensor("y")})


@pytest.mark.gpu
def test_a_gpu_and_a_share_of_it_in_turns():
    _gpus(1)
    whole = open_device("0")
    whole.activate()
    mine, engine = current_context(), trtcli.build(MODEL, EXACT, device="0")
    share = open_device("0", "16")
    assert current_context() == mine
    contexts = [engine.create_execution_context(device) for device in (whole, share, whole)]
    for context in (*contexts, *reversed(contexts)):
        _right(context.execute({"x": X}))
        assert current_context() == mine


@pytest.mark.gpu
def test_two_gpus_in_turns_and_at_once():
    _gpus(2)
    import cupy

    devices = [open_device("0"), open_device("1")]
    for chosen in (0, 1):  # what the caller's other libraries use
        with cupy.cuda.Device(chosen):
            engines = [trtcli.build(MODEL, EXACT, device=number) for number in (0, 1)]
            contexts = [engine.create_execution_context(device) for engine, device in zip(engines, devices, strict=True)]
            contexts.append(engines[0].create_execution_context(devices[1]))  # the same model of GPU
            for context in (*contexts, *contexts):
                _right(context.execute({"x": X}))
                assert cupy.cuda.runtime.getDevice() == chosen
                for name in ("x", "y"):
                    place = cupy.cuda.runtime.pointerGetAttributes(context.get_tensor_address(name))
                    assert str(place.device) == context.device.name
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda number: contexts[number % 3].execute({"x": X}), range(3)):
            _right(found)
    on_second = cupy.cuda.Device(1)
    with on_second:
        x, y = cupy.asarray(X), cupy.zeros((64, 80), cupy.float32)
    contexts[1].set_tensor_address("x", x)
    contexts[1].set_tensor_address("y", y)
    stream = devices[1].stream()
    contexts[1].execute_async_v3(stream.handle)
    graph = devices[1].capture(stream, lambda: contexts[1].execute_async_v3(stream))
    with devices[1].current():
        y.fill(0)
        cupy.cuda.runtime.deviceSynchronize()
        graph.launch(stream)
        stream.synchronize()
        _right({"y": cupy.asnumpy(y)})
    with cupy.cuda.Device(0):
        wrong = cupy.asarray(X)
    with pytest.raises(ValueError, match="is on GPU 0, the context on GPU 1"):
        contexts[1].set_tensor_address("x", wrong)
