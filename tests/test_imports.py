"""Imports run one way, in no circle, and late where they are heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("fusion", "tactics", "runtime", "trtcli")  # a package may import those before it
HEAVY = ("numpy", "onnx", "rich", "cupy", "cuda", "ml_dtypes", "safetensors", "onnxruntime", "filelock")


def _modules() -> Iterator[tuple[str, Path]]:
    for package in ORDER:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(_modules())


def _imports(path: Path, module: str, *, top_level: bool) -> set[str]:
    """Modules that a file imports; with ``top_level`` only when it is itself imported (not in functions or type checks)."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}: relative import"
                name = node.module or ""
                found.add(name)
                found.update(full for alias in node.names if (full := f"{name}.{alias.name}") in MODULES)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if not top_level:
                    visit(node.body)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                if not top_level:
                    visit(node.body)
                visit(node.orelse)
            else:
                for field in ("body", "orelse", "finalbody"):
                    visit(getattr(node, field, None) or [])
                for handler in getattr(node, "handlers", []):
                    visit(handler.body)

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    allowed = set(ORDER[: ORDER.index(package) + 1])
    for module, path in MODULES.items():
        if module.split(".")[0] != package:
            continue
        for imported in _imports(path, module, top_level=False):
            top = imported.split(".")[0]
            assert top not in ORDER or top in allowed, f"{module} imports {imported}"


def test_no_import_circle() -> None:
    graph = {
        module: {one for one in _imports(path, module, top_level=True) if one in MODULES and one != module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import circle: {' -> '.join((*trail[trail.index(module):], module))}"
        if module not in done:
            for other in sorted(graph[module]):
                # A package that its own modules import from is loaded first anyway: that is no circle.
                if not module.startswith(other + "."):
                    walk(other, (*trail, module))
            done.add(module)

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["build", "--help"], ["--onx=a"]])
def test_nothing_heavy_is_imported_for_help(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom trtcli.cli import main\n"
        f"main({arguments!r})\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_cuda_packages_are_never_imported_at_the_top() -> None:
    for module, path in MODULES.items():
        heavy = {one for one in _imports(path, module, top_level=True) if one.split(".")[0] in ("cupy", "cuda")}
        assert not heavy or module.startswith("runtime.cuda"), f"{module} imports {heavy} when it is imported"
