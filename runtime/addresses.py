"""Where the inputs and outputs of a context lie: in memory of the caller's, of an output allocator's, or of the context's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from fusion.dims import Shape
from fusion.formats import Format
from fusion.network import TensorType, may_be_equal
from runtime.device import Device, DeviceMemoryError, Memory, Stream
from runtime.engine import EngineError
from runtime.interop import Foreign, foreign
from tactics.tactic import tensor_bytes


class Addresses:
    """The addresses of a context's inputs and outputs, by name."""

    def __init__(self, device: Device, formats: Mapping[str, Format]) -> None:
        self._device, self._formats = device, formats
        self._at: dict[str, int] = {}
        self._keep: dict[str, object] = {}  # owners of memory that others gave us
        self._own: dict[str, Memory] = {}
        self._room: dict[str, int] = {}  # bytes that others' memory holds, where it says so
        self.allocators: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return bool(self._at.get(name))

    def __getitem__(self, name: str) -> int:
        """The address of ``name``, 0 when none is set."""
        return self._at.get(name, 0)

    def items(self) -> tuple[tuple[str, int], ...]:
        """All of them, in the order of their names."""
        return tuple(sorted(self._at.items()))

    def set(self, name: str, given: Foreign) -> bool:
        """``name`` lies in ``given``; whether that is another address than before."""
        changed = self._at.get(name) != given.address
        self._at[name] = given.address
        self._keep[name] = given.owner
        self._room.pop(name, None)
        if given.bytes is not None:
            self._room[name] = given.bytes
        return changed

    def forget(self, name: str) -> None:
        """``name`` has no address any more."""
        self._at.pop(name, None)

    def checked(self, name: str, kind: TensorType) -> int:
        """The address of ``name``, of type ``kind``.

        Raises:
            EngineError: there is none, or the memory there is too small.
        """
        size, room = tensor_bytes(kind), self._room.get(name)
        if size and not self._at.get(name):
            raise EngineError(f"tensor {name!r} has no address: call set_tensor_address")
        if room is not None and room < size:
            raise EngineError(
                f"tensor {name!r}: the memory given holds {room} bytes, shape {shape_text(kind.shape)} needs {size}: "
                "call set_tensor_address with a larger one"
            )
        return self._at.get(name, 0)

    def own(self, name: str, size: int, managed: bool = False) -> Memory:
        """Memory of the context's own for ``name``, at least ``size`` bytes; the same as before where that is large enough.

        Raises:
            DeviceMemoryError: the device has no such memory.
        """
        if name not in self._own or self._own[name].size < size:
            if name in self._own:
                self._device.synchronize()  # whoever gets the memory next may write there at once
                del self._own[name]
            try:
                self._own[name] = self._device.allocate(max(size, 1), managed)
            except DeviceMemoryError as error:
                raise DeviceMemoryError(
                    f"tensor {name!r} needs {size / 2**20:.1f} MiB, {self._device.free_memory() / 2**20:.1f} MiB are free on device "
                    f"{self._device.name}: smaller --shapes or fewer --infStreams need less"
                ) from error
        return self._own[name]

    def placed(self, name: str, kind: TensorType, is_open: bool, stream: Stream) -> int:
        """Where output ``name`` of type ``kind`` shall lie: where its allocator says, at its address, or, when ``is_open`` (its size
        was unknown until now), in memory of the context's own.

        Raises:
            EngineError: there is no such place.
        """
        size = tensor_bytes(kind)
        if name in self.allocators:
            return self.allocated(name, kind, stream)
        if name in self or not is_open:
            return self.checked(name, kind)
        return self.own(name, size).address

    def allocated(self, name: str, kind: TensorType, stream: Stream) -> int:
        """Where the output allocator of ``name`` puts it.

        Raises:
            EngineError: it gave no memory.
        """
        allocator, size = self.allocators[name], tensor_bytes(kind)
        known = self._formats[name].known_as(kind.shape) if name in self._formats else kind.shape
        shape = tuple(int(dim) for dim in known)  # type: ignore[arg-type]
        if hasattr(allocator, "reallocate_output_async"):
            allocator.notify_shape(name, shape)
            given = allocator.reallocate_output_async(name, self[name], size, self._device.alignment, stream.handle)
        else:
            given = allocator(name, size, shape)
        memory = None if given is None else foreign(given)
        if memory is None or (size and not memory.address):
            raise EngineError(f"tensor {name!r}: its output allocator gave no memory ({size} bytes were asked for)")
        self._keep[name] = memory.owner
        return memory.address

    def move(self, name: str, address: int) -> bool:
        """``name`` lies at ``address``, in memory of which nothing else is known; whether that is another one than before."""
        changed = self._at.get(name) != address
        self._at[name] = address
        self._room.pop(name, None)
        return changed


