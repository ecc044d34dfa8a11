"""Runs tactic plans on the CPU: CUDA kernels without inline PTX, compiled unchanged with g++ and run as fibers.

    from harness.fiber import run_plan, check      # tests/conftest.py puts tests/ on the path, or import by file
    outputs = run_plan(plan, inputs, output_types, packed=tactic.prepare(...))

What it checks besides the result: outputs and workspace start poisoned (NaN bytes), every buffer stands between guard zones
that must stay untouched, inputs must stay unchanged, and barriers must be reached by all threads of the block.
Not possible: inline PTX (``emulated`` plans have that of mma.cuh and tma.cuh). Clusters run along x, with what ``include/cluster.cuh`` has. ``__CUDA_ARCH__`` is not defined, so guard PTX fast paths with it.
Compiled kernels are kept in the temporary folder by the hash of their source, so a test pays about 1 s per new kernel.
"""

from __future__ import annotations

import ctypes
import fcntl
import getpass
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from fusion.network import TensorType
from tactics.compiler import INCLUDE, cuda_include_paths
from tactics.tactic import (
    Argument,
    Buffer,
    Copy,
    CpuCall,
    DeviceSpec,
    Kernel,
    Launch,
    Memset,
    Plan,
    Refusal,
    Scalar,
    Struct,
    Tactic,
    TensorMap,
    Workload,
)  # fmt: skip

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-w", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-gnu-unique")
GUARD = 4096
_CTYPES = {"i32": np.int32, "u32": np.uint32, "i64": np.int64, "u64": np.uint64, "f32": np.float32, "f64": np.float64}

H100 = DeviceSpec(
    "cuda", "H100 for tests", "sm_90a", 90, multiprocessors=132, shared_memory=227 * 1024, l2_bytes=50 << 20,
    memory_bytes=80 << 30, bandwidth=3.0e12, flops={"float32": 6e13, "float16": 8e14, "bfloat16": 8e14, "tf32": 4e14},
)  # fmt: skip
# Plans for this one carry no PTX for programmatic dependent launch, so they run here.
A100 = DeviceSpec(
    "cuda", "A100 for tests", "sm_80", 80, multiprocessors=108, shared_memory=163 * 1024, l2_bytes=40 << 20,
    memory_bytes=80 << 30, bandwidth=1.8e12, flops={"float32": 1.9e13, "float16": 3e14, "bfloat16": 3e14, "tf32": 1.5e14},
)  # fmt: skip


class HarnessError(RuntimeError):
    """A kernel broke a rule (barrier, guard zone, changed input) or does not compile."""


def available() -> bool:
    """Whether g++ and the CUDA headers are there."""
    return shutil.which("g++") is not None and bool(cuda_include_paths())


@cache
def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"trtcli-fiber-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    return folder


def _compile(command: Sequence[str], target: Path) -> None:
    """Runs ``command`` + ``-o target`` once, also when several test processes ask at the same time."""
    if target.exists():
        return
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        partial = f"{target}.{os.getpid()}"
        done = subprocess.run([*command, "-o", partial], capture_output=True, text=True, check=False)
        if done.returncode:
            raise HarnessError(f"g++ refused {target.name}\n{done.stderr[:6000]}")
        os.replace(partial, target)


