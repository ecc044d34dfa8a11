"""The layout of every layer that may have either, from times: the assignment with the least sum of layers and reformats.

Layouts are two, so an assignment is a cut of a graph: layers on one side run channels-last, on the other channels-first, and the edges that
cross are what the assignment costs. The smallest cut is found exactly (Greig, Porteous and Seheult, "Exact maximum a posteriori estimation for
binary images", 1989; maximum flow by shortest augmenting paths, Edmonds and Karp, 1972). A tensor is reformatted once, however many read it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fusion.layout import CHANNEL_OPS, estimated_layouts, has_layout, is_flexible, is_stem, moved_bytes, turned_tensors
from fusion.network import Layer, Network
from fusion.ops import Convolution, Deconvolution
from fusion.regions import Regions

_ENDLESS = 1 << 60


@dataclass(frozen=True)
class LayoutTimes:
    """Seconds at the optimal shapes, each as (channels-first, channels-last): of ``layers``, and of bringing ``tensors`` into that layout.
    Infinite where there is no kernel."""

    layers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tensors: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def undecided_layers(network: Network, direct_stem: bool = True) -> tuple[Layer, ...]:
    """The layers of ``network`` (before :func:`fusion.layout.to_channels_last`) whose layout is worth a measurement: they may run in either,
    and lie between layers of both kinds, so that something is reformatted in any case."""
    free = {layer.name: layer for layer in network.layers if _is_free(network, layer)}
    producers, readers = network.producers(), network.readers()
    regions = Regions(free)
    touched = _tensors(network, free)
    for tensor in touched:
        around = [one.name for one in (producers.get(tensor), *readers.get(tensor, ())) if one is not None and one.name in free]
        for name in around[1:]:
            regions.join(name, around[0])
    turns = turned_tensors(network)
    first, last = set(), set()  # regions that border on layers of one layout only
    for tensor in touched:
        if not moved_bytes(network.tensors[tensor]):
            continue
        maker, users = producers.get(tensor), readers.get(tensor, [])
        region = regions.of(next(one.name for one in (maker, *users) if one is not None and one.name in free))
        fixed = [one for one in (maker, *users) if one is not None and one.name not in free and not _reads_planes(network, one, tensor, direct_stem)]
        sides = {isinstance(one.op, Convolution | Deconvolution) or turns.get(one.name) == tensor for one in fixed}
        if True in sides:
            last.add(region)
        if tensor in network.inputs or tensor in network.outputs or False in sides:
            first.add(region)
    return tuple(layer for layer in network.layers if layer.name in free and regions.of(layer.name) in first & last)


def border_tensors(network: Network, layers: Sequence[Layer]) -> tuple[str, ...]:
    """The tensors of ``layers`` that a choice may reformat."""
    return tuple(name for name in _tensors(network, {layer.name for layer in layers}) if moved_bytes(network.tensors[name]))


def best_layouts(network: Network, times: LayoutTimes, direct_stem: bool = True) -> frozenset[str]:
    """Names of the layers that shall run channels-last: those of ``times`` as their sum is least, all others as estimated."""
    estimated = estimated_layouts(network, direct_stem)
    cut = _Cut()
    for name, (first, last) in times.layers.items():
        cut.edge(name, "T", _cost(last))
        cut.edge("S", name, _cost(first))
    producers, readers, turns = network.producers(), network.readers(), turned_tensors(network)

    def side(layer: Layer, tensor: str) -> str:
        """The node of a layer: its own, or the end of the graph that its layout is."""
        if layer.name in times.layers:
            return layer.name
        return "S" if layer.name in estimated or turns.get(layer.name) == tensor else "T"

    for tensor, (to_first, to_last) in times.tensors.items():
        maker = side(producers[tensor], tensor) if tensor in producers else "T"
        users = [side(one, tensor) for one in readers.get(tensor, ()) if not _reads_planes(network, one, tensor, direct_stem)]
        users += ["T"] if tensor in network.outputs else []
        there, back = f"{tensor} channels-last", f"{tensor} channels-first"
        cut.edge(there, maker, _cost(to_last))  # made channels-first, read channels-last
        cut.edge(maker, back, _cost(to_first))
        for user in users:
            cut.edge(user, there, _ENDLESS)
            cut.edge(back, user, _ENDLESS)
    last_side = cut.source_side()
    return frozenset(name for name in estimated if name not in times.layers) | {name for name in times.layers if name in last_side}


def cost_of(network: Network, chosen: Collection[str], times: LayoutTimes, direct_stem: bool = True) -> float:
    """What :func:`best_layouts` makes least: seconds of the layers and reformats of ``times`` when ``chosen`` run channels-last."""
    total = sum(last if name in chosen else first for name, (first, last) in times.layers.items())
    producers, readers, turns = network.producers(), network.readers(), turned_tensors(network)

    def runs_last(layer: Layer, tensor: str) -> bool:
        return layer.name in chosen or turns.get(layer.name) == tensor

    for tensor, (to_first, to_last) in times.tensors.items():
        made_last = tensor in producers and runs_last(producers[tensor], tensor)
        wanted = {runs_last(one, tensor) for one in readers.get(tensor, ()) if not _reads_planes(network, one, tensor, direct_stem)}
        wanted |= {False} if tensor in network.outputs else set()
        if (not made_last) in wanted:
            total += to_first if made_last else to_last
    return total


def _is_free(network: Network, layer: Layer) -> bool:
    channels = isinstance(layer.op, CHANNEL_OPS) and not isinstance(layer.op, Convolution | Deconvolution) and not layer.op.channels_last
    return channels or is_flexible(network, layer)


def _tensors(network: Network, names: Collection[str]) -> tuple[str, ...]:
    """The tensors with a layout that the named layers read or write."""
    found = (tensor for layer in network.layers if layer.name in names for tensor in (*layer.inputs, *layer.outputs))
    return tuple(dict.fromkeys(name for name in found if name not in network.constants and has_layout(network, name)))


def _reads_planes(network: Network, layer: Layer, tensor: str, direct_stem: bool) -> bool:
    """Whether a reader takes the tensor in either layout."""
    return direct_stem and bool(layer.inputs) and layer.inputs[0] == tensor and is_stem(network, layer)


def _cost(seconds: float) -> int:
    """In tenths of nanoseconds: flows are whole numbers."""
    return _ENDLESS if math.isinf(seconds) else round(seconds * 1e10)


class _Cut:
    """A directed graph between ``S`` (channels-last) and ``T`` (channels-first), and its smallest cut."""

    def __init__(self) -> None:
        self._left: dict[str, dict[str, int]] = {"S": {}, "T": {}}

    def edge(self, a: str, b: str, capacity: int) -> None:
        """``a`` on the side of S and ``b`` on that of T cost ``capacity``."""
        if a != b:
            self._left.setdefault(a, {})[b] = self._left.get(a, {}).get(b, 0) + capacity
            self._left.setdefault(b, {}).setdefault(a, 0)

    def source_side(self) -> frozenset[str]:
        """The nodes on the side of S in the smallest cut."""
        while True:
            before = self._reached()
            if "T" not in before:
                return frozenset(before)
            path = ["T"]
            while path[-1] != "S":
                path.append(before[path[-1]])
            steps = list(zip(path[1:], path, strict=False))
            flow = min(self._left[a][b] for a, b in steps)
            for a, b in steps:
                self._left[a][b] -= flow
                self._left[b][a] += flow

    def _reached(self) -> dict[str, str]:
        """Every node that S still reaches, with the one before it on a shortest path."""
        before, waiting = {"S": "S"}, deque(["S"])
        while waiting:
            a = waiting.popleft()
            for b, capacity in self._left[a].items():
                if capacity and b not in before:
                    before[b] = a
                    waiting.append(b)
        return before
