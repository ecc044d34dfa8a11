"""NVRTC: CUDA C++ source -> cubin, on any machine (no GPU and no driver needed).

Source: the NVRTC documentation; the resource figures come from ``--ptxas-options=-v`` in its log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

KEPT = 1024  # cubins (of 5 to 200 KB each) that a process does not compile again
INCLUDE = Path(__file__).parent / "cuda" / "include"


class CompileError(RuntimeError):
    """NVRTC refused a source; the text is its log."""


@dataclass(frozen=True)
class Resources:
    """What ptxas reported for one kernel: registers a thread, bytes of stack, spilled and static shared memory."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture, and what the compiler said about it."""

    arch: str
    image: bytes
    resources: Resources
    log: str


@cache
def _nvrtc() -> Any:
    """The bindings' module, imported late because it costs start-up time."""
    from cuda.bindings import nvrtc

    return nvrtc


@cache
def nvrtc_version() -> tuple[int, int]:
    """The NVRTC version (major, minor)."""
    nvrtc = _nvrtc()
    _, major, minor = nvrtc.nvrtcVersion()
    return int(major), int(minor)


@cache
def cuda_include_paths() -> tuple[str, ...]:
    """Folders with ``cuda_fp16.h``: the nvidia wheels' first, then a toolkit's."""
    import importlib.util
    import os

    found: list[Path] = []
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec and spec.submodule_search_locations else ():
        found += [Path(root) / name / "include" for name in ("cu13", "cu12", "cuda_runtime")]
    found += [Path(os.environ.get(name, "/nonexistent")) / "include" for name in ("CUDA_HOME", "CUDA_PATH")]
    found += [Path("/usr/local/cuda/include")]
    return tuple(str(path) for path in found if (path / "cuda_fp16.h").is_file())[:1]


@lru_cache(maxsize=KEPT)
def compile_cubin(source: str, defines: tuple[tuple[str, str], ...], arch: str, name: str = "kernel.cu") -> Cubin:
    """Compile ``source`` with ``-DNAME=value`` for ``arch`` (``"sm_75"`` .. ``"sm_120a"``) and return its cubin.

    The last ``KEPT`` are kept: builds of one process share their kernels, also those that no timing cache holds.

    Raises:
        CompileError: NVRTC refused the source, or wgmma was serialised (ptxas C7510 to C7519), which is a performance bug.
    """
    nvrtc = _nvrtc()
    options = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device", "--ptxas-options=-v", "-lineinfo"]
    options += [f"-I{INCLUDE}", *(f"-I{path}" for path in cuda_include_paths())]
    options += [f"-D{key}={value}" for key, value in defines]
    encoded = [option.encode() for option in options]
    error, program = nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], [])
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(str(error))
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        buffer = bytes(max(size, 2))  # NVRTC writes into it: it must not be one of Python's shared one-byte objects
        nvrtc.nvrtcGetProgramLog(program, buffer)
        log = buffer.rstrip(b"\0 \n").decode(errors="replace")
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"{name} for {arch}: {error}\n{log}")
        if "wgmma.mma_async instructions are serialized" in log:
            raise CompileError(f"{name} for {arch}: wgmma was serialised\n{log}")
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        image = bytes(max(size, 2))
        nvrtc.nvrtcGetCUBIN(program, image)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Cubin(arch, image, _resources(log), log)


def _resources(log: str) -> Resources:
    def largest(pattern: str) -> int:
        return max((int(found) for found in re.findall(pattern, log)), default=0)

    return Resources(
        registers=largest(r"Used (\d+) registers"),
        stack=largest(r"(\d+) bytes stack frame"),
        spill_stores=largest(r"(\d+) bytes spill stores"),
        spill_loads=largest(r"(\d+) bytes spill loads"),
        shared=largest(r"(\d+) bytes smem"),
    )
