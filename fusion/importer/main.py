"""The import from end to end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.importer import finish
from fusion.importer.errors import ModelError, Problem, Unsupported, UnsupportedModel
from fusion.importer.graph import Scope, Walk, node_names, read_names
from fusion.importer.load import Source, load
from fusion.importer.sequences import EmptyOptional, StackedSequence, TensorSequence
from fusion.importer.tensors import input_type, tensor_type
from fusion.importer.values import Value
from fusion.network import Network

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto


@dataclass(frozen=True)
class ImportReport:
    """Facts of a model file.

    Attributes:
        name: the file (or the graph's name).
        opsets: version by domain, the standard one as ``ai.onnx``.
        nodes: ONNX nodes in the main graph.
        weights, weight_bytes: initializers, and their size as trtcli holds them.
    """

    name: str
    opsets: Mapping[str, int]
    ir_version: int
    producer: str
    nodes: int
    weights: int
    weight_bytes: int


def import_onnx(model: str | Path | bytes | ModelProto) -> Network:
    """The network of an ONNX model, given as a path, the bytes of a file, or a ModelProto.

    Raises:
        ModelError: it is not a usable ONNX model; the text names the file.
        UnsupportedModel: it has nodes that trtcli cannot import; the text lists all of them.
    """
    return import_with_report(model)[0]


def import_with_report(model: str | Path | bytes | ModelProto) -> tuple[Network, ImportReport]:
    """Like :func:`import_onnx`, with the facts of the file beside the network."""
    source = load(model)
    try:
        return _import(source), _report(source)
    except UnsupportedModel:
        raise
    except ModelError as error:
        text = str(error)
        raise ModelError(text if text.startswith(source.name) else f"{source.name}: {text}") from error


def _import(source: Source) -> Network:
    graph = source.model.graph
    local = {(function.domain, function.name, function.overload): function for function in source.model.functions}
    _check_names(graph, source.name)
    walk = Walk(source.name, local, source.folder)
    scope = Scope(source.opsets())
    needed = {name for node in graph.node for name in read_names(node)} | {output.name for output in graph.output}
    walk.initializers(graph, scope, needed)
    inputs = _inputs(graph, walk)
    scope.values.update(inputs)
    walk.run(graph.node, node_names(graph.node), scope, [output.name for output in graph.output])
    for output in graph.output:
        if isinstance(scope.values.get(output.name), EmptyOptional):
            walk.problems.append(Problem(output.name, "output", "", 0, "it is an empty optional; outputs are tensors"))
    if walk.problems:
        raise UnsupportedModel(source.name, walk.problems)
    outputs: dict[str, Value] = {}
    for output in graph.output:
        found = scope.values.get(output.name)
        if found is None:
            raise ModelError(f"{source.name}: output {output.name!r} is made by no node")
        outputs.update(_named(output.name, found))
    return finish.network(graph.name or "model", inputs, outputs, walk.builder, walk.records)


def _check_names(graph: GraphProto, model: str) -> None:
    """Refuse a graph that does not say what a name stands for.

    Raises:
        ModelError: an input stands twice, an initializer twice with different contents, or a node makes what is given.
    """
    given: dict[str, str] = {}
    for entry in graph.input:
        if entry.name in given:
            raise ModelError(f"{model}: input {entry.name!r} stands twice in the graph")
        given[entry.name] = "input"
    weights: dict[str, TensorProto] = {}
    for tensor in graph.initializer:
        if weights.setdefault(tensor.name, tensor) != tensor:
            raise ModelError(f"{model}: initializer {tensor.name!r} stands twice in the graph, with different contents")
        given.setdefault(tensor.name, "initializer")
    for node, name in zip(graph.node, node_names(graph.node), strict=True):
        for output in node.output:
            if output in given and output:
                raise ModelError(f"{model}: tensor {output!r} is made by node {name!r}, and is an {given[output]} of the graph as well")


def _named(name: str, found: Any) -> dict[str, Value]:
    """The tensors that a graph's output is: a sequence gives its elements as ``name.0``, ``name.1`` ..., one of computed length all in one."""
    if isinstance(found, TensorSequence):
        return {f"{name}.{number}": item for number, item in enumerate(found.items)}
    return {name: found.value if isinstance(found, StackedSequence) else found}


def _inputs(graph: GraphProto, walk: Walk) -> dict[str, Value]:
    """The graph's inputs; those that are initializers too (the way of IR version 3) are not inputs."""
    weights = {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    found = {}
    for entry in graph.input:
        if entry.name in weights:
            continue
        try:
            found[entry.name] = Value(entry.name, input_type(entry.name, entry.type))
        except Unsupported as error:
            walk.problems.append(Problem(entry.name, "input", "", 0, str(error)))
            found[entry.name] = None  # type: ignore[assignment]
    return found


def _report(source: Source) -> ImportReport:
    model = source.model
    sizes = []
    for tensor in model.graph.initializer:
        try:
            type_ = tensor_type(tensor)
        except Unsupported:  # nobody reads it, or the import would have failed
            continue
        sizes.append(math.prod(tensor.dims) * type_.dtype.itemsize)
    opsets = {domain or "ai.onnx": version for domain, version in source.opsets().items()}
    producer = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    return ImportReport(source.name, opsets, model.ir_version, producer, len(model.graph.node), len(sizes), sum(sizes))
