"""Channels padded in memory: a channels-last tensor of 37 channels that is held as one of 40, and so the rows of a matrix.

Kernels move and multiply 16 bytes at a time; rows of 37 half-precision channels begin anywhere, and Hopper's TMA refuses them. So a tensor may be
held with more channels (the last axis) than it has, a multiple of 16 bytes: weights are padded with zeros at build, and all layers in between (pointwise,
pooling, resizing, concatenation) carry the padding along. It is an ordinary tensor of the network: tactics, libraries and the memory plan
see 40 channels.

What a padding channel holds: one finite number that is known at build (:attr:`Padded.fill`), zero until a function makes something else of it (0.5 behind a
sigmoid). Whatever it is, those who multiply it have zero weights there, and nobody else ever gets to see it: a layer that cannot carry padding, or a network
output, reads a slice of the real channels, which as columns of a wider tensor costs nothing wherever kernels allow that
(:mod:`runtime.views`). Where padding would not stay finite and known, the tensor is not padded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from fusion.dims import Dim
from fusion.dtypes import DataType
from fusion.expression import Expression, evaluate
from fusion.layout import REFORMAT
from fusion.network import Layer, Network, Op, TensorType
from fusion.ops import (
    Concatenation,
    Convolution,
    Deconvolution,
    MatrixMultiply,
    Normalization,
    Padding,
    Pointwise,
    Pooling,
    Reduce,
    Reformat,
    Resize,
    Shuffle,
    Slice,
)
from fusion.ops.epilogue import apply_prologue, product_type
from fusion.ops.reduce import reduce_array
from fusion.rewrite import LAYOUT_RULES

(RULE,) = LAYOUT_RULES  # its name for --disableFusion, and in Layer.fusions of the layers that it changed
ROW = 16  # bytes that a row of channels is padded to
LARGEST = 1024.0  # what a padding channel may hold, so that rounding to any type leaves it finite
Product: TypeAlias = "Convolution | Deconvolution | MatrixMultiply"
_PROBES = np.array([0.0, 1.0, -1.0, 0.37, -3.1, 7.9, 1e-4, -250.0])  # for operands that are known at run time only


@dataclass(frozen=True)
class Padded:
    """How a tensor is held: channel ``c`` of the model at ``places[c]`` of ``size`` channels; the others, in their order, hold ``fill``."""

    places: tuple[int, ...]
    size: int
    fill: tuple[float, ...]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The real channels as (first, count) of neighbours."""
        cuts = [0, *(n for n, (a, b) in enumerate(pairwise(self.places), 1) if b != a + 1), len(self.places)]
        return [(self.places[a], b - a) for a, b in pairwise(cuts)]

    def same_places(self, other: Padded) -> bool:
        """Whether both hold real channels in the same places."""
        return (self.places, self.size) == (other.places, other.size)

    def widen(self, array: np.ndarray, axis: int, value: float = 0.0) -> np.ndarray:
        """``array`` with ``value`` in the padding channels of ``axis``."""
        shape = list(array.shape)
        shape[axis] = self.size
        found = np.full(shape, value, array.dtype)
        at = [slice(None)] * array.ndim
        at[axis] = np.asarray(self.places)  # type: ignore[call-overload]
        found[tuple(at)] = array
        return found


def paddable(network: Network) -> tuple[str, ...]:
    """The tensors that may be worth padding: made by a channels-last convolution or a product with constants, or read by one, with rows that are no
    multiple of 16 bytes."""
    found: dict[str, None] = {}
    for layer in network.layers:
        if _reads_rows(network, layer):
            found[layer.inputs[0]] = None
        if _writes_rows(network, layer) and layer.outputs[0] not in network.outputs:
            found[layer.outputs[0]] = None
    return tuple(name for name in network.tensors if name in found and _is_odd(network.tensors[name]) and name not in network.constants)


@dataclass(frozen=True)
class PaddedNetwork:
    """What :func:`pad_channels` made: the network (the same object when nothing could be padded), how each tensor that is padded in it is held,
    and of those that did not inherit their padding which of the wanted tensors each is."""

    network: Network
    held: Mapping[str, Padded]
    born: Mapping[str, str]


def pad_channels(network: Network, wanted: Collection[str]) -> PaddedNetwork:
    """``network`` with the tensors ``wanted`` (some of :func:`paddable`) padded, where possible, and what follows from that."""
    return _Run(network, frozenset(wanted)).result()


