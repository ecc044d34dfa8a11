"""Layers that need no work: their output holds the bytes of their input, so both can be one piece of memory.

A view layer has no tactic of its own: the builder records :data:`VIEW` for it, and the context gives input and output the same
address. Where that is impossible (both ends belong to the caller), it copies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fusion.dims import Shape
from fusion.network import Network, Op, TensorType
from fusion.ops import Shuffle

VIEW = "view"  # LayerPlan.tactic of such a layer


def is_view(op: Op, inputs: Sequence[TensorType]) -> bool:
    """Whether the output is the input's bytes under another shape, for every size of symbolic dimensions.

    True for a Shuffle whose transposes move only axes of length 1 (they change no element's place).
    """
    if not isinstance(op, Shuffle):
        return False
    shape: Shape = inputs[0].shape
    if op.first is not None:
        if not _keeps_order(op.first, shape):
            return False
        shape = tuple(shape[axis] for axis in op.first)
    if op.reshape is not None:
        shape = op.reshape
    return op.second is None or _keeps_order(op.second, shape)


def _keeps_order(permutation: Sequence[int], shape: Shape) -> bool:
    moved = [axis for axis in permutation if shape[axis] != 1]
    return moved == sorted(moved)


def view_layers(network: Network) -> frozenset[str]:
    """Names of the layers that are views."""
    return frozenset(
        layer.name for layer in network.layers if is_view(layer.op, [network.tensors[name] for name in layer.inputs])
    )


def share_memory(
    network: Network, views: Collection[str], constants: Collection[str]
) -> tuple[dict[str, str], frozenset[str]]:
    """Which tensors are one piece of memory.

    Returns ``(owner, elided)``: ``owner[tensor]`` names the tensor whose memory it is (itself for most), and ``elided`` holds
    the view layers that vanish. A piece holds at most one tensor whose address is not ours to choose (network input, network
    output, constant), and that one is its owner; a view between two such tensors stays, as a copy.
    """
    fixed = {*network.inputs, *network.outputs, *constants}
    owner: dict[str, str] = {}

    def find(name: str) -> str:
        while owner.setdefault(name, name) != name:
            name = owner[name]
        return name

    elided = set()
    for layer in network.layers:
        for name in (*layer.inputs, *layer.outputs):
            find(name)
        if layer.name not in views:
            continue
        source, target = find(layer.inputs[0]), find(layer.outputs[0])
        if source in fixed and target in fixed:
            continue
        if target in fixed:
            source, target = target, source
        owner[target] = source
        elided.add(layer.name)
    return {name: find(name) for name in owner}, frozenset(elided)


def shared_groups(owner: Mapping[str, str]) -> dict[str, list[str]]:
    """The tensors of each piece of memory, by owner."""
    groups: dict[str, list[str]] = {}
    for name, root in owner.items():
        groups.setdefault(root, []).append(name)
    return groups
