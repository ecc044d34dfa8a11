"""Engines with several optimization profiles, from the command line to results."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.engine import Engine
from trtcli.cli import main

Captured = pytest.CaptureFixture[str]
W = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
RUN = ("--device=cpu", "--duration=0", "--iterations=2", "--warmUp=0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "S", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "S", 16])],
        [numpy_helper.from_array(W, "w")],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("profiles") / "net.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


@pytest.fixture(scope="module")
def engine_path(model: Path) -> Path:
    path = model.with_suffix(".engine")
    code = main([
        "build", str(model), "--device=cpu", "--avgTiming=1", f"--saveEngine={path}",
        "--profile=0", "--minShapes=x:1x4x16", "--optShapes=x:1x4x16", "--maxShapes=x:1x4x16",
        "--profile=1", "--minShapes=x:1x4x16", "--optShapes=x:64x4x16", "--maxShapes=x:256x4x16",
    ])  # fmt: skip
    assert code == 0
    return path


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_two_profiles_in_an_engine_file(engine_path: Path) -> None:
    engine = Engine.load(engine_path)
    assert len(engine.profiles) == 2 and len(engine.more_layers) == 1
    # S is 4 everywhere, so it is no dynamic dimension; N is one in profile 1 only.
    assert engine.get_tensor_shape("x") == (-1, 4, 16)
    context = engine.create_execution_context()
    assert context.get_tensor_shape("y") == (1, 4, 16)
    x = np.random.default_rng(1).standard_normal((100, 4, 16)).astype(np.float32)
    np.testing.assert_allclose(context.execute({"x": x[:1]})["y"], softmax(x[:1] @ W), atol=1e-6)
    with pytest.raises(ValueError, match="outside of profile 0"):
        context.set_input_shape("x", (100, 4, 16))
    context.set_optimization_profile(1)
    np.testing.assert_allclose(context.execute({"x": x})["y"], softmax(x @ W), atol=1e-6)
    context.set_optimization_profile(0)
    np.testing.assert_allclose(context.execute({"x": x[1:2]})["y"], softmax(x[1:2] @ W), atol=1e-6)


def test_profiles_pack_weights_once(engine_path: Path) -> None:
    engine = Engine.load(engine_path)
    assert sum(array.nbytes for array in engine.weights.values()) <= W.nbytes


def test_command_line(engine_path: Path, capsys: Captured) -> None:
    argv = [f"--loadEngine={engine_path}", *RUN]
    assert main([*argv, "--useProfile=1", "--shapes=x:128x4x16", "--dumpOptimizationProfile"]) == 0
    out = capsys.readouterr().out
    assert "Model input x (profile 0): min=1x4x16, opt=1x4x16, max=1x4x16" in out
    assert "Model input x (profile 1): min=1x4x16, opt=64x4x16, max=256x4x16" in out
    assert main(argv) == 0
    assert "The engine has 2 optimization profiles; profile 0 is used" in capsys.readouterr().err
    assert main([*argv, "--useProfile=2"]) == 1
    assert "Selected profile index 2 exceeds the number of profiles that the engine holds (2)" in capsys.readouterr().err
    assert main([*argv, "--useProfile=0", "--shapes=x:2x4x16"]) == 1
    assert "is outside of what the engine was built for (1x4x16 to 1x4x16)" in capsys.readouterr().err


@pytest.mark.parametrize(("strategy", "smaller"), [("static", False), ("profile", True), ("runtime", True)])
def test_allocation_strategies(engine_path: Path, strategy: str, smaller: bool) -> None:
    from runtime.context import ExecutionContext
    from runtime.devices import open_device

    engine = Engine.load(engine_path)
    device = open_device("cpu")
    context = ExecutionContext(engine, device, 0, strategy)
    context.infer_shapes()
    context.execute({"x": np.zeros((1, 4, 16), np.float32)})
    whole = ExecutionContext(engine, device, 1).device_memory_size
    assert (context.device_memory_size < whole) is smaller


def test_a_wrong_profile_is_named(model: Path, capsys: Captured) -> None:
    assert main(["build", str(model), "--device=cpu", "--avgTiming=1", "--minShapes=x:1x4x16", "--maxShapes=x:2x4x16"]) == 0
    line = "Set shape of input tensor x for optimization profile 0 to: MIN=1x4x16 OPT=2x4x16 MAX=2x4x16"
    assert line in capsys.readouterr().out
    argv = ["build", str(model), "--device=cpu", "--profile=0", "--minShapes=x:4x4x16", "--maxShapes=x:2x4x16"]
    assert main(argv) == 1
    assert "profile 0: input 'x', dimension 0: min 4, opt 2, max 2" in capsys.readouterr().err


def test_memory_is_shown_per_profile(engine_path: Path, model: Path, capsys: Captured) -> None:
    import json

    engine = Engine.load(engine_path)
    assert engine.device_memory_size == engine.device_memory_size_for_profile(1) > engine.device_memory_size_for_profile(0)
    assert main(["inspect", str(engine_path)]) == 0
    out = capsys.readouterr().out
    assert "Memory (profile 1): peak 0.1 MiB, sum 0.1 MiB, lower bound 0.1 MiB" in out
    assert re.search(r"profile 1: \S+ [um]s; \d layers have another tactic or configuration", out)
    assert main(["inspect", str(engine_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    memory = found["Memory"]
    (other,) = found["OtherProfiles"]
    assert [one["Name"] for one in other["Layers"]] == [one["Name"] for one in found["Layers"]]
    assert [one["Profile"] for one in memory] == [0, 1]
    assert memory[1]["PeakBytes"] == engine.device_memory_size
    assert main(["build", str(model), "--device=cpu", "--avgTiming=1", "--shapes=x:4x4x16"]) == 0
    assert "activations 0.0 MiB (lower bound 0.0)" in capsys.readouterr().out


@pytest.mark.parametrize("device_name", ["cpu", pytest.param("0", marks=pytest.mark.gpu)])
def test_graphs_of_several_profiles(model: Path, device_name: str) -> None:
    """The same shape in two profiles is two graphs: their tactics differ."""
    import trtcli
    from runtime.devices import open_device
    from runtime.graph import GraphRunner

    config = trtcli.BuildConfig(
        profiles=(
            trtcli.ProfileShapes(min_shapes={"x": (1, 4, 16)}, max_shapes={"x": (1, 4, 16)}),
            trtcli.ProfileShapes(min_shapes={"x": (1, 4, 16)}, opt_shapes={"x": (64, 4, 16)}, max_shapes={"x": (128, 4, 16)}),
        ),
        avg_timing=1, tf32=False,
    )  # fmt: skip
    engine = trtcli.build(model, config, device=device_name)
    device = open_device(device_name)
    context = engine.create_execution_context(device)
    runner, stream = GraphRunner(context), device.stream()
    rng = np.random.default_rng(3)
    for profile, batch in ((0, 1), (1, 1), (1, 100), (0, 1), (1, 100)):
        x = rng.standard_normal((batch, 4, 16)).astype(np.float32)
        context.set_optimization_profile(profile)
        context.set_input_shape("x", x.shape)
        context.use_own_memory()
        context.write_tensor("x", x)
        runner.enqueue(stream)
        stream.synchronize()
        np.testing.assert_allclose(context.read_tensor("y"), softmax(x @ W), atol=1e-5)
        assert runner.nodes
    assert len(runner._graphs) >= 3
