"""The library on a GPU: tensors of other libraries without a copy, memory from outside, graphs that the caller captures."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import trtcli
from runtime.engine import EngineError

pytestmark = pytest.mark.gpu

W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def engine() -> trtcli.Engine:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Softmax", ["a"], ["b"]),
         helper.make_node("MatMul", ["b", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(W, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = trtcli.BuildConfig(
        min_shapes={"x": (1, 64)}, opt_shapes={"x": (32, 64)}, max_shapes={"x": (128, 64)}, optimization_level=1, tf32=False
    )
    return trtcli.build(model, config, device="0")


def wanted(x: np.ndarray) -> np.ndarray:
    a = x.astype(np.float64) @ W
    powers = np.exp(a - a.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True) @ W


def test_cupy_arrays_and_memory_from_outside(engine: trtcli.Engine) -> None:
    cupy = pytest.importorskip("cupy")
    x = np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32)
    context = engine.create_execution_context_without_device_memory()
    context.set_device_memory(cupy.empty(max(1, engine.device_memory_size), cupy.uint8))
    given, out = cupy.asarray(x), cupy.empty((32, 64), cupy.float32)
    context.set_input_shape("x", x.shape)
    context.set_tensor_address("x", given)
    context.set_tensor_address("y", out)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    context.execute_async_v3(stream)
    stream.synchronize()
    np.testing.assert_allclose(cupy.asnumpy(out), wanted(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="the memory is on cpu, the engine runs on cuda"):
        context.set_tensor_address("x", x)


def test_a_graph_of_the_callers(engine: trtcli.Engine) -> None:
    cupy = pytest.importorskip("cupy")
    x = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    context = engine.create_execution_context()
    given, out = cupy.asarray(x), cupy.zeros((8, 64), cupy.float32)
    context.set_input_shape("x", x.shape)
    context.set_tensor_address("x", given)
    context.set_tensor_address("y", out)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    context.execute_async_v3(stream)
    stream.synchronize()
    stream.begin_capture()
    context.execute_async_v3(stream)
    graph = stream.end_capture()
    given.set(-x)
    cupy.cuda.get_current_stream().synchronize()
    graph.launch(stream)
    stream.synchronize()
    np.testing.assert_allclose(cupy.asnumpy(out), wanted(-x), rtol=1e-4, atol=1e-4)
    with pytest.raises(EngineError, match="in a captured CUDA graph"):
        context.set_input_shape("x", (4, 64))
    context.release_graph()
    context.set_input_shape("x", (4, 64))


def test_torch_tensors(engine: trtcli.Engine) -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(16, 64, device="cuda")
    y = torch.empty(16, 64, device="cuda")
    context = engine.create_execution_context()
    context.set_input_shape("x", tuple(x.shape))
    context.set_tensor_address("x", x)
    context.set_tensor_address("y", y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    context.execute_async_v3(stream)
    stream.synchronize()
    np.testing.assert_allclose(y.cpu().numpy(), wanted(x.cpu().numpy()), rtol=1e-4, atol=1e-4)
