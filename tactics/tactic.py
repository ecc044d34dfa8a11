"""What a tactic is: a concrete kernel (or NumPy routine) with a concrete configuration, described as data.

Tactics only describe; the runtime executes. A tactic is a set of pure functions over a :class:`Workload` and a
:class:`DeviceSpec`; none of them needs a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np

from fusion.dtypes import DataType
from fusion.network import Op, TensorType


@dataclass(frozen=True)
class DeviceSpec:
    """What tactics may know of a device. Rates are measured or data-sheet leads, for estimates only.

    ``arch`` is NVRTC's name (``sm_90a``) or the machine type of a CPU; ``capability`` is 90 for 9.0, 0 for a CPU.
    """

    kind: str  # "cuda" | "cpu"
    name: str
    arch: str = ""
    capability: int = 0
    multiprocessors: int = 1  # SMs, or CPU threads
    shared_memory: int = 0  # bytes that one block may use
    l2_bytes: int = 0
    memory_bytes: int = 0
    bandwidth: float = 1e10  # bytes/s
    flops: Mapping[str, float] = field(default_factory=dict, hash=False)  # by DataType value; "tf32" beside them
    share: str = ""  # the part of the device that may be used, empty for all of it: "64 of 132 SMs", "MPS 50%"


@dataclass(frozen=True)
class Workload:
    """One layer with concrete types: what a tactic is asked to compute.

    Attributes:
        op: the operation; every dimension in it is a number.
        inputs, outputs: concrete types, row-major; dense, or with a pitch where a tensor is some columns of a wider one in memory.
        constant: per input, whether its value is known at build (then ``prepare`` may repack it).
        varies: per input, then per output: per axis, whether its size may differ at another inference. A kernel's source,
            defines and configuration must be legal for every size of such an axis; sizes that vary are launch arguments.
        tf32: whether float32 products may round their operands to TF32.
    """

    op: Op
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    constant: tuple[bool, ...] = ()
    varies: tuple[tuple[bool, ...], ...] = ()
    tf32: bool = True

    def axis_varies(self, tensor: int, axis: int) -> bool:
        """Whether axis ``axis`` (may be negative) of tensor ``tensor`` (inputs first, then outputs) may vary."""
        return bool(self.varies) and bool(self.varies[tensor]) and self.varies[tensor][axis]

    def is_constant(self, number: int) -> bool:
        """Whether the value of input ``number`` is known at build."""
        return number < len(self.constant) and self.constant[number]

    @property
    def is_static(self) -> bool:
        """Whether no size varies."""
        return not any(any(axes) for axes in self.varies)


@dataclass(frozen=True)
class Refusal:
    """Why a tactic or configuration cannot serve a workload, in plain words with the values found."""

    reason: str


Config: TypeAlias = tuple[tuple[str, int], ...]  # sorted (name, value) pairs: hashable, JSON-friendly


def config(**values: int) -> Config:
    """A configuration from keyword arguments."""
    return tuple(sorted((name, int(value)) for name, value in values.items()))


def tactic_label(tactic: str, config: Config) -> str:
    """A tactic with its configuration as reports show it and flags take it: ``id[name=value,...]``."""
    return tactic + (f"[{','.join(f'{name}={value}' for name, value in config)}]" if config else "")


# --- launches as data ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Buffer:
    """Memory that a step reads or writes, ``offset`` bytes into it.

    ``kind``: ``input`` and ``output`` (the layer's tensor ``index``), ``packed`` (array ``index`` that ``prepare`` returned),
    ``workspace`` (index 0: the layer's scratch memory, contents undefined at the start).
    """

    kind: str
    index: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Scalar:
    """A number passed by value; ``ctype`` is ``i32``, ``u32``, ``i64``, ``u64``, ``f32`` or ``f64``."""

    value: int | float
    ctype: str = "i32"


@dataclass(frozen=True)
class Im2col:
    """The im2col mode of a tensor map (see cuTensorMapEncodeIm2col)."""

    lower_corner: tuple[int, ...]
    upper_corner: tuple[int, ...]
    channels_per_pixel: int
    pixels_per_column: int


@dataclass(frozen=True)
class TensorMap:
    """A TMA descriptor, passed by value (``const __grid_constant__ CUtensorMap``), encoded when addresses are known.

    ``dims`` in elements and ``strides`` in bytes (of dims[1:]) stand innermost first, as the driver wants them; ``swizzle`` is
    0, 32, 64 or 128 bytes; ``box`` is unused with ``im2col``. ``tf32``: float32 values are rounded to TF32 on their way.
    """

    buffer: Buffer
    dtype: DataType
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...] = ()
    element_strides: tuple[int, ...] = ()
    swizzle: int = 128
    im2col: Im2col | None = None
    l2_promotion: int = 128
    tf32: bool = False


@dataclass(frozen=True)
class Struct:
    """Fields passed by value as one parameter, laid out as C does."""

    fields: tuple[Buffer | Scalar, ...]


Argument: TypeAlias = "Buffer | Scalar | TensorMap | Struct"


@dataclass(frozen=True)
class Kernel:
    """A translation unit and its entry: ``prelude`` + the text of ``file`` (relative to ``tactics/cuda``), with ``defines``."""

    file: str
    entry: str
    defines: tuple[tuple[str, str], ...] = ()
    prelude: str = ""

    def source(self) -> str:
        """The CUDA C++ source."""
        text = _text(self.file) if self.file else ""
        return f'{self.prelude}\n#line 1 "{self.file}"\n{text}'

    def key(self, arch: str) -> str:
        """What the cubin depends on, hashed: source, headers, defines, architecture."""
        return _key(self, arch)


CUDA_FOLDER = Path(__file__).parent / "cuda"


@cache
def _text(file: str) -> str:
    return (CUDA_FOLDER / file).read_text(encoding="utf-8")


@cache
def headers_text() -> str:
    """The text of all our CUDA headers, in the order of their names."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((CUDA_FOLDER / "include").glob("*.cuh")))


@cache
def _key(kernel: Kernel, arch: str) -> str:
    digest = hashlib.sha256()
    for part in (kernel.source(), headers_text(), repr(kernel.defines), kernel.entry, arch):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Launch:
    """One kernel launch. ``dependent``: compiled for programmatic dependent launch (it waits for its predecessor itself);
    ``cooperative``: its blocks meet, so all of them must be on the device at once."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    shared_memory: int = 0  # dynamic, bytes
    cluster: tuple[int, int, int] = (1, 1, 1)  # other than 1: a run-time cluster size
    dependent: bool = False
    cooperative: bool = False


@dataclass(frozen=True)
class Memset:
    """Zeroes ``size`` bytes."""

    buffer: Buffer
    size: int


@dataclass(frozen=True)
class Copy:
    """Copies ``size`` bytes between buffers of the device."""

    source: Buffer
    target: Buffer
    size: int


# function(inputs, outputs, packed, workspace): writes every element of the outputs
CpuFunction: TypeAlias = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[np.ndarray], np.ndarray], None]


@dataclass(frozen=True)
class CpuCall:
    """One NumPy step on the CPU device. Inputs must not be changed; the workspace is a uint8 array, 64-byte aligned.

    ``unread`` are inputs that it never touches, since it has them packed: the engine need not keep them.
    """

    function: CpuFunction
    name: str = ""
    unread: tuple[int, ...] = ()

    def bound(
        self,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        packed: Sequence[np.ndarray],
        workspace: np.ndarray,
    ) -> Callable[[], None]:
        """The step tied to arrays that stay where they are. A function with an attribute ``bind`` (of the same arguments,
        returning what to call) makes all its views there, so that a call decides nothing."""
        bind = getattr(self.function, "bind", None)
        if bind is not None:
            return bind(inputs, outputs, packed, workspace)
        return lambda: self.function(inputs, outputs, packed, workspace)


@dataclass(frozen=True)
class LibraryCall:
    """One call of a vendor's library. ``problem`` is a frozen description that the runtime's binding of ``library`` (a tactic
    source: ``CUBLAS_LT``, ``CUDNN``) understands; ``buffers`` say by role what it reads and writes; it may use ``workspace`` bytes at the
    buffer of that role."""

    library: str
    problem: object
    buffers: tuple[tuple[str, Buffer], ...]
    workspace: int = 0


Step: TypeAlias = "Launch | Memset | Copy | CpuCall | LibraryCall"


@dataclass(frozen=True)
class Plan:
    """The steps that compute a workload, in order, and the scratch memory that they share (bytes).

    ``in_place`` are inputs whose memory output 0 may be: whatever reads an element of theirs has done so before that place is written.
    """

    steps: tuple[Step, ...]
    workspace: int = 0
    in_place: tuple[int, ...] = ()


class Tactic:
    """Base of all tactics. ``id`` is stable for ever (people's timing caches hold it), e.g. ``cuda.gemm.sm90``.

    ``device`` is ``cuda`` or ``cpu``; ``ops`` are the operations it may serve. ``reference`` marks the plainest one of
    its family: its result is what others are checked against on the device. ``source`` is empty for our own kernels, else the
    library behind it, which competes only where it is asked for (``--tacticSources``).
    """

    id: ClassVar[str] = ""
    device: ClassVar[str] = ""
    ops: ClassVar[tuple[type[Op], ...]] = ()
    reference: ClassVar[bool] = False
    source: ClassVar[str] = ""

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        """None, or why this tactic cannot serve the workload at all."""
        raise NotImplementedError

    def pitched(self, workload: Workload) -> Collection[int]:
        """The tensors (inputs first, then outputs) that may be columns of a wider tensor (``TensorType.pitch``); by default none."""
        return ()

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        """The legal configurations, the most promising first (by an analytic estimate). At least one."""
        return ((),)

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        """Legal configurations one step away from ``config``, whether ``configs`` lists them or not: where the deepest search goes on."""
        return ()

    def prepare(
        self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        """Constant inputs repacked for the kernel (kept in the engine); ``constants`` maps input numbers to values."""
        return ()

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        """The steps. For other sizes of varying axes it must give the same kernels (only grids and arguments differ)."""
        raise NotImplementedError

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        """Expected seconds, for ordering candidates across tactics. Default: the floor of the workload."""
        return floor_seconds(workload, device)

    def tolerance(self, workload: Workload) -> float:
        """Largest relative error (norm of the difference over the norm) against the reference; by data type."""
        narrow = {t.dtype for t in (*workload.inputs, *workload.outputs)}
        if DataType.BF16 in narrow or DataType.FP8 in narrow:
            return 2e-2
        if DataType.HALF in narrow:
            return 4e-3
        return 2e-3 if workload.tf32 and self.device == "cuda" else 1e-4


def refusal(tactic: Tactic, workload: Workload, device: DeviceSpec) -> Refusal | None:
    """None, or why ``tactic`` cannot serve ``workload``: another operation, a tensor that lies in a wider one, or what it says itself."""
    if not isinstance(workload.op, tactic.ops):
        return Refusal(f"it does not compute {type(workload.op).__name__}")
    wide = [number for number, tensor in enumerate((*workload.inputs, *workload.outputs)) if tensor.pitch]
    if wide:
        able = tactic.pitched(workload)
        for number in wide:
            if number not in able:
                count = len(workload.inputs)
                which = f"input {number}" if number < count else f"output {number - count}"
                return Refusal(f"{which} is columns of a wider tensor in memory; this tactic wants it dense")
            tensor = (*workload.inputs, *workload.outputs)[number]
            if extent_bytes(tensor) >= LARGEST * tensor.dtype.itemsize:
                return Refusal("the wider tensor has 2^31 elements or more; offsets in columns have 32 bits")
            if tensor.pitch * tensor.dtype.itemsize % 16:
                return Refusal(f"rows {tensor.pitch} elements apart do not begin at multiples of 16 bytes")
    return tactic.supports(workload, device)


LARGEST = 2**31  # elements of a tensor of which others are columns


def every_tensor(workload: Workload) -> range:
    """The numbers of all tensors, as :meth:`Tactic.pitched` gives them."""
    return range(len(workload.inputs) + len(workload.outputs))


def tensor_bytes(tensor: TensorType) -> int:
    """Bytes of a tensor with a concrete shape."""
    count = tensor.dtype.itemsize
    for dim in tensor.shape:
        assert isinstance(dim, int), f"{tensor.shape} is not concrete"
        count *= dim
    return count


def extent_bytes(tensor: TensorType) -> int:
    """Bytes from a tensor's first element to its last one (and to the end of its row): more than its own where it has a pitch."""
    return tensor_bytes(tensor) // int(tensor.shape[-1] or 1) * tensor.pitch if tensor.pitch else tensor_bytes(tensor)  # type: ignore[arg-type]


def aligned_inputs(workload: Workload) -> tuple[int, ...]:
    """Inputs of output 0's shape and element size: element n of one lies where element n of the other would."""
    out = workload.outputs[0]
    if out.pitch:
        return ()
    return tuple(
        number
        for number, tensor in enumerate(workload.inputs)
        if tensor.shape == out.shape and tensor.dtype.itemsize == out.dtype.itemsize and not tensor.pitch
    )


def workload_bytes(workload: Workload) -> int:
    """The fewest bytes that the workload moves: each input read once, each output written once."""
    return sum(tensor_bytes(tensor) for tensor in (*workload.inputs, *workload.outputs))


def workload_flops(workload: Workload) -> float:
    """Floating-point operations of the products in the workload (0 for layers that only move or map data)."""
    from fusion.ops import (
        Attention,
        Convolution,
        ConvolutionPooling,
        Deconvolution,
        MatrixMultiply,
        PackedMatrixMultiply,
        PlanarConvolution,
        PrologueProduct,
        Recurrence,
        SeparableConvolution,
    )

    op = workload.op
    shapes = [[int(dim) for dim in tensor.shape] for tensor in (*workload.inputs, *workload.outputs)]  # type: ignore[arg-type]
    out = shapes[len(workload.inputs)] if workload.outputs else []
    if isinstance(op, Convolution):
        return 2.0 * float(np.prod(out)) * float(np.prod(shapes[1][1:]))
    if isinstance(op, ConvolutionPooling):
        return workload_flops(replace(workload, op=op.convolution, outputs=op.convolution.infer(workload.inputs)))
    if isinstance(op, PlanarConvolution):
        return workload_flops(replace(workload, op=op.convolution, outputs=op.convolution.infer(workload.inputs)))
    if isinstance(op, PrologueProduct):
        return workload_flops(replace(workload, op=op.product))
    if isinstance(op, SeparableConvolution):
        channels, out_channels = shapes[1][0], shapes[2][0]
        return 2.0 * float(np.prod(out)) / max(1, out_channels) * channels * (float(np.prod(shapes[1][1:])) + out_channels)
    if isinstance(op, Deconvolution):
        return 2.0 * float(np.prod(shapes[0])) * float(np.prod(shapes[1][1:]))
    if isinstance(op, MatrixMultiply):
        return 2.0 * float(np.prod(out)) * shapes[0][-2 if op.transpose_a else -1]
    if isinstance(op, PackedMatrixMultiply):
        return 2.0 * float(np.prod(out)) * op.depth
    if isinstance(op, Recurrence):
        return 2.0 * float(np.prod(shapes[0])) * op.hidden
    if isinstance(op, Attention):
        q, k = (dict(zip(part.layout, part.type.shape, strict=True)) for part in op.stored(workload.inputs)[:2])
        return 4.0 * float(np.prod([int(one) for one in (q["b"], q["h"], q["s"], k["s"], q["d"])]))  # type: ignore[arg-type]
    return 0.0


LAUNCH_FLOOR = 1e-6  # seconds that a launch costs inside a CUDA graph, whatever it does


def reachable_seconds(workload: Workload, device: DeviceSpec) -> float:
    """The floor, and on a GPU the cost of a launch where that is more."""
    return max(floor_seconds(workload, device), LAUNCH_FLOOR if device.kind == "cuda" else 0.0)


def floor_seconds(workload: Workload, device: DeviceSpec) -> float:
    """The hardware limit: the larger of bytes over bandwidth and operations over the rate of the unit that does them."""
    memory = workload_bytes(workload) / device.bandwidth
    flops = workload_flops(workload)
    if not flops:
        return memory
    dtype = workload.inputs[0].dtype
    name = "tf32" if dtype is DataType.FLOAT and workload.tf32 and "tf32" in device.flops else dtype.value
    rate = device.flops.get(name) or max(device.flops.values(), default=1e11)
    return max(memory, flops / rate)
