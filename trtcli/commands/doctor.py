"""``trtcli doctor``: what this machine offers, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from trtcli import host
from trtcli.answer import answer
from trtcli.errors import PASSED
from trtcli.log import Log
from trtcli.parse import Parsed
from trtcli.version import __version__

SCHEMA = 1


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is there, what it is, and what to do when it is not."""

    name: str
    ok: bool
    text: str
    advice: str = ""


def run(parsed: Parsed, log: Log) -> int:
    """Print all findings; a missing GPU is no failure."""
    findings = examine()
    answer(
        parsed,
        lambda: {"schema": SCHEMA, "trtcli": __version__, "findings": [asdict(one) for one in findings]},
        lambda: finding_lines(findings),
    )
    return PASSED


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding, and one for its advice."""
    width = max(len(one.name) for one in findings)
    lines = []
    for one in findings:
        lines.append(f"{'ok     ' if one.ok else 'missing'}  {one.name:<{width}}  {one.text}")
        if one.advice:
            lines.append(f"{'':<{11 + width}}{one.advice}")
    return lines


def examine() -> list[Finding]:
    """Every finding, in the order in which they depend on each other."""
    driver = host.cuda_version()
    wanted = host.extra() or "gpu"
    install = f"pip install 'trtcli[{wanted}]'"
    return [
        Finding("trtcli", True, __version__),
        Finding("Python", True, f"{platform.python_version()} ({sys.executable})"),
        _cpu(),
        *_packages(("numpy", "onnx", "ml_dtypes", "safetensors"), "pip install --force-reinstall trtcli"),
        _driver(driver),
        *_gpus(driver),
        *_share(driver),
        _first_package(("cupy-cuda13x", "cupy-cuda12x", "cupy"), install),
        *_packages(("cuda-bindings",), install),
        _nvrtc(install),
        _headers(install),
        *_sources(driver),
    ]


def _cpu() -> Finding:
    from runtime.devices import open_device

    spec = open_device("cpu").spec
    memory = f"{spec.memory_bytes / 2**30:.0f} GiB"
    return Finding("CPU", True, f"{spec.name} ({spec.arch}, {spec.multiprocessors} threads, {memory})")


def _packages(names: tuple[str, ...], advice: str) -> list[Finding]:
    return [_first_package((name,), advice) for name in names]


def _first_package(names: tuple[str, ...], advice: str) -> Finding:
    for name in names:
        try:
            return Finding(name, True, version(name))
        except PackageNotFoundError:
            continue
    return Finding(names[0], False, "not installed", advice)


def _driver(found: int) -> Finding:
    if found:
        return Finding("NVIDIA driver", True, f"supports CUDA {found // 1000}.{found % 1000 // 10}")
    return Finding(
        "NVIDIA driver", False, "no driver, or no GPU behind it", "models run on the CPU device; engines for GPUs need one"
    )


def _gpus(driver: int) -> list[Finding]:
    from runtime.cuda_driver import device_count
    from runtime.device import DeviceError
    from runtime.devices import open_device
    from trtcli.session.device import device_line

    if not driver:
        return []
    findings = []
    for number in range(device_count()):
        try:
            findings.append(Finding(f"GPU {number}", True, device_line(open_device(str(number)))))
        except (DeviceError, ImportError) as error:
            findings.append(Finding(f"GPU {number}", False, str(error).split("\n")[0]))
    return findings


def _share(driver: int) -> list[Finding]:
    """The share of the GPU that the Multi-Process Service leaves this process."""
    if not driver:
        return []
    share, warning = host.mps_share(os.environ)
    return [Finding("Share of the GPU", not warning, f"MPS {share}" if share else "all of it", warning)]


def _nvrtc(advice: str) -> Finding:
    from tactics.compiler import CompileError, compile_cubin, nvrtc_version

    try:
        major, minor = nvrtc_version()
        compile_cubin('extern "C" __global__ void empty() {}', (), "sm_80")
    except (ImportError, RuntimeError, CompileError) as error:
        return Finding("NVRTC", False, str(error).split("\n")[0], advice)
    return Finding("NVRTC", True, f"{major}.{minor}, compiles")


def _sources(driver: int) -> list[Finding]:
    """The libraries that ``--tacticSources`` may turn on. None of them is needed."""
    from runtime.libraries import SOURCES, find

    if not driver:
        return []
    files = {name: find(name) for name in SOURCES}
    return [
        Finding(f"{name} (optional)", bool(file), file or "not installed", "" if file else f"pip install 'trtcli[{SOURCES[name].extra}]'")
        for name, file in files.items()
    ]


def _headers(advice: str) -> Finding:
    from tactics.compiler import cuda_include_paths

    paths = cuda_include_paths()
    return Finding("CUDA headers", bool(paths), paths[0] if paths else "cuda_fp16.h not found", "" if paths else advice)
