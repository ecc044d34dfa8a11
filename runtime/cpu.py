"""The CPU device: host memory, NumPy steps, streams that run at once or in threads. The reference for what every engine computes."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from time import perf_counter, sleep
from typing import Any
from weakref import WeakSet, finalize

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
    """What a capture has collected so far: what to do, and on which stream (None: the one that the graph is launched on)."""

    def __init__(self, origin: CpuStream) -> None:
        self.origin = origin
        self.operations: list[tuple[CpuStream | None, Callable[[CpuStream], None]]] = []
        self.nodes = 0
        self.active = True

    def append(self, stream: CpuStream, operation: Callable[[CpuStream], None], nodes: int = 0) -> None:
        """Record ``operation``, which counts as so many nodes of the graph."""
        self.operations.append((None if stream is self.origin else stream, operation))
        self.nodes += nodes


class _Point:
    """A moment that a stream's thread has yet to reach, and what went wrong before it."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self.failure: BaseException | None = None

    def reach(self, failure: BaseException | None) -> None:
        self.failure = failure
        self._reached.set()

    def wait(self) -> None:
        """Return when it is reached.

        Raises:
            whatever failed before it in its stream.
        """
        self.reached()
        if self.failure is not None:
            raise self.failure

    def reached(self) -> None:
        """Return when it is reached, whatever happened before it."""
        self._reached.wait()


class _Worker:
    """The thread of a concurrent stream: runs work in order; after a failure it drops work until someone has been told."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[Callable[[], object] | _Point | None] = SimpleQueue()
        self.failure: BaseException | None = None
        threading.Thread(target=self._loop, name="trtcli-stream", daemon=True).start()

    def _loop(self) -> None:
        while (item := self.queue.get()) is not None:
            if isinstance(item, _Point):
                item.reach(self.failure)
            elif self.failure is None:
                try:
                    item()
                except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                    self.failure = error
            del item  # it may hold arrays


class CpuStream(Stream):
    """Work runs when it is given, in the caller's thread, so the queue is always empty; a ``concurrent`` stream has a thread of its own."""

    def __init__(self, concurrent: bool = False) -> None:
        self._recording: Recording | None = None
        self._worker = _Worker() if concurrent else None
        if self._worker is not None:
            finalize(self, self._worker.queue.put, None)

    @property
    def recording(self) -> Recording | None:
        """The capture that this stream takes part in, or None."""
        return self._recording if self._recording is not None and self._recording.active else None

    @recording.setter
    def recording(self, value: Recording | None) -> None:
        self._recording = value

    @property
    def capturing(self) -> bool:
        return self.recording is not None

    def add(self, work: Callable[[], object]) -> None:
        """Run ``work`` now or in the stream's thread, or record it while a capture is on."""
        recording = self._recording
        if recording is not None and recording.active:
            recording.append(self, lambda stream: stream.add(work), 1)
        elif self._worker is not None:
            self._worker.queue.put(work)
        else:
            work()

    def point(self) -> _Point | None:
        """The end of the work that the stream has now; None when that has been reached."""
        if self._worker is None:
            return None
        point = _Point()
        self._worker.queue.put(point)
        return point

    def synchronize(self) -> None:
        if self.recording is not None:
            raise CaptureError("a stream cannot be waited for while it is being captured")
        if self._worker is not None:
            try:
                point = self.point()
                assert point is not None
                point.wait()
            finally:
                self._worker.failure = None

    def settle(self) -> None:
        """Return when all work given to the stream has ended or failed; whoever waits for the stream is told of failures."""
        if self._worker is not None:
            point = self.point()
            assert point is not None
            point.reached()

    def wait(self, event: Event) -> None:
        assert isinstance(event, CpuEvent)
        if self.recording is None and event.recording is not None and event.recording.active:
            self.recording = event.recording  # a fork joins the capture that it waits for
        recording = self.recording
        if recording is not None:
            recording.append(self, lambda stream: stream.wait(event))
            return
        point = event.point
        if point is None:
            return
        if self._worker is not None:
            self._worker.queue.put(point.wait)
        else:
            point.wait()

    def sleep(self, seconds: float) -> None:
        self.add(lambda: sleep(seconds))


class CpuEvent(Event):
    """A moment of the host's clock."""

    def __init__(self) -> None:
        self.time = 0.0
        self.recording: Recording | None = None
        self.point: _Point | None = None

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, CpuStream)
        self.recording = stream.recording
        if self.recording is not None:
            self.recording.append(stream, self.record)
            return
        stream.add(self._now)
        self.point = stream.point()

    mark = record

    def _now(self) -> None:
        self.time = perf_counter()

    def synchronize(self) -> None:
        if self.point is not None:
            self.point.wait()

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
    """Recorded work; streams that forked while it was captured take part in every launch."""

    def __init__(self, recording: Recording) -> None:
        self._operations = recording.operations
        self.nodes = recording.nodes

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, CpuStream)
        for where, operation in self._operations:
            operation(where or stream)


class CpuDevice(Device):
    """This machine's processor."""

    name = "cpu"
    alignment = 1

    def __init__(self) -> None:
        self.spec = cpu_spec()
        self._threads: WeakSet[CpuStream] = WeakSet()  # streams that run beside their callers

    def activate(self) -> None:
        pass

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

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

    def stream(self, concurrent: bool = False) -> CpuStream:
        made = CpuStream(concurrent)
        if concurrent:
            self._threads.add(made)
        return made

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
        recording = Recording(stream)
        stream.recording = recording
        try:
            enqueue()
        finally:
            recording.active = False
        return CpuGraph(recording)

    def synchronize(self) -> None:
        for stream in list(self._threads):
            stream.settle()

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
    if kind.pitch:
        rows, itemsize = count // shape[-1], kind.dtype.itemsize
        memory = _bytes(tensor.address, ((rows - 1) * kind.pitch + shape[-1]) * itemsize).view(kind.dtype.numpy)
        steps = [int(np.prod(shape[axis + 1 : -1], dtype=np.int64)) * kind.pitch * itemsize for axis in range(len(shape) - 1)]
        return np.lib.stride_tricks.as_strided(memory, shape, (*steps, itemsize), writeable=writable)
    array = _bytes(tensor.address, count * kind.dtype.itemsize).view(kind.dtype.numpy).reshape(shape)
    array.flags.writeable = writable
    return array
