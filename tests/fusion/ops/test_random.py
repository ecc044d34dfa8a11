"""Random numbers: the generator against its published vector, the distributions, and the operators that use them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import Random
from fusion.ops.random import philox
from fusion.reference import run

F32, F16, F64 = DataType.FLOAT, DataType.HALF, DataType.DOUBLE


def imported(op: str, of: list[object] | None, count: int = 1, kind: int = TensorProto.FLOAT, **attributes: object) -> Network:
    """A model of ``count`` nodes that read the same input (none without ``of``)."""
    inputs = [] if of is None else [helper.make_tensor_value_info("x", TensorProto.FLOAT, of)]
    nodes = [helper.make_node(op, ["x"] if inputs else [], [f"y{index}"], f"node{index}", **attributes) for index in range(count)]
    outputs = [helper.make_tensor_value_info(f"y{index}", kind, None) for index in range(count)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))


def test_published_vector() -> None:
    """The first line of the authors' known answers for philox4x32-10: all of counter and key zero."""
    assert [f"{word:08x}" for word in philox(1, (0, 0))[0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("dtype", [F32, F64])
def test_distributions(dtype: DataType) -> None:
    (uniform,) = Random((200, 301), dtype, "uniform", -1.0, 3.0, (5, 6)).evaluate([])
    assert uniform.dtype == dtype.numpy and uniform.min() >= -1 and uniform.max() < 3
    counts = np.histogram(uniform, 16, (-1, 3))[0]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 40  # chi-squared, 15 degrees of freedom: one in two thousand
    (normal,) = Random((200, 301), dtype, "normal", 1.0, 2.0, (5, 6)).evaluate([])
    assert abs(normal.mean() - 1) < 0.03 and abs(normal.std() - 2) < 0.03
    assert abs((np.abs(normal - 1) < 2).mean() - 0.6827) < 0.01
    assert abs(np.corrcoef(normal.reshape(-1)[:-1], normal.reshape(-1)[1:])[0, 1]) < 0.02


def test_keys() -> None:
    """The same numbers for the same seed; different ones for other seeds, and for other nodes without one; never folded away."""
    seeded = imported("RandomUniform", None, 2, shape=[40], seed=3.0)
    found = run(seeded, {})
    assert np.array_equal(found["y0"], found["y1"]) and np.array_equal(found["y0"], run(seeded, {})["y0"])
    assert not np.array_equal(found["y0"], run(imported("RandomUniform", None, shape=[40], seed=4.0), {})["y0"])
    free = imported("RandomUniform", None, 2, shape=[40])
    found = run(free, {})
    assert not np.array_equal(found["y0"], found["y1"])
    assert sum(isinstance(layer.op, Random) for layer in free.layers) == 2


def test_like_with_dynamic_sizes() -> None:
    network = imported("RandomNormalLike", ["N", 3], mean=5.0, scale=0.1, seed=1.0)
    small, large = (run(network, {"x": np.zeros((count, 3), np.float32)})["y0"] for count in (2, 50))
    assert small.shape == (2, 3) and np.array_equal(small, large[:2]) and abs(large.mean() - 5) < 0.05
    half = imported("RandomUniformLike", [4], kind=TensorProto.FLOAT16, dtype=TensorProto.FLOAT16)
    assert run(half, {"x": np.zeros(4, np.float32)})["y0"].dtype == np.float16


def test_bernoulli() -> None:
    x = np.repeat(np.array([0.0, 0.25, 0.9, 1.0], np.float32)[:, None], 4000, 1)
    found = run(imported("Bernoulli", [4, 4000], kind=TensorProto.BOOL, dtype=TensorProto.BOOL), {"x": x})["y0"]
    assert found.dtype == np.bool_
    np.testing.assert_allclose(found.mean(1), [0, 0.25, 0.9, 1], atol=0.03)
    assert not found[0].any() and found[3].all()


def test_multinomial() -> None:
    probabilities = np.array([[0.1, 0.2, 0.0, 0.7], [0.5, 0.25, 0.25, 0.0]])
    with np.errstate(divide="ignore"):
        x = (np.log(probabilities) + 3).astype(np.float32)
    found = run(imported("Multinomial", [2, 4], kind=TensorProto.INT64, sample_size=5000, dtype=TensorProto.INT64), {"x": x})["y0"]
    assert found.shape == (2, 5000) and found.dtype == np.int64
    for row, wanted in zip(found, probabilities, strict=True):
        np.testing.assert_allclose(np.bincount(row, minlength=4) / 5000, wanted, atol=0.03)


def test_dropout_in_training() -> None:
    node = helper.make_node("Dropout", ["x", "ratio", "training"], ["y", "mask"], "node", seed=2)
    constants = [helper.make_tensor("ratio", TensorProto.FLOAT, [], [0.25]), helper.make_tensor("training", TensorProto.BOOL, [], [True])]
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (("y", TensorProto.FLOAT), ("mask", TensorProto.BOOL))], constants,
    )  # fmt: skip
    network = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))
    x = np.arange(1, 8001, dtype=np.float32)
    found = run(network, {"x": x})
    assert abs(found["mask"].mean() - 0.75) < 0.02
    np.testing.assert_allclose(found["y"], np.where(found["mask"], x / np.float32(0.75), 0), 1e-6)


def test_onnx_shape_inference_agrees() -> None:
    node = helper.make_node("RandomNormal", [], ["y"], shape=[2, 3], dtype=TensorProto.DOUBLE)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [2, 3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    found = run(import_onnx(model), {})["y"]
    assert found.shape == (2, 3) and found.dtype == np.float64
