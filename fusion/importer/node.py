"""One ONNX node as its operator's importer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.importer.errors import Unsupported
from fusion.importer.values import Value

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto


@dataclass(frozen=True)
class Node:
    """A node with its inputs resolved.

    Attributes:
        name: unique in the model; given when the file names it, else ``OpType_index``.
        op, domain, opset: the operator, its domain ("" for the standard one) and that domain's version in the model.
        inputs: one value per input; None for an optional one that is left out.
        outputs: the tensor names; "" for an output that is left out or that nobody reads.
        attributes: by name: int, float, str, tuple of them, ndarray, or the protobuf message of a graph.
        proto: the node as it stands in the file.
    """

    name: str
    op: str
    domain: str
    opset: int
    inputs: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    proto: NodeProto | None = None

    def optional(self, index: int) -> Value | None:
        """Input ``index``, or None when it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def input(self, index: int) -> Value:
        """Input ``index``.

        Raises:
            Unsupported: it is left out.
        """
        value = self.optional(index)
        if value is None:
            raise Unsupported(f"input {index} is missing")
        return value

    def wants(self, index: int) -> bool:
        """Whether anybody reads output ``index``."""
        return index < len(self.outputs) and bool(self.outputs[index])

    def refuse_outputs(self, *indices: int, what: str) -> None:
        """Raises Unsupported when somebody reads one of these outputs."""
        for index in indices:
            if self.wants(index):
                raise Unsupported(f"output {index} ({what}) is read; only the others are supported")

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default``."""
        return self.attributes.get(name, default)

    def required(self, name: str) -> Any:
        """An attribute.

        Raises:
            Unsupported: the node lacks it.
        """
        if name not in self.attributes:
            raise Unsupported(f"attribute {name!r} is missing")
        return self.attributes[name]

    def axis(self, axis: int, rank: int) -> int:
        """``axis`` counted from the front.

        Raises:
            Unsupported: it lies outside ``rank`` dimensions.
        """
        if not -rank <= axis < max(rank, 1):
            raise Unsupported(f"axis {axis} of a tensor with {rank} dimensions")
        return axis + rank if axis < 0 else axis


def decode_attribute(attribute: AttributeProto) -> Any:
    """The Python value of an attribute (see :class:`Node`)."""
    from onnx import AttributeProto

    from fusion.importer.tensors import array_of, sparse_array

    kind = attribute.type
    if kind == AttributeProto.FLOAT:
        return float(np.float32(attribute.f))
    if kind == AttributeProto.INT:
        return attribute.i
    if kind == AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    if kind == AttributeProto.INTS:
        return tuple(attribute.ints)
    if kind == AttributeProto.FLOATS:
        return tuple(attribute.floats)
    if kind == AttributeProto.STRINGS:
        return tuple(item.decode("utf-8", "replace") for item in attribute.strings)
    if kind == AttributeProto.TENSOR:
        return array_of(attribute.t)
    if kind == AttributeProto.SPARSE_TENSOR:
        return sparse_array(attribute.sparse_tensor)
    if kind == AttributeProto.GRAPH:
        return attribute.g
    if kind == AttributeProto.TYPE_PROTO:
        return attribute.tp
    raise Unsupported(f"attribute {attribute.name!r} is of kind {AttributeProto.AttributeType.Name(kind)}")
