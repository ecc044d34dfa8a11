"""Formats and data types of a network's inputs and outputs, as layers: a transpose, a cast, and the cutting and padding of channels.

They are ordinary layers, so that what they ask for joins what is there: on a GPU a channels-last input is what a convolution reads, and a cast is
part of the layer beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fusion.dims import Dim
from fusion.dtypes import DataType
from fusion.expression import Convert, Operand
from fusion.formats import CHANNELS_LAST, LINEAR, Format
from fusion.layout import REFORMAT
from fusion.network import Layer, Network, Op, TensorType
from fusion.ops import Gather, Padding, Pointwise, Shuffle, Slice

INPUT_FORMAT, OUTPUT_FORMAT = "input-format", "output-format"  # what marks these layers (Layer.fusions), beside ``reformat``
_REALS = (DataType.FLOAT, DataType.HALF, DataType.BF16)
_WHOLE = (DataType.INT32, DataType.INT64)


@dataclass(frozen=True)
class IOType:
    """What was asked for one input or output: its data type (None: the model's), and its layout: ``chw`` or a name in ``CHANNELS_LAST``."""

    dtype: DataType | None = None
    layout: str = LINEAR


def with_io_types(network: Network, wanted: Mapping[str, IOType]) -> Network:
    """``network`` whose inputs and outputs are as ``wanted`` says; the same object where they are so already.

    Raises:
        ValueError: a tensor cannot have that format or type; the text says what it can have.
    """
    for name, one in wanted.items():
        if one == IOType() or (one.layout == LINEAR and one.dtype is network.tensors[name].dtype):
            continue
        if name in network.inputs and name in network.outputs:
            raise ValueError(f"{name!r} is an input and an output of the network at once: it stays {network.tensors[name].dtype.label} in chw")
        network = _Ends(network, name, one).run()
    return network


class _Ends:
    """One input or output of the network in another form."""

    def __init__(self, network: Network, name: str, wanted: IOType) -> None:
        self.network, self.name = network, name
        self.model = network.tensors[name]
        self.is_input = name in network.inputs
        self.what = f"{'--inputIOFormats: input' if self.is_input else '--outputIOFormats: output'} {name!r}"
        self.dtype = self._dtype(wanted.dtype)
        self.format = None if wanted.layout == LINEAR else self._format(wanted.layout)
        self.tensors = dict(network.tensors)
        self.layers: list[Layer] = []

    def _dtype(self, dtype: DataType | None) -> DataType:
        given = self.model.dtype
        if dtype is None or dtype is given:
            return given
        allowed = [one for kinds in ((*_REALS, DataType.DOUBLE), _WHOLE) if given in kinds for one in kinds if one is given or one is not DataType.DOUBLE]
        if self.is_input and given.is_float and allowed:
            allowed.append(DataType.UINT8)
        if dtype not in allowed:
            ends = ", ".join(one.label for one in allowed) or given.label
            eight = "; numbers of 8 bits need a scale: put QuantizeLinear and DequantizeLinear into the model" if dtype.itemsize == 1 else ""
            raise ValueError(f"{self.what} is {given.label} in the model and cannot be {dtype.label} ({ends} can be){eight}")
        return dtype

    def _format(self, layout: str) -> Format:
        rank = len(self.model.shape)
        found = Format(layout)
        if rank < found.least_rank:
            fitting = ", ".join([LINEAR, *(name for name in CHANNELS_LAST if Format(name).least_rank <= rank)])
            raise ValueError(f"{self.what} has {rank} dimensions, {layout} needs {found.least_rank} ({fitting} can be)")
        channels = self.model.shape[found.order(rank)[-1]]
        if found.multiple == 1:
            return found
        if not isinstance(channels, int):
            raise ValueError(f"{self.what} has {channels} channels, which {layout} must know at build: fix them in the model, or take hwc or dhwc")
        return Format(layout, channels)

    def run(self) -> Network:
        """The network with the layers that make the one form of the other."""
        network, inner = self.network, self._unused(f"{self.name} as {LINEAR}")
        if self.format is None and self._only_indexes():
            return replace(network, tensors={**self.tensors, self.name: TensorType(self.dtype, self.model.shape)})
        self.tensors[inner] = self.model
        shape = self.model.shape if self.format is None else self.format.in_memory(self.model.shape)
        self.tensors[self.name] = TensorType(self.dtype, shape)
        steps = self._from_memory() if self.is_input else self._to_memory()
        here = self.name if self.is_input else inner
        for number, (title, op, fusions) in enumerate(steps):
            there = (inner if self.is_input else self.name) if number == len(steps) - 1 else self._unused(f"{title} {self.name}")
            self.tensors[there] = op.infer([self.tensors[here]])[0]
            self.layers.append(Layer(f"{title} {self.name}", op, (here,), (there,), fusions=fusions))
            here = there
        # Whatever reads or writes the tensor means the model's own form of it.
        others = [replace(one, inputs=tuple(self._renamed(one.inputs, inner)), outputs=tuple(self._renamed(one.outputs, inner))) for one in network.layers]
        formats = {**network.formats, **({self.name: self.format} if self.format is not None else {})}
        return replace(
            network, layers=(*self.layers, *others) if self.is_input else (*others, *self.layers), tensors=self.tensors, formats=formats,
            constants={inner if name == self.name else name: value for name, value in network.constants.items()},
            sizes={name: replace(one, tensor=inner) if one.tensor == self.name else one for name, one in network.sizes.items()},
        )  # fmt: skip

    def _from_memory(self) -> list[tuple[str, Op, tuple[str, ...]]]:
        steps: list[tuple[str, Op, tuple[str, ...]]] = []
        if self.format is not None:
            held, real = self.format.held, self.format.channels
            if held != real:
                shape: tuple[Dim, ...] = (*self.tensors[self.name].shape[:-1], real)
                steps.append(("real channels of", Slice((0,) * len(shape), shape, (1,) * len(shape)), (REFORMAT, INPUT_FORMAT)))
            steps.append(("reformat input", Shuffle(first=self.format.back(len(self.model.shape))), (REFORMAT, INPUT_FORMAT)))
        if self.dtype is not self.model.dtype:
            steps.append(("convert input", Pointwise(Convert(self.model.dtype, Operand(0))), (INPUT_FORMAT,)))
        return steps

    def _to_memory(self) -> list[tuple[str, Op, tuple[str, ...]]]:
        steps: list[tuple[str, Op, tuple[str, ...]]] = []
        if self.dtype is not self.model.dtype:
            steps.append(("convert output", Pointwise(Convert(self.dtype, Operand(0))), (OUTPUT_FORMAT,)))
        if self.format is not None:
            held, real = self.format.held, self.format.channels
            nothing = (0,) * (len(self.model.shape) - 1)
            steps.append(("reformat output", Shuffle(first=self.format.order(len(self.model.shape))), (REFORMAT, OUTPUT_FORMAT)))
            if held != real:
                steps.append(("pad channels of", Padding((*nothing, 0), (*nothing, held - real)), (REFORMAT, OUTPUT_FORMAT)))
        return steps

    def _only_indexes(self) -> bool:
        """Whether the tensor is token numbers and the like: gathers take them in either type."""
        reads = [(layer.op, number) for layer in self.network.layers for number, name in enumerate(layer.inputs) if name == self.name]
        known = any(one.tensor == self.name for one in self.network.sizes.values())
        return self.is_input and self.dtype in _WHOLE and not known and all(isinstance(op, Gather) and number == 1 for op, number in reads)

    def _renamed(self, names: tuple[str, ...], inner: str) -> list[str]:
        return [inner if name == self.name else name for name in names]

    def _unused(self, name: str) -> str:
        found, number = name, 1
        while found in self.tensors:
            number += 1
            found = f"{name} ({number})"
        return found
