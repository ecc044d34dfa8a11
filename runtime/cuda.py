"""The CUDA device: cupy for memory, streams, events, modules and graphs; launches through the driver with prepacked arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from runtime import cuda_driver, libraries
from runtime.cuda_context import InContext, current_context, select_context
from runtime.cuda_driver import LaunchConfig, failure
from runtime.cuda_green import GreenContext, green_context
from runtime.cuda_launch import launch_config, pack_arguments
from runtime.cuda_spec import cuda_properties, cuda_spec
from runtime.device import (
    Binding,
    CaptureError,
    Device,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    Event,
    Graph,
    Memory,
    Program,
    Stream,
)  # fmt: skip
from runtime.tensor_map import encode
from tactics.tactic import Copy, DeviceSpec, Launch, LibraryCall, Memset, Plan

# CUfunction_attribute numbers (cuda.h)
_MAX_DYNAMIC_SHARED, _REQUIRED_CLUSTER, _NON_PORTABLE_CLUSTER = 8, (11, 12, 13), 14
_PORTABLE_CLUSTER = 8  # blocks
_EVENT_RECORD_EXTERNAL = 1
_LEGACY = (0, 1)  # stream handles: none, and CU_STREAM_LEGACY

Enqueue = Callable[[], int]  # -> CUresult


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """cupy's exceptions as ours."""
    import cupy

    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise DeviceMemoryError(f"{what}: {error}") from error
    except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as error:
        raise failure(int(getattr(error, "status", 1)), what) from error


class CudaStream(Stream):
    """A CUDA stream; ``raw`` is cupy's object."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.handle = int(raw.ptr)
        self.pointer = ctypes.c_void_p(self.handle)
        self.legacy = self.handle in _LEGACY

    @property
    def capturing(self) -> bool:
        return not self.legacy and bool(self.raw.is_capturing())

    def synchronize(self) -> None:
        with _translated("waiting for a stream"):
            self.raw.synchronize()

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.raw.wait_event(event.raw)

    def sleep(self, seconds: float) -> None:
        # The C library's own function, which needs no lock of Python's (see cuda_driver.enqueuing).
        code = cuda_driver.library().cuLaunchHostFunc(self.pointer, ctypes.CDLL(None).usleep, ctypes.c_void_p(round(seconds * 1e6)))
        cuda_driver.check(code, "sleeping in a stream")


class _Handle:
    """A bare stream handle as an object of the CUDA stream protocol."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._handle)


class CudaEvent(Event):
    """A CUDA event; resolution about 0.5 us."""

    def __init__(self, timing: bool, spin: bool) -> None:
        import cupy

        self.raw = cupy.cuda.Event(block=not spin, disable_timing=not timing)
        self._pointer = ctypes.c_void_p(int(self.raw.ptr))
        # Events with times are our measurements'; those without stand in enqueues, behind whatever host functions a caller has put on the stream.
        self._record = (cuda_driver.enqueuing() if timing else cuda_driver.library()).cuEventRecord
        self._elapsed = cupy.cuda.get_elapsed_time
        self._error = cupy.cuda.runtime.CUDARuntimeError

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, CudaStream)
        code = self._record(self._pointer, stream.pointer)
        if code:
            raise failure(code, "recording an event")

    def mark(self, stream: Stream) -> None:
        assert isinstance(stream, CudaStream)
        if not stream.raw.is_capturing():
            self.record(stream)
            return
        code = cuda_driver.library().cuEventRecordWithFlags(self._pointer, stream.pointer, ctypes.c_uint(_EVENT_RECORD_EXTERNAL))
        cuda_driver.check(code, "recording an event in a graph")

    def synchronize(self) -> None:
        try:
            self.raw.synchronize()
        except self._error as error:
            raise failure(int(error.status), "waiting for an event") from error

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, CudaEvent)
        try:
            return float(self._elapsed(earlier.raw, self.raw)) * 1e-3
        except self._error as error:
            raise failure(int(error.status), "reading an event's time") from error


