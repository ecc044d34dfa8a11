"""Debug tensors: tensors inside the network, shown to a listener as they are computed.

Whatever a layer writes can be shown; nothing is computed or kept for it beyond the inference itself, so the memory of a tensor is read at
the one moment when it is certain to be whole: right after the layer that completes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from fusion.network import Network
from fusion.ops import Loop
from runtime.device import Device, Stream, Tensor, to_host
from runtime.engine import TensorLocation
from runtime.loaded import LoadedEngine, load_engine
from runtime.segments import parts_of
from runtime.watch import Watch, Where

Listener: TypeAlias = Any  # a function of (name, array), or an object with TensorRT's process_debug_tensor


def completed_by(network: Network, names: Collection[str], running: Collection[int]) -> dict[int, list[str]]:
    """Per layer (number) that runs, the tensors of ``names`` that are whole when it has ended.

    A layer that vanished (a view) completes its outputs when the last of its inputs is complete. Inputs of the network and constants
    have no layer; tensors that depend on nothing else are not in the result.
    """
    done: dict[str, int] = {}
    for number, layer in enumerate(network.layers):
        last = number if number in running else max((done.get(name, -1) for name in layer.inputs), default=-1)
        done.update(dict.fromkeys(layer.outputs, last))
    found: dict[int, list[str]] = {}
    for name in names:
        if done.get(name, -1) >= 0:
            found.setdefault(done[name], []).append(name)
    return found


def check_written(network: Network, name: str) -> None:
    """Refuse a tensor that cannot be shown.

    Raises:
        ValueError: no layer writes it.
    """
    if not any(name in layer.outputs for part, _ in parts_of(network) for layer in part.layers):
        raise ValueError(f"debug tensor {name!r}: no layer writes it; it was fused away (build with --markDebug={name}), or does not exist")


class Shown(Watch):
    """Gives tensors to a listener when they are whole.

    Tensors inside of a loop are shown in every iteration: as ``name[2]`` in the third one, ``name[2][0]`` where loops are nested.
    """

    def __init__(self, listener: Listener, names: Collection[str], loaded: LoadedEngine, profile: int = 0, iterations: str = "") -> None:
        network, elided = loaded.engine.network, loaded.outlines[profile].elided
        running = {number for number, layer in enumerate(network.layers) if layer.name not in elided}
        self._listener, self._names, self._loaded, self._profile, self._iterations = listener, names, loaded, profile, iterations
        self._whole = completed_by(network, names, running)

    def after(self, layer: int, stream: Stream, where: Where) -> None:
        for name in self._whole.get(layer, ()):
            tensor = where(name)
            if tensor is not None:
                show_tensor(self._listener, name + self._iterations, tensor, self._loaded.device, stream)

    def inside(self, layer: int, body: int, iteration: int) -> Shown:
        engine = self._loaded.engine
        part = load_engine(engine.decisions(self._profile)[layer].bodies[body], self._loaded.device)
        number = f"[{iteration}]" if isinstance(engine.network.layers[layer].op, Loop) else ""
        return Shown(self._listener, self._names, part, iterations=self._iterations + number)


def show_tensor(listener: Listener, name: str, tensor: Tensor, device: Device, stream: Stream) -> None:
    """Give ``tensor`` to the listener: a function gets a copy on the host (``stream`` is waited for), an object the address: on the device, or
    that of a copy on the host where the tensor is columns of a wider one."""
    process, kind = getattr(listener, "process_debug_tensor", None), tensor.type
    if process is not None and not kind.pitch:
        process(tensor.address, TensorLocation.DEVICE, kind.dtype, kind.shape, name, stream.handle)
        return
    array = to_host(device, tensor, stream)
    if process is not None:
        process(array.ctypes.data, TensorLocation.HOST, kind.dtype, kind.shape, name, stream.handle)
    else:
        listener(name, array)


def debug_tensors(network: Network, record: Mapping[str, object]) -> tuple[str, ...]:
    """The debug tensors that the build declared (``--markDebug``, ``--markUnfusedTensorsAsDebugTensors``)."""
    names = record.get("debugTensors", ())
    known = {name for part, _ in parts_of(network) for name in part.tensors}
    return tuple(name for name in names if name in known) if isinstance(names, list | tuple) else ()
