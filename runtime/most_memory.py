"""The most memory that activations and workspaces may need, whatever an inference comes to.

Where the host steps in, tensors that cross segments get places as the inference goes (:class:`runtime.heap.Heap`): the first hole that is large
enough. So at any moment all lies below a *top*, and these raise it at most so far, at the largest sizes:

- a tensor that crosses segments, by its own size;
- what a segment needs for itself: it is given back before the next tensor is placed, so only the largest counts, and only once;
- a branch, by what its body places, for good: the branch's outputs may lie above that;
- a loop, again and again, but below a bound. Each hole that was too small for a block of s bytes has at most s - 256, and there are no more holes below
  it than blocks; so n blocks that may be held at a time never reach beyond the sum of their sizes and n - 1 holes as large as the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from fusion.bind import bind_type
from fusion.dims import Shape, Sym, bind, symbols
from fusion.network import ControlFlow, Layer, Network, TensorType
from fusion.ops import If, Loop
from runtime.engine import Engine, EngineError, sizes_of
from runtime.memory import ALIGNMENT
from runtime.resolution import Outline, largest, outline, resolve_segment
from runtime.segments import Segment, segments_of
from tactics.tactic import tensor_bytes

_FORESEEN = 1 << 16  # slices that a loop makes room for at once; beyond, the room doubles when it is full


class UnboundedError(EngineError):
    """Nobody knows how much memory is enough; ``why`` says what decides it."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(
            f"the most memory that activations may need is not known: {why}; run the largest inference once and ask a context's device_memory_size"
        )


def most_memory(engine: Engine, profile: int = 0) -> int:
    """Bytes for any inference of ``engine`` within optimization profile ``profile``; it needs no device.

    Raises:
        UnboundedError: a size that the data, a branch or a loop decides has no limit.
    """
    if not engine.is_segmented:
        return largest(engine, profile).memory.size
    return most_memory_at(engine, profile, {name: item.max for name, item in engine.profiles[profile].items()})