def _is_odd(tensor: TensorType) -> bool:
    channels = tensor.shape[-1] if tensor.shape else 0
    return isinstance(channels, int) and channels > 1 and bool(channels * tensor.dtype.itemsize % ROW)


def is_product(layer: Layer) -> bool:
    """Whether the layer multiplies with weights."""
    return isinstance(layer.op, Convolution | Deconvolution | MatrixMultiply)


def _reads_rows(network: Network, layer: Layer) -> bool:
    """Whether the layer is a product over rows of channels whose weights can be given zeros for more of them."""
    op = layer.op
    if not isinstance(op, Convolution | Deconvolution | MatrixMultiply) or layer.inputs[1] not in network.constants:
        return False
    if isinstance(op, MatrixMultiply):
        return not op.transpose_a and network.constants[layer.inputs[1]].ndim == 2
    rows = op.reads_channels_last if isinstance(op, Convolution) else op.channels_last
    return rows and op.channels_last and (op.groups == 1 or _is_depthwise(network, layer))


def _writes_rows(network: Network, layer: Layer) -> bool:
    """Whether it is a product whose weights can be given zeros for more output channels, whatever it reads."""
    op = layer.op
    if not isinstance(op, Convolution | Deconvolution | MatrixMultiply) or layer.inputs[1] not in network.constants:
        return False
    return network.constants[layer.inputs[1]].ndim == 2 if isinstance(op, MatrixMultiply) else op.channels_last and op.groups == 1


def _is_depthwise(network: Network, layer: Layer) -> bool:
    weights = network.tensors[layer.inputs[1]].shape
    return isinstance(layer.op, Convolution) and layer.op.groups > 1 and weights[1] == 1 and weights[0] == layer.op.groups


def _weight_axes(op: Product) -> tuple[int, int]:
    """The axes of the weights that are output and input channels."""
    swapped = not op.transpose_b if isinstance(op, MatrixMultiply) else isinstance(op, Deconvolution)
    return (1, 0) if swapped else (0, 1)


