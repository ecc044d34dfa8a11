"""Why a layer that only changes a layout is there."""

from __future__ import annotations

from collections.abc import Mapping

from fusion.io_formats import INPUT_FORMAT, OUTPUT_FORMAT
from fusion.layout import REFORMAT, back_for, order_for
from fusion.network import Layer
from fusion.ops import Reformat, Shuffle
from fusion.padded_channels import RULE
from runtime.engine import Engine

_FLAGS = {INPUT_FORMAT: "--inputIOFormats", OUTPUT_FORMAT: "--outputIOFormats"}


def reformat_reason(engine: Engine, layer: Layer) -> str:
    """Why ``layer`` changes a layout: for whom, and what the choice was made by; empty for other layers."""
    if REFORMAT not in layer.fusions:
        return ""
    network = engine.network
    flags = [flag for mark, flag in _FLAGS.items() if mark in layer.fusions]
    if flags:
        ends = ", ".join(f"{name} is {network.formats[name].name}: " for name in (*layer.inputs, *layer.outputs) if name in network.formats)
        return f"{ends}asked for by {' and '.join(flags)}"
    readers = [one for one in network.layers if set(layer.outputs) & set(one.inputs)]
    places = [one.name for one in readers] + (["the network output"] if set(layer.outputs) & set(network.outputs) else [])
    if RULE in layer.fusions:
        counts = [network.tensors[name].shape[-1] for name in (*layer.inputs, *layer.outputs)]
        return f"{counts[0]} to {counts[-1]} channels for {', '.join(places)}: padded channels pay beside it (measured)"
    if isinstance(layer.op, Reformat):
        order, types = layer.op.order, [network.tensors[name].dtype.label for name in (*layer.inputs, *layer.outputs)]
    elif isinstance(layer.op, Shuffle):
        order, types = layer.op.first or layer.op.second or (), []
    else:
        return ""
    rank = len(network.tensors[layer.inputs[0]].shape)
    what = {order_for(rank): "to channels-last", back_for(rank): "to channels-first"}.get(order, "")
    what = ", ".join(one for one in (" to ".join(types), what) if one)
    record = engine.record.get("layouts", {})
    measured = record.get("layers", {}) if isinstance(record, Mapping) else {}
    around = [*readers, *(one for one in network.layers if set(one.outputs) & set(layer.inputs))]
    for one in around:
        pair = measured.get(one.name)
        if pair:
            first, last = ("no kernel" if value is None else f"{value * 1e3:.1f} us" for value in pair)
            return f"{what} for {', '.join(places)}: {one.name} takes {first} channels-first, {last} channels-last (measured)".strip()
    return f"{what} for {', '.join(places)}: fewer bytes change layout so than elsewhere (estimated)".strip()
