"""An engine on a device: weights uploaded and kernels at hand, once for all contexts."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np

from fusion.dtypes import data_type
from fusion.network import TensorType
from runtime.checksums import verified
from runtime.device import Device, DeviceMemoryError, Memory, Tensor
from runtime.engine import Engine, EngineError
from runtime.memory import ALIGNMENT
from runtime.resolution import Outline, Resolution, outline, resolve

KEPT_RESOLUTIONS = 64  # shapes that an engine remembers for all its contexts


class LoadedEngine:
    """Weights and kernels of ``engine`` on ``device``.

    Attributes:
        outlines: per optimization profile, what no shape changes: tactics, views, shared memory.
        weights: per name in ``engine.weights``, the tensor on the device.
        modules: what ``device.program`` takes.
    """

    def __init__(self, engine: Engine, device: Device) -> None:
        if engine.record.get("stripped"):
            raise EngineError("the engine's weights were stripped: give them back with --refitFromOnnx=MODEL.onnx (trtcli.refit)")
        _check_device(engine, device)
        self.engine = engine
        self.device = device
        self.outlines: tuple[Outline, ...] = tuple(outline(engine, number) for number in range(len(engine.profiles)))
        self.modules = device.load(engine.kernels)
        self._uploaded = _uploaded(engine, device)
        self.weights = self._uploaded.tensors
        self._resolutions: OrderedDict[tuple[object, ...], Resolution] = OrderedDict()
        self._lock = Lock()  # of them: contexts run in threads of their own

    def resolution(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> Resolution:
        """The engine at the input ``shapes``, within ``profile``; shapes that any of its contexts met lately are remembered.

        Raises:
            ValueError: the shapes do not fit the inputs.
            EngineError: a layer cannot run at these shapes.
        """
        key = (profile, *(shapes[name] for name in self.engine.network.inputs))
        with self._lock:
            found = self._resolutions.get(key)
            if found is None:
                found = self._resolutions[key] = resolve(self.engine, self.outlines[profile], shapes, self.device.spec)
                if len(self._resolutions) > KEPT_RESOLUTIONS:
                    self._resolutions.popitem(last=False)
            self._resolutions.move_to_end(key)
            return found

    @property
    def outline(self) -> Outline:
        """That of profile 0: views and shared memory are the same for all."""
        return self.outlines[0]

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take on the device."""
        return self._uploaded.memory.size


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights on a device; ``source`` and ``device`` are kept, so that their ids stay theirs."""

    tensors: Mapping[str, Tensor]
    memory: Memory
    source: object
    device: Device


_LOADED: weakref.WeakValueDictionary[tuple[int, int], LoadedEngine] = weakref.WeakValueDictionary()


def load_engine(engine: Engine, device: Device) -> LoadedEngine:
    """``engine`` on ``device``; the same object as long as someone holds it, so that contexts share the weights.

    Raises:
        EngineError: the engine was built for another kind of device or by another version.
        DeviceMemoryError: the weights do not fit.
    """
    key = (id(engine), id(device))  # a LoadedEngine holds both, so the ids stay theirs while it lives
    found = _LOADED.get(key)
    if found is None:
        found = _LOADED[key] = LoadedEngine(engine, device)
    return found


def _check_device(engine: Engine, device: Device) -> None:
    built, here = engine.device, device.spec
    if built.kind != here.kind:
        raise EngineError(
            f"the engine was built for {built.name}, {_what(built.kind)}, and this device is {_what(here.kind)}: run it where it was built "
            "(trtcli doctor says what this machine offers), or build the model again here"
        )
    if built.kind == "cuda" and built.arch != here.arch:
        raise EngineError(
            f"the engine was built for {built.arch} ({built.name}), GPU {device.name} is {here.arch} ({here.name}): build it here"
        )


def share_mismatch(engine: Engine, device: Device) -> str:
    """What to know when ``engine`` was tuned for another share of the device than ``device`` has; empty when it was not."""
    built, here = engine.device, device.spec
    if built.kind != here.kind or (built.share, built.multiprocessors) == (here.share, here.multiprocessors):
        return ""
    if built.kind == "cpu" and built.share == here.share:
        return ""  # threads differ from machine to machine
    tuned, runs = (one.share or f"all {one.multiprocessors} SMs" for one in (built, here))
    return f"The engine's tactics were chosen for {tuned}, it runs on {runs}: they may not be the fastest; build it again under the same share"


def _what(kind: str) -> str:
    return {"cpu": "a CPU", "cuda": "a GPU"}.get(kind, kind)


_UPLOADED: weakref.WeakValueDictionary[tuple[int, int], _Weights] = weakref.WeakValueDictionary()


def _uploaded(engine: Engine, device: Device) -> _Weights:
    """The weights of ``engine`` on ``device``, once for all engines that differ in other things only (in streams, while they are timed)."""
    key = (id(engine.weights), id(device))
    found = _UPLOADED.get(key)
    if found is None:
        found = _UPLOADED[key] = _Weights(*_upload(engine, device), engine.weights, device)
    return found


def _upload(engine: Engine, device: Device) -> tuple[dict[str, Tensor], Memory]:
    """All weights in one piece of memory, each 256-byte aligned."""
    offsets, end = {}, 0
    for name, array in engine.weights.items():
        offsets[name] = end
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    try:
        memory = device.allocate(end)
    except DeviceMemoryError as error:
        raise DeviceMemoryError(
            f"weights need {end / 2**20:.1f} MiB, {device.free_memory() / 2**20:.1f} MiB are free on device {device.name}: end other programs "
            "there, choose another --device, or build in a narrower type (--fp16, --bf16)"
        ) from error
    weights = {}
    for name, array in verified(engine.weights):
        device.upload(memory.address + offsets[name], np.ascontiguousarray(array))
        weights[name] = Tensor(memory.address + offsets[name], TensorType(data_type(array.dtype), array.shape))
    return weights, memory
