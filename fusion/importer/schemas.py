"""What ONNX's own schemas say of an operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING

from fusion.dtypes import DataType
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.tensors import named_types
from fusion.importer.values import Value

if TYPE_CHECKING:
    from onnx.defs import OpSchema


@cache
def schema(domain: str, name: str, opset: int | None = None) -> OpSchema | None:
    """The schema of an operator in ``opset``, or the newest; None where ONNX has no such operator."""
    from onnx import defs

    try:
        return defs.get_schema(name, domain) if opset is None else defs.get_schema(name, opset, domain)
    except defs.SchemaError:
        return None


@dataclass(frozen=True)
class _Parameter:
    """An input in a schema: the types it may have (none: any); inputs of the same ``letter`` have the same type, unless that is empty."""

    types: frozenset[DataType]
    letter: str


@dataclass(frozen=True)
class _Inputs:
    """The inputs in a schema: ``most`` of them; the last parameter stands for more where that is more than there are parameters."""

    parameters: tuple[_Parameter, ...]
    most: int


def check_attributes(node: Node) -> None:
    """Refuse attributes that ONNX does not give the operator, in this opset or the newest: what they ask for would not be done.

    Raises:
        Unsupported: which attribute, and what it should be.
    """
    from onnx import AttributeProto

    known = _attributes(node.domain, node.op, node.opset)
    if known is None or node.proto is None:
        return
    newest = _attributes(node.domain, node.op, None) or {}
    for attribute in node.proto.attribute:
        kinds = {table[attribute.name] for table in (known, newest) if attribute.name in table}
        if not kinds:
            raise Unsupported(f"attribute {attribute.name!r} is unknown to this operator{_advice(node, attribute.name, {**known, **newest})}")
        if attribute.type not in kinds:
            named = [AttributeProto.AttributeType.Name(kind) for kind in (attribute.type, *sorted(kinds))]  # type: ignore[arg-type]
            raise Unsupported(f"attribute {attribute.name!r} is {named[0]}; ONNX has {' or '.join(named[1:])}")


def _advice(node: Node, name: str, known: Iterable[str]) -> str:
    found = schema(node.domain, node.op, node.opset)
    last = found.since_version - 1 if found else 0
    if name in (_attributes(node.domain, node.op, last) or {}):
        return f" in opset {node.opset}; it has it until opset {last}, give the model that one or what takes its place"
    near = get_close_matches(name, known, 1)
    return f"; near it: {near[0]}" if near else ""


@cache
def _attributes(domain: str, name: str, opset: int | None) -> Mapping[str, int] | None:
    """The kinds of an operator's attributes (``AttributeProto.AttributeType``), or None where ONNX does not know it."""
    found = schema(domain, name, opset)
    return None if found is None else {one.name: int(one.type.value) for one in found.attributes.values()}


def check_inputs(node: Node) -> None:
    """Refuse a node with more inputs than ONNX gives its operator, or with types that ONNX does not let them have.

    A node that fits the newest schema passes in any opset: exporters write float16 and integers into models of opsets that lack them there, and
    what they mean is clear.

    Raises:
        Unsupported: which input has which type, and what it may have.
    """
    misfit = _misfit(node, _inputs(node.domain, node.op, node.opset))
    newest = _inputs(node.domain, node.op, None) if misfit else None
    if newest is not None and (found := _misfit(node, newest)):
        raise Unsupported(found if len(node.inputs) <= newest.most else misfit)


def _misfit(node: Node, inputs: _Inputs | None) -> str:
    """What is wrong with the node's inputs, or nothing."""
    if inputs is None:
        return ""
    if len(node.inputs) > inputs.most:
        return f"it has {len(node.inputs)} inputs; ONNX gives this operator at most {inputs.most}"
    letters: dict[str, tuple[int, DataType]] = {}
    for index, value in enumerate(node.inputs):
        if not isinstance(value, Value):
            continue
        parameter = inputs.parameters[min(index, len(inputs.parameters) - 1)]
        if parameter.types and value.dtype not in parameter.types:
            allowed = ", ".join(dtype.label for dtype in DataType if dtype in parameter.types)
            return f"input {index} ({value.name!r}) is {value.dtype.label}; ONNX allows {allowed}"
        first, dtype = letters.setdefault(parameter.letter or str(index), (index, value.dtype))
        if dtype is not value.dtype:
            return f"inputs {first} and {index} must have the same type, they are {dtype.label} and {value.dtype.label}; put a Cast before one"
    return ""


@cache
def _inputs(domain: str, name: str, opset: int | None) -> _Inputs | None:
    """The inputs of an operator, or None where ONNX does not know it."""
    found = schema(domain, name, opset)
    if found is None:
        return None
    by_text = {f"tensor({name.lower()})": dtype for name, dtype in named_types().items()}
    parameters = tuple(
        _Parameter(frozenset(by_text[text] for text in one.types if text in by_text), one.type_str if one.is_homogeneous else "")
        for one in found.inputs
    )
    return _Inputs(parameters, found.max_input)
