"""The engine: everything that an inference needs, and the whole record of how it came to be, as one value.

An engine holds no launches: they follow from the network, the chosen tactics and the shapes (``Tactic.plan`` is pure), and
every kernel that they name is here as a cubin, so loading compiles nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from fusion.dims import Shape, Sym
from fusion.dtypes import DataType
from fusion.network import ControlFlow, Network, TensorType
from tactics.tactic import Config, DeviceSpec

if TYPE_CHECKING:
    from runtime.context import ExecutionContext
    from runtime.device import Device


CONTROL = "host.control"  # LayerPlan.tactic of a control-flow layer
ON_HOST = "cuda.host.numpy"  # LayerPlan.tactic of a layer that a GPU's host computes
ROW_MAJOR = "Row major linear"  # Engine.get_tensor_format_desc of all other tensors
IDLE = "cuda.none"  # LayerPlan.tactic of a layer that makes nothing at all sizes that the build looked at


class TensorIOMode(Enum):
    """What a tensor is to the network."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Enum):
    """Where a tensor lies."""

    DEVICE = 0
    HOST = 1


class TensorFormat(Enum):
    """How an input or output lies in memory, by TensorRT's names and numbers: row-major, or with channels last, dense or padded."""

    LINEAR = 0
    HWC8 = 2
    DHWC8 = 6
    HWC = 8
    HWC16 = 11
    DHWC = 12


class EngineError(ValueError):
    """An engine that cannot be loaded, saved or run; the text says why and what to do, in one line."""


@dataclass(frozen=True)
class Alternative:
    """A tactic that was considered for a layer: its time in seconds, or the reason why it has none."""

    tactic: str
    config: Config = ()
    seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class LayerPlan:
    """What was decided for one layer.

    Attributes:
        tactic, config: the winner.
        packed: names in ``Engine.weights`` of the arrays that its ``prepare`` returned.
        seconds: its measured time at the optimal shapes (NaN when it was not timed).
        floor: the hardware limit for this workload, in seconds; ``bound`` is ``memory``, ``compute`` or ``launch``.
        workspace: bytes of scratch at the optimal shapes.
        cached: whether the decision came from the timing cache.
        alternatives: all that was tried, the fastest first, refusals last.
        sources: where libraries competed (``--tacticSources``): the best time of each source, the fastest first; ``own`` are our kernels.
        stream: 0 is the caller's stream, ``k`` the auxiliary stream ``k``.
        bodies: of a control-flow layer, an engine per network in it (``ControlFlow.bodies``).
    """

    tactic: str
    config: Config = ()
    packed: tuple[str, ...] = ()
    seconds: float = float("nan")
    floor: float = 0.0
    bound: str = "memory"
    workspace: int = 0
    cached: bool = False
    alternatives: tuple[Alternative, ...] = ()
    sources: tuple[tuple[str, float], ...] = ()
    stream: int = 0
    bodies: tuple[Engine, ...] = ()


