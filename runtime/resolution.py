"""What one set of input shapes means for an engine: concrete types, the plan of every layer, the memory plan, the stream waits.

Pure: it reads the engine and gives a value. The context binds it to addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fusion.dims import bind
from fusion.network import ControlFlow, Layer, Network, TensorType, check_holds
from fusion.ops import Slice
from runtime.engine import IDLE, ON_HOST, Engine, EngineError, LayerPlan, fixed_sizes, sizes_of
from runtime.memory import Block, MemoryPlan, layer_order, plan_memory
from runtime.segments import Segment, segments_of
from runtime.views import VIEW, Piece, Place, Sharing, share_memory
from runtime.workloads import Template, placed_type, template_of
from tactics import registry
from tactics.tactic import Buffer, Config, Copy, DeviceSpec, Plan, Tactic, Workload, extent_bytes, tensor_bytes

HOST_TACTIC = "cpu.reference.numpy"  # computes on the host what a GPU has no kernel for


@dataclass(frozen=True)
class Outline:
    """What holds for every shape of an optimization profile.

    Attributes:
        decisions: per layer, what was decided for this profile.
        tactics: per layer, its tactic; None for a view.
        views: per view layer the pieces that it must copy; ``elided`` those that need no step.
        places: per tensor, where it lies in which tensor's memory.
        constants: tensors whose values are known at build: read, but neither inputs nor written by a layer.
        fixed: the named sizes that the profile leaves no choice.
        segments: the network cut where the host steps in; one segment for most.
        pitches: of the tensors that are columns of others.
        templates: per layer, its workload but for the sizes.
        dynamic: the tensors whose types are other than in the network: their shapes follow from the inputs', or they have a pitch.
    """

    decisions: tuple[LayerPlan, ...]
    tactics: tuple[Tactic | None, ...]
    views: Mapping[str, tuple[Piece, ...]]
    elided: frozenset[str]
    places: Mapping[str, Place]
    constants: frozenset[str]
    fixed: frozenset[str] = frozenset()
    segments: tuple[Segment, ...] = ()
    pitches: Mapping[str, int] = field(default_factory=dict)
    templates: tuple[Template, ...] = ()
    dynamic: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One layer that runs: its number in the network, its plan, where its workspace lies, the steps on other streams that it waits for,
    and all steps whose results it needs."""

    layer: int
    plan: Plan
    stream: int
    waits: tuple[int, ...]
    workspace: int
    needs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Resolution:
    """An engine at concrete shapes.

    Attributes:
        shapes: of the inputs.
        types: of every tensor.
        steps: what runs, in order; a wait names the step (number) on another stream that must have ended.
        starts: per tensor, its offset in bytes within the memory of its root.
        offsets: per root in the arena, its offset in bytes.
        memory: the arena plan.
        decisions: per layer of the network, what was decided for the profile.
    """

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, TensorType]
    steps: tuple[Step, ...]
    starts: Mapping[str, int]
    offsets: Mapping[str, int]
    memory: MemoryPlan
    decisions: tuple[LayerPlan, ...] = ()


def sharing_of(engine: Engine) -> Sharing:
    """Which tensors of ``engine`` are one piece of memory: as its build found."""
    views = {layer.name for layer, plan in zip(engine.network.layers, engine.layers, strict=True) if plan.tactic == VIEW}
    return share_memory(engine.network, engine.host_layers, views=views)


def outline(engine: Engine, profile: int = 0) -> Outline:
    """The part of resolution that no shape of ``profile`` changes.

    Raises:
        EngineError: this version lacks a tactic that the engine uses.
    """
    network = engine.network
    produced = {name for layer in network.layers for name in layer.outputs}
    read = {name for layer in network.layers for name in layer.inputs} | set(network.outputs)
    constants = frozenset(read - produced - set(network.inputs))
    decisions = engine.decisions(profile)
    sharing = sharing_of(engine)
    tactics = tuple(_tactic(layer, plan, sharing.copies) for layer, plan in zip(network.layers, decisions, strict=True))
    fixed = frozenset(fixed_sizes(network, engine.profiles[profile]))
    segments = segments_of(network, engine.host_layers) if engine.is_segmented else ()
    templates = tuple(template_of(network, layer, constants, engine.tf32, fixed) for layer in network.layers)
    dynamic = tuple(name for name, tensor in network.tensors.items() if not tensor.is_static or name in sharing.pitches)
    return Outline(
        decisions, tactics, sharing.copies, sharing.elided, sharing.places, constants, fixed, segments, sharing.pitches, templates, dynamic
    )