@dataclass
class _Run:
    """One run of the pass. ``held[tensor]`` is the tensor that holds it padded (its own name where it is made so), and how; ``dense[tensor]`` the slice of
    its real channels, where there is one."""

    network: Network
    wanted: frozenset[str]
    layers: list[Layer] = field(default_factory=list)
    tensors: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    held: dict[str, tuple[str, Padded]] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    born: dict[str, str] = field(default_factory=dict)
    step: int = 1  # channels
    outside: frozenset[str] = frozenset()
    readers: Mapping[str, Sequence[Layer]] = field(default_factory=dict)

    def result(self) -> PaddedNetwork:
        """The padded network."""
        network = self.network
        kinds = [network.tensors[name].dtype.itemsize for name in self.wanted]
        self.step = ROW // min(kinds, default=1)
        self.outside = frozenset((*network.outputs, *network.inputs, *(one.tensor for one in network.sizes.values())))
        self.tensors = dict(network.tensors)
        self.constants = dict(network.constants)
        self.readers = network.readers()
        for layer in network.layers:
            self._layer(layer)
        read = {name for layer in self.layers for name in layer.inputs}
        self.layers = [one for one in self.layers if not {REFORMAT, RULE} <= set(one.fusions) or not read.isdisjoint(one.outputs)]
        held = {tensor: padded for tensor, padded in self.held.values() if any(tensor in one.outputs for one in self.layers)}
        if not held:
            return PaddedNetwork(network, {}, {})
        used = {name for layer in self.layers for name in layer.inputs} | set(network.outputs)
        made = {name for layer in self.layers for name in layer.outputs}
        changed = replace(
            network, layers=tuple(self.layers),
            tensors={name: kind for name, kind in self.tensors.items() if name in used or name in made or name in network.inputs},
            constants={name: value for name, value in self.constants.items() if name in used},
        )  # fmt: skip
        return PaddedNetwork(changed, held, {tensor: name for tensor, name in self.born.items() if tensor in held})

    def _layer(self, layer: Layer) -> None:
        changed = self._padded_form(layer)
        if changed is None:
            self.layers.append(replace(layer, inputs=tuple(self._dense(name, layer) for name in layer.inputs)))
            return
        layer, padded = changed
        kinds = layer.op.infer([self.tensors[name] for name in layer.inputs])
        self.tensors.update(zip(layer.outputs, kinds, strict=True))
        self.layers.append(replace(layer, fusions=(*layer.fusions, RULE)))
        if padded is not None:
            self.held[layer.outputs[0]] = (layer.outputs[0], padded)

    def _padded_form(self, layer: Layer) -> tuple[Layer, Padded | None] | None:
        """The layer on padded tensors, and how it holds its output (None: as the model has it); None when it stays as it is."""
        op = layer.op
        if isinstance(op, Convolution | Deconvolution | MatrixMultiply):
            return self._product(layer, op)
        if len(layer.outputs) != 1 or layer.outputs[0] in self.outside or not any(name in self.held for name in layer.inputs):
            return None
        if isinstance(op, Concatenation):
            return self._concatenation(layer, op)
        return self._slice(layer, op) if isinstance(op, Slice) else self._by_channel(layer)

    # --- products -----------------------------------------------------------------------------------------------------

    def _product(self, layer: Layer, op: Product) -> tuple[Layer, Padded | None] | None:
        (x, weights, *extras), output = layer.inputs, layer.outputs[0]
        depthwise = _is_depthwise(self.network, layer)
        if depthwise and output in self.outside:  # it has as many channels as its input
            return None
        inside = self._held(x, layer) if _reads_rows(self.network, layer) else None
        outside = None
        if depthwise:
            outside = inside[1] if inside else None
        elif output in self.wanted and output not in self.outside and _writes_rows(self.network, layer):
            outside = self._form(output, self._cuts(output))
        names: tuple[str, ...] | None = None
        if outside is not None:
            dtype = product_type(self.network.tensors[x].dtype)
            found = self._with_operands(layer, op.epilogue, np.zeros(len(outside.fill), dtype.numpy), extras, outside)
            names, outside = (None, None) if found is None else (found[0], replace(outside, fill=found[1]))
        if outside is None and (inside is None or depthwise):
            return None
        values, key = self.network.constants[weights], f"{weights} padded"
        out_axis, in_axis = _weight_axes(op)
        if outside is not None:
            values, key = outside.widen(values, out_axis), f"{key} to {outside.size}"
        if isinstance(op, Convolution) and depthwise:
            assert outside is not None
            op = replace(op, groups=outside.size)
        elif inside is not None:
            values, key = inside[1].widen(values, in_axis), f"{key} from {inside[1].size}"
        if outside is not None and not depthwise:
            self.born[output] = output
        read = inside[0] if inside else self._dense(x, layer)
        rest = tuple(self._dense(name, layer) for name in extras) if names is None else names
        return replace(layer, op=op, inputs=(read, self._constant(key, values), *rest)), outside

    def _form(self, name: str, cuts: Collection[int] = ()) -> Padded:
        """``name`` with its channels first and padding behind them, or cut in pieces that are padded each by itself."""
        channels = int(self.network.tensors[name].shape[-1])  # type: ignore[arg-type]
        places: list[int] = []
        size = 0
        for first, last in pairwise(sorted({0, *cuts, channels})):
            places += range(size, size + last - first)
            size += -(-(last - first) // self.step) * self.step
        return Padded(tuple(places), size, (0.0,) * (size - channels))

    def _cuts(self, name: str) -> set[int]:
        """Where slices of ``name`` that shall be padded begin and end: held in pieces, they are."""
        found: set[int] = set()
        for layer in self.readers.get(name, ()):
            if isinstance(layer.op, Slice) and layer.outputs[0] in self.wanted and layer.op.steps[-1] == 1:
                first, count = layer.op.starts[-1], layer.op.sizes[-1]
                found |= {first, first + count} if isinstance(first, int) and isinstance(count, int) else set()
        return found

    def _held(self, name: str, reader: Layer) -> tuple[str, Padded] | None:
        """``name`` as it is held padded; a copy where a reader wants that and its maker could not."""
        if name in self.held:
            return self.held[name]
        if name not in self.wanted or name in self.network.constants:
            return None
        padded, target = self._form(name), f"{name} padded"
        nothing = (0,) * (len(self.network.tensors[name].shape) - 1)
        self._reformat(f"pad {name} for {reader.name}", Padding((*nothing, 0), (*nothing, len(padded.fill))), (self._dense(name, reader),), target)
        self.held[name] = (target, padded)
        self.born[target] = name
        return self.held[name]

    # --- layers that keep channels apart --------------------------------------------------------------------------------

    def _by_channel(self, layer: Layer) -> tuple[Layer, Padded | None] | None:
        op = layer.op
        arity = 0 if isinstance(op, Pointwise) else op.arity
        x = layer.inputs[0]
        if (arity and x not in self.held) or (isinstance(op, Pooling) and op.operands):
            return None
        padded = next(self.held[name][1] for name in layer.inputs if name in self.held)
        if self.network.tensors[layer.outputs[0]].shape[-1] != len(padded.places):
            return None
        if isinstance(op, Pointwise):
            found = self._with_operands(layer, op.expression, None, layer.inputs, padded)
            return None if found is None else (replace(layer, inputs=found[0]), replace(padded, fill=found[1]))
        source = self.network.tensors[x]
        result = _through(op, np.asarray(padded.fill, np.float64).astype(source.dtype.numpy), len(source.shape))
        if result is None:
            return None
        names: tuple[str, ...] = ()
        fill = tuple(float(one) for one in result.astype(np.float64))
        expression = getattr(op, "epilogue", None)
        if expression is not None:
            found = self._with_operands(layer, expression, result, layer.inputs[arity:], padded)
            if found is None:
                return None
            names, fill = found
        if isinstance(op, Resize):
            op = replace(op, shape=(*op.shape[:-1], padded.size))
        elif isinstance(op, Shuffle) and op.reshape is not None:
            op = replace(op, reshape=(*op.reshape[:-1], padded.size))
        return replace(layer, op=op, inputs=(self.held[x][0], *names)), replace(padded, fill=fill)

    def _slice(self, layer: Layer, op: Slice) -> tuple[Layer, Padded | None] | None:
        source, padded = self.held[layer.inputs[0]]
        first, count, step = op.starts[-1], op.sizes[-1], op.steps[-1]
        if not (isinstance(first, int) and isinstance(count, int) and step == 1 and count):
            return None
        begin = padded.places[first] if first else 0
        end = padded.places[first + count] if first + count < len(padded.places) else padded.size
        if begin % self.step or end % self.step:
            return None
        lanes = [lane for lane in range(padded.size) if lane not in set(padded.places)]
        fill = tuple(value for lane, value in zip(lanes, padded.fill, strict=True) if begin <= lane < end)
        places = tuple(place - begin for place in padded.places[first : first + count])
        op = replace(op, starts=(*op.starts[:-1], begin), sizes=(*op.sizes[:-1], end - begin))
        return replace(layer, op=op, inputs=(source,)), Padded(places, end - begin, fill)

    def _concatenation(self, layer: Layer, op: Concatenation) -> tuple[Layer, Padded | None] | None:
        kinds = [self.network.tensors[name] for name in layer.inputs]
        parts = [self.held[name][1] if name in self.held else None for name in layer.inputs]
        if op.axis != len(kinds[0].shape) - 1:
            first = parts[0]
            if first is None or any(one is None or one != first for one in parts):
                return None
            return replace(layer, inputs=tuple(self.held[name][0] for name in layer.inputs)), first
        places: list[int] = []
        fill: list[float] = []
        size = 0
        for kind, padded in zip(kinds, parts, strict=True):
            channels = kind.shape[-1]
            if not isinstance(channels, int) or (padded is None and _is_odd(replace(kind, shape=(channels,)))):
                return None  # the parts behind would begin anywhere
            one = padded or Padded(tuple(range(channels)), channels, ())
            places += [size + place for place in one.places]
            fill += one.fill
            size += one.size
        inputs = tuple(self.held[name][0] if name in self.held else self._dense(name, layer) for name in layer.inputs)
        return replace(layer, inputs=inputs), Padded(tuple(places), size, tuple(fill))

    # --- operands -------------------------------------------------------------------------------------------------------

    def _with_operands(
        self, layer: Layer, expression: Expression, result: np.ndarray | None, names: Sequence[str], padded: Padded
    ) -> tuple[tuple[str, ...], tuple[float, ...]] | None:
        """``names``, the operands of an expression, as they are read beside a padded output, and what the expression makes of its padding channels;
        None where an operand is there without padding, or the value is not finite and known. ``result`` is operand 0 of an epilogue
        there, None for a pointwise layer."""
        count = padded.size - len(padded.places)
        for value in (0.0, 1.0):  # what constants hold in padding channels
            read: list[str] = []
            values: list[np.ndarray] = [] if result is None else [result]
            for name in names:
                kind = self.network.tensors[name]
                last: Dim = kind.shape[-1] if kind.shape else 1
                numpy = kind.dtype.numpy
                constant = self.network.constants.get(name)
                if last == 1 or not kind.shape:
                    read.append(self._dense(name, layer))
                    if constant is not None and constant.size == 1:
                        values.append(np.full((1, count), constant.reshape(()), numpy))
                    else:
                        values.append(np.repeat(_probes(kind.dtype)[:, None], count, 1))
                elif constant is not None and last == len(padded.places):
                    wide = padded.widen(constant, constant.ndim - 1, value)
                    read.append(self._constant(f"{name} padded to {padded.size} with {value:g}", wide))
                    values.append(np.full((1, count), value, numpy))
                elif name in self.held and self.held[name][1].same_places(padded):
                    read.append(self.held[name][0])
                    values.append(np.asarray(self.held[name][1].fill, np.float64).astype(numpy)[None])
                else:
                    return None
            made = evaluate(expression, values)
            made = np.broadcast_to(made.astype(np.float64), (len(_PROBES), count))
            if np.isfinite(made).all() and np.abs(made).max(initial=0) <= LARGEST and (made == made[0]).all():
                return tuple(read), tuple(float(one) for one in made[0])
        return None

    def _dense(self, name: str, reader: Layer) -> str:
        """``name`` without padding; its real channels are sliced out where only the padded form exists."""
        if name not in self.held or self.held[name][0] != name:
            return name
        if name in self.dense:
            return self.dense[name]
        kind, (source, padded) = self.network.tensors[name], self.held[name]
        nothing = (0,) * (len(kind.shape) - 1)
        parts = []
        for number, (first, count) in enumerate(padded.runs):
            op = Slice((*nothing, first), (*kind.shape[:-1], count), (1,) * len(kind.shape))
            whole = len(padded.runs) == 1
            target = f"{name} real" if whole else f"{name} real {number}"
            title = f"unpad {name} for {reader.name}" if whole else f"unpad {name} for {reader.name}, part {number}"
            self._reformat(title, op, (source,), target)
            parts.append(target)
        if len(parts) > 1:
            self._reformat(f"unpad {name} for {reader.name}", Concatenation(len(kind.shape) - 1), tuple(parts), f"{name} real")
        self.dense[name] = f"{name} real"
        return self.dense[name]

    def _reformat(self, title: str, op: Op, inputs: tuple[str, ...], target: str) -> None:
        self.tensors[target] = op.infer([self.tensors[name] for name in inputs])[0]
        self.layers.append(Layer(title, op, inputs, (target,), fusions=(REFORMAT, RULE)))

    def _constant(self, name: str, value: np.ndarray) -> str:
        """A constant of that name; another name where it is taken by another value."""
        found, number = name, 1
        while found in self.constants and not _equal(self.constants[found], value):
            number += 1
            found = f"{name} ({number})"
        self.constants[found] = np.ascontiguousarray(value)
        self.tensors[found] = TensorType(DataType(value.dtype.name), value.shape)
        return found


def _probes(dtype: DataType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return _PROBES.astype(dtype.numpy)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _through(op: Op, fill: np.ndarray, rank: int) -> np.ndarray | None:
    """What ``op`` makes of channels that hold ``fill`` everywhere, before its epilogue; None where it is not one number a channel, or the op does
    not keep channels apart. ``rank`` is that of its input; channels are the last axis."""
    if isinstance(op, Pooling) and op.channels_last and op.kind in ("max", "average"):
        value = apply_prologue(op.prologue, fill)
        inside = op.kind == "max" or not any((*op.pre_padding, *op.post_padding))  # an average may count zeros outside, or nothing
        return value if inside or not value.any() else None
    if isinstance(op, Reduce) and rank - 1 not in op.axes:
        value = apply_prologue(op.prologue, fill)
        kept = op.kind in ("mean", "max", "min") or (op.kind == "sum" and not value.any())
        return reduce_array(op.kind, value[None], (0,), False) if kept else None
    if isinstance(op, Resize):
        known = not op.told_scales and not op.told_roi and op.coordinates != "tf_crop_and_resize" and not op.exclude_outside
        same = (op.scales[-1] if op.scales else None) in (None, 1.0)
        return fill if known and same and op.mode in ("nearest", "linear") else None
    if isinstance(op, Normalization) and op.center and op.heads is None and rank - 1 not in op.axes:
        return fill if not fill.any() else None  # of other numbers rounding would leave something
    if isinstance(op, Shuffle):
        kept = op.first is None or op.first[-1] == rank - 1
        return fill if kept and (op.second is None or op.second[-1] == len(op.second) - 1) else None
    if isinstance(op, Reformat):
        return fill if op.order[-1] == rank - 1 else None
    if isinstance(op, Padding) and op.pre[-1] == op.post[-1] == 0:
        return fill if op.mode != "constant" or (fill.astype(np.float64) == op.value).all() else None
    return None
