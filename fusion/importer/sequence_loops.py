"""Loops that carry sequences: unrolled where the trip count is known, else what they append becomes a scan output."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusion.dims import symbols
from fusion.importer.control import ENDLESS, import_loop
from fusion.importer.errors import Unsupported
from fusion.importer.graph import Scope, Walk, read_names
from fusion.importer.loops import counted, unrolled
from fusion.importer.node import Node
from fusion.importer.sequences import StackedSequence, TensorSequence, joined

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def import_sequence_loop(walk: Walk, node: Node, scope: Scope) -> tuple[Any, ...]:
    """The results of a Loop of which a carried value is a sequence.

    Raises:
        Unsupported: the trip count is not known, and the body does other things with the sequence than append to it.
    """
    count, condition = node.inputs[:2]
    known = condition is None or condition.is_constant
    if count is not None and count.is_constant and known:
        trip: int | None = int(count.array.reshape(-1)[0])
        if condition is not None and not condition.array.reshape(-1)[0]:
            trip = 0
        graph = node.required("body")
        around = Scope(scope.opsets, f"{node.name}/", scope.origin, scope, scope.depth + 1, scope.attributes)
        walk.initializers(graph, around, {name for proto in graph.node for name in read_names(proto)} | {entry.name for entry in graph.output})
        trip = None if trip is not None and trip >= ENDLESS else trip
        found = unrolled(walk, node, graph, around, trip, counted(graph), node.inputs[2:], decides=True, must=True)
        if found is not None:
            return found
    return _appended(walk, node, scope)


def _appended(walk: Walk, node: Node, scope: Scope) -> tuple[Any, ...]:
    """The loop with the appended elements as scan outputs in place of the sequences."""
    graph, proto = node.required("body"), node.proto
    assert proto is not None
    sequences = {index for index, value in enumerate(node.inputs[2:]) if isinstance(value, TensorSequence | StackedSequence)}
    states = len(node.inputs) - 2
    body = type(graph)()
    body.CopyFrom(graph)
    items: dict[int, str] = {}
    for index in sorted(sequences):
        item = _appended_item(graph, graph.input[2 + index].name, graph.output[1 + index].name)
        if item:
            items[index] = item
        else:  # handed on as it came: the same in all iterations
            body.node.insert(0, _identity(proto.input[2 + index], graph.input[2 + index].name))
    scans = [entry.name for entry in graph.output[1 + states :]]
    kept = [index for index in range(states) if index not in sequences]
    del body.input[2:], body.output[1:]
    body.input.extend(graph.input[2 + index] for index in kept)
    for name in (*(graph.output[1 + index].name for index in kept), *scans, *items.values()):
        body.output.add().name = name
    outputs = [*node.outputs, *[""] * (states + len(scans) - len(node.outputs))]
    named = (*(outputs[index] for index in kept), *outputs[states:], *(outputs[index] for index in items))
    inputs = (*node.inputs[:2], *(node.inputs[2 + index] for index in kept))
    before = set(walk.builder.own_sizes)
    results, _ = import_loop(walk, replace(node, inputs=inputs, outputs=named, attributes={**node.attributes, "body": body}), scope)
    found: list[Any] = [None] * states
    for index, result in zip(kept, results, strict=False):
        found[index] = result
    for index in sequences:
        found[index] = node.inputs[2 + index]
    for index, result in zip(items, results[len(kept) + len(scans) :], strict=True):
        if result is not None and symbols(tuple(result.shape[1:])) & (walk.builder.own_sizes - before):
            raise Unsupported("it appends tensors whose shapes may differ from iteration to iteration; that takes a known trip count")
        found[index] = None if result is None else joined(walk.builder, found[index], StackedSequence(result), f"sequence{index}")
    return (*found, *results[len(kept) : len(kept) + len(scans)])


def _identity(source: str, target: str) -> NodeProto:
    from onnx import helper

    return helper.make_node("Identity", [source], [target], name=f"{target}_same")


def _appended_item(graph: GraphProto, given: str, result: str) -> str:
    """The tensor that every iteration appends to the sequence ``given``, to hand on ``result``; empty when it hands on what it got.

    Raises:
        Unsupported: it does something else with it.
    """
    makers = {name: proto for proto in graph.node for name in proto.output}
    reads = Counter(name for proto in graph.node for name in read_names(proto))
    item, name = "", result
    while name != given:
        maker = makers.get(name)
        appends = maker is not None and maker.op_type == "SequenceInsert" and not item and not any(maker.input[2:])
        if maker is None or not (appends or maker.op_type == "Identity") or (name != result and reads[name] != 1):
            raise Unsupported(
                f"it carries a sequence ({given!r}) on which it does more than append one tensor per iteration; that takes a known trip count"
            )
        item = maker.input[1] if appends else item
        name = maker.input[0]
    if item and reads[given] != 1:
        raise Unsupported(f"it reads the sequence ({given!r}) to which it appends; that takes a known trip count")
    return item