def _tactic(layer: Layer, plan: LayerPlan, views: Mapping[str, tuple[Piece, ...]]) -> Tactic | None:
    if (plan.tactic == VIEW and layer.name in views) or isinstance(layer.op, ControlFlow) or plan.tactic == IDLE:
        return None
    try:
        return registry.tactic(HOST_TACTIC if plan.tactic == ON_HOST else plan.tactic)
    except KeyError as error:
        raise EngineError(
            f"layer {layer.name!r}: this version of trtcli has no tactic {plan.tactic!r}; build the engine again"
        ) from error


def resolve(engine: Engine, fixed: Outline, shapes: Mapping[str, tuple[int, ...]], device: DeviceSpec) -> Resolution:
    """``engine`` at the input ``shapes``.

    Raises:
        ValueError: the shapes do not fit the inputs.
        EngineError: a layer cannot run at these shapes.
    """
    network = engine.network
    sizes = sizes_of(network, shapes)
    check_holds(network, sizes)
    types = dict(network.tensors)
    for name in fixed.dynamic:
        try:
            types[name] = placed_type(network, name, sizes, fixed.pitches)
        except KeyError as error:
            raise EngineError(
                f"tensor {name!r}: its dimension {error} does not follow from the input shapes"
            ) from error
        if any(dim < 0 for dim in types[name].shape):  # type: ignore[operator]
            raise EngineError(f"tensor {name!r} would have shape {types[name].shape} with inputs {dict(shapes)}")

    return _resolved(engine, fixed, range(len(network.layers)), sizes, types, device, shapes, ())


def resolve_segment(
    engine: Engine, fixed: Outline, segment: Segment, sizes: Mapping[str, int], device: DeviceSpec
) -> Resolution:
    """One segment of ``engine`` at these named ``sizes``; tensors that others read have places of their own, outside of its arena.

    Raises:
        EngineError: a layer cannot run at these sizes.
    """
    network = engine.network
    layers = [network.layers[number] for number in segment.layers]
    types = {}
    for name in dict.fromkeys(name for layer in layers for name in (*layer.inputs, *layer.outputs)):
        types[name] = placed_type(network, name, sizes, fixed.pitches)
        if any(dim < 0 for dim in types[name].shape):  # type: ignore[operator]
            raise EngineError(f"tensor {name!r} would have shape {types[name].shape}: a size that was computed does not fit")
    return _resolved(engine, fixed, segment.layers, sizes, types, device, {}, segment.outside)


def _check_slice(layer: Layer, sizes: Mapping[str, int], types: Mapping[str, TensorType]) -> None:
    """Importers take axes of symbolic size to hold what slices begin with; here they have their sizes.

    Raises:
        EngineError: the slice would read outside of its input.
    """
    assert isinstance(layer.op, Slice)
    shape, counts = types[layer.inputs[0]].shape, types[layer.outputs[0]].shape
    if 0 in counts:
        return
    for axis, (length, first, count, step) in enumerate(zip(shape, layer.op.starts, counts, layer.op.steps, strict=True)):
        assert isinstance(length, int) and isinstance(count, int)
        start = bind(first, sizes)
        least, most = sorted((start, start + (count - 1) * step))
        if least < 0 or most >= length:
            raise EngineError(
                f"layer {layer.name!r} takes elements {least} to {most} of axis {axis}, which has {length} at these input shapes: give larger ones"
            )


def _resolved(
    engine: Engine,
    fixed: Outline,
    layers: Sequence[int],
    sizes: Mapping[str, int],
    types: Mapping[str, TensorType],
    device: DeviceSpec,
    shapes: Mapping[str, tuple[int, ...]],
    kept: Sequence[str],
) -> Resolution:
    network = engine.network
    starts = {name: bind(fixed.places[name].offset, sizes) * types[name].dtype.itemsize for name in types if name in fixed.places}
    plans: list[tuple[int, Plan]] = []
    known: dict[tuple[str, Config, Workload], Plan] = {}  # networks repeat themselves
    for number in layers:
        layer = network.layers[number]
        if isinstance(layer.op, Slice):
            _check_slice(layer, sizes, types)
        if layer.name in fixed.elided or not any(tensor_bytes(types[name]) for name in layer.outputs):
            continue
        plans.append((number, _plan(engine, fixed, number, sizes, types, device, known)))
    steps, streams = _schedule(engine, fixed, plans, types, starts)
    order = layer_order(streams, [step.waits for step in steps])
    blocks, block_of = _blocks(engine, fixed, plans, types, order, frozenset(fixed.places[name].root for name in kept if name in fixed.places))
    memory = plan_memory(blocks, order)
    offsets = {name: memory.offsets[block] for name, block in block_of.items()}
    placed = memory.offsets[len(blocks) - len(plans) :]  # workspaces follow the tensors
    steps = [replace(step, workspace=offset) for step, offset in zip(steps, placed, strict=True)]
    return Resolution(dict(shapes), types, tuple(steps), starts, offsets, memory, fixed.decisions)


