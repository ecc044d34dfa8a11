"""Every command and every Python block of docs/performance.md runs (on the CPU device, briefly)."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from examples.dynamic_model import main as dynamic_model
from trtcli.cli import main
from trtcli.options import COMMANDS

PAGE = (Path(__file__).parent.parent / "docs" / "performance.md").read_text(encoding="utf-8")
LINES = [match[1] for match in re.finditer(r"^ +\$ (.+)$", PAGE, re.MULTILINE)]
ELSEWHERE = ("pip", "nvidia-smi", "nvidia-cuda-mps-control", "nsys", "echo", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=50")  # need a GPU
BRIEF = {"device": "cpu", "duration": "0.02", "warmUp": "0", "iterations": "3", "avgTiming": "2", "timingCacheFile": "shared.cache"}
Captured = pytest.CaptureFixture[str]


def run(words: list[str]) -> int:
    """One trtcli command, made brief where it does not say how long."""
    command = words[0] if words and words[0] in COMMANDS else "trtexec"
    known = {option.name for option in COMMANDS[command].options}
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    return main([*words, *(f"--{name}={value}" for name, value in BRIEF.items() if name in known - given)])


def test_every_command_and_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for line in LINES:
        words = shlex.split(line)
        if words[0] in ELSEWHERE:
            continue
        if words[:3] == ["python", "-m", "examples.dynamic_model"]:
            monkeypatch.setattr(sys, "argv", words[2:])
            assert dynamic_model() == 0
            continue
        assert words[0] == "trtcli", line
        code = run(words[1:])
        out, err = capsys.readouterr()
        if any(word.startswith("--limitSMs") for word in words):
            assert code == 1 and "the CPU has no streaming multiprocessors" in err, line
        else:
            assert code == 0, f"$ {line}\n{out}\n{err}"
        ran += 1
    assert ran > 25
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "performance.md", "exec"), {})


def test_the_page_covers_the_topics() -> None:
    titles = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert titles == [
        "Measure first", "Batching", "CUDA graphs", "Several streams", "Limiting compute resources", "Layer fusion", "Single layers",
        "Changes of shape", "Libraries as tactic sources", "Deterministic choice of tactics", "Python", "Accuracy against speed", "Shorter builds",
    ]  # fmt: skip
