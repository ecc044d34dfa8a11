"""Quantised models as ONNX Runtime's quantiser writes them: QDQ, and dynamic quantisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from fusion.importer import import_onnx
from fusion.reference import run
from tests.models import onnxruntime_outputs


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A small convolutional classifier, saved as a file."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "u"], ["y"], transB=1),
    ]
    weights = {"w": 0.3 * rng.standard_normal((8, 3, 3, 3)), "b": rng.standard_normal(8), "v": 0.1 * rng.standard_normal((10, 128)),
               "u": rng.standard_normal(10)}  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, ["n", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    path = tmp_path / "classifier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Images(CalibrationDataReader):
    """Four batches of noise."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._batches = iter([{"x": rng.standard_normal((4, 3, 8, 8)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def check(path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((5, 3, 8, 8)).astype(np.float32)
    wanted = onnxruntime_outputs(path, {"x": x})["y"]
    assert wanted.std() > 1
    np.testing.assert_allclose(run(import_onnx(path), {"x": x})["y"], wanted, 1e-5, 1e-5)


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_dequantize(classifier: Path, tmp_path: Path, per_channel: bool) -> None:
    path = tmp_path / "qdq.onnx"
    quantize_static(classifier, path, Images(), quant_format=QuantFormat.QDQ, per_channel=per_channel)
    check(path)


def test_dynamic_quantization(classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(classifier, path)
    check(path)
