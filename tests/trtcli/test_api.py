"""trtcli as a library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

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


def test_cpu_engines_hold_weights_once() -> None:
    """Raw weights that every step has packed are dropped; the others stay."""
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 4, 3, 3), (72, 16)))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Flatten", ["a"], ["b"]),
         helper.make_node("MatMul", ["b", "v"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    engine = trtcli.build(model, trtcli.BuildConfig(optimization_level=0), device="cpu")
    assert sum(array.nbytes for array in engine.weights.values()) == w.nbytes + v.nbytes
    context = engine.create_execution_context()
    x = rng.standard_normal((1, 4, 5, 5)).astype(np.float32)
    patches = np.lib.stride_tricks.sliding_window_view(x[0], (3, 3), (1, 2))  # c, y, x, 3, 3
    wanted = np.einsum("cyxij,ocij->oyx", patches, w).reshape(1, -1) @ v
    np.testing.assert_allclose(context.execute({"x": x})["y"], wanted, rtol=1e-4, atol=1e-4)
