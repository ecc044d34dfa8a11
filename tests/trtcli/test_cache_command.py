"""``trtcli cache``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tactics.cache import Entry, Timing, TimingCache, load, write
from trtcli.cli import main

Captured = pytest.CaptureFixture[str]


def entry(shape: list[int], *timings: Timing) -> Entry:
    tensor = {"is": "TensorType", "dtype": {"dtype": "float32"}, "shape": shape}
    return Entry(
        {"workload": {"op": {"is": "Softmax"}, "inputs": [tensor], "outputs": [tensor]}, "device": ["cpu", "Test CPU"]},
        timings,
    )


FAST = Timing("cpu.a", (("n", 2),), 1e-6)
SLOW = Timing("cpu.b", (), 2e-6)
BAD = Timing("cpu.c", (), None, "too much workspace")
FIRST = entry([1, 8], FAST, SLOW, BAD)
SECOND = entry([2, 8], SLOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a.cache"
    write(file, TimingCache({one.key: one for one in (FIRST, SECOND)}, {"k": b"cubin"}))
    return file


def test_list(path: Path, capsys: Captured) -> None:
    assert main(["cache", "list", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{FIRST.key[:12]}     1.00 us  cpu.a[n=2]  Softmax float32 1x8 -> float32 1x8 on Test CPU" in out
    assert "2 entries, 1 kernels" in out
    assert main(["cache", "list", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["key"] for one in found["entries"]} == {FIRST.key, SECOND.key}


def test_show(path: Path, capsys: Captured) -> None:
    assert main(["cache", "show", str(path), FIRST.key[:10]]) == 0
    out = capsys.readouterr().out
    assert "* cpu.a[n=2]  1.00 us\n  cpu.b  2.00 us\n  cpu.c  too much workspace" in out


def test_set_changes_the_winner(path: Path) -> None:
    assert main(["cache", "set", str(path), FIRST.key, "cpu.b"]) == 0
    changed = load(path).entries[FIRST.key]
    assert changed.timings == (SLOW, FAST, BAD) and changed.level == 5  # a choice by hand answers every level


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["set", "{path}", FIRST.key, "cpu.c"], "cannot serve"),
        (["set", "{path}", FIRST.key, "cpu.z"], "was not tried"),
        (["show", "{path}", "zz"], "fits no entries"),
        (["show", "{path}", ""], "fits 2 entries"),
        (["list", "/no/such/file"], "does not exist"),
        (["list", "{path}", "{path}"], "wrong number"),
        (["explode", "{path}"], "Unknown action: explode"),
        (["list"], "Too few arguments"),
    ],
)
def test_refusals_change_nothing(path: Path, words: list[str], complaint: str, capsys: Captured) -> None:
    before = path.read_bytes()
    assert main(["cache", *(word.format(path=path) for word in words)]) == 1
    assert complaint in capsys.readouterr().err
    assert path.read_bytes() == before


def test_delete_and_diff(path: Path, tmp_path: Path, capsys: Captured) -> None:
    other = tmp_path / "b.cache"
    other.write_bytes(path.read_bytes())
    assert main(["cache", "delete", str(path), FIRST.key]) == 0
    assert set(load(path).entries) == {SECOND.key}
    capsys.readouterr()
    assert main(["cache", "diff", str(other), str(path)]) == 0
    assert f"{FIRST.key[:12]}  cpu.a[n=2] -> -" in capsys.readouterr().out


def test_merge_keeps_what_the_target_has(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.cache"
    write(target, TimingCache({FIRST.key: entry([1, 8], SLOW)}))
    assert main(["cache", "merge", str(target), str(path)]) == 0
    merged = load(target)
    assert merged.entries[FIRST.key].timings == (SLOW,)
    assert merged.entries[SECOND.key] == SECOND


def test_prune_drops_unknown_tactics_and_kernels(path: Path) -> None:
    assert main(["cache", "prune", str(path)]) == 0
    assert load(path) == TimingCache()


def test_a_broken_file_is_named(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "x.cache"
    path.write_text('{"schema": 99}')
    assert main(["cache", "list", str(path)]) == 1
    assert "x.cache: schema 99 is of a newer trtcli" in capsys.readouterr().err


def test_a_cache_is_read_without_writing_beside_it(path: Path) -> None:
    assert main(["cache", "list", str(path)]) == 0
    assert [one.name for one in path.parent.iterdir() if one.suffix == ".lock"] == []
