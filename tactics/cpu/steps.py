"""What CPU tactics share: scratch memory laid out at planning time, blocks that fit a cache, steps that bind to arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fusion.network import TensorType
from tactics.tactic import CpuCall, DeviceSpec, Plan

Arrays = Sequence[np.ndarray]
Call = Callable[[], None]
BLOCK = (
    16384  # elements that pointwise work handles at once: 64 KiB of float32, so a handful fits a core's second cache
)
ALIGN = 64


@dataclass(frozen=True)
class Bindable:
    """A CPU function that makes its views once (``bind``, which returns what to run), then only runs."""

    bind: Callable[[Arrays, Arrays, Arrays, np.ndarray], Call]

    def __call__(self, inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> None:
        self.bind(inputs, outputs, packed, workspace)()


def one_step(
    bind: Callable[[Arrays, Arrays, Arrays, np.ndarray], Call],
    name: str,
    workspace: int = 0,
    unread: tuple[int, ...] = (),
) -> Plan:
    """A plan of one step that never touches the inputs ``unread``."""
    return Plan((CpuCall(Bindable(bind), name, unread),), workspace)


@dataclass(frozen=True)
class Slot:
    """An array inside the workspace."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def view(self, workspace: np.ndarray) -> np.ndarray:
        """The array itself."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return workspace[self.offset : self.offset + size].view(self.dtype).reshape(self.shape)


class Scratch:
    """Lays out a workspace: each :meth:`take` is an array behind the previous one, 64-byte aligned."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, shape: Sequence[int], dtype: np.dtype | type) -> Slot:
        """A new array of ``shape``."""
        slot = Slot(self.size, tuple(shape), np.dtype(dtype))
        self.size += -(-math.prod(shape) * slot.dtype.itemsize // ALIGN) * ALIGN
        return slot


def shape_of(tensor: TensorType) -> tuple[int, ...]:
    """A concrete shape, as numbers."""
    return tuple(int(dim) for dim in tensor.shape)  # type: ignore[arg-type]


def size_of(tensor: TensorType) -> int:
    """The element count of a concrete shape."""
    return math.prod(shape_of(tensor))


def threads_of(device: DeviceSpec) -> int:
    """How many threads one layer may use."""
    return max(1, min(device.multiprocessors, 16))


def spans(count: int, parts: int) -> list[tuple[int, int]]:
    """``range(count)`` cut into at most ``parts`` runs of nearly equal length, as (start, end)."""
    parts = max(1, min(parts, count))
    cuts = [count * number // parts for number in range(parts + 1)]
    return [(low, high) for low, high in pairwise(cuts) if high > low]


def blocks(
    shape: Sequence[int], limit: int = BLOCK, most: int = 2048, whole: Sequence[int] = ()
) -> Iterator[tuple[Any, ...]]:
    """Slices that cut an array of ``shape`` into row-major blocks of about ``limit`` elements (larger ones when there
    would be more than ``most``); the axes in ``whole`` are never cut."""
    total = math.prod(shape)
    if total == 0:
        return
    if not shape:
        yield (...,)  # an index that keeps a scalar an array
        return
    limit = max(limit, -(-total // most))
    inner = math.prod(shape[axis] for axis in whole)
    free = [axis for axis in range(len(shape)) if axis not in whole]
    while free and inner * shape[free[-1]] <= limit:
        inner *= shape[free.pop()]
    if not free:
        yield (slice(None),) * len(shape)
        return
    *outer, axis = free  # each place of the outer axes by itself, and runs along this one
    step = max(1, limit // inner)
    cut = [slice(None)] * len(shape)
    for place in np.ndindex(*(shape[one] for one in outer)):
        for one, index in zip(outer, place, strict=True):
            cut[one] = slice(index, index + 1)
        for low in range(0, shape[axis], step):
            cut[axis] = slice(low, min(low + step, shape[axis]))
            yield tuple(cut)


def elements(cut: Sequence[Any], shape: Sequence[int]) -> int:
    """How many elements of an array of ``shape`` a cut holds."""
    if not shape:
        return 1
    return math.prod(len(range(*part.indices(size))) for part, size in zip(cut, shape, strict=True))
