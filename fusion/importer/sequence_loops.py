"""Loops that carry sequences: unrolled where the trip count is known, else what they append becomes a scan output."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.dims import symbols
from fusion.importer.control import ENDLESS, import_loop
from fusion.importer.errors import Unsupported
from fusion.importer.graph import Scope, Walk, read_names
from fusion.importer.loops import UNROLLED
from fusion.importer.node import Node
from fusion.importer.sequences import StackedSequence, TensorSequence, joined, stacked
from fusion.importer.values import Value, constant

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
        trip = int(count.array.reshape(-1)[0])
        if condition is not None and not condition.array.reshape(-1)[0]:
            trip = 0
        if trip <= UNROLLED or trip >= ENDLESS:
            found = _unrolled(walk, node, scope, trip)
            if found is not None:
                return found
    return _appended(walk, node, scope)


def _unrolled(walk: Walk, node: Node, scope: Scope, trip: int) -> tuple[Any, ...] | None:
    """Every iteration in the network around the loop; None when data decide how many there are."""
    graph, b = node.required("body"), walk.builder
    states: list[Any] = list(node.inputs[2:])
    rows: list[tuple[Any, ...]] = []
    steps, goes_on = len(walk.builder.steps), True
    while goes_on and len(rows) < trip:
        if len(rows) > UNROLLED:
            return None
        number, always = constant(np.asarray(len(rows), np.int64)), constant(np.asarray(True))
        found = walk.subgraph(graph, [number, always, *states], scope, f"{node.name}/{len(rows)}/")
        if any(value is None for value in found):
            raise Unsupported("nodes inside it cannot be imported")
        if not (isinstance(found[0], Value) and found[0].is_constant):
            del walk.builder.steps[steps:]
            return None
        goes_on = bool(found[0].array.reshape(-1)[0])
        states = list(found[1 : 1 + len(states)])
        rows.append(found[1 + len(states) :])
    scans = len(graph.output) - 1 - len(states)
    if scans and not rows:
        raise Unsupported("a loop without iterations whose scan outputs have no type")
    b.origin, b.prefix = scope.origin or node.name, node.name
    made = [stacked(b, tuple(row[index] for row in rows), f"scan{index}").value for index in range(scans)]
    return (*states, *made)


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