def as_in_memory(
    name: str, given: Foreign, layout: Format, declared: Shape, shape: tuple[int, ...] | None
) -> tuple[Foreign, tuple[int, ...] | None]:
    """``given`` and the ``shape`` that tensor ``name`` of format ``layout`` shall have (None when that is not known yet), as :func:`check_memory` wants them:
    row-major in the order of memory. A tensor of that order (``declared``, as far as it is known at build) is so already; one of the model's order
    must have the format's strides.

    Raises:
        ValueError: it has another shape, or other strides.
    """
    wanted = None if shape is None else tuple(int(dim) for dim in layout.in_memory(shape))  # type: ignore[arg-type]
    in_memory = declared if wanted is None else wanted
    if given.shape is None or (given.strides is None and may_be_equal(given.shape, in_memory)):
        return given, wanted
    known = layout.known_as(in_memory)
    if not may_be_equal(given.shape, known):
        raise ValueError(f"tensor {name!r}: the memory has shape {shape_text(given.shape)}, the engine wants {shape_text(known)}")
    strides = layout.strides(given.shape)
    own = given.strides or tuple(prod(given.shape[axis + 1 :]) for axis in range(len(given.shape)))
    if 0 not in given.shape and any(size > 1 and a != b for size, a, b in zip(given.shape, own, strides, strict=True)):
        raise ValueError(
            f"tensor {name!r}: the memory has shape {shape_text(given.shape)} and strides {shape_text(own)} (elements), its format {layout.name} has "
            f"strides {shape_text(strides)}: give a channels-last tensor, or one whose axes stand in that order"
        )
    return replace(given, shape=tuple(int(dim) for dim in layout.in_memory(given.shape)), strides=None), wanted  # type: ignore[arg-type]


def check_memory(name: str, given: Foreign, declared: TensorType, shape: tuple[int, ...] | None, device: Device, written: bool) -> None:
    """Refuse memory that cannot hold tensor ``name``; ``shape`` is what the engine wants now, None when that is not known yet.

    Raises:
        ValueError: a wrong data type, shape, device or alignment, or read-only memory for what is ``written``.
    """
    check_place(f"tensor {name!r}: the memory", given, device)
    if given.dtype is not None and given.dtype is not declared.dtype:
        raise ValueError(f"tensor {name!r}: the memory holds {given.dtype.value}, the engine wants {declared.dtype.value}")
    if given.shape is not None and shape is not None and given.shape != shape:
        raise ValueError(f"tensor {name!r}: the memory has shape {shape_text(given.shape)}, the engine wants {shape_text(shape)}")
    if written and not given.writable:
        raise ValueError(f"tensor {name!r}: the memory is read-only, but an output is written")
    if given.address % device.alignment:
        raise ValueError(f"tensor {name!r}: address {given.address:#x} is not a multiple of {device.alignment}")


def check_place(what: str, given: Foreign, device: Device) -> None:
    """Refuse memory of another device.

    Raises:
        ValueError: naming both devices.
    """
    here = device.spec.kind
    if given.kind is not None and given.kind != here:
        raise ValueError(f"{what} is on {given.kind}, the engine runs on {here}")
    if given.gpu is not None and str(given.gpu) != device.name:
        raise ValueError(f"{what} is on GPU {given.gpu}, the context on GPU {device.name}: copy it there, or give the context that device")


def shape_text(shape: Sequence[object]) -> str:
    """``4x3x32x32``"""
    return "x".join(map(str, shape)) or "scalar"
