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


def _relu() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"optimization_level": 9}, r"BuildConfig: optimization_level=9: 9 is out of range \(0..5\)"),
        ({"profiling_verbosity": "loud"}, "BuildConfig: profiling_verbosity='loud': 'loud' is none of none, "),
        ({"max_aux_streams": 99}, "BuildConfig: max_aux_streams=99: 99 is out of range"),
        ({"timing_cache_file": "no/such/folder/c"}, "BuildConfig: timing_cache_file=no/such/folder/c: the folder no/such/folder does not exist"),
        ({"save_engine": "no/such/folder/e"}, "the folder no/such/folder does not exist"),
        ({"disable_fusion": ("all",)}, r"BuildConfig: disable_fusion: 'all' is no pair; give pairs such as \('pointwise', 'relu1'\)"),
        ({"pin_tactic": ("Relu_0:cpu",)}, "BuildConfig: pin_tactic: 'Relu_0:cpu' is no pair"),
        ({"tactic_sources": "CUDNN"}, "BuildConfig: tactic_sources='CUDNN': give a tuple"),
        ({"disable_fusion": (("point-wise", ""),)}, "--disableFusion=point-wise: there is no rule 'point-wise'; did you mean pointwise"),
        ({"disable_fusion": (("conv", ""),)}, "there is no rule 'conv'; did you mean convolution-activation or "),
        ({"disable_fusion": (("all", "Relu_1"),)}, "--disableFusion=all@Relu_1: no node or layer is named 'Relu_1'; did you mean 'Relu_0'"),
        ({"opt_shapes": {"x": (-1, 3)}}, "--optShapes: input 'x': dimension 0 is -1; give each a size"),
    ],
)
def test_values_that_the_command_line_would_refuse(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        trtcli.build(_relu(), trtcli.BuildConfig(**options), device="cpu")  # type: ignore[arg-type]


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"int is no model: give a file, its bytes or an onnx\.ModelProto"):
        trtcli.build(5, device="cpu")  # type: ignore[arg-type]
    assert {"build", "Engine"} <= set(dir(trtcli))


def test_the_engine_is_saved_where_the_options_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"opt_shapes": {"x": (2, 3)}, "optimization_level": 0}
    names = {"pin_tactic": (("Relu_1", "cpu"), ("Relu_0", "cpu")), "disable_fusion": (("gelu", "Relu_0"),)}
    trtcli.build(memoryview(_relu()), trtcli.BuildConfig(save_engine=str(tmp_path / "e"), **options, **names), device="cpu")  # type: ignore[arg-type]
    x = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
    np.testing.assert_array_equal(trtcli.Engine.load(tmp_path / "e").create_execution_context().execute({"x": x})["y"], np.maximum(x, 0))
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("--")]
    assert told == ["--pinTactic: no layer is named 'Relu_1' after fusion; did you mean 'Relu_0'?"]


@pytest.mark.parametrize(
    ("start", "end", "step", "refused"),
    [(-3, 1, 1, ()), (-3, 99, 1, ()), (-1, -99, -1, ()), (3, -99, -1, ()), (-2, 0, -1, (1,)), (-3, 2**40, 1, (1, 2)), (-4, -2, 1, (1, 2, 3)), (2, 2**40, 1, (1,))],
)
def test_slices_of_short_axes(start: int, end: int, step: int, refused: tuple[int, ...]) -> None:
    """Where the axis is shorter than the slice wants, it is clamped as ONNX says, or the shapes are refused; nothing reads outside of the input."""
    one = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("s", start), ("e", end), ("a", 0), ("t", step))]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["z"]), helper.make_node("Neg", ["z"], ["y"])], "g",
        [info("x", TensorProto.FLOAT, ["N", 2])], [info("y", TensorProto.FLOAT, ["M", 2])], one,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = trtcli.BuildConfig(min_shapes={"x": (1, 2)}, opt_shapes={"x": (4, 2)}, max_shapes={"x": (7, 2)}, optimization_level=0)
    context = trtcli.build(model, config, device="cpu").create_execution_context()
    for n in range(1, 8):
        x = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
        if n in refused:
            with pytest.raises(ValueError, match=r"would have shape|at these input shapes: give larger ones"):
                context.execute({"x": x})
        else:
            np.testing.assert_array_equal(context.execute({"x": x})["y"], -x[start:end:step])