@cache
def _header() -> Path:
    """The folder of fiber.h with its precompiled form (which saves most of the compile time)."""
    text = (HERE / "fiber.h").read_text(encoding="utf-8")
    folder = _folder() / hashlib.sha256((text + repr(FLAGS)).encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    header = folder / "fiber.h"
    if not header.exists():
        partial = folder / f"fiber.h.{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(header)
    includes = [f"-I{HERE}", *(f"-I{path}" for path in cuda_include_paths())]
    _compile(["g++", *FLAGS, *includes, "-x", "c++-header", str(header)], folder / "fiber.h.gch")
    return folder


@cache
def _headers(name: str) -> frozenset[str]:
    """The names of our headers that header ``name`` includes, and its own."""
    path = INCLUDE / name
    return _included(path.read_text(encoding="utf-8")) | {name} if path.is_file() else frozenset()


def _included(text: str) -> frozenset[str]:
    return frozenset().union(*(_headers(name) for name in re.findall(r'#include "([\w.]+)"', text)))


def _headers_text(source: str) -> str:
    """The text of the headers that ``source`` needs: an edit of another header recompiles nothing."""
    return "\n".join((INCLUDE / name).read_text(encoding="utf-8") for name in sorted(_included(source)))


@cache
def load(source: str, defines: tuple[tuple[str, str], ...], entry: str, cluster: bool = False) -> ctypes.CDLL:
    """The kernel ``entry`` of ``source`` as a library with ``int launch(void** arguments, grid, block, shared, count)``."""
    # Blocks of a cluster have a shared memory each; others share one, which is a plain pointer.
    own = r"static char unused_\2\n#define \2 (reinterpret_cast<\1*>(fiber::shared()))\n"
    source = re.sub(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+|alignas\(\d+\)\s+)?([\w:]+)\s+(\w+)\[\];",
                    own.replace(r"\2\n#", r"\2;\n#") if cluster else r"\1* const \2 = reinterpret_cast<\1*>(fiber::dynamic_shared);", source)  # fmt: skip
    macros = "".join(f"#define {name} {value}\n" for name, value in defines)
    text = (
        f'#include "fiber.h"\n{macros}{source}\n'
        'extern "C" int fiber_launch(void** arguments, const unsigned* grid, const unsigned* block, size_t shared, int count) {\n'
        f"    return fiber::launch({entry}, arguments, grid, block, shared, count);\n}}\n"
        'extern "C" void fiber_cluster(unsigned blocks) { fiber::cluster_size = blocks; }\n'
    )
    header = _header()
    digest = hashlib.sha256(f"{text}{_headers_text(source)}{header}".encode()).hexdigest()[:24]
    unit = _folder() / f"{digest}.cpp"
    if not unit.exists():
        partial = unit.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(text, encoding="utf-8")
        partial.replace(unit)
    includes = [f"-I{header}", f"-I{HERE}", f"-I{INCLUDE}", *(f"-I{path}" for path in cuda_include_paths())]
    library = _folder() / f"{digest}.so"
    _compile(["g++", *FLAGS, *includes, "-shared", str(unit)], library)
    return ctypes.CDLL(str(library))


class _Memory:
    """Bytes between two guard zones, 256-byte aligned."""

    def __init__(self, size: int, fill: np.ndarray | int) -> None:
        self.size = size
        raw = np.full(size + 2 * GUARD + 256, 0xFF, np.uint8)
        start = -raw.ctypes.data % 256 + GUARD
        self.raw, self.start = raw, start
        self.bytes = raw[start : start + size]
        self.bytes[:] = fill if isinstance(fill, int) else np.ascontiguousarray(fill).reshape(-1).view(np.uint8)

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data if self.size else self.raw.ctypes.data + self.start

    def intact(self) -> bool:
        return bool((self.raw[: self.start] == 0xFF).all() and (self.raw[self.start + self.size :] == 0xFF).all())


def run_plan(
    plan: Plan, inputs: Sequence[np.ndarray], outputs: Sequence[TensorType], packed: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, ...]:
    """The outputs of ``plan`` for ``inputs``. Where the plan says that output 0 may be written over an input, that is done too, for each.

    Raises:
        HarnessError: a kernel does not compile, dead-locks, writes outside its buffers, changes an input, or computes something else when it
            writes over one.
    """
    found = _run(plan, inputs, outputs, packed)
    for number in plan.in_place:
        over = _run(plan, inputs, outputs, packed, number)
        for index, (one, other) in enumerate(zip(found, over, strict=True)):
            if one.tobytes() != other.tobytes():
                names = ", ".join(map(_name, plan.steps))
                raise HarnessError(f"{names}: output {index} is another when output 0 is written over input {number}")
    return found


