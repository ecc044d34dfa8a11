"""The device interface: all that the rest of the runtime knows about a GPU or a CPU.

Addresses are integers on both. A stream runs what it is given in order; events mark points in a stream and tell the time between
them; a program is a layer's plan bound to addresses; a graph is a recorded sequence of programs that one call launches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.network import TensorType
from tactics.tactic import Buffer, DeviceSpec, Plan


class DeviceError(RuntimeError):
    """A device is missing, or an operation on it failed."""


class DeviceMemoryError(DeviceError):
    """The device has not enough free memory."""


class DeviceLostError(DeviceError):
    """A kernel broke the device's state (an illegal address, for example): nothing runs in this process any more."""


class CaptureError(DeviceError):
    """Work could not be recorded into a graph."""


@dataclass(frozen=True)
class Memory:
    """A piece of device memory (at least 256-byte aligned), given back when the last reference to it is dropped."""

    address: int
    size: int
    owner: object = None


@dataclass(frozen=True)
class Tensor:
    """A tensor in device memory: where, and its concrete type."""

    address: int
    type: TensorType


@dataclass(frozen=True)
class Binding:
    """The addresses behind the buffers that a plan names."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    packed: tuple[Tensor, ...] = ()
    workspace: int = 0
    workspace_size: int = 0

    def address(self, buffer: Buffer) -> int:
        """The address that ``buffer`` means here.

        Raises:
            DeviceError: the layer has no such tensor, or a constant was packed away and has no address.
        """
        if buffer.kind == "workspace":
            return self.workspace + buffer.offset
        tensors = {"input": self.inputs, "output": self.outputs, "packed": self.packed}.get(buffer.kind, ())
        if buffer.index >= len(tensors) or (
            not tensors[buffer.index].address and _elements(tensors[buffer.index].type)
        ):
            raise DeviceError(f"the plan uses {buffer.kind} {buffer.index}, which has no memory")
        return tensors[buffer.index].address + buffer.offset


def _elements(tensor: TensorType) -> int:
    count = 1
    for dim in tensor.shape:
        assert isinstance(dim, int)
        count *= dim
    return count


def to_host(device: Device, tensor: Tensor, stream: Stream) -> np.ndarray[Any, Any]:
    """The tensor's values in an array of its shape; waits for the stream."""
    kind = tensor.type
    shape = tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]
    array: np.ndarray[Any, Any] = np.empty(shape, kind.dtype.numpy)
    if not kind.pitch or not array.size:
        device.download(array, tensor.address, stream)
        stream.synchronize()
        return array
    rows = array.size // shape[-1]  # columns of a wider tensor: the last row may end before the next one would begin
    memory = np.empty((rows - 1) * kind.pitch + shape[-1], kind.dtype.numpy)
    device.download(memory, tensor.address, stream)
    stream.synchronize()
    for row in range(rows):
        array.reshape(rows, shape[-1])[row] = memory[row * kind.pitch : row * kind.pitch + shape[-1]]
    return array


class Stream(ABC):
    """A queue of work. ``handle`` is the driver's (0 on the CPU); ``legacy`` marks CUDA's legacy default stream, which all others wait for."""

    handle: int = 0
    legacy: bool = False

    @property
    def capturing(self) -> bool:
        """Whether work given to the stream is recorded into a graph now, instead of run."""
        return False

    @abstractmethod
    def synchronize(self) -> None:
        """Return when all work given to the stream has ended."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Later work of this stream starts after ``event``."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Wait so long, at most an hour, when the stream gets there."""


class Event(ABC):
    """A point in a stream."""

    @abstractmethod
    def record(self, stream: Stream) -> None:
        """Mark the end of the work that ``stream`` has now."""

    @abstractmethod
    def mark(self, stream: Stream) -> None:
        """As :meth:`record`; within a capture, every launch of the graph records the event again."""

    @abstractmethod
    def synchronize(self) -> None:
        """Return when the point has been reached."""

    @abstractmethod
    def seconds_since(self, earlier: Event) -> float:
        """Time between two reached points."""


