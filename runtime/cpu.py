"""The CPU device: host memory, NumPy steps, streams that run at once. The reference for what every engine computes."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np

from fusion.network import TensorType
from runtime.device import (
    Binding,
    CaptureError,
    Device,
    DeviceError,
    DeviceMemoryError,
    Event,
    Graph,
    Memory,
    Program,
    Stream,
    Tensor,
)
from tactics.tactic import Copy, CpuCall, DeviceSpec, Memset, Plan

_ALIGNMENT = 256


class Recording:
    """Work that a capture has collected so far."""

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []
        self.active = True


class CpuStream(Stream):
    """Work runs when it is given, so the queue is always empty."""

    def __init__(self) -> None:
        self._recording: Recording | None = None

    @property
    def recording(self) -> Recording | None:
        """The capture that this stream takes part in, or None."""
        return self._recording if self._recording is not None and self._recording.active else None

    @recording.setter
    def recording(self, value: Recording | None) -> None:
        self._recording = value

    def add(self, work: Callable[[], object]) -> None:
        """Run ``work`` now, or record it while a capture is on."""
        recording = self._recording
        if recording is None or not recording.active:
            work()
        else:
            recording.work.append(work)

    def synchronize(self) -> None:
        if self.recording is not None:
            raise CaptureError("a stream cannot be waited for while it is being captured")

    def wait(self, event: Event) -> None:
        assert isinstance(event, CpuEvent)
        if self.recording is None and event.recording is not None and event.recording.active:
            self.recording = event.recording  # a fork joins the capture that it waits for

    def call(self, function: Callable[[], None]) -> None:
        self.add(function)


class CpuEvent(Event):
    """A moment of the host's clock."""

    def __init__(self) -> None:
        self.time = 0.0
        self.recording: Recording | None = None

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, CpuStream)
        self.recording = stream.recording
        stream.add(self._now)

    mark = record

    def _now(self) -> None:
        self.time = perf_counter()

    def synchronize(self) -> None:
        pass

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, CpuEvent)
        return self.time - earlier.time


class CpuProgram(Program):
    """Functions with their arrays."""

    def __init__(self, work: list[Callable[[], object]]) -> None:
        self._work = work

    def run(self, stream: Stream) -> None:
        assert isinstance(stream, CpuStream)
        for one in self._work:
            stream.add(one)


class CpuGraph(Graph):
    """Recorded work."""

    def __init__(self, work: list[Callable[[], object]]) -> None:
        self._work = work
        self.nodes = len(work)

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, CpuStream)
        for one in self._work:
            stream.add(one)


class CpuDevice(Device):
    """This machine's processor."""

    name = "cpu"
    alignment = 1

    def __init__(self) -> None:
        self.spec = cpu_spec()

    def activate(self) -> None:
        pass

    def allocate(self, size: int, managed: bool = False) -> Memory:
        try:
            raw = np.empty(size + _ALIGNMENT, np.uint8)
        except (MemoryError, ValueError) as error:
            raise DeviceMemoryError(f"cannot allocate {size} bytes of host memory") from error
        address = -(-raw.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        return Memory(address, size, raw)

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.empty(shape, dtype)

    def upload(self, address: int, array: np.ndarray, stream: Stream | None = None) -> None:
        if array.nbytes:
            _run(stream, lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes))

    def download(self, array: np.ndarray, address: int, stream: Stream | None = None) -> None:
        if array.nbytes:
            _run(stream, lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes))

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        if size:
            _run(stream, lambda: ctypes.memmove(target, source, size))

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        if size:
            _run(stream, lambda: ctypes.memset(address, byte, size))

    def stream(self) -> CpuStream:
        return CpuStream()

    def external_stream(self, handle: int) -> CpuStream:
        if handle:
            raise DeviceError(
                f"stream handle {handle:#x}: the CPU has no streams of other libraries; pass 0 or a Stream"
            )
        return CpuStream()

    def event(self, timing: bool = True, spin: bool = True) -> CpuEvent:
        return CpuEvent()

    def load(self, kernels: Mapping[str, bytes]) -> None:
        return None

    def program(self, plan: Plan, binding: Binding, modules: Any) -> CpuProgram:
        inputs = [_view(tensor, writable=False) for tensor in binding.inputs]
        outputs = [_view(tensor) for tensor in binding.outputs]
        packed = [_view(tensor, writable=False) for tensor in binding.packed]
        scratch = _bytes(binding.workspace, binding.workspace_size)
        work: list[Callable[[], object]] = []
        for step in plan.steps:
            if isinstance(step, CpuCall):
                work.append(_call(step, inputs, outputs, packed, scratch))
            elif isinstance(step, Memset):
                work.append(_memset(binding.address(step.buffer), step.size))
            elif isinstance(step, Copy):
                work.append(_memmove(binding.address(step.target), binding.address(step.source), step.size))
            else:
                raise DeviceError(f"the CPU cannot run a {type(step).__name__} step: the engine is for another device")
        return CpuProgram(work)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> CpuGraph:
        assert isinstance(stream, CpuStream)
        recording = Recording()
        stream.recording = recording
        try:
            enqueue()
        finally:
            recording.active = False
        return CpuGraph(recording.work)

    def synchronize(self) -> None:
        pass

    def free_memory(self) -> int:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return 0


def cpu_spec() -> DeviceSpec:
    """What this machine's processor is; the rates are plain guesses, for estimates only."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        memory = 0
    rate = 40e9 * threads
    return DeviceSpec(
        kind="cpu",
        name=_cpu_name(),
        arch=platform.machine(),
        multiprocessors=threads,
        memory_bytes=memory,
        bandwidth=1e10,
        flops={"float32": rate, "float64": rate / 2},
    )


def _cpu_name() -> str:
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as file:
                for line in file:
                    if line.startswith("model name"):
                        return line.split(":", 1)[1].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()


def _run(stream: Stream | None, work: Callable[[], object]) -> None:
    if isinstance(stream, CpuStream):
        stream.add(work)
    else:
        work()


def _call(
    step: CpuCall, inputs: list[np.ndarray], outputs: list[np.ndarray], packed: list[np.ndarray], scratch: np.ndarray
) -> Callable[[], object]:
    return step.bound(inputs, outputs, packed, scratch)


def _memset(address: int, size: int) -> Callable[[], object]:
    return lambda: ctypes.memset(address, 0, size)


def _memmove(target: int, source: int, size: int) -> Callable[[], object]:
    return lambda: ctypes.memmove(target, source, size)


def _bytes(address: int, size: int) -> np.ndarray:
    if not size or not address:
        return np.empty(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))


def _view(tensor: Tensor, writable: bool = True) -> np.ndarray:
    """The memory of ``tensor`` as an array; who holds the memory keeps it alive."""
    kind: TensorType = tensor.type
    shape = tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]
    count = int(np.prod(shape, dtype=np.int64))
    if not count or not tensor.address:  # a constant that was packed away has no memory
        return np.empty(shape if not count else (0,), kind.dtype.numpy)
    array = _bytes(tensor.address, count * kind.dtype.itemsize).view(kind.dtype.numpy).reshape(shape)
    array.flags.writeable = writable
    return array
