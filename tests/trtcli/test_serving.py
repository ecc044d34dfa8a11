"""``--requestRate`` and ``--sweepBatch`` on the CPU device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from trtcli.cli import main
from trtcli.report.requests import SweepRow, sweep_lines
from trtcli.serving import batch_sizes

Captured = pytest.CaptureFixture[str]
QUICK = ["--device=cpu", "--duration=0.1", "--iterations=5", "--warmUp=10", "--avgTiming=1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix product and an activation with a dynamic batch."""
    weights = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "fc"), helper.make_node("Relu", ["h"], ["y"], "relu")]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("serving") / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_requests(model: Path, tmp_path: Path, capsys: Captured) -> None:
    times = tmp_path / "times.json"
    argv = [f"--onnx={model}", "--idleTime=3", "--dumpOutput", "--requestRate=500", "--maxQueueDelay=5", "--maxBatch=4", f"--exportTimes={times}",
            f"--exportReport={tmp_path / 'r.html'}", *QUICK]  # fmt: skip
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "Dynamic dimensions required" not in err
    assert "report their own figures: no effect of --idleTime, --dumpOutput" in err
    for label in ("=== Request summary ===", "Offered: 500 requests/s", "Request Latency: min", "Queue Time: min", "Batch Time: min",
                  "CUDA graphs: 4", "&&&& PASSED"):  # fmt: skip
        assert label in out, label
    rows = json.loads(times.read_text())
    assert rows and {row["batch"] for row in rows} <= {1, 2, 3, 4}
    assert list(rows[0]) == ["arrivalMs", "startMs", "endMs", "queueMs", "computeMs", "latencyMs", "batch"]
    assert all(row["latencyMs"] >= row["computeMs"] > 0 for row in rows)
    page = (tmp_path / "r.html").read_text()
    assert f"Latency distribution of {len(rows)} requests" in page and page.count("<svg") == page.count("</svg>") == 2


def test_a_sweep(model: Path, tmp_path: Path, capsys: Captured) -> None:
    times = tmp_path / "times.json"
    assert main([f"--onnx={model}", "--sweepBatch=1:6", f"--exportTimes={times}", f"--exportReport={tmp_path / 'r.html'}", *QUICK]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "Throughput over the batch" in page and page.count("<circle") == 8 and "no effect" not in page
    out = capsys.readouterr().out
    assert "=== Batch sweep ===" in out and "is the fastest" in out
    found = json.loads(times.read_text())
    assert found["schema"] == 1 and [row["batch"] for row in found["batches"]] == [1, 2, 4, 6]
    for row in found["batches"]:
        assert row["itemsPerSecond"] == pytest.approx(row["batch"] * row["queriesPerSecond"])
        assert 0 < row["latencyMs"] <= row["percentileMs"]


def test_an_engine_that_does_not_hold_the_batches(model: Path, tmp_path: Path, capsys: Captured) -> None:
    engine = tmp_path / "net.engine"
    assert main(["build", str(model), "--shapes=x:2x16", f"--saveEngine={engine}", "--device=cpu", "--avgTiming=1"]) == 0
    capsys.readouterr()
    assert main([f"--loadEngine={engine}", "--sweepBatch=1:4", *QUICK[:4]]) == 1
    assert "the engine takes batches of 2 to 2; build with --minShapes and --maxShapes" in capsys.readouterr().err
    assert main([f"--loadEngine={engine}", "--requestRate=100", "--maxBatch=4", *QUICK[:4]]) == 1
    assert "--maxBatch=4: the engine takes batches of 2 to 2" in capsys.readouterr().err
    assert main([f"--loadEngine={engine}", "--requestRate=100", "--maxBatch=1", *QUICK[:4]]) == 0  # padded


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--maxBatch=8"], "--maxBatch: goes with --requestRate only; for the batch of the model's shapes use --maxShapes"),
        (["--maxQueueDelay=8"], "--maxQueueDelay: goes with --requestRate only"),
        (["--requestRate=5", "--sweepBatch=1:2"], "give one of them"),
        (["--requestRate=5", "--duration=-1"], "need an end"),
        (["--sweepBatch=4:2"], "no range of batches"),
        (["--sweepBatch=0:2"], "no range of batches"),
        (["--requestRate=0"], "out of range"),
    ],
)
def test_what_does_not_go_together(model: Path, flags: list[str], complaint: str, capsys: Captured) -> None:
    assert main([f"--onnx={model}", "--device=cpu", *flags]) == 1
    assert complaint in capsys.readouterr().err


def test_batch_sizes_and_the_table() -> None:
    assert batch_sizes(1, 1) == [1] and batch_sizes(1, 8) == [1, 2, 4, 8] and batch_sizes(3, 20) == [3, 6, 12, 20]
    rows = [SweepRow(1, 1000.0, 1.0, 0.9, 1.1), SweepRow(2, 930.0, 1.1, 1.0, 1.2), SweepRow(4, 480.0, 2.1, 2.0, 2.2)]
    lines = sweep_lines(rows)
    assert [line[0] for line in lines[3:6]] == [" ", " ", "*"] and all(len(line) <= 100 for line in lines)
    assert lines[-1] == "Batch 4 is the fastest: 1920 items/s; 90 % of that from batch 2 on, at 1.1 ms"


@pytest.mark.parametrize("transfers", [[], ["--includeDataTransfers"]])
def test_requests_where_the_host_steps_in(tmp_path: Path, transfers: list[str], capsys: Captured) -> None:
    """An output as large as the data makes it: graphs hold the segments before and after, and it is read when its batch is done."""
    nodes = [helper.make_node("Relu", ["x"], ["r"], "relu"), helper.make_node("NonZero", ["r"], ["y"], "nonzero")]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2, "K"])],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert main([f"--onnx={path}", "--requestRate=400", "--maxBatch=3", *transfers, *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "Served: " in out and "of segments" in out and "captured around" in err
    assert main([f"--onnx={path}", "--sweepBatch=1:2", "--allocationStrategy=runtime", *transfers, *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "Created execution context: activations up to 0.0 MiB" in out and "--allocationStrategy=runtime has no effect" in err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--sweepBatch=1:8"], "--sweepBatch=1:8: the model takes batches of 3 to 3: the model fixes the batch"),
        (["--requestRate=5", "--maxBatch=8"], "--maxBatch=8: the model takes batches of 3 to 3: the model fixes the batch"),
    ],
)
def test_a_model_of_a_fixed_batch_is_refused_before_the_build(flags: list[str], complaint: str, tmp_path: Path, capsys: Captured) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", tensors[:1], tensors[1:])
    path = tmp_path / "static.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert main([f"--onnx={path}", *flags, *QUICK]) == 1
    found = capsys.readouterr()
    assert complaint in found.err and "Fused" not in found.out and "Built" not in found.out


def test_a_profile_that_is_too_small_is_refused_before_the_build(model: Path, capsys: Captured) -> None:
    assert main([f"--onnx={model}", "--maxShapes=x:4x16", "--sweepBatch=1:8", *QUICK]) == 1
    found = capsys.readouterr()
    assert "--sweepBatch=1:8: the model takes batches of 4 to 4: build with --minShapes and --maxShapes" in found.err and "Built" not in found.out
