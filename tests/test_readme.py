"""What README.md and docs/ say is so: commands run, links and make targets exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMANDS = [line[len("    $ ") :] for line in README.splitlines() if line.startswith("    $ ")]
EXIT_CODES = {"trtcli check": (0, 2)}


def _program(words: list[str]) -> list[str]:
    if words[0] == "trtcli":
        return [sys.executable, "-m", "trtcli", *words[1:]]
    assert words[0] == "python", f"README runs {words[0]}, which this test does not know"
    return [sys.executable, *words[1:]]


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = []
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] in ("make", "git", "cd", "pip"):
            continue
        done = subprocess.run(
            _program(words), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        allowed = EXIT_CODES.get(" ".join(words[:2]), (0,))
        assert done.returncode in allowed, f"$ {command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        ran.append(words[0])
    assert ran.count("trtcli") >= 5


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_in_the_docs_exist(page: Path) -> None:
    for name in re.findall(r"`([A-Za-z_0-9./-]+)(?::[^`]*)?`", page.read_text(encoding="utf-8")):
        if re.match(r"(fusion|tactics|runtime|trtcli|tests|benchmarks|examples|docs)/.", name):
            found = (ROOT / name).exists() or any(ROOT.glob(f"{name}.*")) or any(ROOT.glob(f"{name}-*"))
        elif re.fullmatch(r"[a-z_0-9/]+[.](py|cuh?)", name):
            found = any(ROOT.glob(f"tactics/**/{name}")) or any(ROOT.glob(f"*/{name}"))
        else:
            continue
        assert found, f"{page.name} names {name}"


def test_every_folder_is_in_the_architecture() -> None:
    """But those of single kernel families and those in which the tests mirror the code; and every file begins with what is in it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+(?:/[a-z0-9_]+)*)/`", text))
    mirrors = {f"tests/{name}" for name in named} | {"benchmarks/gpu/sm90", "tests/harness/nv"}
    files = [file for top in sorted(name for name in named if "/" not in name) for file in (ROOT / top).rglob("*.*") if "__pycache__" not in file.parts]
    folders = {file.parent.relative_to(ROOT).as_posix() for file in files}
    missing = sorted(name for name in folders - named - mirrors if not name.startswith("tactics/cuda/"))
    assert not missing, f"docs/architecture.md lacks {missing}"
    assert {"fusion/rules", "tests/harness", "examples"} <= named <= folders
    silent = [file for file in files if file.suffix == ".py" and file.stat().st_size and not file.read_text(encoding="utf-8").startswith(('"""', "#!"))]
    assert all(file.is_relative_to(ROOT / "tests") for file in silent), silent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_the_docs_exist(page: Path) -> None:
    from trtcli.legacy import DEPRECATED, REFUSED
    from trtcli.options import COMMANDS as TABLES

    known = {option.name for table in TABLES.values() for option in table.options} | {*DEPRECATED, *REFUSED}
    for line in re.findall(r"trtcli [^\n`|]*--[^\n`|]*", page.read_text(encoding="utf-8")):
        for name in re.findall(r"--([A-Za-z][A-Za-z0-9]*)", line):
            assert name in known | {"help", "version"}, f"{page.name}: --{name}"
