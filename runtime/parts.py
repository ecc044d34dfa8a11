"""A part of an engine that runs without the host, on its own: to time it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fusion.network import typical_sizes
from runtime.device import Device, Memory, Stream
from runtime.engine import Engine, sizes_of
from runtime.enqueue import Action, bind_step, schedule
from runtime.loaded import load_engine
from runtime.random_data import network_inputs
from runtime.resolution import Resolution, outline, resolve_segment
from runtime.segments import Segment, segments_of
from tactics.tactic import DeviceSpec, extent_bytes


@dataclass(frozen=True)
class Part:
    """A segment of ``engine`` (all of it, for most) with the decisions of an optimization profile, at the named ``sizes``; ``guessed`` says
    that some of them, which the input shapes do not tell, may be none at which it can run."""

    engine: Engine
    profile: int
    segment: Segment
    sizes: Mapping[str, int]
    guessed: bool = False

    def resolution(self, device: DeviceSpec) -> Resolution:
        """What it means.

        Raises:
            EngineError: a layer cannot run at these sizes.
        """
        return resolve_segment(self.engine, outline(self.engine, self.profile), self.segment, self.sizes, device)


def parts_at_optimum(engine: Engine, profile: int, around: Mapping[str, int]) -> list[Part]:
    """The parts of ``engine`` at the optimal shapes of ``profile``; sizes that the data decides are guessed as the builder does. ``around`` are
    the sizes around a body."""
    shapes = {name: item.opt for name, item in engine.profiles[profile].items()}
    told = sizes_of(engine.network, shapes)
    sizes = typical_sizes(engine.network, {**around, **told})
    plain = (one for one in segments_of(engine.network, engine.host_layers) if not one.host)
    return [Part(engine, profile, one, sizes, guessed=not told.keys() >= set(one.needs)) for one in plain]


class BoundPart:
    """A part on a device: with memory for all that it touches, and random values in what it reads."""

    def __init__(self, part: Part, device: Device, aux: list[Stream]) -> None:
        """``aux`` are auxiliary streams, of which more are made as they are needed.

        Raises:
            EngineError: it cannot run here.
            DeviceError: memory is short, or a kernel is missing.
        """
        loaded = load_engine(part.engine, device)
        network, places = part.engine.network, loaded.outlines[part.profile].places
        resolution = part.resolution(device.spec)
        self._arena = device.allocate(resolution.memory.size)
        need: dict[str, int] = {}  # per tensor that lies elsewhere: bytes
        for name, kind in resolution.types.items():
            root, start = places[name].root, resolution.starts[name]
            if root not in resolution.offsets and root not in loaded.weights and root not in loaded.outline.constants:
                need[root] = max(need.get(root, 0), start + extent_bytes(kind))
        self._outside: dict[str, Memory] = {root: device.allocate(max(size, 1)) for root, size in need.items()}
        for root, memory in self._outside.items():  # columns are read where no value is put
            device.upload(memory.address, np.zeros(need[root], np.uint8))
        addresses = {root: memory.address for root, memory in self._outside.items()}
        layers = tuple(network.layers[number] for number in part.segment.layers)
        made = {name for layer in layers for name in layer.outputs}
        given = tuple(name for name in resolution.types if name not in made and places[name].root in addresses)
        inputs = network_inputs(replace(network, inputs=given, layers=layers), resolution.types)
        for name, array in inputs.items():
            device.upload(addresses[places[name].root] + resolution.starts[name], array)
        programs = [bind_step(loaded, resolution, step, self._arena.address, addresses.get) for step in resolution.steps]
        self._actions: list[Action] = schedule(device, resolution.steps, programs)
        while len(aux) < max((step.stream for step in resolution.steps), default=0):
            aux.append(device.stream(concurrent=True))
        self._aux = aux

    def enqueue(self, main: Stream) -> None:
        """Run it once."""
        streams = (main, *self._aux)
        for action, number, _ in self._actions:
            action(streams[number])
