"""ONNX's backend tests, end to end: import, fusion, selection, an engine in memory, a context; on the CPU and on a GPU."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.test_case import TestCase

from runtime.devices import open_device
from tests.onnx_cases import cases, check, entries, left_out, value
from trtcli import onnx_backend
from trtcli.config import BuildConfig

PASS_RATE = 0.98
CONFIG = BuildConfig(optimization_level=0, tf32=False)
SHARDS = 4


def fails(case: TestCase, device: str) -> str:
    """What is wrong with a case, or an empty text."""
    try:
        with np.errstate(all="ignore"):
            prepared = onnx_backend.prepare(case.model, device, config=CONFIG)
            for inputs, outputs in case.data_sets:
                check(prepared.run([value(one) for one in inputs]), outputs)
    except Exception as error:
        return f"{case.name}: {type(error).__name__}: {error}"[:600]
    return ""


def verdict(found: dict[str, str]) -> None:
    """All pass but those listed as open. (Open ones may pass: then the list says less than is true, and wants an update.)"""
    wrong = [text for name, text in found.items() if text and name not in entries()["open"]]
    assert not wrong, f"{len(wrong)} of {len(found)} cases fail\n" + "\n".join(wrong[:60])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_node_cases_on_the_cpu(shard: int) -> None:
    chosen = [case for case in cases()[shard::SHARDS] if not left_out(case)]
    verdict({case.name: fails(case, "CPU") for case in chosen})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pass_rate() -> None:
    """The tests above hold every case to what the list says of it, so the list gives the rate."""
    counted = [case.name for case in cases() if not left_out(case)]
    opened = set(counted) & set(entries()["open"])
    assert len(counted) > 1500
    assert len(opened) <= (1 - PASS_RATE) * len(counted), f"{len(opened)} of {len(counted)} are open"


def test_list_is_sorted_and_current() -> None:
    from tests.onnx_cases import LIST

    lines = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines == sorted(set(lines))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_node_cases_on_the_gpu(shard: int) -> None:
    """Builds run in threads: NVRTC releases the interpreter while it compiles, which is nearly all of the time."""
    chosen = [case for case in cases()[shard::SHARDS] if not left_out(case)]
    open_device("0")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdict(dict(zip((case.name for case in chosen), pool.map(lambda case: fails(case, "CUDA"), chosen), strict=True)))


def test_run_node() -> None:
    node = helper.make_node("Add", ["a", "b"], ["c"])
    a, b = np.float32([[1, 2]]), np.float32([[3], [5]])
    (found,) = onnx_backend.run_node(node, [a, b], "CPU")
    assert np.array_equal(found, a + b)


def _model(*shape: int | str) -> onnx.ModelProto:
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    target = helper.make_tensor_value_info("shape", TensorProto.INT64, [2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Reshape", ["r", "shape"], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "reshape", [entry, target], [result]), opset_imports=[helper.make_opsetid("", 17)])


def _frames() -> onnx.ModelProto:
    """Spectra of frames whose step is an input."""
    infos = [("x", TensorProto.FLOAT, [1, "n", 1]), ("step", TensorProto.INT64, []), ("y", TensorProto.FLOAT, [1, "m", 5, 2])]
    x, step, y = (helper.make_tensor_value_info(*one) for one in infos)
    length = numpy_helper.from_array(np.array(8), "length")
    graph = helper.make_graph([helper.make_node("STFT", ["x", "step", "", "length"], ["y"])], "frames", [x, step], [y], [length])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_attributes_that_are_inputs_are_read_when_they_come() -> None:
    prepared = onnx_backend.prepare(_frames(), "CPU", config=CONFIG)
    x = np.random.default_rng(0).standard_normal((1, 32, 1)).astype(np.float32)
    for step in (4, 8, 4):
        (found,) = prepared.run([x, np.int64(step)])
        wanted = np.stack([np.fft.rfft(x[0, start : start + 8, 0]) for start in range(0, 25, step)])
        np.testing.assert_allclose(found[0, ..., 0] + 1j * found[0, ..., 1], wanted, 1e-4, 1e-5)


def test_values_that_decide_shapes_are_read_when_they_come() -> None:
    prepared = onnx_backend.prepare(_model("n", 4), "CPU", config=CONFIG)
    for count, target in ((3, [6, 2]), (3, [2, 6]), (2, [8, 1]), (3, [6, 2])):
        x = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)
        (found,) = prepared.run({"x": x, "shape": np.array(target, np.int64)})
        assert np.array_equal(found, np.maximum(x, 0).reshape(target))


def test_errors_name_what_is_wrong() -> None:
    prepared = onnx_backend.prepare(_model("n", 4), "CPU", config=CONFIG)
    with pytest.raises(ValueError, match="2 inputs"):
        prepared.run([np.zeros((1, 4), np.float32)])
    with pytest.raises(ValueError, match="input 'x' has shape"):
        prepared.run([np.zeros((1, 5), np.float32), np.array([5, 1])])
    with pytest.raises(ValueError, match="'CUDA:99' is not here"):
        onnx_backend.prepare(_model(3, 4), "CUDA:99")


def test_devices_and_compatibility() -> None:
    assert onnx_backend.supports_device("CPU")
    assert not onnx_backend.supports_device("TPU")
    assert not onnx_backend.supports_device("CUDA:99")
    node = helper.make_node("RegexFullMatch", ["x"], ["y"], pattern="a")
    info = helper.make_tensor_value_info("x", TensorProto.STRING, [1]), helper.make_tensor_value_info("y", TensorProto.BOOL, [1])
    model = helper.make_model(helper.make_graph([node], "strings", [info[0]], [info[1]]))
    assert not onnx_backend.is_compatible(model)
    assert onnx_backend.is_compatible(_model(3, 4))
    assert not onnx_backend.is_compatible(_frames())  # as it stands: the step is not known
