"""``trtcli compare``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trtcli.cli import main
from trtcli.report.comparison import Row, compare, comparison_lines

Captured = pytest.CaptureFixture[str]


def profile(path: Path, **layers: float) -> str:
    rows = [{"name": name, "averageMs": ms, "timeMs": 9, "medianMs": 9, "percentage": 9} for name, ms in layers.items()]
    path.write_text(json.dumps([{"count": 10}, *rows]))
    return str(path)


def test_rows_and_totals() -> None:
    found = compare({"a": 1.0, "gone": 2.0, "same": 3.0, "untimed": None}, {"a": 1.5, "new": 4.0, "same": 3.0})
    assert found.rows[0] == Row("new", None, 4.0)
    assert (found.a, found.b) == (6.0, 8.5)
    assert found.percent == pytest.approx(41.6667, 1e-4)
    assert comparison_lines(compare({"a": 1.0}, {"a": 1.0}))[1].endswith("(1 layer within 1 %)")
    assert comparison_lines(found) == [
        "    A (ms)      B (ms)     change  layer",
        "         -      4.0000     only B  new",
        "    2.0000           -     only A  gone",
        "    1.0000      1.5000    +50.0 %  a",
        "                                   (2 layers within 1 %)",
        "    6.0000      8.5000    +41.7 %  total",
    ]


@pytest.mark.parametrize(("b", "threshold", "code"), [(1.04, [], 0), (1.06, [], 3), (1.06, ["--threshold=10"], 0),
                                                      (0.5, ["--threshold=0"], 0), (1.001, ["--threshold=0"], 3)])  # fmt: skip
def test_exit_codes(tmp_path: Path, b: float, threshold: list[str], code: int) -> None:
    assert main(["compare", profile(tmp_path / "a", x=1.0), profile(tmp_path / "b", x=b), *threshold]) == code


def test_json_and_layer_information(tmp_path: Path, capsys: Captured) -> None:
    layers = tmp_path / "layers.json"
    layers.write_text(json.dumps({"Layers": [{"Name": "x", "TimeMs": 2.0}, {"Name": "view", "TimeMs": None}]}))
    assert main(["compare", str(layers), profile(tmp_path / "b", x=1.0), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["percent"], found["regression"], found["aMs"]) == (-50.0, False, 2.0)


def test_files_without_times(tmp_path: Path, capsys: Captured) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"Layers": ["a", "b"]}))
    junk = tmp_path / "junk"
    junk.write_bytes(b"\x00" * 100)
    good = profile(tmp_path / "b", x=1.0)
    for bad in (str(names), str(junk), str(tmp_path / "absent"), str(tmp_path)):
        assert main(["compare", bad, good]) == 1
    err = capsys.readouterr().err
    assert "it holds layer names only" in err
    assert "Traceback" not in err and "fault of trtcli" not in err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "it names no layer"),
        ('[{"count": 3}]', "it names no layer"),
        ('{"Layers": []}', "it names no layer"),
        ("{}", "it has no 'Layers'"),
        ('[{"startEnqMs": 1}]', "it has no 'name'"),
        ('[{"name": "x", "averageMs": NaN}]', "layer 'x' took nan ms"),
        ('[{"name": "x", "averageMs": -1}]', "layer 'x' took -1.0 ms"),
        ('[{"name": "x", "averageMs": "fast"}]', "could not convert string to float: 'fast'"),
    ],
)
def test_nothing_to_compare_is_no_improvement(text: str, reason: str, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "bad.json").write_text(text)
    assert main(["compare", profile(tmp_path / "a", x=1.0), str(tmp_path / "bad.json")]) == 1
    assert f"bad.json: no layer times ({reason}); give a file of --exportProfile" in capsys.readouterr().err


def test_a_model_has_no_times(tmp_path: Path, capsys: Captured) -> None:
    assert main(["compare", str(tmp_path / "m.onnx"), "b"]) == 1
    assert "m.onnx: a model has no layer times; build an engine of it, or profile it with --exportProfile" in capsys.readouterr().err


def test_wrong_number_of_words(capsys: Captured) -> None:
    assert main(["compare", "a"]) == 1
    assert "Too few arguments" in capsys.readouterr().err
    assert main(["compare", "a", "b", "c"]) == 1
