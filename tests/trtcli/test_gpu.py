"""The command line on a GPU: the same results as ONNX Runtime, a CUDA graph, a profile."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from trtcli.cli import main

pytestmark = pytest.mark.gpu
Captured = pytest.CaptureFixture[str]
QUICK = ["--device=0", "--duration=0", "--iterations=20", "--warmUp=10"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network with a dynamic batch."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((32, 3, 3, 3)).astype(np.float32) * 0.3,
        "w2": random.standard_normal((32, 32, 3, 3)).astype(np.float32) * 0.08,
        "m": random.standard_normal((32, 10)).astype(np.float32) * 0.3,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["s"], "sum"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "m"], ["l"], "fc"),
        helper.make_node("Softmax", ["l"], ["y"], "soft"),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("gpu") / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(("precision", "tolerance"), [([], 2e-3), (["--noTF32"], 1e-5), (["--fp16"], 5e-3), (["--bf16"], 4e-2)])
@pytest.mark.parametrize("graph", [[], ["--noCudaGraph"]])
def test_results_are_those_of_onnx_runtime(
    model: Path, precision: list[str], tolerance: float, graph: list[str], tmp_path: Path, capsys: Captured
) -> None:
    x = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    x.tofile(tmp_path / "x.bin")
    argv = [f"--onnx={model}", "--minShapes=x:1x3x32x32", "--optShapes=x:4x3x32x32", "--maxShapes=x:8x3x32x32",
            "--shapes=x:3x3x32x32", f"--loadInputs=x:{tmp_path / 'x.bin'}", f"--exportOutput={tmp_path / 'y.json'}"]  # fmt: skip
    assert main([*argv, *QUICK, *precision, *graph]) == 0
    assert ("CUDA graph captured" in capsys.readouterr().out) is not bool(graph)
    (wanted,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    (output,) = json.loads((tmp_path / "y.json").read_text())
    found = np.reshape(output["values"], (3, 10))
    assert np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)


def test_profile_of_a_loaded_engine(model: Path, tmp_path: Path, capsys: Captured) -> None:
    engine, profile = tmp_path / "net.engine", tmp_path / "profile.json"
    argv = ["build", str(model), "--shapes=x:4x3x32x32", f"--saveEngine={engine}", "--device=0"]
    assert main(argv) == 0
    assert main(["profile", str(engine), *QUICK, f"--exportProfile={profile}", "--includeDataTransfers"]) == 0
    layers = json.loads(profile.read_text())[1:]
    assert sum(layer["averageMs"] for layer in layers) > 0
    assert main(["inspect", str(engine)]) == 0
    capsys.readouterr()
    assert main(["check", str(engine), "--device=0"]) == 0
    assert "captured, replayed and compared on" in capsys.readouterr().out


FAST = ["--device=0", "--duration=0.1", "--warmUp=10", "--builderOptimizationLevel=1"]


def test_requests_a_sweep_and_managed_memory(model: Path, tmp_path: Path, capsys: Captured) -> None:
    cache = f"--timingCacheFile={tmp_path / 't.cache'}"
    assert main([f"--onnx={model}", "--sweepBatch=1:4", cache, *FAST]) == 0
    assert "=== Batch sweep ===" in capsys.readouterr().out
    assert main([f"--onnx={model}", "--requestRate=2000", "--maxBatch=4", "--maxQueueDelay=1", "--includeDataTransfers", cache, *FAST]) == 0
    out = capsys.readouterr().out
    assert "CUDA graphs: 4, one per batch size" in out and "Request Latency: min" in out and ", 0 misses" in out
    report = tmp_path / "r.html"
    argv = [f"--onnx={model}", "--shapes=x:4x3x32x32", "--useManagedMemory", "--includeDataTransfers", "--infStreams=2", "--threads"]
    assert main([*argv, f"--exportReport={report}", cache, *FAST]) == 0
    assert "CUDA graph captured" in capsys.readouterr().out and "<svg" in report.read_text()


def test_a_share_of_the_gpu(model: Path, tmp_path: Path) -> None:
    """In a process of its own, since a share changes the thread's context."""
    import subprocess
    import sys

    program = f"""
from trtcli.cli import main
model, engine, fast = {str(model)!r}, {str(tmp_path / "half.engine")!r}, {FAST!r}
assert main(["--onnx=" + model, "--shapes=x:4x3x32x32", "--limitSMs=50%", "--saveEngine=" + engine, *fast]) == 0
print("LOADED", flush=True)
assert main(["--loadEngine=" + engine, "--limitSMs=50%", *fast[:3]]) == 0
print("WHOLE", flush=True)
assert main(["--loadEngine=" + engine, *fast[:3]]) == 0
print("THREADS", flush=True)
assert main(["--loadEngine=" + engine, "--limitSMs=50%", "--threads", "--infStreams=2", *fast[:3]]) == 0
assert main(["--loadEngine=" + engine, "--limitSMs=50%", "--requestRate=500", "--infStreams=2", "--maxBatch=4", *fast[:3]]) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("tactics were chosen for") == 1, done.stderr
    shares = [" of " in line for line in done.stdout.splitlines() if "Device 0: " in line]
    assert shares == [True, True, False, True, True]