def largest(engine: Engine, profile: int = 0) -> Resolution:
    """``engine`` at the largest shapes of ``profile``; it needs no device.

    Raises:
        EngineError: a layer cannot run at these shapes, this version lacks its tactic, or shapes depend on data.
    """
    if engine.is_segmented:
        raise EngineError("the host steps in while this network runs: its segments are resolved one by one")
    shapes = {name: item.max for name, item in engine.profiles[profile].items()}
    return resolve(engine, outline(engine, profile), shapes, engine.device)


def _plan(
    engine: Engine,
    fixed: Outline,
    number: int,
    sizes: Mapping[str, int],
    types: Mapping[str, TensorType],
    device: DeviceSpec,
    known: dict[tuple[str, Config, Workload], Plan],
) -> Plan:
    layer, decision, tactic = engine.network.layers[number], fixed.decisions[number], fixed.tactics[number]
    if layer.name in fixed.views:
        return _copies(layer, fixed.views[layer.name], sizes, types)
    if tactic is None:
        made = ", ".join("x".join(map(str, types[name].shape)) for name in layer.outputs)
        raise EngineError(
            f"layer {layer.name!r} makes nothing at all sizes that the build looked at, so the engine has no kernel for it; now it would make {made}: "
            "build with optimal shapes at which it makes something"
        )
    try:
        workload = fixed.templates[number].at(sizes, types)
        key = (decision.tactic, decision.config, workload)
        if key not in known:
            known[key] = tactic.plan(workload, decision.config, device)
        return known[key]
    # A tactic is foreign code to this function; whatever it says, the user needs the layer and the shapes with it.
    except Exception as error:
        shapes = ", ".join("x".join(map(str, types[name].shape)) for name in layer.inputs)
        raise EngineError(
            f"layer {layer.name!r}: tactic {decision.tactic} has no plan for inputs {shapes}: {type(error).__name__}: {error}"
        ) from error


def _copies(layer: Layer, pieces: tuple[Piece, ...], sizes: Mapping[str, int], types: Mapping[str, TensorType]) -> Plan:
    """The plan of a view of which ``pieces`` could not be placed in one memory."""
    target = types[layer.outputs[0]]
    steps = []
    for piece in pieces:
        source = types[layer.inputs[piece.input]]
        begin, end = (bind(offset, sizes) * target.dtype.itemsize for offset in (piece.source, piece.target))
        size = min(tensor_bytes(source), tensor_bytes(target))  # a slice is all of the output, a part all of its input
        if size:
            steps.append(Copy(Buffer("input", piece.input, begin), Buffer("output", 0, end), size))
    return Plan(tuple(steps))


def _schedule(
    engine: Engine,
    fixed: Outline,
    plans: list[tuple[int, Plan]],
    types: Mapping[str, TensorType],
    starts: Mapping[str, int],
) -> tuple[list[Step], list[int]]:
    """Steps with the waits that carry data between streams, without those that follow from others."""
    network = engine.network
    writers: dict[str, list[tuple[str, int]]] = {}  # root -> (tensor, step) of what is written there
    known: list[dict[int, int]] = []  # per step: per stream, the last step certain to have ended before it
    last: dict[int, int] = {}
    steps: list[Step] = []
    for step, (number, plan) in enumerate(plans):
        layer, stream = network.layers[number], fixed.decisions[number].stream
        ended = {**known[last[stream]], stream: last[stream]} if stream in last else {}
        waits = []
        needs: set[int] = set()
        for name in layer.inputs:
            written = writers.get(fixed.places[name].root, ())
            needs.update(other for tensor, other in written if _overlap(name, tensor, types, starts))
        for other in sorted(needs, reverse=True):
            there = steps[other].stream
            if there == stream or ended.get(there, -1) >= other:
                continue
            waits.append(other)
            for key, value in {**known[other], there: other}.items():
                ended[key] = max(ended.get(key, -1), value)
        for name in layer.outputs:
            writers.setdefault(fixed.places[name].root, []).append((name, step))
        steps.append(Step(number, plan, stream, tuple(sorted(waits)), 0, tuple(sorted(needs))))
        known.append(ended)
        last[stream] = step
    return steps, [step.stream for step in steps]