class CudaProgram(Program):
    """Driver calls with every argument made ready, the stream too: a launch costs one foreign call.

    The stream's handle stands in the launch configurations and in one argument of the other calls; both change when the stream does.
    """

    def __init__(self) -> None:
        self._calls: list[Enqueue] = []
        self._names: list[str] = []
        self._configs: list[LaunchConfig] = []
        self._stream = ctypes.c_void_p(0)
        self._handle = 0
        self._keep: list[object] = []

    def launch(self, step: Launch, binding: Binding, modules: CudaModules) -> None:
        """Add a kernel.

        Raises:
            DeviceError: it is missing or cannot be launched so.
        """
        function = modules.function(step)
        arguments = pack_arguments(step.arguments, binding.address, encode)
        config, attributes = launch_config(step)
        call = partial(cuda_driver.library().cuLaunchKernelEx, ctypes.byref(config), function.handle, arguments.pointers, None)
        self._configs.append(config)
        self._keep += [arguments, attributes, function, modules]
        self._add(call, f"kernel {step.kernel.entry!r} ({step.kernel.file})")

    def memset(self, address: int, size: int) -> None:
        """Add the zeroing of memory."""
        memset = cuda_driver.library().cuMemsetD8Async
        self._add(partial(memset, ctypes.c_void_p(address), ctypes.c_ubyte(0), ctypes.c_size_t(size), self._stream), "memset")

    def copy(self, target: int, source: int, size: int) -> None:
        """Add a copy within the device."""
        copy = cuda_driver.library().cuMemcpyDtoDAsync_v2
        self._add(partial(copy, ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), self._stream), "copy")

    def library(self, step: LibraryCall, binding: Binding, library: libraries.Binding) -> None:
        """Add a call of a vendor's library.

        Raises:
            DeviceError: the library cannot compute the step.
        """
        self._keep.append(library)
        self._add(library.prepared(step, binding.address, self._stream), f"a call of {step.library}")

    def _add(self, call: Enqueue, name: str) -> None:
        self._calls.append(call)
        self._names.append(name)

    def run(self, stream: Stream) -> None:
        if stream.handle != self._handle:
            self._handle = self._stream.value = stream.handle
            for config in self._configs:
                config.stream = stream.handle
        for call in self._calls:
            code = call()
            if code:
                raise failure(code, f"launching {self._names[self._calls.index(call)]}")


class CudaGraph(Graph):
    """An instantiated CUDA graph."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._exec = ctypes.c_void_p(int(raw.graphExec))
        self._call: tuple[int, Enqueue] = (-1, lambda: 0)  # a stream's handle, and the launch there
        count = ctypes.c_size_t(0)
        code = cuda_driver.library().cuGraphGetNodes(ctypes.c_void_p(int(raw.graph)), None, ctypes.byref(count))
        self.nodes = 0 if code else count.value

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, CudaStream)
        handle, call = self._call
        if handle != stream.handle:
            call = partial(cuda_driver.enqueuing().cuGraphLaunch, self._exec, stream.pointer)
            self._call = stream.handle, call
        code = call()
        if code:
            raise failure(code, "launching a CUDA graph")


class CudaModules:
    """Cubins, loaded when a kernel of theirs is first asked for."""

    def __init__(self, images: Mapping[str, bytes], arch: str) -> None:
        self._images = images
        self._arch = arch
        self._functions: dict[tuple[str, str], _Function] = {}
        self._modules: dict[str, Any] = {}

    def function(self, launch: Launch) -> _Function:
        """The kernel of ``launch``, allowed the shared memory and cluster that it asks for."""
        key = launch.kernel.key(self._arch)
        function = self._functions.get((key, launch.kernel.entry))
        if function is None:
            function = self._functions[key, launch.kernel.entry] = _Function(
                self._module(key, launch), launch.kernel.entry
            )
        function.allow(launch)
        return function

    def _module(self, key: str, launch: Launch) -> Any:
        if key not in self._modules:
            from cupy.cuda.function import Module

            image = self._images.get(key)
            if image is None:
                raise DeviceError(
                    f"kernel {launch.kernel.entry!r} ({launch.kernel.file or 'generated'}) for {self._arch} is not among the compiled "
                    "ones: they were made by another version of trtcli or for another GPU; build again"
                )
            module = Module()
            with _translated(f"loading kernel {launch.kernel.entry!r} for {self._arch}"):
                module.load(bytes(image))
            self._modules[key] = module
        return self._modules[key]


class _Function:
    """A kernel that can be launched."""

    def __init__(self, module: Any, entry: str) -> None:
        with _translated(f"finding kernel {entry!r} in its cubin"):
            self._raw = module.get_function(entry)
        self.name = entry
        self.handle = ctypes.c_void_p(int(self._raw.ptr))
        self._dynamic = 0
        cluster = 1
        for number in _REQUIRED_CLUSTER:
            cluster *= max(1, self._attribute(number))
        self._cluster = _PORTABLE_CLUSTER
        self._allow_cluster(cluster)

    def allow(self, launch: Launch) -> None:
        """Raise the kernel's limits to what ``launch`` needs; limits never fall, other programs may rely on them."""
        if launch.shared_memory > self._dynamic:
            self._set(
                _MAX_DYNAMIC_SHARED, launch.shared_memory, f"{launch.shared_memory} bytes of dynamic shared memory"
            )
            self._dynamic = launch.shared_memory
        self._allow_cluster(launch.cluster[0] * launch.cluster[1] * launch.cluster[2])

    def _allow_cluster(self, blocks: int) -> None:
        if blocks > self._cluster:
            self._set(_NON_PORTABLE_CLUSTER, 1, f"clusters of {blocks} blocks")
            self._cluster = blocks

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int(0)
        code = cuda_driver.library().cuFuncGetAttribute(ctypes.byref(value), number, self.handle)
        return 0 if code else value.value

    def _set(self, number: int, value: int, what: str) -> None:
        code = cuda_driver.library().cuFuncSetAttribute(self.handle, number, value)
        cuda_driver.check(code, f"kernel {self.name!r} with {what}")


