"""A profiler that listens to NVTX sees the layers' names: a small injection library stands for Nsight Systems."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def injection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not any(importlib.util.find_spec(name) for name in ("nvtx", "cupy")):
        pytest.skip("neither nvtx nor cupy is installed")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("nvtx") / "injection.so"
    source = Path(__file__).parent.parent / "harness" / "nvtx_injection.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True, timeout=60)
    return library


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "projection"),
        helper.make_node("Softmax", ["h"], ["y"], "weights_of_it"),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy"]
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    graph = helper.make_graph(nodes, "m", tensors[:1], tensors[1:], [weight])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def ranges(injection: Path, model: Path, folder: Path, *flags: str, device: str = "cpu") -> list[str]:
    """The ranges of a run in order, each with its depth."""
    log = folder / "ranges.txt"
    environment = os.environ | {"NVTX_INJECTION64_PATH": str(injection), "NVTX_LOG": str(log)}
    command = [sys.executable, "-m", "trtcli", f"--onnx={model}", f"--device={device}", "--builderOptimizationLevel=0", "--duration=0",
               "--iterations=3", "--warmUp=0", *flags]  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found, depth = [], 0
    for line in log.read_text().splitlines():
        if line == "-":
            depth -= 1
        else:
            found.append(f"{depth} {line[2:]}")
            depth += 1
        assert depth >= 0
    assert depth == 0
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("0", marks=pytest.mark.gpu)])
def test_layers_have_ranges(injection: Path, model: Path, tmp_path: Path, device: str) -> None:
    found = ranges(injection, model, tmp_path, "--noCudaGraph", "--profilingVerbosity=detailed", device=device)
    kind = "cpu" if device == "cpu" else "cuda"
    assert len(found) >= 6
    for number, line in enumerate(found):
        assert line.startswith(f"0 {('projection', 'weights_of_it')[number % 2]} [{kind}.")


@pytest.mark.parametrize("device", ["cpu", pytest.param("0", marks=pytest.mark.gpu)])
def test_the_launch_of_a_graph_is_one_range(injection: Path, model: Path, tmp_path: Path, device: str) -> None:
    found = ranges(injection, model, tmp_path, device=device)
    assert len(found) >= 3 and set(found) == {"0 inference"}
