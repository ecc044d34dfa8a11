"""A network cut where the host has to step in: to decide what runs next, or to read a size that a layer has computed.

Between the cuts lie segments that only enqueue; each can be a CUDA graph. A network without such layers is one segment. Layers are moved
to the earliest segment in which everything that they need is there, so that the host steps in as rarely as possible.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fusion.network import ControlFlow, Network, size_makers, symbols_of


@dataclass(frozen=True)
class Segment:
    """Layers that run without the host, or one layer that the host runs.

    Attributes:
        layers: their numbers in the network.
        host: the host runs it: control flow, or a tactic that computes on the host.
        reads: sizes (names in ``Network.sizes``) that the host reads before it.
        needs: all named sizes that its layers' shapes and attributes hold.
        outside: tensors that it shares with others: their addresses are not its own to choose.
    """

    layers: tuple[int, ...]
    host: bool = False
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Obstacle:
    """A layer (number) that a CUDA graph cannot hold together with what follows it, and why."""

    layer: int
    reason: str


def segments_of(network: Network, host: Collection[int] = ()) -> tuple[Segment, ...]:
    """The segments in the order of execution. ``host`` are layers (numbers) that the host runs beside control flow."""
    if not (host or network.sizes or any(isinstance(layer.op, ControlFlow) for layer in network.layers)):
        everything = dict.fromkeys((*network.inputs, *network.outputs))
        needed = frozenset().union(*(symbols_of(network, layer) for layer in network.layers))
        return (Segment(tuple(range(len(network.layers))), needs=tuple(sorted(needed)), outside=tuple(everything)),)
    host = {*host, *(number for number, layer in enumerate(network.layers) if isinstance(layer.op, ControlFlow))}
    makers = size_makers(network)
    producer = {name: number for number, layer in enumerate(network.layers) for name in layer.outputs}
    # Even levels are plain segments, odd ones are host layers; a size is read after its level, so before a higher one.
    level: list[int] = []
    needs: list[frozenset[str]] = []
    for number, layer in enumerate(network.layers):
        needs.append(symbols_of(network, layer))
        own = {size for size, tensor in makers.items() if tensor in layer.outputs}
        inputs = [level[producer[name]] for name in layer.inputs if name in producer]
        waits = [level[producer[makers[size]]] + 1 for size in needs[-1] - own if makers.get(size) in producer]
        at = max((*inputs, *waits), default=0)
        if number in host:
            at = at + 1 if at % 2 == 0 else at + 2 if at in inputs else at
        elif at % 2:
            at += 1
        level.append(at)
    groups: list[list[int]] = []
    for at in sorted(set(level)):
        members = [number for number, one in enumerate(level) if one == at]
        groups += [[number] for number in members] if at % 2 else [members]
    return _segments(network, groups, host, needs)


def _segments(
    network: Network, groups: list[list[int]], host: Collection[int], needs: list[frozenset[str]]
) -> tuple[Segment, ...]:
    home = {name: index for index, group in enumerate(groups) for number in group for name in network.layers[number].outputs}
    users: dict[str, set[int]] = {}
    for index, group in enumerate(groups):
        for number in group:
            for name in network.layers[number].inputs:
                users.setdefault(name, set()).add(index)
    read_tensors = {reading.tensor for reading in network.sizes.values()}
    ends = {*network.inputs, *network.outputs, *read_tensors}
    pending = dict(network.sizes)
    result = []
    for index, group in enumerate(groups):
        layers = [network.layers[number] for number in group]
        needed = frozenset().union(*(needs[number] for number in group))
        reads: tuple[str, ...] = ()
        if needed & pending.keys():  # while the host waits, it reads all that is there
            reads = tuple(size for size, one in pending.items() if home.get(one.tensor, -1) < index)
            pending = {size: one for size, one in pending.items() if size not in reads}
        touched = dict.fromkeys(name for layer in layers for name in (*layer.inputs, *layer.outputs))
        outside = tuple(
            name for name in touched if name in ends or home.get(name, -1) != index or users.get(name, set()) - {index}
        )
        result.append(Segment(tuple(group), any(number in host for number in group), reads, tuple(sorted(needed)), outside))
    return tuple(result)


def obstacles_of(network: Network, host: Collection[int] = ()) -> tuple[Obstacle, ...]:
    """The layers around which the network is cut, in order."""
    sizes: dict[str, list[str]] = {}
    for size, reading in network.sizes.items():
        sizes.setdefault(reading.tensor, []).append(size)
    found = []
    for number, layer in enumerate(network.layers):
        read = any(name in sizes for name in layer.outputs)
        if isinstance(layer.op, ControlFlow):
            found.append(Obstacle(number, "the host decides what runs next"))
        elif number in host:
            found.append(Obstacle(number, "it is computed on the host"))
        elif read and layer.op.layer_type in ("NonZero", "NMS", "Unique"):
            found.append(Obstacle(number, "its output's shape depends on data"))
        elif read:
            found.append(Obstacle(number, "the host reads its result: shapes of later layers depend on it"))
    return tuple(found)


Part = tuple[Network, Collection[int]]  # a network with the layers (numbers) that the host computes


def parts_of(network: Network) -> tuple[Part, ...]:
    """The network and those inside its layers, outermost first."""
    inner = (part for layer in network.layers if isinstance(layer.op, ControlFlow) for body in layer.op.bodies for part in parts_of(body))
    return ((network, ()), *inner)


def layer_count(network: Network) -> int:
    """How many layers the network and those inside its layers have, views included: what every command means by layers."""
    return sum(len(part.layers) for part, _ in parts_of(network))


def captured_layers(parts: Sequence[Part]) -> list[tuple[int, ...]]:
    """The layers (numbers) of every segment that a graph of its own can hold, without those around which the networks are cut."""
    found = []
    for network, host in parts:
        cuts = {one.layer for one in obstacles_of(network, host)}
        found += [tuple(layer for layer in one.layers if layer not in cuts) for one in segments_of(network, host) if not one.host]
    return [layers for layers in found if layers]


def read_inputs(network: Network) -> tuple[str, ...]:
    """The network inputs that the host reads because shapes depend on their values."""
    return tuple(dict.fromkeys(one.tensor for one in network.sizes.values() if one.tensor in network.inputs))

