"""An inference, or a segment of one, as a list of calls that only enqueue: programs bound to addresses, and the events between streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from runtime.device import Binding, Device, Event, Program, Stream, Tensor
from runtime.loaded import LoadedEngine
from runtime.resolution import Resolution, Step

Action: TypeAlias = tuple[Callable[[Stream], None], int, int]  # (what to do with the stream, stream number, layer number or -1)
Around: TypeAlias = Callable[[str], "int | None"]  # the address of a tensor that the caller placed, None for others


def locate(loaded: LoadedEngine, resolution: Resolution, name: str, arena: int, around: Around) -> Tensor:
    """Where tensor ``name`` lies: in the arena, where the caller says, or among the weights."""
    kind = resolution.types[name]
    place = loaded.outline.places.get(name)
    root, start = (place.root, resolution.starts.get(name, 0)) if place is not None else (name, 0)
    if root in resolution.offsets:
        return Tensor(arena + resolution.offsets[root] + start, kind)
    address = around(root)
    if address is not None:
        return Tensor(address + start, kind)
    if root in loaded.weights:
        return Tensor(loaded.weights[root].address + start, kind)
    return Tensor(0, kind)  # a constant that was packed, so that no plan reads it; or an empty tensor


def bind_step(loaded: LoadedEngine, resolution: Resolution, step: Step, arena: int, around: Around) -> Program:
    """The plan of ``step`` bound to addresses.

    Raises:
        DeviceError: a kernel is missing or cannot be launched.
    """
    layer = loaded.engine.network.layers[step.layer]
    binding = Binding(
        inputs=tuple(locate(loaded, resolution, name, arena, around) for name in layer.inputs),
        outputs=tuple(locate(loaded, resolution, name, arena, around) for name in layer.outputs),
        packed=tuple(loaded.weights[name] for name in resolution.decisions[step.layer].packed),
        workspace=arena + step.workspace if step.plan.workspace else 0,
        workspace_size=step.plan.workspace,
    )
    program = loaded.device.program(step.plan, binding, loaded.modules)
    program.keep = loaded  # it knows the weights by their addresses only
    return program


def schedule(device: Device, steps: Sequence[Step], programs: Sequence[Program]) -> list[Action]:
    """All that one run of ``steps`` enqueues, in order: their programs, and the events between streams. Auxiliary streams wait for the
    main one at the start, and it for them at the end."""
    actions: list[Action] = []
    used = sorted({step.stream for step in steps} - {0})
    if used:
        start = device.event(timing=False)
        actions.append((start.record, 0, -1))
        actions += [(_waiter(start), number, -1) for number in used]
    last = {step.stream: index for index, step in enumerate(steps)}
    awaited = {other for step in steps for other in step.waits} | {last[number] for number in used}
    ended: dict[int, Event] = {}
    for index, (step, program) in enumerate(zip(steps, programs, strict=True)):
        actions += [(_waiter(ended[other]), step.stream, -1) for other in step.waits]
        actions.append((program.run, step.stream, step.layer))
        if index in awaited:
            ended[index] = device.event(timing=False)
            actions.append((ended[index].record, step.stream, -1))
    actions += [(_waiter(ended[last[number]]), 0, -1) for number in used]
    return actions


def _waiter(event: Event) -> Callable[[Stream], None]:
    return lambda stream: stream.wait(event)
