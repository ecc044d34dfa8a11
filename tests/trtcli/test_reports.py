"""Profile, outputs, log lines, files, progress."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from runtime.profiler import LayerTime, Profile
from trtcli.builder import Progress
from trtcli.errors import lines_of, report
from trtcli.files import FileNames, check_folder, check_writable, json_text, replacing, write_json
from trtcli.log import Log
from trtcli.parse import UsageError
from trtcli.progress import build_progress, summary
from trtcli.report.outputs import output_json, output_lines, raw_name
from trtcli.report.profile import aux_stream_warning, profile_json, profile_lines


def profile(count: int, **layers: list[float]) -> Profile:
    times = tuple(LayerTime(name, np.array(samples)) for name, samples in layers.items())
    return Profile(count, times, event_overhead=0.0, in_graph=False, aux_streams=0)


PROFILE = profile(2, **{"conv1 + relu1": [1.0, 3.0], 'say "hi"': [1.0, 1.0], "view": []})


def test_golden_profile() -> None:
    assert profile_lines(PROFILE) == [
        "",
        "=== Profile (2 iterations ) ===",
        "   Time(ms)   Avg.(ms)   Median(ms)   Time(%)   Layer",
        "       4.00     2.0000       2.0000      66.7   conv1 + relu1",
        '       2.00     1.0000       1.0000      33.3   say "hi"',
        "       6.00     3.0000       3.0000     100.0   Total",
    ]


def test_profile_json() -> None:
    found = json.loads(json_text(profile_json(PROFILE)))
    assert found[0] == {"count": 2}
    assert found[1] == {
        "name": "conv1 + relu1", "timeMs": 4.0, "averageMs": 2.0, "medianMs": 2.0, "percentage": pytest.approx(66.667, 1e-4),
    }  # fmt: skip
    assert found[2]["name"] == 'say "hi"'
    assert found[3] == {"name": "view", "timeMs": 0.0, "averageMs": 0.0, "medianMs": 0.0, "percentage": 0.0}


def test_profile_of_nothing() -> None:
    assert profile_lines(profile(0))[-1].endswith("Total")
    assert profile_json(profile(0, a=[]))[1]["percentage"] == 0.0


def test_auxiliary_streams_make_the_total_doubtful() -> None:
    assert aux_stream_warning(1).startswith("The engine uses 1 auxiliary stream, so")
    assert aux_stream_warning(3).startswith("The engine uses 3 auxiliary streams, so")


def test_outputs() -> None:
    outputs = {
        'a"b': np.array([[1.5, float("nan")], [float("-inf"), 3]], np.float32),
        "half": np.array([0.1], ml_dtypes.bfloat16),
        "flag": np.array([True, False]),
        "scalar": np.array(7, np.int64),
    }
    assert output_lines(outputs) == [
        "Output Tensors:", 'a"b: (2x2)', "1.5 nan -inf 3", "half: (1)", "0.100098", "flag: (2)", "1 0", "scalar: ()", "7",
    ]  # fmt: skip
    found = json.loads("".join(output_json(outputs)))
    assert [one["name"] for one in found] == list(outputs)
    assert found[0] == {"name": 'a"b', "dimensions": "2x2", "values": [1.5, "nan", "-inf", 3.0]}
    assert found[3] == {"name": "scalar", "dimensions": "", "values": [7]}


def test_large_and_empty_outputs() -> None:
    values = np.arange(10000, dtype=np.float32).reshape(100, 100)
    found = json.loads("".join(output_json({"x": values, "none": np.zeros((0, 3), np.int8)})))
    assert found[0]["values"] == values.reshape(-1).tolist()
    assert found[1] == {"name": "none", "dimensions": "0x3", "values": []}


def test_raw_names_are_safe() -> None:
    assert raw_name("in/put:0", "input", np.zeros((1, 3), np.float16)) == "in_put_0.input.1.3.FP16.raw"
    assert raw_name("../x", "output", np.zeros((), np.int64)) == ".._x.output.scalar.INT64.raw"


# --- log -------------------------------------------------------------------------------------------------------------


def test_piped_lines_have_trtexecs_form(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(verbose=True, terminal=False, now=lambda: 0.0)
    log.info("one\ntwo")
    log.verbose("v")
    log.report("r")
    log.warning("w")
    log.error("e")
    log.banner("PASSED", "trtcli --x")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split("] ", 1)[1] for line in lines[:-1]] == ["[I] one", "[I] two", "[V] v", "[I] r"]
    assert lines[0][0] == "[" and len(lines[0].split("]")[0]) == len("[MM/DD/YYYY-HH:MM:SS")
    assert lines[-1] == "&&&& PASSED trtcli v0.1.0 # trtcli --x"
    assert [line.split("] ", 1)[1] for line in err.splitlines()] == ["[W] w", "[E] e"]


def test_terminal_lines_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(terminal=True)
    log.info("one")
    log.report("Throughput: 1 qps")
    log.verbose("hidden")
    log.warning("w")
    out, err = capsys.readouterr()
    assert out == "[I] one\nThroughput: 1 qps\n"
    assert err == "[W] w\n"


def test_json_leaves_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(terminal=False, to_stderr=True)
    log.info("one")
    log.banner("RUNNING", "x")
    assert capsys.readouterr().out == ""


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_are_a_line_or_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(UsageError(["a", "b"])) == ["a", "b", "trtcli --help lists all flags"]
    assert lines_of(ValueError("what is wrong")) == ["what is wrong"]
    assert lines_of(FileNotFoundError(2, "No such file", "x.onnx")) == ["Cannot open file x.onnx: it does not exist"]
    assert lines_of(OSError(28, "No space left on device", "e.engine")) == [
        "e.engine: no space left on the device; nothing was written"
    ]
    assert "is not installed" in lines_of(ModuleNotFoundError("No module named 'cupy'", name="cupy"))[0]
    assert "fault of trtcli" in lines_of(KeyError("x"))[1]
    assert report(KeyboardInterrupt(), Log(terminal=False)) == 130
    assert report(ValueError("x"), Log(terminal=False)) == 1
    assert "Traceback" not in "".join(capsys.readouterr())


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("deep")
    except ValueError as error:
        report(error, Log(terminal=False, verbose=True))
    assert "Traceback" in capsys.readouterr().out


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, {"x": [1.5, float("nan")]})
    assert json.loads(path.read_text()) == {"x": [1.5, "nan"]}
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"x": [1.5, "nan"]}
    assert os.listdir(tmp_path) == ["out.json"]


def test_errors_of_writing_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"), replacing("/dev/full") as file:
        file.write(b"x")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a'"), replacing(tmp_path / "a") as file:
        file.write(b"x")
    with pytest.raises(FileNotFoundError, match=rf"'{tmp_path}/no/b'"), replacing(tmp_path / "no" / "b"):
        pass
    with pytest.raises(FileNotFoundError, match="'another'"), replacing(tmp_path / "c"):
        open("another").close()
    assert list(tmp_path.iterdir()) == []


def test_special_files_are_written_in_place() -> None:
    with replacing("/dev/null") as file:
        file.write(b"x")
    assert not Path("/dev/null").is_file()


def test_unwritable_outputs_are_refused_early(tmp_path: Path) -> None:
    check_writable("--saveEngine", str(tmp_path / "new.engine"))
    with pytest.raises(ValueError, match=r"--saveEngine=.*the folder .* does not exist"):
        check_writable("--saveEngine", str(tmp_path / "no" / "e.engine"))
    with pytest.raises(ValueError, match="is a folder"):
        check_writable("--saveEngine", str(tmp_path))


def test_folders_that_cannot_be_written_are_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.json").touch()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: allowed(path, mode) and not Path(path).is_dir())
    for name in ("old.json", "new.json"):
        with pytest.raises(ValueError, match=f"--exportTimes=.*{name}: no permission to write into the folder {tmp_path}"):
            check_writable("--exportTimes", str(tmp_path / name))
    check_writable("--exportTimes", "/dev/null")
    with pytest.raises(ValueError, match="--dumpRawBindingsToFile: no permission to write into the current folder"):
        check_folder("--dumpRawBindingsToFile")


def test_tensors_have_files_of_their_own() -> None:
    names = FileNames()
    assert [names.of(name) for name in ("a/b", "a:b", "画", "слой", "像", "a/b")] == ["a_b", "a_b.2", "_", "____", "_.2", "a_b"]


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_line() -> None:
    state = Progress(done=19, total=23, timed=812, cached=0, refused=41)
    assert summary(state, 28.5) == "19/23 workloads · 812 timed · 0 cached · 41 refused · 6 s left"
    assert summary(Progress(done=5, total=9, cached=5), 1.0) == "5/9 workloads · 0 timed · 5 cached · 0 refused"


def test_progress_when_piped_is_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 6.0, 6.0, 6.0, 7.0]).__next__
    with build_progress(Log(terminal=False), clock) as show:
        for done in (1, 2, 3):
            show(Progress(done=done, total=10))
    assert capsys.readouterr().out.count("Tactics:") == 1


def test_progress_bar_at_a_terminal_keeps_lines_whole(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(terminal=True)
    long = "x" * 300
    with build_progress(log) as show:
        show(Progress(done=1, total=2, timed=3))
        log.info(long)
        show(Progress(done=2, total=2, timed=3))
    assert f"[I] {long}\n" in capsys.readouterr().out


def test_the_bar_stops_when_the_build_fails() -> None:
    log = Log(terminal=True)
    with pytest.raises(RuntimeError), build_progress(log) as show:
        show(Progress(done=1, total=2))
        raise RuntimeError
    assert log._above is None
