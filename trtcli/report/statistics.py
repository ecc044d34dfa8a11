"""The numbers of a performance summary, by trtexec's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Of one metric over all queries, in its own unit; infinite when there were none."""

    minimum: float
    maximum: float
    mean: float
    median: float
    percentiles: tuple[tuple[float, float], ...]  # (percentage, value)
    variation: float  # coefficient of variation, per cent

    def line(self, name: str) -> str:
        """``Latency: min = 1 ms, max = 2 ms, ...``"""
        parts = [
            f"min = {number(self.minimum)} ms",
            f"max = {number(self.maximum)} ms",
            f"mean = {number(self.mean)} ms",
            f"median = {number(self.median)} ms",
            *(f"percentile({number(p)}%) = {number(value)} ms" for p, value in self.percentiles),
        ]
        return f"{name}: {', '.join(parts)}"


def summarize(values: Sequence[float], percentages: Sequence[float]) -> Summary:
    """The summary of ``values``."""
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered) if ordered else math.inf
    return Summary(
        minimum=ordered[0] if ordered else math.inf,
        maximum=ordered[-1] if ordered else math.inf,
        mean=mean,
        median=median(ordered),
        percentiles=tuple((p, percentile(ordered, p)) for p in percentages),
        variation=_variation(ordered, mean),
    )


def median(ordered: Sequence[float]) -> float:
    """The middle of sorted values, or the mean of the two middles."""
    if not ordered:
        return math.inf
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def percentile(ordered: Sequence[float], percentage: float) -> float:
    """The value at index ``max(n - 1 - floor((1 - percentage/100) n), 0)`` of sorted values, without interpolation.

    The index is computed in 32-bit floats, because trtexec does: of 100 values, the 99th percentile is the largest.
    """
    if not ordered:
        return math.inf
    one, hundred = np.float32(1), np.float32(100)
    left_out = int((one - np.float32(percentage) / hundred) * np.float32(len(ordered)))
    return ordered[max(len(ordered) - 1 - left_out, 0)]


def _variation(values: Sequence[float], mean: float) -> float:
    """Population standard deviation over the mean, per cent; 0 for equal values and for a zero mean."""
    if not values or mean == 0 or values[0] == values[-1]:
        return 0.0
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)) / mean * 100


def number(value: float) -> str:
    """Six significant digits, as C++ streams print them."""
    return f"{value:g}"