class Program(ABC):
    """A plan bound to addresses. ``keep`` holds what must live as long: who owns the memory there, as far as that is not the caller's."""

    keep: object = None

    @abstractmethod
    def run(self, stream: Stream) -> None:
        """Enqueue its steps. Allocates nothing, waits for nothing."""


class Graph(ABC):
    """A recorded sequence of work. ``nodes`` is how many operations it holds."""

    nodes: int = 0

    @abstractmethod
    def launch(self, stream: Stream) -> None:
        """Enqueue all of it."""


class Device(ABC):
    """One GPU, or the CPU."""

    spec: DeviceSpec
    name: str  # what --device takes: "0", "cpu"
    alignment: int = 16  # bytes, of tensors that callers provide (vector loads and TMA need it)

    @abstractmethod
    def activate(self) -> None:
        """Make this the device of the calling thread from now on."""

    @abstractmethod
    def current(self) -> AbstractContextManager[object]:
        """Within it this is the device of the calling thread; behind it that is again what it was before. Execution contexts and builds see to it
        themselves; programs, graphs and memory that are used without them need it (or :meth:`activate`)."""

    @abstractmethod
    def allocate(self, size: int, managed: bool = False) -> Memory:
        """``size`` bytes, contents undefined; ``managed``: in memory that host and device share.

        Raises:
            DeviceMemoryError: there is not that much.
        """

    @abstractmethod
    def host_array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array on the host that asynchronous copies can use (page-locked)."""

    @abstractmethod
    def upload(self, address: int, array: np.ndarray, stream: Stream | None = None) -> None:
        """Copy a C-contiguous host array to the device; without ``stream`` it is there on return."""

    @abstractmethod
    def download(self, array: np.ndarray, address: int, stream: Stream | None = None) -> None:
        """Copy device memory into a C-contiguous host array; without ``stream`` it is there on return."""

    @abstractmethod
    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy ``size`` bytes within the device."""

    @abstractmethod
    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        """Set ``size`` bytes to ``byte``."""

    @abstractmethod
    def stream(self, concurrent: bool = False) -> Stream:
        """A new stream. ``concurrent``: its work runs beside the calling thread, as on a GPU it always does; the CPU gives it a thread."""

    @abstractmethod
    def external_stream(self, handle: int) -> Stream:
        """A stream that someone else owns (``torch.cuda.current_stream().cuda_stream``, for example)."""

    @abstractmethod
    def event(self, timing: bool = True, spin: bool = True) -> Event:
        """A new event; ``spin``: waiting for it polls instead of sleeping (sooner back, one CPU core busy)."""

    @abstractmethod
    def load(self, kernels: Mapping[str, bytes]) -> Any:
        """Make cubins (by :meth:`tactics.tactic.Kernel.key`) ready to launch; the result goes to :meth:`program`."""

    @abstractmethod
    def program(self, plan: Plan, binding: Binding, modules: Any) -> Program:
        """``plan`` with every argument resolved and packed, so that running it only enqueues.

        Raises:
            DeviceError: a kernel is missing or cannot be launched as the plan says.
        """

    @abstractmethod
    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` puts on ``stream`` (and on streams that fork from it and join again), without running it.

        Raises:
            CaptureError: something in it cannot be recorded; the stream is usable again.
        """

    @abstractmethod
    def synchronize(self) -> None:
        """Return when all work on the device has ended."""

    @abstractmethod
    def free_memory(self) -> int:
        """Bytes that could be allocated now."""

    def memory_usage(self) -> tuple[int, int]:
        """Bytes of device memory that all programs use now, and the most that this process ever held for tensors; (0, 0) where it is the host's."""
        return 0, 0

    def library(self, name: str) -> Any:
        """A vendor's library (a tactic source) on this device; see :class:`runtime.libraries.Binding`.

        Raises:
            DeviceError: it is not installed, or not for this kind of device.
        """
        raise DeviceError(f"--tacticSources=+{name}: it is for GPUs, the device is the {self.spec.kind.upper()}")

    def profiler(self, start: bool) -> None:
        """Tell an attached external profiler that the interesting part starts or stops."""
        del start

    def properties(self) -> dict[str, str | int | float]:
        """Facts for reports beyond ``spec``: driver, UUID, clocks, bus width."""
        return {}
