"""Measurements are recorded, read back and shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.runner import compare, load, record
from benchmarks.table import latest, table


def test_a_result_keeps_medians_ratio_and_origin(tmp_path: Path) -> None:
    result = compare("net, batch 1", [2.0, 1.0, 4.0], "ms", [5.0, 3.0, 4.0], "peer 1.0", device="Test GPU", driver="1")
    assert (result.ours, result.peer, result.ratio) == (2.0, 4.0, 2.0)
    assert result.spread == pytest.approx(1.5)
    assert result.date and result.versions["python"] and result.command.startswith("python ")
    path = record("x", [result], tmp_path)
    record("x", [replace(result, ours=1.0)], tmp_path)
    assert load(path) == [result, replace(result, ours=1.0)]


def test_no_peer_and_no_measurement() -> None:
    assert compare("w", [1.0], "us", device="d").ratio is None
    with pytest.raises(ValueError, match="nothing was measured"):
        compare("w", [], "us", device="d")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"workload": "w"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1"):
        load(path)


def test_the_table_shows_the_newest_of_each_workload() -> None:
    old = replace(compare("a", [2.0], "ms", [3.0], "peer 1", device="D"), date="2026-01-01", commit="abc")
    new = replace(old, ours=1.0, ratio=3.0, date="2026-01-02")
    other = replace(old, workload="b", peer=None, ratio=None, note="cold")
    assert latest([old, other, new]) == [new, other]
    assert table([old, other, new]).splitlines()[4:] == [
        "| a | 1 ms | 3 ms | peer 1 | 3.00 | 0.0 % |",
        "| b (cold) | 2 ms | - | peer 1 | - | 0.0 % |",
    ]
