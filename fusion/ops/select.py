"""Layers that find how many results there are: non-zero elements, boxes kept by suppression, distinct values.

Each writes a table with room for all that could be found, and how much it found; only the first rows of the table have a meaning. The
network reads the count as a size (:class:`fusion.network.Reading`), and slices cut the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dims import Dim, dim_min, product
from fusion.dtypes import DataType
from fusion.network import Op, ShapeError, TensorType

COUNT = TensorType(DataType.INT64, (1,))


@dataclass(frozen=True)
class NonZero(Op):
    """Input: x of rank r >= 1. Outputs: (elements, r) int64, a row of indices per non-zero element in row-major order; their count."""

    layer_type: ClassVar[str] = "NonZero"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        (x,) = inputs
        if not x.shape:
            raise ShapeError("a tensor without dimensions has no indices")
        return TensorType(DataType.INT64, (product(x.shape), len(x.shape))), COUNT

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        found = np.argwhere(inputs[0])
        table = np.zeros((inputs[0].size, inputs[0].ndim), np.int64)
        table[: len(found)] = found
        return table, np.array([len(found)], np.int64)


@dataclass(frozen=True)
class NonMaxSuppression(Op):
    """Inputs: boxes (batch, n, 4), scores (batch, classes, n), and one element each: the most boxes per class (int64), the greatest
    overlap (float32) and the least score (float32).

    Per batch and class boxes are taken by falling score; a box that overlaps an earlier one by more than allowed is dropped. Outputs:
    (batch * classes * ``most``, 3) int64, rows (batch, class, box); their count. ``center``: boxes are (x, y, width, height), else two
    opposite corners (y1, x1, y2, x2). ``score_limit``: whether scores at most the least one drop their boxes.
    """

    most: Dim
    center: bool = False
    score_limit: bool = True

    layer_type: ClassVar[str] = "NMS"
    arity: ClassVar[int] = 5

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        boxes, scores = inputs[:2]
        if len(boxes.shape) != 3 or len(scores.shape) != 3 or boxes.shape[2] != 4:
            raise ShapeError(f"boxes {boxes.shape} and scores {scores.shape}; it takes (batch, n, 4) and (batch, classes, n)")
        rows = dim_min(self.most, boxes.shape[1]) * scores.shape[0] * scores.shape[1]
        return TensorType(DataType.INT64, (rows, 3)), COUNT

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        boxes, scores = (array.astype(np.float32, copy=False) for array in inputs[:2])
        most = int(inputs[2].reshape(-1)[0])
        overlap, least = (float(array.reshape(-1)[0]) for array in inputs[3:])
        corners = _corners(boxes, self.center)
        rows: list[tuple[int, int, int]] = []
        for batch, label in np.ndindex(*scores.shape[:2]):
            column = scores[batch, label]
            order = np.argsort(-column, kind="stable")
            kept: list[int] = []
            for box in order[column[order] > np.float32(least)] if self.score_limit else order:
                if len(kept) >= most:
                    break
                if not kept or not (_overlaps(corners[batch, kept], corners[batch, box]) > np.float32(overlap)).any():
                    kept.append(int(box))
            rows += [(batch, label, box) for box in kept]
        size = scores.shape[0] * scores.shape[1] * min(int(self.most), boxes.shape[1])  # type: ignore[arg-type]
        table = np.zeros((size, 3), np.int64)
        table[: len(rows)] = np.array(rows, np.int64).reshape(-1, 3)
        return table, np.array([len(rows)], np.int64)


def _corners(boxes: np.ndarray, center: bool) -> np.ndarray:
    """(..., 4): low y, low x, high y, high x."""
    if center:
        x, y, width, height = np.moveaxis(boxes, -1, 0)
        sides = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
    else:
        y1, x1, y2, x2 = np.moveaxis(boxes, -1, 0)
        sides = (np.minimum(y1, y2), np.minimum(x1, x2), np.maximum(y1, y2), np.maximum(x1, x2))
    return np.stack(sides, -1)


def _overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of ``box`` with each of ``boxes``; 0 where one of them is empty."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1, dtype=np.float32)
    area, areas = np.prod(box[2:] - box[:2]), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    union = areas + area - shared
    some = (areas > 0) & (area > 0) & (union > 0)
    return np.where(some, shared / np.where(some, union, 1), 0).astype(np.float32)


@dataclass(frozen=True)
class Unique(Op):
    """Input: x. What distinguishes the slices of x along ``axis`` (of x flattened, when None), n of them.

    Outputs, int64: where each distinct slice stands first (n), for each slice the number of its value (n), how often each stands (n),
    and how many there are. ``sorted``: distinct slices stand in ascending order, else in that of their first place. NaN is equal to itself, and
    above all numbers.
    """

    axis: int | None = None
    sorted: bool = True

    layer_type: ClassVar[str] = "Unique"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = inputs[0].shape
        count = TensorType(DataType.INT64, (product(shape) if self.axis is None else shape[self.axis],))
        return count, count, count, COUNT

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        found = np.unique(_keys(inputs[0]), return_index=True, return_inverse=True, return_counts=True, axis=self.axis)
        first, inverse, counts = found[1], found[2].reshape(-1), found[3]
        if not self.sorted:
            order = np.argsort(first)
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            first, inverse, counts = first[order], place[inverse], counts[order]
        size = len(inverse)
        tables = [np.zeros(size, np.int64) for _ in range(2)]
        for table, values in zip(tables, (first, counts), strict=True):
            table[: len(values)] = values
        return tables[0], inverse.astype(np.int64), tables[1], np.array([len(first)], np.int64)


def _keys(x: np.ndarray) -> np.ndarray:
    """Integers in the order of the elements of ``x``: equal for zeros of either sign, and for all NaNs, which are the greatest."""
    if DataType(x.dtype.name).is_float:
        wide = x.astype(np.float64)
        wide = np.where(np.isnan(wide), np.nan, wide + 0.0)
        bits = wide.view(np.int64)
        return np.where(bits < 0, -(bits & np.iinfo(np.int64).max), bits)
    return x
