"""Layouts by measurement: layers that may run channels-first or channels-last are timed in both, and what stands between them too.

:mod:`fusion.layout_choice` says for which layers that is worth it and which assignment is the fastest; the builder keeps it when the whole
network is faster with it. What was measured goes to the engine's record, where reports find the reason of every reformat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Operand
from fusion.layout import REFORMAT, back_for, estimated_layouts, moved_bytes, order_for, to_channels_last
from fusion.layout_choice import LayoutTimes, best_layouts, border_tensors, undecided_layers
from fusion.network import Layer, Network, Op, TensorType
from fusion.ops import Pointwise, Reformat, Shuffle
from fusion.rewrite import disabled_by
from fusion.rules import transpose_epilogue, transpose_pointwise
from fusion.rules.transpose_epilogue import stored_narrow
from fusion.rules.transpose_pointwise import CONVERTED
from runtime.views import view_pieces
from tactics.tactic import Workload
from trtcli.builder.search import Ask

Seconds = Callable[[Sequence[Ask]], Sequence[float]]  # infinite where there is no kernel
WorkloadOf = Callable[[Network, Layer], Workload]


@dataclass(frozen=True)
class _Cast:
    """A cast that joins the change of layout of a tensor: what the joined layer computes of each element, from which type, and the layer whose time
    it spares in return (empty: the cast is part of what makes the tensor); ``before`` the change of layout or behind it."""

    expression: Expression
    source: DataType
    layer: str = ""
    before: bool = False


def measured_times(planar: Network, workload: WorkloadOf, seconds: Seconds, disabled: Collection[str] = ()) -> LayoutTimes | None:
    """The times of all layers of ``planar`` that may have either layout, and of their reformats; None when there is no such layer.

    A reformat that a cast joins (``disabled`` as in ``FusionOptions``) is the joined layer, and costs what it takes beyond the time of the cast by itself.
    """
    free = undecided_layers(planar)
    if not free:
        return None
    tensors = border_tensors(planar, free)
    casts = _joining_casts(planar, tensors, {layer.name for layer in free}, frozenset(disabled))
    found = [_in(planar, layer, last) for layer in free for last in (False, True)]
    found += [_reformat(planar, name, last, casts.get(name)) for name in tensors for last in (False, True)]
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
    layers = dict(zip((layer.name for layer in free), both[: len(free)], strict=True))
    changes = dict(zip(tensors, both[len(free) :], strict=True))
    return LayoutTimes(layers, {name: _beyond(pair, casts.get(name), layers) for name, pair in changes.items()})


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


def _reformat(planar: Network, tensor: str, last: bool, cast: _Cast | None) -> tuple[Network, Layer]:
    """The layer that brings ``tensor`` into a layout, with the cast that joins it."""
    kind, rank = planar.tensors[tensor], len(planar.tensors[tensor].shape)
    order = order_for(rank) if last else back_for(rank)
    shape = kind.shape if last else tuple(kind.shape[axis] for axis in order_for(rank))
    op: Op = Shuffle(first=order)
    if cast is not None and moved_bytes(kind):
        op = Reformat(order, cast.expression)
    source = TensorType(cast.source if isinstance(op, Reformat) and cast else kind.dtype, shape)
    layer = Layer(f"{REFORMAT} {tensor}", op, ("x",), ("y",))
    return replace(planar, layers=(layer,), inputs=("x",), outputs=(), tensors={"x": source, "y": op.infer([source])[0]}, constants={}), layer


def _joining_casts(planar: Network, tensors: Sequence[str], free: Collection[str], disabled: frozenset[str]) -> dict[str, _Cast]:
    """Per tensor the cast in front of its change of layout or behind it that will join that (rules transpose-pointwise and transpose-epilogue)."""
    producers, readers, found = planar.producers(), planar.readers(), dict[str, _Cast]()

    def pointwise(layer: Layer | None) -> bool:
        if layer is None or layer.name not in free or not isinstance(layer.op, Pointwise) or len(layer.inputs) != 1:
            return False
        types = [planar.tensors[name].dtype for name in (*layer.inputs, *layer.outputs)]
        return types[0] is not types[1] and set(types) <= set(CONVERTED) and not disabled_by(transpose_pointwise.RULE.name, (layer,), disabled)

    for name in tensors:
        maker, users = producers.get(name), readers.get(name, [])
        if len(users) + (name in planar.outputs) != 1:
            continue  # others read what would vanish
        if maker is not None and pointwise(maker):
            assert isinstance(maker.op, Pointwise)
            found[name] = _Cast(maker.op.expression, planar.tensors[maker.inputs[0]].dtype, maker.name, before=True)
        elif users and pointwise(users[0]):
            assert isinstance(users[0].op, Pointwise)
            found[name] = _Cast(users[0].op.expression, planar.tensors[name].dtype, users[0].name)
        elif maker is not None and (narrow := stored_narrow(maker.op, [planar.tensors[one] for one in maker.inputs])):
            if not disabled_by(transpose_epilogue.RULE.name, (maker,), disabled):
                found[name] = _Cast(Convert(planar.tensors[name].dtype, Operand(0)), narrow[1])
    return found


def _beyond(pair: tuple[float, float], cast: _Cast | None, layers: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """What changes of layout (to channels-first, to channels-last) take, less the time of the cast in them where it has one by itself."""
    if cast is None or not cast.layer or not any(pair):
        return pair
    first, last = layers[cast.layer]
    spared = (last, first) if cast.before else (first, last)  # in the layout in which it would run
    to_first, to_last = (max(0.0, time - less) if math.isfinite(less) else time for time, less in zip(pair, spared, strict=True))
    return to_first, to_last


def _is_view(network: Network, layer: Layer) -> bool:
    """Whether the layer would not run at all: its output is bytes of its inputs as they are."""
    types = [network.tensors[name] for name in layer.inputs]
    pieces = view_pieces(layer.op, types, network.tensors[layer.outputs[0]])
    return pieces is not None and not any(piece.columns for piece in pieces)
