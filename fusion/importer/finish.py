"""From the steps of a walk to a Network: outputs named, dead layers dropped, every node given its fate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from fusion.dims import symbols
from fusion.expression import Operand
from fusion.importer import builder as builder_module
from fusion.importer.builder import Builder
from fusion.importer.errors import ModelError
from fusion.importer.graph import Record
from fusion.importer.values import Step, Value
from fusion.network import ControlFlow, Fate, Layer, Network, Reading, symbols_of
from fusion.ops import Pointwise


def network(
    name: str,
    inputs: Mapping[str, Value],
    outputs: Mapping[str, Value],
    builder: Builder,
    records: Mapping[str, Record],
) -> Network:
    """The network that computes ``outputs`` (by their names in the model).

    Raises:
        ModelError: a constant cannot be computed.
    """
    _name_outputs(inputs, outputs, builder)
    readings = _live_readings(builder, set(outputs))
    steps = _live(builder.steps, set(outputs), [one.tensor for one in readings.values()])
    taken = {*inputs, *outputs}
    for step in steps:
        for index, value in enumerate(step.outputs):
            if value.name not in outputs:
                value.name = _unique(value.name or f"{step.name}_output_{index}", taken)
    tensors = {input_name: value.type for input_name, value in inputs.items()}
    constants: dict[str, np.ndarray] = {}
    named: dict[int, str] = {}
    for step in steps:
        for value in step.inputs:
            if value.is_constant and id(value) not in named:
                named[id(value)] = constant_name = _unique(value.name or f"{step.name}_constant", taken)
                constants[constant_name] = _content(value, constant_name)
                tensors[constant_name] = value.type
        tensors.update({value.name: value.type for value in step.outputs})
    sizes = {size: Reading(one.tensor.name, one.element, one.limit, one.guess) for size, one in readings.items()}
    tensors.update({one.tensor.name: one.tensor.type for one in readings.values()})
    layers = tuple(
        Layer(
            step.name,
            step.op,
            tuple(named.get(id(value), value.name) for value in step.inputs),
            tuple(value.name for value in step.outputs),
            (step.origin,) if step.origin else (),
        )
        for step in steps
    )
    return Network(name, tuple(inputs), tuple(outputs), layers, tensors, constants, _fates(steps, records), sizes, tuple(dict.fromkeys(builder.holds)))


def _name_outputs(inputs: Mapping[str, Value], outputs: Mapping[str, Value], builder: Builder) -> None:
    """Gives each output's tensor its name; what has another name already is copied by a layer of its own."""
    claimed: set[int] = set()
    for name, value in outputs.items():
        data = builder.data(value)
        if inputs.get(name) is data:
            continue
        if data.step is None or id(data) in claimed:
            builder.origin, builder.prefix = data.origin, f"{name}/copy"
            copy = builder.data(builder.constant(data.array, "value")) if data.is_constant else data
            step = Step(builder.unique(builder.prefix), Pointwise(Operand(0)), (copy,), data.origin)
            step.outputs = (data := Value(name, data.type, step=step, origin=data.origin),)
            builder.steps.append(step)
        data.name = name
        claimed.add(id(data))


def _live_readings(builder: Builder, outputs: set[str]) -> dict[str, builder_module.Reading]:
    """The sizes that living layers need; what computes them lives too."""
    found: dict[str, builder_module.Reading] = {}
    while True:
        steps = _live(builder.steps, outputs, [one.tensor for one in found.values()])
        needed = frozenset().union(*(_sizes(step) for step in steps))
        more = {size: reading for size, reading in builder.readings.items() if size in needed}
        if len(more) == len(found):
            return found
        found = more


def _sizes(step: Step) -> frozenset[str]:
    attributes = tuple(getattr(step.op, item.name) for item in fields(step.op))  # type: ignore[arg-type]
    found = symbols((attributes, tuple(value.shape for value in (*step.inputs, *step.outputs))))
    if isinstance(step.op, ControlFlow):
        found |= frozenset().union(*(symbols_of(body, layer) for body in step.op.bodies for layer in body.layers))
    return found


def _live(steps: Sequence[Step], outputs: set[str], also: Sequence[Value] = ()) -> list[Step]:
    wanted: set[int] = {id(value) for value in also}
    kept = []
    for step in reversed(steps):
        if any(id(value) in wanted or value.name in outputs for value in step.outputs):
            wanted.update(id(value) for value in step.inputs)
            kept.append(step)
    return kept[::-1]


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 0
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


def _content(value: Value, name: str) -> np.ndarray:
    try:
        array = np.asarray(value.array, order="C")
    except (ValueError, IndexError, TypeError, ArithmeticError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"constant {name!r} (of node {value.origin!r}) cannot be computed: {error}") from error
    if array.dtype != value.dtype.numpy or array.shape != tuple(value.shape):
        raise ModelError(
            f"constant {name!r} (of node {value.origin!r}) came out as {array.dtype} {list(array.shape)}, "
            f"not {value.dtype.value} {list(value.shape)}"
        )
    return array


def _fates(steps: Sequence[Step], records: Mapping[str, Record]) -> dict[str, Fate]:
    layers: dict[str, list[Step]] = {}
    for step in steps:
        layers.setdefault(step.origin, []).append(step)
    alive = {id(step) for step in steps}
    return {name: _fate(name, record, layers.get(name, ()), alive) for name, record in records.items()}


def _fate(name: str, record: Record, own: Sequence[Step], alive: set[int]) -> Fate:
    if own:
        main = next((step for step in own if step.name == name), own[-1])
        return Fate("layer", main.name)
    results = [value for value in record.results if value is not None]
    if not record.reached or not results:
        return Fate("dead")
    if record.is_call:
        inner = [value.step for value in results if value.step is not None and id(value.step) in alive]
        made = [step for step in inner if step.origin.startswith(f"{name}/")]
        if inner:  # what a branch only passes on, another node has made
            return Fate("layer", made[0].name) if made else Fate("no-op")
    if all(value.is_constant or value.step is None and value.elements is not None for value in results):
        return Fate("folded")
    if any(value is result for result in results for value in record.inputs if value is not None):
        return Fate("no-op")
    return Fate("dead")