def most_memory_at(engine: Engine, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The same for inferences at these input ``shapes``, where the host steps in.

    Raises:
        ValueError: the shapes do not fit the inputs.
        UnboundedError: as above.
    """
    need = _need(engine, profile, sizes_of(engine.network, shapes))
    return need.placed + need.scratch


@dataclass(frozen=True)
class _Need:
    """What one run of a network takes, its outputs apart: bytes by which it raises the top for good, and beyond that for a while; and the sizes of the
    blocks that may be held at a time."""

    placed: int
    scratch: int
    blocks: tuple[int, ...]


def _need(engine: Engine, profile: int, around: Mapping[str, int]) -> _Need:
    network, fixed = engine.network, outline(engine, profile)
    sizes = _limits(network, around)
    placed = scratch = 0
    crossing: list[int] = []
    passing: tuple[int, ...] = ()  # blocks that are given back with their layer; those of one layer at a time
    for segment in fixed.segments or segments_of(network, engine.host_layers):
        made = {name for number in segment.layers for name in network.layers[number].outputs}
        inner: tuple[int, ...] = ()
        if segment.host:
            (number,) = segment.layers
            op, bodies = network.layers[number].op, fixed.decisions[number].bodies
            if isinstance(op, Loop):
                inner = _loop_blocks(network, op, network.layers[number].outputs, bodies[0], sizes)
                placed += sum(inner) + (len(inner) - 1) * (max(inner) - ALIGNMENT) if inner else 0
            elif isinstance(op, If):
                one, other = (_need(body, 0, sizes) for body in bodies)
                placed, scratch = placed + max(one.placed, other.placed), max(scratch, one.scratch, other.scratch)
                inner = _either(one.blocks, other.blocks)
            roots = made
        else:
            _check_known(network, segment.needs, sizes)
            inner = (_aligned(_own(engine, fixed, segment, sizes)),)
            scratch = max(scratch, *inner)
            roots = made & {fixed.places[name].root for name in segment.outside}
        crossing += [_bytes(network.tensors[name], sizes) for name in roots - set(network.outputs)]
        passing = _either(passing, inner)
    return _Need(placed + sum(crossing), scratch, tuple(one for one in (*crossing, *passing) if one))


def _own(engine: Engine, fixed: Outline, segment: Segment, sizes: Mapping[str, int]) -> int:
    """What ``segment`` needs for itself."""
    try:
        return resolve_segment(engine, fixed, segment, sizes, engine.device).memory.size
    except EngineError as error:  # a branch that is never taken at the largest sizes, for one
        raise UnboundedError(f"not all of it can run at the largest sizes ({error})") from error


def _loop_blocks(network: Network, op: Loop, outputs: Sequence[str], body: Engine, around: Mapping[str, int]) -> tuple[int, ...]:
    """What a loop may hold at a time: what an iteration makes, what the one before it handed on, and the slices so far, twice while they move to more room."""
    sizes = _limits(body.network, around)
    made = [_bytes(body.network.tensors[name], sizes) for name in body.network.outputs]
    first = int(op.decides)
    slices = [_bytes(network.tensors[name], around) for name in outputs[op.carried :]]
    trip = None if op.trip is None else _known_shape((op.trip,), around)[0]
    if slices and (trip is None or trip > _FORESEEN):
        slices += [2 * one for one in slices]
    found = (*made, *made[first : first + op.carried], *slices, *_need(body, 0, around).blocks)
    return tuple(size for size in found if size)


def _either(one: Iterable[int], other: Iterable[int]) -> tuple[int, ...]:
    """Blocks that stand for those of ``one`` as well as for those of ``other``."""
    ordered = (sorted(blocks, reverse=True) for blocks in (one, other))
    return tuple(max(pair) for pair in zip_longest(*ordered, fillvalue=0))


def known_limits(network: Network, around: Mapping[str, int]) -> dict[str, int]:
    """``around`` with the sizes that the data, branches and loops decide at their largest, where they have a limit."""
    sizes, before = dict(around), -1
    while before != len(sizes):  # limits may depend on others, in any order
        before = len(sizes)
        for name, reading in network.sizes.items():
            if reading.limit is not None and symbols(reading.limit) <= sizes.keys():
                sizes[name] = bind(reading.limit, sizes)
        for layer in network.layers:
            if isinstance(layer.op, ControlFlow) and any(symbols(network.tensors[name].shape) - sizes.keys() for name in layer.outputs):
                sizes |= _decided(layer, network, sizes)
    return sizes


def _decided(layer: Layer, network: Network, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes in the outputs of a branch or loop, at their largest: the larger branch's; as many slices as iterations may run."""
    op, found = layer.op, dict[str, int]()
    for index, output in enumerate(layer.outputs):
        limits: list[Sequence[int | None]] = []
        if isinstance(op, If):
            limits = [_known_shape(body.tensors[body.outputs[index]].shape, known_limits(body, sizes)) for body in op.bodies]
        elif isinstance(op, Loop) and op.trip is not None and index >= op.carried:
            limits = [[max(0, size) if size is not None else None for size in _known_shape((op.trip,), sizes)]]
        for dim, *most in zip(network.tensors[output].shape, *limits, strict=False):
            if isinstance(dim, Sym) and str(dim) not in sizes and None not in most and most:
                found[str(dim)] = max(most)  # type: ignore[type-var]
    return found


def _known_shape(shape: Shape, sizes: Mapping[str, int]) -> list[int | None]:
    return [bind(dim, sizes) if symbols(dim) <= sizes.keys() else None for dim in shape]


def _limits(network: Network, around: Mapping[str, int]) -> dict[str, int]:
    sizes = known_limits(network, around)
    for tensor in network.tensors.values():
        _check_known(network, symbols(tensor.shape), sizes)
    return sizes


def _check_known(network: Network, needed: Iterable[str], sizes: Mapping[str, int]) -> None:
    for name in sorted(set(needed) - sizes.keys()):
        reading = network.sizes.get(name)
        why = f"a branch or loop decides size {name!r}"
        if reading is not None:
            why = f"the data decides size {name!r} (read from tensor {reading.tensor!r}), which has no limit"
        raise UnboundedError(why)


def _bytes(kind: TensorType, sizes: Mapping[str, int]) -> int:
    return _aligned(tensor_bytes(bind_type(kind, sizes)))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
