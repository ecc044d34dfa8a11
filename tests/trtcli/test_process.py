"""The process around a command line: streams that are closed, full or not UTF-8, and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from trtcli.cli import main
from trtcli.files import write_json

ROOT = Path(__file__).parent.parent.parent
TRTCLI = f"{sys.executable} -m trtcli"
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
NAME = "слой é 𝛼"  # two, one and four bytes in UTF-8; none in ASCII


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("process")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", NAME))
    graph = helper.make_graph([helper.make_node("Exp", ["x"], [NAME], NAME)], "g", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    assert main(["build", str(folder / "m.onnx"), "--device=cpu", "--avgTiming=1", f"--saveEngine={folder / 'm.engine'}"]) == 0
    return folder / "m.engine"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_swallow_what_is_written(closed: str, engine: Path) -> None:
    done = shell(f"{TRTCLI} --loadEngine={engine} --device=cpu --duration=0 --iterations=1 --warmUp=0 --minShapes=x:1 {closed}")
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr


def test_a_full_disk_under_the_help() -> None:
    done = shell(f"{TRTCLI} --help >/dev/full")
    assert done.returncode == 1
    assert "no space left" in done.stderr and "Traceback" not in done.stderr


def test_names_that_the_encoding_lacks_become_escapes(engine: Path) -> None:
    done = shell(f"{TRTCLI} --loadEngine={engine} --device=cpu --duration=0 --iterations=1 --warmUp=0 --dumpLayerInfo --dumpOutput", **ASCII)
    assert done.returncode == 0
    assert NAME.encode("ascii", "backslashreplace").decode() in done.stdout
    done = shell(f"{TRTCLI} inspect {engine} --json", **ASCII)
    assert [tensor["Name"] for tensor in json.loads(done.stdout)["I/O Tensors"]] == ["x", NAME]


def test_json_files_hold_names_of_files_that_are_no_utf8(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"file": "bad\udcff.onnx"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"file": "bad\udcff.onnx"}


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 143, "Ended by SIGTERM"), (signal.SIGHUP, 129, "Ended by SIGHUP")])
def test_a_request_to_end_is_a_failure(number: int, code: int, said: str, engine: Path) -> None:
    argv = [sys.executable, "-m", "trtcli", f"--loadEngine={engine}", "--device=cpu", "--duration=-1"]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Starting inference" in line:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert said in err and "Traceback" not in err
    assert out.splitlines()[-1].startswith("&&&& FAILED")


def test_an_ended_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    text = (
        "import os, signal; from trtcli import process; from fusion.files import replacing; process.prepare_signals()\n"
        "with replacing('file') as file: file.write(b'half'); os.kill(os.getpid(), signal.SIGTERM)"
    )
    subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert list(tmp_path.iterdir()) == []


def test_names_cannot_command_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"], "a\x1b]0;title\x07\r\x7f\x9b2J")], "g", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    assert main(["build", str(tmp_path / "m.onnx"), "--device=cpu", "--avgTiming=1", "--dumpLayerInfo"]) == 0
    assert main(["inspect", str(tmp_path / "m.onnx"), "--device=cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count(r"a\x1b]0;title\x07\x0d\x7f\x9b2J") == 2 and not set(out) & set("\x1b\x07\r\x7f\x9b")
