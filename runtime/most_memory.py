"""The most memory that activations and workspaces may need, whatever an inference comes to.

Where the host steps in, tensors that cross segments get places as the inference goes (:class:`runtime.heap.Heap`). The first place that is large enough
never lies beyond the sum of all that were taken before, and what a segment needs for itself is given back before the next tensor is placed;
so the sum of all crossing tensors and the largest need of one segment are enough, at the largest sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusion.bind import bind_type
from fusion.dims import bind, symbols
from fusion.network import Network
from fusion.ops import If, Loop
from runtime.engine import Engine, EngineError, sizes_of
from runtime.memory import ALIGNMENT
from runtime.resolution import largest, outline, resolve_segment
from runtime.segments import segments_of
from tactics.tactic import tensor_bytes


def most_memory(engine: Engine, profile: int = 0) -> int:
    """Bytes for any inference of ``engine`` within optimization profile ``profile``; it needs no device.

    Raises:
        EngineError: nobody knows: a size that the data decides has no limit, or a loop keeps what its iterations make.
    """
    if not engine.is_segmented:
        return largest(engine, profile).memory.size
    return _most(engine, profile, sizes_of(engine.network, {name: item.max for name, item in engine.profiles[profile].items()}))


def _most(engine: Engine, profile: int, around: Mapping[str, int]) -> int:
    network, fixed = engine.network, outline(engine, profile)
    sizes = _limits(network, around)
    total = scratch = 0
    for segment in fixed.segments or segments_of(network, engine.host_layers):
        made = {name for number in segment.layers for name in network.layers[number].outputs}
        if segment.host:
            (number,) = segment.layers
            op = network.layers[number].op
            if isinstance(op, Loop):
                raise _unknown(f"layer {network.layers[number].name!r} is a loop, which keeps what its iterations make")
            if isinstance(op, If):
                scratch = max(scratch, *(_most(body, 0, sizes) for body in fixed.decisions[number].bodies))
            roots = made
        else:
            scratch = max(scratch, resolve_segment(engine, fixed, segment, sizes, engine.device).memory.size)
            roots = made & {fixed.places[name].root for name in segment.outside}
        total += sum(_aligned(tensor_bytes(bind_type(network.tensors[name], sizes))) for name in roots - set(network.outputs))
    return total + _aligned(scratch)


def known_limits(network: Network, around: Mapping[str, int]) -> dict[str, int]:
    """``around`` with the sizes that the data decides at their largest, where they have a limit."""
    sizes = dict(around)
    for name, reading in network.sizes.items():
        if reading.limit is not None and symbols(reading.limit) <= sizes.keys():
            sizes[name] = bind(reading.limit, sizes)
    return sizes


def _limits(network: Network, around: Mapping[str, int]) -> dict[str, int]:
    sizes = known_limits(network, around)
    for name, reading in network.sizes.items():
        if name not in sizes:
            raise _unknown(f"the data decides size {name!r} (read from tensor {reading.tensor!r}), which has no limit")
    for tensor in network.tensors.values():
        if missing := sorted(symbols(tensor.shape) - sizes.keys()):
            raise _unknown(f"a branch decides size {missing[0]!r}")
    return sizes


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _unknown(why: str) -> EngineError:
    return EngineError(
        f"the most memory that activations may need is not known: {why}; run the largest inference once and ask a context's device_memory_size"
    )