@dataclass(frozen=True)
class InputRange:
    """Smallest, optimal and largest shape of one input in an optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Engine:
    """An executable network for one kind of device.

    Attributes:
        network: fused, in the layouts that the device runs. ``network.constants`` is empty: values are in ``weights``.
        layers: the decisions, one per layer of ``network.layers``, in their order, for optimization profile 0.
        weights: constants that launches read directly, by tensor name, and packed ones, by the names in ``LayerPlan.packed``.
        kernels: cubins by ``Kernel.key(arch)``; empty on the CPU.
        profiles: per optimization profile, the range of each input (static inputs too).
        device: the device that it was built and timed on.
        record: what reports show of the build: versions, date, model file and hash, options, fusion log, counts, seconds.
            JSON-compatible.
        tf32: whether the tactics were asked with TF32 products allowed (part of every workload).
        more_layers: the decisions for profiles 1, 2, ..., or nothing where all profiles share those of ``layers``.
    """

    network: Network
    layers: tuple[LayerPlan, ...]
    weights: Mapping[str, np.ndarray]
    kernels: Mapping[str, bytes]
    profiles: tuple[Mapping[str, InputRange], ...]
    device: DeviceSpec
    record: Mapping[str, object] = field(default_factory=dict)
    tf32: bool = True
    more_layers: tuple[tuple[LayerPlan, ...], ...] = ()

    def __repr__(self) -> str:
        """A line: the whole, weights included, would fill screens."""
        types = {name: self.network.tensors[name] for name in self}
        text = {name: f"{name} {one.dtype.label} {_text(self.network.io_shape(name))}" for name, one in types.items()}
        inputs, outputs = (", ".join(text[name] for name in names) for names in (self.network.inputs, self.network.outputs))
        return f"<Engine {self.network.name!r}: {len(self.layers)} layers, {inputs} -> {outputs}, built for {self.device.name}>"

    def decisions(self, profile: int = 0) -> tuple[LayerPlan, ...]:
        """The decisions for optimization profile ``profile``, one per layer."""
        return self.more_layers[profile - 1] if profile and self.more_layers else self.layers

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the engine to ``path``, whole or not at all, and return its size in bytes.

        Raises:
            EngineError: the file cannot be written (no permission, no space left).
        """
        from runtime.engine_file import save

        return save(self, path)

    def serialize(self) -> bytes:
        """What :meth:`save` writes."""
        from runtime.engine_file import parts_of

        return b"".join(parts_of(self))

    @staticmethod
    def deserialize(data: bytes) -> Engine:
        """The engine in the bytes of an engine file.

        Raises:
            EngineError: they are no engine, damaged, or of another format version.
        """
        from runtime.engine_file import parse

        return parse(data)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Engine:
        """The engine in the file ``path``; its weights stay on disk until they are read.

        Raises:
            EngineError: no such file, not an engine, damaged, or of another format version.
        """
        from runtime.engine_file import load

        return load(path)

    def create_execution_context(
        self, device: Device | str | int | None = None, profile: int = 0, strategy: str = "static"
    ) -> ExecutionContext:
        """A context to run the engine in; contexts of one engine on one device share its weights.

        ``device`` is an open one, what ``--device`` takes, or the number of a GPU; without, it is one of the kind that the engine was built for
        (the first GPU, or the CPU). ``strategy``: memory for
        activations is sized for all profiles (``static``), for the one in use (``profile``), or for the actual shapes (``runtime``).

        Raises:
            EngineError: the engine was built for another kind of device, or this version lacks its tactics.
            runtime.device.DeviceError: there is no such device, or not enough memory on it.
        """
        from runtime.context import ExecutionContext
        from runtime.devices import open_device

        if device is None:
            device = "cpu" if self.device.kind == "cpu" else 0
        return ExecutionContext(self, open_device(str(device)) if isinstance(device, str | int) else device, profile, strategy)

    def create_execution_context_without_device_memory(
        self, device: Device | str | int | None = None, profile: int = 0
    ) -> ExecutionContext:
        """A context whose activations will lie where :meth:`ExecutionContext.set_device_memory` says; contexts that never run at the
        same time may share that memory.

        Raises:
            as :meth:`create_execution_context`.
        """
        return self.create_execution_context(device, profile, "user")

    # --- inputs and outputs ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The network's name."""
        return self.network.name

    @property
    def debug_tensors(self) -> tuple[str, ...]:
        """The tensors that the build declared as debug tensors: marked ones, and unfused ones where that was asked for."""
        from runtime.debugging import debug_tensors

        return debug_tensors(self.network, self.record)

    def is_debug_tensor(self, name: str) -> bool:
        """Whether ``name`` is among :attr:`debug_tensors`."""
        return name in self.debug_tensors

    @property
    def num_layers(self) -> int:
        """How many layers the network has after fusion."""
        return len(self.network.layers)

    @property
    def num_optimization_profiles(self) -> int:
        """How many ranges of shapes the engine was built for."""
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        """The name of I/O tensor ``index``: inputs first, then outputs.

        Raises:
            IndexError: there are not so many.
        """
        names = tuple(self)
        if not -len(names) <= index < len(names):
            raise IndexError(f"I/O tensor {index}: the engine has {len(names)}, 0 to {len(names) - 1}")
        return names[index]

    def __iter__(self) -> Iterator[str]:
        """The names of all I/O tensors."""
        return iter((*self.network.inputs, *self.network.outputs))

    def __getitem__(self, index: int) -> str:
        return self.get_tensor_name(index)

    def __len__(self) -> int:
        return self.num_io_tensors

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Whether tensor ``name`` is an input, an output, or neither."""
        if name in self.network.inputs:
            return TensorIOMode.INPUT
        return TensorIOMode.OUTPUT if name in self.network.outputs else TensorIOMode.NONE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """The shape of I/O tensor ``name``, -1 where it depends on the inputs' shapes."""
        self._io(name)
        return tuple(dim if isinstance(dim, int) else -1 for dim in self.network.io_shape(name))

    def get_tensor_dtype(self, name: str) -> DataType:
        """The data type of I/O tensor ``name``."""
        return self._io(name).dtype

    def get_tensor_bytes_per_component(self, name: str) -> int:
        """Bytes of one element of I/O tensor ``name``."""
        return self._io(name).dtype.itemsize

    def get_tensor_location(self, name: str) -> TensorLocation:
        """Where the memory of I/O tensor ``name`` must be: on the device, always."""
        self._io(name)
        return TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> TensorFormat:
        """How I/O tensor ``name`` lies in memory; :meth:`ExecutionContext.get_tensor_strides` has its strides."""
        self._io(name)
        return TensorFormat[self.network.formats[name].name.upper()] if name in self.network.formats else TensorFormat.LINEAR

    def get_tensor_format_desc(self, name: str) -> str:
        """The same in words."""
        self._io(name)
        return str(self.network.formats.get(name, ROW_MAJOR))

    def is_shape_inference_io(self, name: str) -> bool:
        """Whether shapes depend on the values of ``name`` on the host: never, shapes follow from shapes."""
        self._io(name)
        return False

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The smallest, optimal and largest shape of input ``name`` in optimization profile ``profile``.

        Raises:
            ValueError: no such input or profile.
        """
        if name not in self.network.inputs:
            raise ValueError(f"no input is named {name!r}: the inputs are {', '.join(self.network.inputs)}")
        if not 0 <= profile < len(self.profiles):
            raise ValueError(f"Selected profile index {profile} exceeds the number of profiles that the engine holds ({len(self.profiles)}).")
        found = self.profiles[profile][name]
        return found.min, found.opt, found.max

    def _io(self, name: str) -> TensorType:
        if name not in self.network.inputs and name not in self.network.outputs:
            raise ValueError(f"no input or output is named {name!r}: they are {', '.join(self)}")
        return self.network.tensors[name]

    def device_memory_size_for_profile(self, profile: int) -> int:
        """Bytes of device memory that are enough for a context's activations and workspaces, whatever shapes of ``profile`` it runs.

        It is what a context takes, but a bound where the host steps in: for loops up to a few times what they take.

        Raises:
            EngineError: nobody knows: a size that the data, a branch or a loop decides has no limit.
        """
        from runtime.most_memory import most_memory

        return most_memory(self, profile)

    @property
    def device_memory_size(self) -> int:
        """The same over all profiles."""
        return max(self.device_memory_size_for_profile(number) for number in range(len(self.profiles)))

    @property
    def host_layers(self) -> frozenset[int]:
        """The layers (numbers) that are computed on the host although the device is a GPU."""
        return frozenset(n for plans in (self.layers, *self.more_layers) for n, plan in enumerate(plans) if plan.tactic == ON_HOST)

    @property
    def is_segmented(self) -> bool:
        """Whether the host has to step in during an inference."""
        return bool(self.network.sizes or self.host_layers or any(isinstance(one.op, ControlFlow) for one in self.network.layers))

    @property
    def num_aux_streams(self) -> int:
        """How many auxiliary streams one inference uses, branches and loops included."""
        plans = [plan for plans in (self.layers, *self.more_layers) for plan in plans]
        return max((max(plan.stream, *(body.num_aux_streams for body in plan.bodies), 0) for plan in plans), default=0)

    @property
    def num_io_tensors(self) -> int:
        """How many inputs and outputs the network has."""
        return len(self.network.inputs) + len(self.network.outputs)


def sizes_of(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The value of every named size, from concrete input shapes.

    Raises:
        ValueError: an input is missing, has another rank, another fixed dimension, or two inputs disagree on a name.
    """
    sizes: dict[str, int] = {}
    for name in network.inputs:
        declared = network.io_shape(name)
        if name not in shapes:
            raise ValueError(f"input {name!r}: no shape given, it needs {_text(declared)}")
        given = shapes[name]
        if len(given) != len(declared):
            raise ValueError(
                f"input {name!r}: shape {_text(given)} has {len(given)} dimensions, {_text(declared)} has {len(declared)}"
            )
        for axis, (dim, value) in enumerate(zip(declared, given, strict=True)):
            if isinstance(dim, Sym):
                known = sizes.setdefault(str(dim), value)
                if known != value:
                    raise ValueError(
                        f"input {name!r}: dimension {axis} is {value}, but {dim} is {known} in another input"
                    )
            elif dim != value:
                raise ValueError(f"input {name!r}: dimension {axis} is {value}, the model fixes it at {dim}")
    return sizes


def fixed_sizes(network: Network, profile: Mapping[str, InputRange]) -> dict[str, int]:
    """The named sizes that ``profile`` leaves no choice: smallest and largest are the same."""
    smallest = sizes_of(network, {name: item.min for name, item in profile.items()})
    largest = sizes_of(network, {name: item.max for name, item in profile.items()})
    return {name: size for name, size in smallest.items() if largest[name] == size}


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
