"""NVTX ranges: an attached profiler (Nsight Systems) shows each layer's name over the kernels that were launched inside its range.

A range marks the host's launches. Replays of a CUDA graph launch everything at once, so layers have ranges in plain enqueues only
(``--noCudaGraph``); a graph's launch is one range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerRanges:
    """How a range begins (with its name) and ends, and the name of each layer by its number."""

    push: Callable[[str], object]
    pop: Callable[[], object]
    names: tuple[str, ...]
    inference: str = "inference"

    def before(self, layer: int, _stream: object) -> None:
        """A layer's range begins."""
        self.push(self.names[layer])

    def after(self, _layer: int, _stream: object) -> None:
        """It ends."""
        self.pop()


def layer_ranges(names: tuple[str, ...]) -> LayerRanges | None:
    """Ranges of these names, through the ``nvtx`` package or cupy; None where neither is installed."""
    try:
        import nvtx
    except ImportError:
        pass
    else:
        return LayerRanges(lambda name: nvtx.push_range(message=name, domain="trtcli"), lambda: nvtx.pop_range(domain="trtcli"), names)
    try:
        from cupy.cuda import nvtx as bundled

        return LayerRanges(bundled.RangePush, bundled.RangePop, names)
    except (ImportError, AttributeError):  # cupy may have been built without it
        return None
