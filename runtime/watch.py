"""Whoever looks at an inference layer by layer: the profiler, an external profiler's ranges, debug tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from runtime.device import Stream, Tensor

Where: TypeAlias = Callable[[str], "Tensor | None"]  # where a tensor lies now, None when it has no memory


class Watch:
    """Sees every layer of a network as it is enqueued. Layers are numbers in the network; nothing is done where a method is left as it is."""

    def before(self, layer: int, stream: Stream) -> None:
        """``layer`` is enqueued next, on ``stream``."""

    def after(self, layer: int, stream: Stream, where: Where) -> None:
        """``layer`` has been enqueued; its tensors hold their values when ``stream`` gets here, and until the next layer only."""

    def inside(self, layer: int, body: int, iteration: int) -> Watch | None:
        """Who sees the layers of network ``body`` of control-flow ``layer``, which runs for the time ``iteration`` (from 0); None: nobody."""
        return None


class Both(Watch):
    """Two who look."""

    def __init__(self, first: Watch, second: Watch) -> None:
        self._first, self._second = first, second

    def before(self, layer: int, stream: Stream) -> None:
        self._first.before(layer, stream)
        self._second.before(layer, stream)

    def after(self, layer: int, stream: Stream, where: Where) -> None:
        self._first.after(layer, stream, where)
        self._second.after(layer, stream, where)

    def inside(self, layer: int, body: int, iteration: int) -> Watch | None:
        first, second = (one.inside(layer, body, iteration) for one in (self._first, self._second))
        return Both(first, second) if first and second else first or second