def _run(
    plan: Plan, inputs: Sequence[np.ndarray], outputs: Sequence[TensorType], packed: Sequence[np.ndarray], over: int | None = None
) -> tuple[np.ndarray, ...]:
    """One run; ``over`` is the input whose memory output 0 is."""
    memory: dict[tuple[str, int], _Memory] = {("workspace", 0): _Memory(plan.workspace, 0xFF)}
    for index, array in enumerate(inputs):
        memory["input", index] = _Memory(array.nbytes, array)
    for index, array in enumerate(packed):
        memory["packed", index] = _Memory(array.nbytes, array)
    for index, tensor in enumerate(outputs):
        count = int(np.prod([int(dim) for dim in tensor.shape], dtype=np.int64))  # type: ignore[arg-type]
        memory["output", index] = _Memory(count * tensor.dtype.itemsize, 0xFF if tensor.dtype.is_float else 0xA5)
    if over is not None:
        assert memory["output", 0].size == memory["input", over].size, f"input {over} has another size than output 0"
        memory["output", 0] = memory["input", over]
    originals = {key: one.bytes.copy() for key, one in memory.items() if key[0] in ("input", "packed")}

    def at(buffer: Buffer) -> int:
        return memory[buffer.kind, buffer.index].address + buffer.offset

    for step in plan.steps:
        if isinstance(step, Launch):
            _launch(step, at)
        elif isinstance(step, Memset):
            ctypes.memset(at(step.buffer), 0, step.size)
        elif isinstance(step, Copy):
            ctypes.memmove(at(step.target), at(step.source), step.size)
        else:
            assert not isinstance(step, CpuCall), "a NumPy step in a CUDA plan"
        for key, one in memory.items():
            if not one.intact():
                raise HarnessError(f"{_name(step)} wrote outside {key[0]} {key[1]}")
    for key, before in originals.items():
        if key != ("input", over) and not np.array_equal(before, memory[key].bytes):
            raise HarnessError(f"{key[0]} {key[1]} was changed")
    return tuple(
        memory["output", index].bytes.view(tensor.dtype.numpy).reshape([int(dim) for dim in tensor.shape]).copy()  # type: ignore[arg-type]
        for index, tensor in enumerate(outputs)
    )


def _name(step: object) -> str:
    return f"kernel {step.kernel.entry}" if isinstance(step, Launch) else type(step).__name__


def _launch(step: Launch, at) -> None:  # noqa: ANN001
    if step.cluster[1:] != (1, 1):
        raise HarnessError(f"{_name(step)} needs a cluster of {step.cluster}")
    limits = (2**31 - 1, 65535, 65535)
    if any(not 0 < size <= limit for size, limit in zip(step.grid, limits, strict=True)):
        raise HarnessError(f"{_name(step)}: grid {step.grid} is outside 1..{limits}")
    if not 0 < int(np.prod(step.block)) <= 1024:
        raise HarnessError(f"{_name(step)}: block {step.block}")
    library = load(step.kernel.source(), step.kernel.defines, step.kernel.entry, step.cluster[0] > 1)
    library.fiber_cluster(step.cluster[0])
    values = [_encode(argument, at) for argument in step.arguments]
    buffers = [ctypes.create_string_buffer(value, max(1, len(value))) for value in values]
    pointers = (ctypes.c_void_p * max(1, len(buffers)))(*(ctypes.addressof(buffer) for buffer in buffers))
    grid, block = ((ctypes.c_uint * 3)(*sizes) for sizes in (step.grid, step.block))
    status = library.fiber_launch(pointers, grid, block, ctypes.c_size_t(step.shared_memory), len(buffers))
    if status:
        reason = "its threads wait for each other for ever" if status == 1 else f"it does not take {len(buffers)} arguments"
        raise HarnessError(f"{_name(step)}: {reason}")


