"""docs/python.md: every block runs, in order, in one session."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def _run(gpu: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(folder)
    session: dict[str, Any] = {}
    count = 0
    for number, block in enumerate(BLOCKS):
        if gpu or not block.startswith("# needs a GPU"):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), session)
            count += 1
    return count


def test_every_block_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(False, tmp_path, monkeypatch) >= 8
    assert "x INPUT FP32 (-1, 64)" in capsys.readouterr().out


@pytest.mark.gpu
def test_every_block_runs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    assert _run(True, tmp_path, monkeypatch) == len(BLOCKS)
