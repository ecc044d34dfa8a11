"""How an input or output of a network lies in memory where that is not row-major: channels-last formats, dense and padded.

Callers know such a tensor by the model's shape, NxCxHxW; in the network it has the shape that its memory has, NxHxWxC, where a padded format holds
C rounded up to a multiple. The names are those of TensorRT's formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion.dims import Dim, Shape

LINEAR = "chw"
CHANNELS_LAST = {"hwc": (2, 1), "hwc8": (2, 8), "hwc16": (2, 16), "dhwc": (3, 1), "dhwc8": (3, 8)}  # spatial axes, what channels are rounded up to


@dataclass(frozen=True)
class Format:
    """One of :data:`CHANNELS_LAST`. ``channels`` is how many the tensor has, where memory may hold more (0 in a dense format)."""

    name: str
    channels: int = 0

    @property
    def multiple(self) -> int:
        """What the number of channels in memory is a multiple of."""
        return CHANNELS_LAST[self.name][1]

    @property
    def held(self) -> int:
        """How many channels memory holds, in a padded format; 0 in a dense one."""
        return -(-self.channels // self.multiple) * self.multiple

    @property
    def least_rank(self) -> int:
        """The fewest dimensions that a tensor of this format has: a batch, channels, and spatial axes."""
        return CHANNELS_LAST[self.name][0] + 2

    def order(self, rank: int) -> tuple[int, ...]:
        """The axis that each axis in memory is: (0, 2, 3, 1) for rank 4."""
        channel = rank - 1 - CHANNELS_LAST[self.name][0]
        return (*range(channel), *range(channel + 1, rank), channel)

    def back(self, rank: int) -> tuple[int, ...]:
        """The inverse of :meth:`order`: (0, 3, 1, 2) for rank 4."""
        order = self.order(rank)
        return tuple(order.index(axis) for axis in range(rank))

    def in_memory(self, shape: Shape) -> tuple[Dim, ...]:
        """The shape in memory of a tensor that callers know by ``shape``."""
        *others, channels = (shape[axis] for axis in self.order(len(shape)))
        return (*others, self.held or channels)

    def known_as(self, shape: Shape) -> tuple[Dim, ...]:
        """The inverse of :meth:`in_memory`."""
        held = (*shape[:-1], self.channels) if self.channels else tuple(shape)
        return tuple(held[axis] for axis in self.back(len(shape)))

    def strides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Elements between neighbours along each axis of ``shape`` (as callers know it)."""
        found, step = [1] * len(shape), 1
        for axis, size in zip(reversed(self.order(len(shape))), reversed(self.in_memory(tuple(shape))), strict=True):
            found[axis] = step
            step *= int(size)  # type: ignore[arg-type]
        return tuple(found)

    def pack(self, array: np.ndarray) -> np.ndarray:
        """``array`` as it lies in memory, with zeros in the channels that it does not have."""
        moved = array.transpose(self.order(array.ndim))
        shape = self.in_memory(array.shape)
        if shape == moved.shape:
            return np.ascontiguousarray(moved)
        packed: np.ndarray = np.zeros([int(dim) for dim in shape], array.dtype)  # type: ignore[arg-type]
        packed[..., : moved.shape[-1]] = moved
        return packed

    def unpack(self, array: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`pack`, row-major."""
        real = array[..., : self.channels] if self.channels else array
        return np.ascontiguousarray(real.transpose(self.back(array.ndim)))

    def __str__(self) -> str:
        if not self.channels:
            return f"Channels last ({self.name})"
        return f"Channels last, padded to a multiple of {self.multiple} ({self.name})"
