"""The network: a graph of layers over named tensors, as values.

A :class:`Network` is never changed; passes make a new one. Layers stand in a topological order. Tensors are dense and
row-major in the shape that the network gives them; memory layouts are part of the network (a channels-last
convolution says so in its operation, and a reformat is a Shuffle layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from fusion.dims import Dim, Shape, bind, is_static, symbols
from fusion.dtypes import DataType
from fusion.formats import Format

_NOTHING: Mapping = MappingProxyType({})


@dataclass(frozen=True)
class TensorType:
    """Data type and shape of a tensor; dimensions are integers or symbolic.

    ``pitch`` is 0 in a network. In a workload it may say that the tensor is some columns of a wider one: elements between neighbouring
    rows (of the last axis).
    """

    dtype: DataType
    shape: Shape
    pitch: int = 0

    @property
    def is_static(self) -> bool:
        """Whether every dimension is a number."""
        return is_static(self.shape)


class ShapeError(ValueError):
    """Input types that an operation cannot take; the text says which and what it wants."""


class Op:
    """What a layer computes: the base of the frozen dataclasses in ``fusion/ops``.

    A subclass is a frozen dataclass of attributes (numbers, strings, tuples, dimensions, expressions). Operations with
    a field ``epilogue`` apply that expression to their result: operand 0 is the result, operand ``k >= 1`` is layer input
    ``arity + k - 1``, broadcast against the result as NumPy does. ``arity`` counts the inputs before those.
    """

    layer_type: ClassVar[str] = ""

    @property
    def arity(self) -> int:
        """How many layer inputs come before the epilogue's operands."""
        raise NotImplementedError

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """The types of the outputs.

        Raises:
            ShapeError: the inputs do not fit this operation.
        """
        raise NotImplementedError

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The outputs: the NumPy meaning of this operation, the reference for every tactic.

        All dimensions in the attributes must be numbers (see :func:`fusion.bind.bind_op`).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Layer:
    """One operation with the names of its inputs and outputs.

    ``origins`` are the ONNX nodes that it computes, ``fusions`` the rules that made it; both in the order applied.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    origins: tuple[str, ...] = ()
    fusions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fate:
    """What became of an ONNX node: ``kind`` is ``layer``, ``folded``, ``no-op`` or ``dead``; ``layer`` names the layer."""

    kind: str
    layer: str = ""


@dataclass(frozen=True)
class Reading:
    """Where the host finds a size that only an inference tells: element ``element`` (row-major) of the integer tensor ``tensor``.

    ``limit`` is the most that it can be, where that is known; ``guess`` is what tactics are chosen for otherwise.
    """

    tensor: str
    element: int = 0
    limit: Dim | None = None
    guess: int = 4


@dataclass(frozen=True)
class Network:
    """A graph of layers.

    Attributes:
        name: the model's name.
        inputs, outputs: names of the tensors that callers set and read, in the model's order.
        layers: topologically ordered.
        tensors: the type of every tensor that a layer reads or writes, and of inputs and outputs.
        constants: values of the tensors that are known at build (weights), C-contiguous.
        fates: per ONNX node what became of it; complete after import and kept complete by every pass.
        sizes: the named sizes that become known in the middle of an inference, when the layer before has run. (Sizes of the outputs
            of a :class:`ControlFlow` layer are not here: they are known when it has run.)
        holds: pairs of dimensions that must be equal for the network to mean what the model says.
        formats: of inputs and outputs that are not row-major as callers know them: how they lie in memory, which is what ``tensors`` says.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    tensors: Mapping[str, TensorType]
    constants: Mapping[str, np.ndarray] = field(default_factory=lambda: _NOTHING)
    fates: Mapping[str, Fate] = field(default_factory=lambda: _NOTHING)
    sizes: Mapping[str, Reading] = field(default_factory=lambda: _NOTHING)
    holds: tuple[tuple[Dim, Dim], ...] = ()
    formats: Mapping[str, Format] = field(default_factory=lambda: _NOTHING)

    def io_shape(self, name: str) -> Shape:
        """The shape that callers know input or output ``name`` by; ``tensors`` has the one in memory."""
        shape = self.tensors[name].shape
        return self.formats[name].known_as(shape) if name in self.formats else shape

    def producers(self) -> dict[str, Layer]:
        """The layer that writes each tensor."""
        return {name: layer for layer in self.layers for name in layer.outputs}

    def readers(self) -> dict[str, list[Layer]]:
        """The layers that read each tensor (a layer that reads it twice stands twice)."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in layer.inputs:
                found.setdefault(name, []).append(layer)
        return found


class ControlFlow(Op):
    """A layer that holds networks and whose course the host decides: the base of ``If`` and ``Loop`` (``fusion/ops/control.py``).

    Compared by identity. ``sizes`` are the named sizes around it once they are known (:func:`fusion.bind.bind_op` sets them): a body may
    use them like its own.
    """

    layer_type: ClassVar[str] = ""
    types: tuple[TensorType, ...]
    sizes: tuple[tuple[str, int], ...]

    @property
    def bodies(self) -> tuple[Network, ...]:
        """The networks in it."""
        raise NotImplementedError

    def with_bodies(self, bodies: Sequence[Network]) -> ControlFlow:
        """The same with other networks."""
        raise NotImplementedError

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """What the importer found: sizes that the bodies decide have names of their own."""
        return self.types


def size_makers(network: Network) -> dict[str, str]:
    """Per size that becomes known during an inference, the tensor that must have been computed before."""
    found = {name: reading.tensor for name, reading in network.sizes.items()}
    given = symbols(tuple(network.tensors[name].shape for name in network.inputs)) | found.keys()
    for layer in network.layers:
        if isinstance(layer.op, ControlFlow):
            for name in layer.outputs:
                for dim in network.tensors[name].shape:
                    if not isinstance(dim, int) and str(dim) not in given and symbols(dim) == {str(dim)}:
                        found.setdefault(str(dim), name)
    return found


def check_holds(network: Network, sizes: Mapping[str, int]) -> None:
    """Raises ShapeError when ``sizes`` break a pair in ``network.holds``."""
    for left, right in network.holds:
        if symbols((left, right)) <= sizes.keys() and bind(left, sizes) != bind(right, sizes):
            raise ShapeError(
                "the model squeezes a dimension only where it is 1, and this network was built for that; here it would be "
                f"{bind(right, sizes) / max(1, bind(left, sizes)):g}: give other input shapes (or values that choose another branch)"
            )


def typical_sizes(network: Network, sizes: Mapping[str, int], which: str = "opt") -> dict[str, int]:
    """``sizes`` with guesses for those that an inference tells: the least (``min``), usual (``opt``) or greatest (``max``)."""
    found = dict(sizes)
    for name, reading in network.sizes.items():
        found[name] = reading.guess
        if reading.limit is not None and symbols(reading.limit) <= found.keys():
            limit = bind(reading.limit, found)
            found[name] = {"min": min(1, limit), "opt": -(-limit // 2), "max": limit}[which]
    for name in size_makers(network):
        found.setdefault(name, Reading.guess)
    return found


def symbols_of(network: Network, layer: Layer) -> frozenset[str]:
    """The named sizes that ``layer`` needs before it can run: in its attributes, its inputs and (unless it decides them) its outputs."""
    names = layer.inputs if isinstance(layer.op, ControlFlow) else (*layer.inputs, *layer.outputs)
    found = symbols(tuple(network.tensors[name].shape for name in names))
    found |= symbols(tuple(getattr(layer.op, item.name) for item in fields(layer.op)))  # type: ignore[arg-type]
    if isinstance(layer.op, ControlFlow):
        for body in layer.op.bodies:
            inner = frozenset().union(*(symbols_of(body, one) for one in body.layers))
            found |= inner - size_makers(body).keys() - symbols(tuple(body.tensors[name].shape for name in body.inputs))
    return found


def may_be_equal(a: Shape, b: Shape) -> bool:
    """Whether two shapes can be one: the same rank, no two different numbers on an axis."""
    return len(a) == len(b) and all(x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in zip(a, b, strict=True))


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape that NumPy broadcasting gives; a symbolic dimension against a number other than 1 becomes the number.

    Raises:
        ShapeError: two numbers differ and neither is 1.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result = []
    for axis in range(rank):
        dims = {shape[axis - rank + len(shape)] for shape in shapes if axis - rank + len(shape) >= 0} - {1}
        numbers = {dim for dim in dims if isinstance(dim, int)}
        if len(numbers) > 1:
            raise ShapeError(f"shapes {', '.join(map(_show, shapes))} do not broadcast: {sorted(numbers)} differ")
        # Symbolic dimensions that are not equal as expressions are taken to be equal at run time.
        result.append(numbers.pop() if numbers else min(dims, key=lambda dim: (len(str(dim)), str(dim)), default=1))  # the same in every process
    return tuple(result)


def _show(shape: Shape) -> str:
    return "x".join(str(dim) for dim in shape) or "scalar"
