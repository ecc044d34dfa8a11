"""NVTX ranges: an attached profiler (Nsight Systems) shows each layer's name over the kernels that were launched inside its range.

A range marks the host's launches. Replays of a CUDA graph launch everything at once, so layers have ranges in plain enqueues only
(``--noCudaGraph``); a graph's launch is one range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from runtime.device import Stream
from runtime.watch import Watch, Where

Names: TypeAlias = "tuple[tuple[str, ...], Mapping[int, tuple[Names, ...]]]"  # of layers, and of those of the bodies of control-flow layers


@dataclass(frozen=True)
class LayerRanges(Watch):
    """How a range begins (with its name) and ends, the name of each layer by its number, and the same for networks inside of layers."""

    push: Callable[[str], object]
    pop: Callable[[], object]
    names: tuple[str, ...]
    inference: str = "inference"
    bodies: Mapping[int, tuple[Names, ...]] = field(default_factory=dict)

    def before(self, layer: int, stream: Stream) -> None:
        self.push(self.names[layer])

    def after(self, layer: int, stream: Stream, where: Where) -> None:
        self.pop()

    def inside(self, layer: int, body: int, iteration: int) -> LayerRanges:
        names, bodies = self.bodies[layer][body]
        return replace(self, names=names, bodies=bodies)


def layer_ranges(layers: tuple[str, ...], bodies: Mapping[int, tuple[Names, ...]] = MappingProxyType({})) -> LayerRanges | None:
    """Ranges of these names, through the ``nvtx`` package or cupy; None where neither is installed."""
    try:
        import nvtx
    except ImportError:
        pass
    else:
        return LayerRanges(lambda name: nvtx.push_range(message=name, domain="trtcli"), lambda: nvtx.pop_range(domain="trtcli"), layers, bodies=bodies)
    try:
        from cupy.cuda import nvtx as bundled

        return LayerRanges(bundled.RangePush, bundled.RangePop, layers, bodies=bodies)
    except (ImportError, AttributeError):  # cupy may have been built without it
        return None
