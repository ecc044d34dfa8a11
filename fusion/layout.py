"""The layout pass: convolutions and pooling channels-last, with as few transposes left as possible.

Layers that do not care (pointwise, concatenation, slices ...) are gathered into regions of connected ones; a region
takes the layout that makes fewer bytes cross its border. Where two layouts meet, a transposing Shuffle is put in, named
after the layer that asked for it and marked ``reformat``; the shuffle rules then merge and cancel what they can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fusion.dims import Shape, substitute, symbols
from fusion.network import Layer, Network, Op, TensorType
from fusion.ops import (
    ArgReduce,
    Concatenation,
    Convolution,
    Cumulative,
    Deconvolution,
    Expand,
    Gather,
    GroupNormalization,
    LocalResponseNormalization,
    Normalization,
    Padding,
    Pointwise,
    Pooling,
    Reduce,
    Resize,
    Shuffle,
    Slice,
    Softmax,
    Tile,
    TopK,
)
from fusion.regions import Regions
from fusion.turns import back_for, order_for, turned_tensor

CHANNEL_OPS = (Convolution, Deconvolution, Pooling, GroupNormalization, LocalResponseNormalization)
REFORMAT = "reformat"  # what marks a layer (Layer.fusions) that changes a layout
STEM_CHANNELS = 4  # a first convolution with so few channels reads its planes directly
_TYPICAL = 256  # stands for a run-time size when bytes are compared; large, for strides divide it


def to_channels_last(network: Network, direct_stem: bool = False, chosen: frozenset[str] | None = None) -> Network:
    """``network`` with channels-last convolutions; the same object when there is nothing to convert.

    ``direct_stem``: a convolution with few channels reads a channels-first image as it is (``input_channels_last=False``)
    instead of through a transpose. ``chosen`` are the layers that shall run channels-last, where measurements have told; else an
    estimate by bytes does.
    """
    if chosen is None and not any(isinstance(layer.op, CHANNEL_OPS) and not layer.op.channels_last for layer in network.layers):
        return network
    return _Conversion(network, estimated_layouts(network, direct_stem) if chosen is None else chosen, direct_stem).run()


# --- which layers ----------------------------------------------------------------------------------------------------


def _rank(network: Network, layer: Layer) -> int:
    return len(network.tensors[layer.inputs[0]].shape) if layer.inputs else 0


def is_flexible(network: Network, layer: Layer) -> bool:
    """Whether the layer can run on permuted axes as well."""
    op = layer.op
    out = network.tensors[layer.outputs[0]].shape
    rank = len(out)
    if isinstance(op, Pointwise):
        return rank >= 3
    if _rank(network, layer) < 3:
        return False
    if isinstance(op, Reduce):
        source = len(network.tensors[layer.inputs[0]].shape)
        kept = [axis for axis in order_for(source) if axis not in op.axes]
        return op.keep_dims or kept == sorted(kept)
    if isinstance(op, Gather):
        return len(network.tensors[layer.inputs[1]].shape) == 1
    if isinstance(op, ArgReduce):
        return op.keep_dims
    if isinstance(op, Expand):
        return len(network.tensors[layer.inputs[0]].shape) == rank
    return isinstance(op, Concatenation | Slice | Padding | Softmax | Resize | Normalization | Tile | TopK | Cumulative)


def is_stem(network: Network, layer: Layer) -> bool:
    """Whether a convolution has so few input channels that kernels read them as planes."""
    if not isinstance(layer.op, Convolution) or layer.op.channels_last or layer.op.groups != 1:
        return False
    channels = network.tensors[layer.inputs[0]].shape[1]
    return isinstance(channels, int) and channels <= STEM_CHANNELS


def estimated_layouts(network: Network, direct_stem: bool) -> frozenset[str]:
    """Names of the layers that shall run channels-last."""
    chosen = {layer.name for layer in network.layers if isinstance(layer.op, CHANNEL_OPS)}
    flexible = {layer.name: layer for layer in network.layers if is_flexible(network, layer)}
    producers, readers = network.producers(), network.readers()
    regions = _regions(network, flexible)
    turns = turned_tensors(network)
    # Bytes that cross each region's border if it runs channels-first (against channels-last neighbours), or channels-last.
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for tensor, kind in network.tensors.items():
        maker = producers.get(tensor)
        users = readers.get(tensor, [])
        if tensor in network.constants or not has_layout(network, tensor):
            continue
        around = [*([maker] if maker is not None else []), *users]
        touched = {regions.of(layer.name) for layer in around if layer.name in flexible}
        if not touched:
            continue
        cost = moved_bytes(kind)
        outside = tensor in network.inputs or tensor in network.outputs
        rigid = outside or any(layer.name not in flexible and layer.name not in chosen and turns.get(layer.name) != tensor for layer in around)
        free = {user.name for user in users if direct_stem and user.inputs[0] == tensor and is_stem(network, user)}
        channel = any((layer.name in chosen and layer.name not in free) or turns.get(layer.name) == tensor for layer in around)
        for root in touched:
            if channel:
                first[root] = first.get(root, 0.0) + cost
            if rigid:
                last[root] = last.get(root, 0.0) + cost
    for name in flexible:
        root = regions.of(name)
        if first.get(root, 0.0) > 0 and first.get(root, 0.0) >= last.get(root, 0.0):
            chosen.add(name)
    return frozenset(chosen)


def turned_tensors(network: Network) -> dict[str, str]:
    """The Shuffles that are changes of layout, each with the tensor that it has channels-last for nothing (:mod:`fusion.turns`)."""
    if not any(isinstance(layer.op, Shuffle) for layer in network.layers):
        return {}
    producers, readers = network.producers(), network.readers()
    flexible = {layer.name: layer for layer in network.layers if is_flexible(network, layer)}
    regions = _regions(network, flexible)

    def around(tensor: str) -> list[Layer]:
        return [*([producers[tensor]] if tensor in producers else []), *readers.get(tensor, ())]

    image_regions = {
        regions.of(name)
        for name, layer in flexible.items()
        for tensor in (*layer.inputs, *layer.outputs)
        if has_layout(network, tensor) and any(isinstance(one.op, CHANNEL_OPS) for one in around(tensor))
    }

    def among_images(tensor: str) -> bool:
        return any(isinstance(one.op, CHANNEL_OPS) or (one.name in flexible and regions.of(one.name) in image_regions) for one in around(tensor))

    found = ((layer.name, turned_tensor(network, layer, among_images)) for layer in network.layers)
    return {name: tensor for name, tensor in found if tensor is not None}


def _regions(network: Network, flexible: Mapping[str, Layer]) -> Regions:
    """The ``flexible`` layers, those together between which no change of layout is."""
    producers, regions = network.producers(), Regions(flexible)
    for layer in flexible.values():
        for tensor in layer.inputs:
            maker = producers.get(tensor)
            if maker is not None and maker.name in flexible and has_layout(network, tensor):
                regions.join(maker.name, layer.name)
    return regions


def has_layout(network: Network, tensor: str) -> bool:
    """Whether permuting the axes of ``tensor`` means anything."""
    return len(network.tensors[tensor].shape) >= 3


def moved_bytes(kind: TensorType) -> float:
    """Bytes to move when ``kind`` changes layout: none when only axes of length 1 would change places."""
    shape = [_number(dim) for dim in kind.shape]
    if shape[1] == 1 or all(size == 1 for size in shape[2:]):
        return 0.0
    return float(np.prod(shape)) * kind.dtype.itemsize


def _number(dim: object) -> int:
    if isinstance(dim, int):
        return dim
    value = substitute(dim, dict.fromkeys(symbols(dim), _TYPICAL))  # type: ignore[arg-type]
    return max(2, value) if isinstance(value, int) else _TYPICAL


# --- the conversion --------------------------------------------------------------------------------------------------


class _Conversion:
    """One run of the pass. ``stored[tensor]`` maps ``first`` and ``last`` to the name of the tensor in that layout."""

    def __init__(self, network: Network, chosen: frozenset[str], direct_stem: bool) -> None:
        self.network, self.chosen, self.direct_stem = network, chosen, direct_stem
        self.layers: list[Layer] = []
        self.tensors: dict[str, TensorType] = {name: network.tensors[name] for name in network.inputs}
        self.constants: dict[str, np.ndarray] = {}
        self.stored: dict[str, dict[str, str]] = {name: {"first": name} for name in network.inputs}

    def run(self) -> Network:
        for layer in self.network.layers:
            if layer.name in self.chosen and not getattr(layer.op, "channels_last", False):
                self._convert(layer)
            else:
                inputs = tuple(self._get(name, "first", layer) for name in layer.inputs)
                self._add(replace(layer, inputs=inputs), "first")
                if self._asked_for(layer):  # an input lies channels-last: whoever wants it so, a stem too, reads it as it is
                    self.stored[layer.outputs[0]]["last"] = inputs[0]
        for name in self.network.outputs:
            self._get(name, "first", None)
        return replace(self.network, layers=tuple(self.layers), tensors=self.tensors, constants=self.constants)

    def _convert(self, layer: Layer) -> None:
        op = layer.op
        main = self.network.tensors[layer.inputs[0]]
        rank = len(self.network.tensors[layer.outputs[0]].shape) if isinstance(op, Pointwise) else len(main.shape)
        stem = self._reads_planes(layer)
        plain = isinstance(op, Reduce) and not op.keep_dims  # its result has no channel axis to move
        if isinstance(op, Pointwise | Concatenation):
            inputs = [self._operand(name, rank, layer) for name in layer.inputs]
        else:
            arity = op.arity
            inputs = [self._get(layer.inputs[0], "first" if stem else "last", layer)]
            inputs += [self._get(name, "first", layer) for name in layer.inputs[1:arity]]  # weights, indices
            extras = layer.inputs[arity:]
            inputs += [self._get(n, "first", layer) if plain else self._operand(n, rank, layer) for n in extras]
        changed = _permuted(op, rank)
        if stem:
            changed = replace(changed, input_channels_last=False)
        self._add(Layer(layer.name, changed, tuple(inputs), layer.outputs, layer.origins, layer.fusions),
                  "first" if plain else "last")  # fmt: skip

    @staticmethod
    def _asked_for(layer: Layer) -> bool:
        """Whether the layer is there only because an input lies channels-last, in the order that the layers here compute in."""
        op = layer.op
        return REFORMAT in layer.fusions and not layer.origins and isinstance(op, Shuffle) and op.first is not None and op == Shuffle(back_for(len(op.first)))

    def _reads_planes(self, layer: Layer) -> bool:
        """Whether the layer is a stem whose image is there channels-first only."""
        if not self.direct_stem or not is_stem(self.network, layer) or layer.inputs[0] in self.network.constants:
            return False
        return "last" not in self.stored[layer.inputs[0]]

    def _add(self, layer: Layer, layout: str) -> None:
        types = layer.op.infer([self.tensors[name] for name in layer.inputs])
        outputs = []
        for name, kind in zip(layer.outputs, types, strict=True):
            physical = f"{name}.last" if layout == "last" and name in self.network.outputs else name
            self.stored[name] = {layout: physical}
            if len(kind.shape) < 3:
                self.stored[name] = {"first": physical, "last": physical}
            self.tensors[physical] = kind
            outputs.append(physical)
        self.layers.append(replace(layer, outputs=tuple(outputs)))

    def _get(self, name: str, layout: str, reader: Layer | None) -> str:
        """The name of ``name`` in ``layout``; a reformat is put in when only the other one exists."""
        if name in self.network.constants:
            return self._constant(name, layout)
        known = self.stored[name]
        if layout in known:
            return known[layout]
        ((_other, source),) = known.items()
        kind = self.tensors[source]
        rank = len(kind.shape)
        target = name if layout == "first" and name in self.network.outputs else f"{name}.{layout}"
        op = Shuffle(first=order_for(rank) if layout == "last" else back_for(rank))
        why = f"for {reader.name}" if reader is not None else "for the network output"
        known[layout] = target
        self.tensors[target] = op.infer([kind])[0]
        self.layers.append(Layer(f"reformat {name} {why}", op, (source,), (target,), fusions=(REFORMAT,)))
        return target

    def _constant(self, name: str, layout: str) -> str:
        value = self.network.constants[name]
        target = name if layout == "first" else f"{name}.{layout}"
        if target not in self.tensors:
            moved = value if layout == "first" else np.ascontiguousarray(value.transpose(order_for(value.ndim)))
            self.constants[target] = moved
            self.tensors[target] = TensorType(self.network.tensors[name].dtype, moved.shape)
        return target

    def _operand(self, name: str, rank: int, reader: Layer) -> str:
        """A tensor that broadcasts against ``rank`` channels-first axes, for a reader in channels-last order."""
        shape = self.network.tensors[name].shape
        if all(dim == 1 for dim in shape) and len(shape) <= rank:
            return self._get(name, "first", reader)
        if len(shape) == rank:
            return self._get(name, "last", reader)
        # Fewer axes: they are the last ones of the channels-first order, and must be given their places first.
        full = (1,) * (rank - len(shape)) + tuple(shape)
        if name in self.network.constants:
            moved: np.ndarray = self.network.constants[name].reshape(full).transpose(order_for(rank))  # type: ignore[arg-type]
            while moved.ndim > 1 and len(moved) == 1:
                moved = moved[0]
            target = f"{name}.last{rank}"
            self.constants[target] = np.ascontiguousarray(moved)
            self.tensors[target] = TensorType(self.network.tensors[name].dtype, moved.shape)
            return target
        source = self._get(name, "first", reader)
        target = f"{name}.last{rank}"
        if target not in self.tensors:
            op = Shuffle(reshape=full, second=order_for(rank))
            self.tensors[target] = op.infer([self.tensors[source]])[0]
            fusions = (REFORMAT,)
            self.layers.append(Layer(f"reformat {name} for {reader.name}", op, (source,), (target,), fusions=fusions))
        return target


def _permuted(op: Op, rank: int) -> Op:
    """``op`` on channels-last axes."""
    if isinstance(op, CHANNEL_OPS):
        return replace(op, channels_last=True)
    order = order_for(rank)
    for kind, change in _CHANGES.items():
        if isinstance(op, kind):
            return replace(op, **change(op, order))
    return op  # Pointwise


def _axis(op: Op, order: Sequence[int]) -> dict[str, object]:
    return {"axis": list(order).index(op.axis)}  # type: ignore[attr-defined]


def _axes(op: Op, order: Sequence[int]) -> dict[str, object]:
    return {"axes": tuple(sorted(list(order).index(axis) for axis in op.axes))}  # type: ignore[attr-defined]


def _take(*names: str) -> Callable[[Op, Sequence[int]], dict[str, object]]:
    """Per-axis attributes, reordered."""

    def change(op: Op, order: Sequence[int]) -> dict[str, object]:
        return {name: _reorder(getattr(op, name), order) for name in names}

    return change


def _reorder(values: Shape, order: Sequence[int]) -> tuple:
    return tuple(values[axis] for axis in order)


def _resize(op: Op, order: Sequence[int]) -> dict[str, object]:
    assert isinstance(op, Resize)
    half = len(op.shape)

    def both(ends: tuple) -> tuple:
        return (*_reorder(ends[:half], order), *_reorder(ends[half:], order)) if ends else ()

    told = _reorder(op.told_scales, order) if op.told_scales else ()  # type: ignore[arg-type]
    scales = _reorder(op.scales, order)  # type: ignore[arg-type]
    return {"shape": _reorder(op.shape, order), "scales": scales, "roi": both(op.roi), "told_scales": told, "told_roi": both(op.told_roi)}


_CHANGES: Mapping[type[Op], Callable[[Op, Sequence[int]], dict[str, object]]] = {
    Concatenation: _axis,
    Softmax: _axis,
    Gather: _axis,
    ArgReduce: _axis,
    TopK: _axis,
    Cumulative: _axis,
    Reduce: _axes,
    Normalization: _axes,
    Slice: _take("starts", "sizes", "steps"),
    Padding: _take("pre", "post"),
    Expand: _take("shape"),
    Tile: _take("repeats"),
    Resize: _resize,
}