def _overlap(a: str, b: str, types: Mapping[str, TensorType], starts: Mapping[str, int]) -> bool:
    """Whether two tensors of one piece of memory may have bytes in common."""
    low, other = types[a], types[b]
    if not (starts[a] < starts[b] + extent_bytes(other) and starts[b] < starts[a] + extent_bytes(low)):
        return False
    if not low.pitch or low.pitch != other.pitch or low.dtype.itemsize != other.dtype.itemsize:
        return True
    pitch = low.pitch * low.dtype.itemsize  # both are columns of rows of one length
    (first, end), (begin, last) = ((starts[name] % pitch, starts[name] % pitch + int(types[name].shape[-1]) * low.dtype.itemsize) for name in (a, b))  # type: ignore[arg-type]
    return first < last and begin < end


@dataclass
class _Lives:
    """Per root tensor of the arena the steps that read or write it, and those that write it."""

    uses: dict[str, list[int]]
    writers: dict[str, list[int]]

    def join(self, first: str, second: str) -> None:
        """``second`` lies where ``first`` does."""
        self.uses[first] = sorted({*self.uses[first], *self.uses[second]})
        self.writers[first] = sorted({*self.writers[first], *self.writers[second]})


def _blocks(
    engine: Engine,
    fixed: Outline,
    plans: list[tuple[int, Plan]],
    types: Mapping[str, TensorType],
    order: np.ndarray,
    kept: frozenset[str],
) -> tuple[list[Block], dict[str, int]]:
    """Blocks of the arena, those of tensors first, then one workspace per step; and the block (number) of every root tensor.

    An output shares the block of an input of its layer where the plan may work in place and nobody reads the input later. Roots that
    are ``kept``, and those that none of these layers writes, lie elsewhere.
    """
    lives = _lives(engine.network, fixed, plans, kept)
    taken: dict[str, str] = {}  # root -> the root whose block it took
    for step, (number, plan) in enumerate(plans):
        layer = engine.network.layers[number]
        target = fixed.places[layer.outputs[0]].root if plan.in_place else ""
        if target not in lives.uses or lives.uses[target][0] != step or tensor_bytes(types[target]) != tensor_bytes(types[layer.outputs[0]]):
            continue
        given = _given_up([fixed.places[name].root for name in layer.inputs], target, step, plan, lives, types, order)
        if given:
            taken[target] = taken.get(given, given)
            lives.join(taken[target], target)
    names = [name for name in lives.uses if name not in taken]
    blocks = [Block(tensor_bytes(types[name]), tuple(lives.uses[name]), tuple(lives.writers[name])) for name in names]
    blocks += [Block(plan.workspace, (step,)) for step, (_, plan) in enumerate(plans)]
    numbers = {name: number for number, name in enumerate(names)}
    return blocks, {name: numbers[taken.get(name, name)] for name in lives.uses}


def _lives(network: Network, fixed: Outline, plans: list[tuple[int, Plan]], kept: frozenset[str]) -> _Lives:
    made = {fixed.places[name].root for number, _ in plans for name in network.layers[number].outputs}
    inside = made - {*network.inputs, *network.outputs, *fixed.constants, *kept}
    found = _Lives({}, {})
    for step, (number, _) in enumerate(plans):
        layer = network.layers[number]
        for name in (*layer.outputs, *layer.inputs):
            root = fixed.places[name].root
            if root in inside and (not found.uses.get(root) or found.uses[root][-1] != step):
                found.uses.setdefault(root, []).append(step)
        for name in layer.outputs:
            found.writers.setdefault(fixed.places[name].root, []).append(step)
    return found


def _given_up(
    roots: Sequence[str], target: str, step: int, plan: Plan, lives: _Lives, types: Mapping[str, TensorType], order: np.ndarray
) -> str:
    """The input (its root, among ``roots``) whose memory the layer's result, of root ``target``, may take; empty when there is none."""
    size = tensor_bytes(types[target])
    for root in dict.fromkeys(roots[one] for one in plan.in_place):
        readers = {one for one, other in enumerate(roots) if other == root}
        if root == target or root not in lives.uses or not readers <= set(plan.in_place) or tensor_bytes(types[root]) != size:
            continue
        *before, last = lives.uses[root]
        if last == step and order[before, step].all():
            return root
    return ""
