"""The engine: everything that an inference needs, and the whole record of how it came to be, as one value.

An engine holds no launches: they follow from the network, the chosen tactics and the shapes (``Tactic.plan`` is pure), and
every kernel that they name is here as a cubin, so loading compiles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fusion.dims import Shape, Sym
from fusion.network import Network
from tactics.tactic import Config, DeviceSpec


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
        stream: 0 is the caller's stream, ``k`` the auxiliary stream ``k``.
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
    stream: int = 0


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
        layers: the decisions, one per layer of ``network.layers``, in their order.
        weights: constants that launches read directly, by tensor name, and packed ones, by the names in ``LayerPlan.packed``.
        kernels: cubins by ``Kernel.key(arch)``; empty on the CPU.
        profiles: per optimization profile, the range of each input (static inputs too).
        device: the device that it was built and timed on.
        record: what reports show of the build: versions, date, model file and hash, options, fusion log, counts, seconds.
            JSON-compatible.
    """

    network: Network
    layers: tuple[LayerPlan, ...]
    weights: Mapping[str, np.ndarray]
    kernels: Mapping[str, bytes]
    profiles: tuple[Mapping[str, InputRange], ...]
    device: DeviceSpec
    record: Mapping[str, object] = field(default_factory=dict)

    @property
    def num_aux_streams(self) -> int:
        """How many auxiliary streams one inference uses."""
        return max((layer.stream for layer in self.layers), default=0)

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
        declared: Shape = network.tensors[name].shape
        if name not in shapes:
            raise ValueError(f"input {name!r}: no shape given, it needs {_text(declared)}")
        given = shapes[name]
        if len(given) != len(declared):
            raise ValueError(f"input {name!r}: shape {_text(given)} has {len(given)} dimensions, {_text(declared)} has {len(declared)}")
        for axis, (dim, value) in enumerate(zip(declared, given, strict=True)):
            if isinstance(dim, Sym):
                known = sizes.setdefault(str(dim), value)
                if known != value:
                    raise ValueError(f"input {name!r}: dimension {axis} is {value}, but {dim} is {known} in another input")
            elif dim != value:
                raise ValueError(f"input {name!r}: dimension {axis} is {value}, the model fixes it at {dim}")
    return sizes


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