def _encode(argument: Argument, at) -> bytes:  # noqa: ANN001
    if isinstance(argument, Buffer):
        return np.uint64(at(argument)).tobytes()
    if isinstance(argument, Scalar):
        return _CTYPES[argument.ctype](argument.value).tobytes()
    if isinstance(argument, Struct):
        data, widest = b"", 1
        for item in argument.fields:
            value = _encode(item, at)
            widest = max(widest, len(value))
            data += b"\0" * (-len(data) % len(value)) + value
        return data + b"\0" * (-len(data) % widest)
    assert isinstance(argument, TensorMap)
    if argument.im2col or argument.element_strides or argument.tf32:
        raise HarnessError("tensor maps with im2col, steps or TF32 need a GPU")
    sizes = (argument.dims, (argument.dtype.itemsize, *argument.strides), argument.box)
    padded = [size for part in sizes for size in (*part, *(0,) * (5 - len(part)))]
    return struct.pack("<Q15q2i", at(argument.buffer), *padded, len(argument.dims), argument.swizzle)  # TensorMap of tma_emulation.h


def check(
    tactic: Tactic, workload: Workload, inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray], *,
    device: DeviceSpec = A100, tolerance: Mapping[str, float] | None = None, configs: int = 8,
) -> None:  # fmt: skip
    """Runs every configuration (the first ``configs``) of ``tactic`` here and compares with ``expected``.

    The relative error (norm of the difference over the norm) must stay under the tactic's own tolerance for narrow types and
    under 1e-5 for float32; integers and bool must be equal. A refusal is an error.
    """
    refusal = tactic.supports(workload, device)
    if isinstance(refusal, Refusal):
        raise AssertionError(f"{tactic.id} refuses: {refusal.reason}")
    found = tactic.configs(workload, device)
    assert found, f"{tactic.id} has no configuration"
    constants = {index: array for index, array in enumerate(inputs) if workload.constant and workload.constant[index]}
    for one in found[:configs]:
        plan = tactic.plan(workload, one, device)
        results = run_plan(plan, inputs, workload.outputs, tactic.prepare(workload, one, constants))
        for index, (result, truth) in enumerate(zip(results, expected, strict=True)):
            close(result, truth, f"{tactic.id} {dict(one)} output {index}", tolerance)


LIMITS = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-5, "float64": 1e-12}


def close(result: np.ndarray, truth: np.ndarray, what: str, limits: Mapping[str, float] | None = None) -> None:
    """Asserts that ``result`` is ``truth`` within the limit of its data type, with the same NaNs and infinities."""
    assert result.shape == truth.shape, f"{what}: shape {result.shape}, not {truth.shape}"
    name = result.dtype.name
    if name not in LIMITS:
        wrong = np.flatnonzero((result != truth.astype(result.dtype)).reshape(-1))
        assert not wrong.size, f"{what}: {wrong.size} of {result.size} differ, first at {wrong[0]}: {result.flat[wrong[0]]}, not {truth.flat[wrong[0]]}"
        return
    got, want = result.astype(np.float64), truth.astype(result.dtype).astype(np.float64)
    special = ~np.isfinite(want) | ~np.isfinite(got)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    wrong = np.flatnonzero((special & ~same).reshape(-1))
    assert not wrong.size, f"{what}: {wrong.size} of {result.size} not finite, first at {wrong[0]}: {got.flat[wrong[0]]}, not {want.flat[wrong[0]]}"
    got, want = got[~special], want[~special]
    scale = np.linalg.norm(want)
    error = np.linalg.norm(got - want) / scale if scale else np.abs(got).max(initial=0.0)
    limit = {**LIMITS, **(limits or {})}[name]
    assert error <= limit, f"{what}: relative error {error:.2e}, allowed {limit:.0e}"


def kernels(plan: Plan) -> tuple[Kernel, ...]:
    """The distinct kernels of a plan, in order."""
    return tuple(dict.fromkeys(step.kernel for step in plan.steps if isinstance(step, Launch)))
