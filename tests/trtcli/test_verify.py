"""``trtcli verify``: an engine against ONNX Runtime and against the reference."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from runtime.engine import Engine
from trtcli.cli import main
from trtcli.verification import Tolerance, difference

Captured = pytest.CaptureFixture[str]
LOOSE = Tolerance(1e-3, 0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3, 3, 3)), "v": rng.standard_normal((4, 5))}
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
         helper.make_node("GlobalAveragePool", ["b"], ["c"]), helper.make_node("Flatten", ["c"], ["d"]),
         helper.make_node("MatMul", ["d", "v"], ["e"]), helper.make_node("Softmax", ["e"], ["y"]),
         helper.make_node("ArgMax", ["y"], ["best"], axis=1)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5]), helper.make_tensor_value_info("best", TensorProto.INT64, ["N", 1])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("verify") / "net.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> Path:
    path = model.with_suffix(".engine")
    assert main(["build", str(model), "--device=cpu", "--avgTiming=1", "--minShapes=x:1x3x8x8", "--maxShapes=x:4x3x8x8", f"--saveEngine={path}"]) == 0
    return path


@pytest.mark.parametrize("against", ["onnxruntime", "reference"])
def test_all_outputs_and_layers_agree(model: Path, against: str, capsys: Captured) -> None:
    argv = ["verify", str(model), "--device=cpu", "--avgTiming=1", "--shapes=x:2x3x8x8", f"--against={against}"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert f"against {against}" in out and out.endswith("2 of 2 outputs agree\n")
    assert max(map(len, out.split("layers on")[1].splitlines())) <= 100
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and [one["tensor"] for one in found["outputs"]] == ["y", "best"]
    layers = {one["tensor"]: one for one in found["layers"]}
    assert {"b", "y"} <= set(layers) and all(one["ok"] for one in layers.values())
    assert 0 <= layers["b"]["max_error"] < 1e-4 and layers["b"]["shape"] == [2, 4, 6, 6]


def test_a_wrong_engine_is_found_out(engine: Path, capsys: Captured, tmp_path: Path) -> None:
    good = Engine.load(engine)
    name = next(name for name, array in good.weights.items() if array.size == 4 * 27)
    weights = {**good.weights, name: good.weights[name] * np.float32(1.5)}
    replace(good, weights=weights).save(tmp_path / "bad")
    assert main(["verify", str(engine), "--shapes=x:3x3x8x8"]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "bad"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    (first, *_) = [one for one in found["layers"] if not one["ok"]]
    assert first["tensor"] == "b" and first["relative"] == pytest.approx(0.5, rel=1e-3)
    assert main(["verify", str(tmp_path / "bad")]) == 1
    out = capsys.readouterr().out
    assert "first layer outside of the tolerance:" in out and "outputs agree" in out
    assert main(["verify", str(tmp_path / "bad"), "--rtol=10", "--atol=10"]) in (0, 1)  # best may be another class
    assert main(["verify", str(engine), "--rtol=0", "--atol=0"]) == 1


def test_the_model_must_be_the_one_that_was_built(engine: Path, model: Path, tmp_path: Path, capsys: Captured) -> None:
    moved = tmp_path / "e"
    replace(Engine.load(engine), record={**Engine.load(engine).record, "model": "/gone.onnx"}).save(moved)
    assert main(["verify", str(moved)]) == 1
    assert "give the model with --onnx=FILE" in capsys.readouterr().err
    shutil.copy(model, tmp_path / "copy.onnx")
    assert main(["verify", str(moved), f"--onnx={tmp_path / 'copy.onnx'}"]) == 0
    (tmp_path / "copy.onnx").write_bytes(model.read_bytes() + b"\x12\x00")
    assert main(["verify", str(moved), f"--onnx={tmp_path / 'copy.onnx'}"]) == 1
    assert "is not the model that the engine was built from" in capsys.readouterr().err


def test_differences() -> None:
    wanted = np.array([[1.0, np.nan], [np.inf, 4.0]], np.float32)
    same = difference("t", "l", wanted.copy(), wanted, LOOSE)
    assert same.ok and (same.nan, same.inf, same.max_error) == (1, 1, 0.0)
    worse = difference("t", "l", np.array([[1.1, 2.0], [-np.inf, np.nan]], np.float32), wanted, LOOSE)
    assert worse.wrong == 4 and worse.max_error == pytest.approx(0.1, rel=1e-5)
    assert (worse.nan, worse.nan_wanted, worse.inf) == (1, 1, 1)
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    assert difference("t", "l", np.moveaxis(images, 1, -1), images, LOOSE).ok
    apart = difference("t", "l", images[:1], images, LOOSE)
    assert not apart.ok and apart.problem == "shape 1x3x4x5, the reference has 2x3x4x5"
    assert difference("t", "l", np.array([1, 2]), np.array([1, 3]), LOOSE).wrong == 1
    assert difference("t", "l", np.ones(3, np.float16), np.ones(3, np.float32) * np.float32(1.0005), LOOSE).ok
    assert difference("t", "l", np.empty((0, 3), np.float32), np.empty((0, 3), np.float32), LOOSE).ok


@pytest.mark.gpu
def test_on_a_gpu(model: Path) -> None:
    argv = ["verify", str(model), "--device=0", "--shapes=x:2x3x8x8", "--builderOptimizationLevel=1"]
    assert main(argv) == 0
    assert main([*argv, "--fp16"]) == 0
    assert main([*argv, "--noTF32", "--against=reference"]) == 0


def test_a_network_in_which_the_host_steps_in(tmp_path: Path, capsys: Captured) -> None:
    """Sizes that depend on data: tensors before, between and after the host's part are compared too."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("NonZero", ["a"], ["i"]),
         helper.make_node("Transpose", ["i"], ["t"]), helper.make_node("GatherND", ["a", "t"], ["g"]),
         helper.make_node("Exp", ["g"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["K"])],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    assert main(["verify", str(path), "--device=cpu", "--avgTiming=1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outputs"][0]["ok"] and found["outputs"][0]["shape"][0] > 0
    assert {"a", "g"} <= {one["tensor"] for one in found["layers"]} and all(one["ok"] for one in found["layers"])


def test_what_to_do_about_layers_that_overflow(tmp_path: Path, capsys: Captured) -> None:
    """The advice, taken as it is printed until there is none, mends it."""
    nodes = [helper.make_node("Mul", ["x", "k"], ["a"], "scale"), helper.make_node("Mul", ["a", "a"], ["b"], "square"),
             helper.make_node("Sqrt", ["b"], ["c"], "root, of it"), helper.make_node("Neg", ["c"], ["y"], "last")]  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.float32([300]), "k")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    argv = ["verify", str(tmp_path / "m.onnx"), "--device=cpu", "--against=reference", "--fp16", "--builderOptimizationLevel=0", "--disableFusion=all"]
    kept: list[str] = []
    while main([*argv, *([f"--layerPrecisions={','.join(kept)}", "--precisionConstraints=obey"] if kept else [])]) == 1:
        (advice,) = re.findall(r"to keep it in FP32, build with (.*)", capsys.readouterr().out)
        layers, constraints = shlex.split(advice)
        assert constraints == "--precisionConstraints=obey" and len(kept) < 3
        kept.append(layers.removeprefix("--layerPrecisions="))
    assert kept == ["square:fp32", "'root, of it':fp32"] and "to keep it" not in capsys.readouterr().out
