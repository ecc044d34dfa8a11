"""Layouts by measurement: layers that may run channels-first or channels-last are timed in both, and what stands between them too.

:mod:`fusion.layout_choice` says for which layers that is worth it and which assignment is the fastest; the builder keeps it when the whole
network is faster with it. What was measured goes to the engine's record, where reports find the reason of every reformat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusion.layout import REFORMAT, back_for, estimated_layouts, order_for, to_channels_last
from fusion.layout_choice import LayoutTimes, best_layouts, border_tensors, undecided_layers
from fusion.network import Layer, Network, TensorType
from fusion.ops import Shuffle
from runtime.views import view_pieces
from tactics.tactic import Workload
from trtcli.builder.search import Ask

Seconds = Callable[[Sequence[Ask]], Sequence[float]]  # infinite where there is no kernel
WorkloadOf = Callable[[Network, Layer], Workload]


def measured_times(planar: Network, workload: WorkloadOf, seconds: Seconds) -> LayoutTimes | None:
    """The times of all layers of ``planar`` that may have either layout, and of their reformats; None when there is no such layer."""
    free = undecided_layers(planar)
    if not free:
        return None
    tensors = border_tensors(planar, free)
    pairs = [(_in(planar, layer, last) for last in (False, True)) for layer in free]
    pairs += [(_reformat(planar, name, last) for last in (False, True)) for name in tensors]
    found = [form for pair in pairs for form in pair]
    times = [0.0] * len(found)
    timed = [n for n, (network, layer) in enumerate(found) if not _is_view(network, layer)]
    alone = []
    for n in timed:
        network, layer = found[n]
        values = {number: network.constants[name] for number, name in enumerate(layer.inputs) if name in network.constants}
        alone.append(Ask(layer.name, workload(network, layer), values))
    for n, value in zip(timed, seconds(alone), strict=True):
        times[n] = value
    both = [(times[n], times[n + 1]) for n in range(0, len(times), 2)]
    return LayoutTimes(
        dict(zip((layer.name for layer in free), both[: len(free)], strict=True)), dict(zip(tensors, both[len(free) :], strict=True))
    )


def chosen_layouts(planar: Network, times: LayoutTimes) -> tuple[str, ...] | None:
    """The layers that run channels-last when the sum of ``times`` is least, in the network's order; None when that is the estimate."""
    best = best_layouts(planar, times)
    return None if best == estimated_layouts(planar, True) else tuple(layer.name for layer in planar.layers if layer.name in best)


def layout_record(times: LayoutTimes | None, chosen: Sequence[str] | None) -> dict[str, Any]:
    """For the engine's record: what was measured, in milliseconds (null: no kernel), and the layers that run channels-last, null as estimated."""

    def shown(pairs: Mapping[str, tuple[float, float]]) -> dict[str, list[float | None]]:
        return {name: [None if math.isinf(one) else one * 1e3 for one in pair] for name, pair in pairs.items()}

    if times is None:
        return {"layers": {}, "tensors": {}, "channelsLast": None}
    return {"layers": shown(times.layers), "tensors": shown(times.tensors), "channelsLast": None if chosen is None else list(chosen)}


# --- layers by themselves ----------------------------------------------------------------------------------------------


def _in(planar: Network, layer: Layer, last: bool) -> tuple[Network, Layer]:
    """``layer`` in one of the layouts, with a network that knows its tensors."""
    if not last:
        return planar, layer
    given = tuple(name for name in dict.fromkeys(layer.inputs) if name not in planar.constants)
    alone = replace(planar, layers=(layer,), inputs=given, outputs=())
    network = to_channels_last(alone, False, frozenset({layer.name}))
    return network, next(one for one in network.layers if one.name == layer.name)


def _reformat(planar: Network, tensor: str, last: bool) -> tuple[Network, Layer]:
    """The layer that brings ``tensor`` into a layout."""
    kind, rank = planar.tensors[tensor], len(planar.tensors[tensor].shape)
    turned = TensorType(kind.dtype, tuple(kind.shape[axis] for axis in order_for(rank)))
    source, op = (kind, Shuffle(first=order_for(rank))) if last else (turned, Shuffle(first=back_for(rank)))
    layer = Layer(f"{REFORMAT} {tensor}", op, ("x",), ("y",))
    return replace(planar, layers=(layer,), inputs=("x",), outputs=(), tensors={"x": source, "y": op.infer([source])[0]}, constants={}), layer


def _is_view(network: Network, layer: Layer) -> bool:
    """Whether the layer would not run at all: its output is bytes of its inputs as they are."""
    types = [network.tensors[name] for name in layer.inputs]
    pieces = view_pieces(layer.op, types, network.tensors[layer.outputs[0]])
    return pieces is not None and not any(piece.columns for piece in pieces)
