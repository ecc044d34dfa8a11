"""``--loadRefOutputs`` and what goes with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from trtcli.accuracy import ALGORITHMS, loss
from trtcli.cli import main
from trtcli.options import BY_NAME

Captured = pytest.CaptureFixture[str]
QUICK = ["--device=cpu", "--duration=0", "--iterations=1", "--warmUp=0", "--builderOptimizationLevel=0"]
nan, inf = np.nan, np.inf


@pytest.mark.parametrize(
    ("algorithm", "found", "reference", "wanted"),
    [
        ("l0", [1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ("l0", [1, 2], [1 + 1e-6, 2], 0.0),
        ("l0", [nan, 1, inf], [nan, nan, inf], 1 / 3),
        ("l1", [1, 2, 3, 4], [1, 2, 3, 6], 0.5),
        ("l2", [1, 2, 3, 4], [1, 2, 3, 6], 1.0),
        ("lInf", [1, -inf], [4, -inf], 3.0),
        ("cos", [1, 0], [0, 1], 1.0),
        ("cos", [2, 2], [1, 1], 0.0),
        ("cos", [0, 0], [0, 0], 0.0),
        ("cos", [0, 0], [1, 0], 1.0),
        ("lInf", [], [], 0.0),
    ],
)
def test_losses(algorithm: str, found: list[float], reference: list[float], wanted: float) -> None:
    arrays = np.array(found, np.float32), np.array(reference, np.float32)
    assert loss(*arrays, algorithm, 1e-5, 1e-5) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("algorithm", [one for one in ALGORITHMS if one != "l0"])
def test_a_nan_is_no_small_loss(algorithm: str) -> None:
    assert not loss(np.array([nan, 1.0]), np.array([1.0, 1.0]), algorithm, 1, 1) < 1e30


def test_the_flag_allows_what_there_is() -> None:
    assert BY_NAME["accuracyAlgorithm"].allowed.split(", ") == list(ALGORITHMS)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    found = {name: tmp_path / f"{name}.raw" for name in ("x", "good", "bad", "short")}
    x = np.array([1, -1, 2, -2], np.float32)
    for name, array in (("x", x), ("good", x.clip(0)), ("bad", x), ("short", x[:2])):
        array.tofile(found[name])
    found["onnx"] = tmp_path / "m.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), found["onnx"])
    return found


def test_runs_pass_and_fail_by_their_outputs(files: dict[str, Path], capsys: Captured) -> None:
    base = [f"--onnx={files['onnx']}", f"--loadInputs=x:{files['x']}", "--accuracyThreshold=0.1", *QUICK]
    assert main([*base, f"--loadRefOutputs=y:{files['good']}"]) == 0
    found = capsys.readouterr()
    assert "Accuracy of y: l0 loss 0, threshold 0.1: passed" in found.out + found.err and "&&&& PASSED" in found.out
    assert main([*base, f"--loadRefOutputs=y:{files['bad']}"]) == 1
    found = capsys.readouterr()
    assert "Accuracy of y: l0 loss 0.5, threshold 0.1: FAILED" in found.out + found.err and "&&&& FAILED" in found.out
    assert main([*base, f"--loadRefOutputs=y:{files['bad']}", "--atol=2"]) == 0
    capsys.readouterr()
    assert main([*base, f"--loadRefOutputs=y:{files['good']},z:{files['good']}"]) == 0  # as trtexec: told, not refused
    found = capsys.readouterr()
    assert "no output is named 'z'; skipped. The outputs are y" in found.out + found.err
    assert main([*base, f"--loadRefOutputs=z:{files['good']}"]) == 1  # to compare nothing is not to pass
    found = capsys.readouterr()
    assert "--loadRefOutputs: no output is named z; the outputs are y" in found.err and "Built" not in found.out
    assert main([*base, f"--loadRefOutputs=y:{files['short']}"]) == 1
    assert "Output 'y' is 16 bytes (4 float32), but the file has 8 bytes" in capsys.readouterr().err
    assert main([*base, "--loadRefOutputs=y:missing.raw"]) == 1
    assert "Cannot open file missing.raw: it does not exist" in capsys.readouterr().err


def test_every_pair_must_agree(files: dict[str, Path], capsys: Captured) -> None:
    """The second pair's inputs are run, too: its outputs are not those of the first."""
    other, wanted = (files["x"].with_name(name) for name in ("other.raw", "wanted.raw"))
    np.array([-5, 6, 7, -8], np.float32).tofile(other)
    np.array([0, 6, 7, 0], np.float32).tofile(wanted)
    base = [f"--onnx={files['onnx']}", "--accuracyThreshold=0.1", *QUICK, "--dumpOutput"]
    first = ["--refPair=0", f"--loadInputs=x:{files['x']}", f"--loadRefOutputs=y:{files['good']}"]
    second = ["--refPair=1", f"--loadInputs=x:{other}"]
    assert main([*base, *first, *second, f"--loadRefOutputs=y:{wanted}"]) == 0
    found = capsys.readouterr()
    assert found.out.count("Accuracy of y: l0 loss 0, threshold 0.1: passed") == 2 and f"Reference pair 1: inputs {other}" in found.out
    assert main([*base, *first, *second, f"--loadRefOutputs=y:{files['good']}"]) == 1
    found = capsys.readouterr()
    assert "passed" in found.out and "Accuracy of y: l0 loss 0.75, threshold 0.1: FAILED" in found.err
    assert main([*base, *first, *second, "--loadRefOutputs=y:missing.raw"]) == 1
    assert "Cannot open file missing.raw: it does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--loadRefOutputs=y:f"], "--loadRefOutputs requires --loadInputs to be specified."),
        (["--loadRefOutputs=y:f", "--loadInputs=x:f"], "needs --accuracyThreshold above 0"),
        (["--accuracyThreshold=1"], "--accuracyThreshold: goes with --loadRefOutputs only"),
        (["--loadRefOutputs=y:f", "--loadInputs=x:f", "--accuracyThreshold=1", "--accuracyAlgorithm=cos", "--atol=1"],
         "--atol is only valid for L0 accuracy algorithm."),
        (["--loadRefOutputs=y:f", "--loadInputs=x:f", "--accuracyThreshold=1", "--skipInference"], "leave out --skipInference"),
        (["--atol=-1"], "--atol=-1: -1 is out of range"),
        (["--accuracyAlgorithm=l3"], "'l3' is none of l0, l1, l2, lInf, cos"),
        (["--timeDeserialize"], "--timeDeserialize: goes with --loadEngine=FILE only"),
        (["--getPlanVersionOnly"], "--getPlanVersionOnly: goes with --loadEngine=FILE only"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(flags: list[str], complaint: str, capsys: Captured) -> None:
    assert main(["--onnx=m.onnx", *flags]) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(("command", "flag"), [("check", "--timeDeserialize"), ("verify", "--loadRefOutputs=y:f"), ("build", "--getPlanVersionOnly"),
                                               ("inspect", "--dumpRefit"), ("inspect", "--timeRefit"), ("check", "--timeRefit")])  # fmt: skip
def test_commands_that_would_not_obey_refuse(command: str, flag: str, capsys: Captured) -> None:
    assert main([command, "m.onnx", flag]) == 1
    assert flag.split("=")[0] in capsys.readouterr().err


def test_an_engine_file_by_itself(files: dict[str, Path], tmp_path: Path, capsys: Captured) -> None:
    engine = tmp_path / "m.engine"
    assert main(["build", str(files["onnx"]), f"--saveEngine={engine}", *QUICK[:1], "--dumpRefit", "--timeRefit"]) == 0
    found = capsys.readouterr().out
    assert "No layer has weights" in found and "Refit with the weights of" in found and "(10 runs)" in found
    assert main([f"--loadEngine={engine}", "--getPlanVersionOnly"]) == 0
    assert "m.engine: built by trtcli 0." in capsys.readouterr().out
    assert main([f"--loadEngine={engine}", "--timeDeserialize", "--device=cpu"]) in (0, 1)  # 1: the first one was slow, as trtexec has it
    assert "(20 runs), first" in capsys.readouterr().out
    assert main([f"--loadEngine={files['x']}", "--getPlanVersionOnly"]) == 1
    assert "is not an engine file" in capsys.readouterr().err
    assert main([f"--loadEngine={engine}", "--timeRefit"]) == 1
    assert "--timeRefit: needs a model to take weights from, --refitFromOnnx=FILE" in capsys.readouterr().err
