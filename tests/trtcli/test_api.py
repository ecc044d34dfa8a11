"""trtcli as a library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import trtcli


def test_build_save_load_run(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = trtcli.BuildConfig(max_shapes={"x": (4, 3)}, min_shapes={"x": (1, 3)}, avg_timing=1)
    engine = trtcli.build(model, config, device="cpu")
    engine.save(tmp_path / "e.engine")
    context = trtcli.Engine.load(tmp_path / "e.engine").create_execution_context()
    x = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
    np.testing.assert_array_equal(context.execute({"x": x})["y"], -np.maximum(x, 0))


def test_names() -> None:
    assert set(trtcli.__all__) <= {*dir(trtcli), *trtcli._PLACES}
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = trtcli.nope
