"""A model's own changes of layout: Shuffles that make a channels-last tensor channels-first, or the other way.

Beside a neighbour that runs channels-last such a Shuffle moves nothing, so the choice of layouts must not count it among the layers that want
channels-first. ConvNeXt, Swin, SegFormer and whoever puts a LayerNormalization between convolutions are full of them.
"""

from __future__ import annotations

from collections.abc import Callable

from fusion.network import Layer, Network
from fusion.ops import Shuffle
from fusion.rules._shuffles import Movement, movement


def order_for(rank: int) -> tuple[int, ...]:
    """The permutation from channels-first to channels-last: (0, 2, 3, 1) for rank 4."""
    return (0, *range(2, rank), 1)


def back_for(rank: int) -> tuple[int, ...]:
    """The permutation from channels-last to channels-first: (0, 3, 1, 2) for rank 4."""
    return (0, rank - 1, *range(1, rank - 1))


def turned_tensor(network: Network, layer: Layer, among_images: Callable[[str], bool]) -> str | None:
    """The tensor that ``layer`` has channels-last for nothing: its input, when its output is the same bytes channels-last; its output, when its
    input is; None for all other layers.

    A Shuffle between three axes, (0, 2, 1), is both; ``among_images`` says then whether a tensor is what convolutions compute on.
    """
    if not isinstance(layer.op, Shuffle):
        return None
    (source,), (target,) = layer.inputs, layer.outputs
    if source in network.constants:
        return None
    moved = movement(network.tensors[source].shape, layer.op)
    if moved is None or moved.is_view:
        return None
    found = [name for name, turn in ((target, _into(network, target)), (source, _out_of(network, source))) if turn == moved]
    if len(found) == 2:
        ranks = [len(network.tensors[name].shape) for name in found]
        found = [name for name, rank in zip(found, ranks, strict=True) if rank == max(ranks)] if ranks[0] != ranks[1] else list(filter(among_images, found))
    return found[0] if len(found) == 1 else None


def _into(network: Network, target: str) -> Movement | None:
    """From ``target`` stored channels-last to ``target``."""
    shape = network.tensors[target].shape
    rank = len(shape)
    return movement(tuple(shape[axis] for axis in order_for(rank)), Shuffle(first=back_for(rank))) if rank >= 3 else None


def _out_of(network: Network, source: str) -> Movement | None:
    """From ``source`` to what it is channels-last."""
    shape = network.tensors[source].shape
    return movement(shape, Shuffle(first=order_for(len(shape)))) if len(shape) >= 3 else None
