"""Debug tensors from flags to files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from runtime.engine import Engine
from trtcli.cli import main

Captured = pytest.CaptureFixture[str]
RUN = ("--device=cpu", "--duration=0", "--iterations=1", "--warmUp=0", "--avgTiming=1")
W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MatMul -> Add 1 -> Relu, which become one layer, then a Softmax."""
    monkeypatch.chdir(tmp_path)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "one"], ["b"]),
         helper.make_node("Relu", ["b"], ["c"]), helper.make_node("Softmax", ["c"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(W, "w"), numpy_helper.from_array(np.ones(4, np.float32), "one")],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    X.tofile(tmp_path / "x.bin")
    return path


def test_a_marked_tensor_is_kept_and_saved(model: Path, capsys: Captured) -> None:
    argv = [f"--onnx={model}", *RUN, "--loadInputs=x:x.bin"]
    assert main([*argv, "--markDebug=a,nothing,c", "--saveDebugTensors=a:a.bin,c:c.bin", "--saveEngine=e"]) == 0
    captured = capsys.readouterr()
    assert "--markDebug: no layer of the model computes nothing; ignored" in captured.err
    assert "Saved debug tensor a to a.bin" in captured.out
    a, c = (np.fromfile(f"{name}.bin", np.float32).reshape(2, 4) for name in "ac")
    np.testing.assert_allclose(a, X @ W, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(c, np.maximum(X @ W + 1, 0), rtol=1e-5, atol=1e-6)
    engine = Engine.load("e")
    assert engine.debug_tensors == ("a", "c") and engine.is_debug_tensor("a")
    assert engine.network.outputs == ("y",)
    assert main([*argv, "--saveDebugTensors=a:a2.bin"]) == 1
    found = capsys.readouterr()
    assert "debug tensor 'a': no layer writes it; it was fused away (build with --markDebug=a)" in found.err
    assert not Path("a2.bin").exists() and "Starting inference" not in found.out


def test_unfused_tensors_change_no_fusion(model: Path, capsys: Captured) -> None:
    argv = [f"--onnx={model}", *RUN, "--loadInputs=x:x.bin"]
    assert main([*argv, "--markUnfusedTensorsAsDebugTensors", "--saveAllDebugTensors=summary,numpy,raw,string", "--saveEngine=e"]) == 0
    assert main([*argv, "--saveEngine=plain"]) == 0
    marked, plain = Engine.load("e"), Engine.load("plain")
    assert [layer.name for layer in marked.network.layers] == [layer.name for layer in plain.network.layers]
    assert marked.debug_tensors == ("c",)
    wanted = np.maximum(X @ W + 1, 0)
    np.testing.assert_allclose(np.load("c.npy"), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.fromfile("c.raw", np.float32), wanted.reshape(-1), rtol=1e-5, atol=1e-6)
    assert Path("c.str").read_text().startswith("[[")
    summary = json.loads(Path("tensor_summary.json").read_text())
    (tensor,) = summary["tensors"]
    assert (tensor["name"], tensor["shape"], tensor["type"]) == ("c", [2, 4], "FP32")
    assert tensor["statistics"]["max"] == pytest.approx(wanted.max(), rel=1e-5)
    assert len(tensor["statistics"]["elements"]) == 8
    capsys.readouterr()
    assert main([*argv, "--saveAllDebugTensors=numpy"]) == 0
    assert "the engine has no debug tensors" in capsys.readouterr().err


def test_tensors_inside_of_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """A file for every iteration; marks keep nothing from being fused there, and say so."""
    monkeypatch.chdir(tmp_path)
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[4] x, float[4, 4] w, int64 n) => (float[4] y) <bool yes = {1}> {
        y = Loop(n, yes, x) <body = b (int64 i, bool c, float[4] s) => (bool d, float[4] t) {
            d = Identity(c) p = MatMul(s, w) q = Exp(p) r = Tanh(q) t = Softmax(r) }> }"""
    Path("loop.onnx").write_bytes(parse_model(text).SerializeToString())
    np.array(3).tofile("n.raw")
    argv = ["--onnx=loop.onnx", "--loadInputs=n:n.raw", *RUN, "--saveEngine=loop.engine"]
    assert main([*argv, "--markUnfusedTensorsAsDebugTensors", "--saveAllDebugTensors=summary,numpy"]) == 0
    assert "Loop_0/r" in Engine.load("loop.engine").debug_tensors
    shown = {tensor["name"]: tensor["files"]["numpy"] for tensor in json.loads(Path("tensor_summary.json").read_text())["tensors"]}
    assert {f"Loop_0/r[{number}]" for number in range(3)} <= set(shown) and "Loop_0/q[0]" not in shown
    assert main([*argv, "--markDebug=Loop_0/r,Loop_0/q,x", "--saveDebugTensors=Loop_0/r:inner.raw"]) == 0
    err = capsys.readouterr().err
    assert "--markDebug: Loop_0/q: fusion took it away inside of a branch or loop" in err and "computes x; ignored" in err
    assert Engine.load("loop.engine").debug_tensors == ("Loop_0/r",)
    for number in range(3):
        assert np.fromfile(f"inner.{number}.raw", np.float32).shape == np.load(shown[f"Loop_0/r[{number}]"]).shape == (4,)
    assert not Path("inner.raw").exists()
    assert main(["inspect", "loop.engine"]) == 0
    out = capsys.readouterr().out
    assert "\n     Loop_0/" in out and "1 layer and 4 inside of them" in out and max(map(len, out.splitlines())) <= 100


def test_tensors_that_are_columns_of_others() -> None:
    """What a concatenation holds in place is shown as it is, to functions and to objects."""
    import ctypes

    import trtcli

    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[6, 8] x, float[8, 8] w) => (float[6, 16] y) {
        a = MatMul(x, w) b = Sin(x) c = Concat<axis = 1>(a, b) y = Softmax(c) }"""
    engine = trtcli.build(parse_model(text), trtcli.BuildConfig(optimization_level=0), device="cpu")
    context = engine.create_execution_context()
    assert context.loaded.outline.pitches == {"a": 16, "b": 16}
    x, w = (np.random.default_rng(n).standard_normal((rows, 8)).astype(np.float32) for n, rows in ((0, 6), (1, 8)))
    seen: dict[str, np.ndarray] = {}

    class Listener:
        def process_debug_tensor(self, address: int, location: object, dtype: object, shape: tuple[int, ...], name: str, stream: int) -> None:
            memory = (ctypes.c_float * int(np.prod(shape))).from_address(address)
            seen[name] = np.array(memory).reshape(shape)

    for listener in (lambda name, array: seen.update({name: array}), Listener()):
        seen.clear()
        context.set_debug_listener(listener)
        for name in ("a", "b", "c"):
            context.set_tensor_debug_state(name, True)
        context.execute({"x": x, "w": w})
        wanted = {"a": x @ w, "b": np.sin(x), "c": np.concatenate([x @ w, np.sin(x)], axis=1)}
        for name, array in wanted.items():
            np.testing.assert_allclose(seen[name], array, rtol=1e-5, atol=1e-6)


def test_statistics_name_what_is_not_finite() -> None:
    from trtcli.files import json_text
    from trtcli.report.tensors import statistics

    found = json.loads(json_text(statistics(np.array([1.0, np.nan, np.inf], np.float32))))
    assert found["min"] == found["avg"] == "nan" and found["elements"] == [1.0, "nan", "inf"]
    assert statistics(np.empty((0, 3), np.float32))["max"] is None