class CudaDevice(Device):
    """One NVIDIA GPU."""

    def __init__(self, number: int, limit_sms: str = "", mps: str = "") -> None:
        """``limit_sms``: keep to so many multiprocessors (``64``, ``50%``); ``mps``: the share under MPS, to be recorded.

        Raises:
            DeviceError: cupy is missing, the GPU does not start, or cannot be shared so.
        """
        try:
            import cupy
        except ImportError as error:
            raise DeviceError(
                f"GPU {number} needs cupy, which does not import ({error}): pip install 'trtcli[gpu]'"
            ) from error

        self.name = str(number)
        self.number = number
        self.spec = cuda_spec(number)
        self._cupy = cupy
        self._libraries: dict[str, libraries.Binding] = {}
        before = current_context()
        try:
            with _translated(f"starting GPU {number}"):
                cupy.cuda.Device(number).use()
                cupy.cuda.runtime.free(0)  # makes the primary context
            self._green = green_context(number, limit_sms) if limit_sms else None
            self._context = current_context() if self._green is None else self._green.handle
            self.activate()
            self.spec = _shared(self.spec, self._green, mps)
            self._copies = CudaStream(cupy.cuda.Stream(non_blocking=True))
        finally:
            if before:  # the thread worked on another GPU, and goes on there
                select_context(before)

    def activate(self) -> None:
        select_context(self._context)

    def current(self) -> InContext:
        return InContext(self._context)

    def allocate(self, size: int, managed: bool = False) -> Memory:
        cuda = self._cupy.cuda
        try:
            with _translated(f"allocating {size} bytes"):
                pointer = (cuda.malloc_managed if managed else cuda.alloc)(max(size, 1))
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"cannot allocate {size} bytes on GPU {self.name}, {self.free_memory()} are free"
            ) from error
        return Memory(int(pointer.ptr), size, pointer)

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        if not count:
            return np.empty(shape, dtype)
        size = count * dtype.itemsize
        try:
            with _translated(f"allocating {size} bytes of page-locked host memory"):
                memory = self._cupy.cuda.alloc_pinned_memory(size)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"the host has no {size / 2**20:.1f} MiB that can be page-locked: smaller --shapes or fewer --infStreams need less"
            ) from error
        return np.frombuffer(memory, np.uint8, count * dtype.itemsize).view(dtype).reshape(shape)

    def upload(self, address: int, array: np.ndarray, stream: Stream | None = None) -> None:
        assert array.flags.c_contiguous
        self._transfer(address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: np.ndarray, address: int, stream: Stream | None = None) -> None:
        assert array.flags.c_contiguous
        self._transfer(array.ctypes.data, address, array.nbytes, stream)

    def _transfer(self, target: int, source: int, size: int, stream: Stream | None) -> None:
        if not size:
            return
        runtime = self._cupy.cuda.runtime
        queue = stream or self._copies
        with _translated("copying between host and GPU"):
            runtime.memcpyAsync(target, source, size, runtime.memcpyDefault, queue.handle)
        if stream is None:
            queue.synchronize()

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        if size:
            runtime = self._cupy.cuda.runtime
            with _translated("copying on the GPU"):
                runtime.memcpyAsync(target, source, size, runtime.memcpyDeviceToDevice, stream.handle)

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        if size:
            with _translated("filling GPU memory"):
                self._cupy.cuda.runtime.memsetAsync(address, byte, size, stream.handle)

    def stream(self, concurrent: bool = False) -> CudaStream:
        with _translated("creating a stream"):
            return CudaStream(self._cupy.cuda.Stream(non_blocking=True))

    def external_stream(self, handle: int) -> CudaStream:
        streams = self._cupy.cuda
        if hasattr(streams.Stream, "from_external"):  # cupy 14
            return CudaStream(streams.Stream.from_external(_Handle(handle)))
        return CudaStream(streams.ExternalStream(handle))

    def event(self, timing: bool = True, spin: bool = True) -> CudaEvent:
        with _translated("creating an event"):
            return CudaEvent(timing, spin)

    def load(self, kernels: Mapping[str, bytes]) -> CudaModules:
        return CudaModules(kernels, self.spec.arch)

    def library(self, name: str) -> libraries.Binding:
        """A vendor's library (a tactic source) on this GPU, opened when it is first asked for.

        Raises:
            DeviceError: it is not installed, or does not start.
        """
        if name not in self._libraries:
            with self.current():
                self._libraries[name] = libraries.open_library(name)
        return self._libraries[name]

    def program(self, plan: Plan, binding: Binding, modules: Any) -> CudaProgram:
        program = CudaProgram()
        for step in plan.steps:
            if isinstance(step, Launch):
                if 0 not in step.grid:  # without blocks there is nothing to compute
                    program.launch(step, binding, modules)
            elif isinstance(step, Memset):
                if step.size:
                    program.memset(binding.address(step.buffer), step.size)
            elif isinstance(step, Copy):
                if step.size:
                    program.copy(binding.address(step.target), binding.address(step.source), step.size)
            elif isinstance(step, LibraryCall):
                program.library(step, binding, self.library(step.library))
            else:
                raise DeviceError(f"a GPU cannot run a {type(step).__name__} step: the engine is for another device")
        return program

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> CudaGraph:
        assert isinstance(stream, CudaStream)
        if stream.legacy:
            raise CaptureError(
                "the legacy default stream cannot be captured, since all other streams wait for it: enqueue on a stream of your own, "
                "created as non-blocking"
            )
        runtime = self._cupy.cuda.runtime
        try:
            with _translated("capturing a CUDA graph"):
                stream.raw.begin_capture(runtime.streamCaptureModeThreadLocal)
                try:
                    enqueue()
                finally:
                    graph = stream.raw.end_capture()
                return CudaGraph(graph)
        except (CaptureError, DeviceLostError):
            raise
        except RuntimeError as error:  # ours, and cupy's own refusals
            raise CaptureError(str(error)) from error

    def synchronize(self) -> None:
        with _translated("waiting for the GPU"):
            self._cupy.cuda.runtime.deviceSynchronize()

    def free_memory(self) -> int:
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        return int(free) + int(self._cupy.get_default_memory_pool().free_bytes())

    def memory_usage(self) -> tuple[int, int]:
        free, total = self._cupy.cuda.runtime.memGetInfo()
        return int(total) - int(free), int(self._cupy.get_default_memory_pool().total_bytes())  # the pool gives nothing back to the driver

    def profiler(self, start: bool) -> None:
        runtime = self._cupy.cuda.runtime
        (runtime.profilerStart if start else runtime.profilerStop)()

    def properties(self) -> dict[str, str | int | float]:
        return cuda_properties(self.number)


def _shared(spec: DeviceSpec, green: GreenContext | None, mps: str) -> DeviceSpec:
    """``spec`` of the part of the device that may be used: memory and its bandwidth stay whole, multiprocessors and rates shrink."""
    shares = [f"MPS {mps}"] if mps else []
    if green is not None:
        shares.insert(0, f"{green.multiprocessors} of {green.total} SMs")
        part = green.multiprocessors / max(1, spec.multiprocessors)
        rates = {name: rate * part for name, rate in spec.flops.items()}
        spec = replace(spec, multiprocessors=green.multiprocessors, flops=rates)
    return replace(spec, share=", ".join(shares))
