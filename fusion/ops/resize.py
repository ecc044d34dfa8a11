"""Interpolation to another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion.dims import Shape
from fusion.network import Op, TensorType


@dataclass(frozen=True)
class Resize(Op):
    """Input: x. ``shape`` is the output's; ``scales[i]`` is the ratio to use for coordinates (None: the ratio of sizes).

    ``mode`` is ``nearest``, ``linear`` or ``cubic``; ``coordinates`` and ``rounding`` are ONNX's
    coordinate_transformation_mode and nearest_mode; ``cubic_a``, ``exclude_outside``, ``antialias``, ``roi`` (starts, then
    ends, per axis) and ``extrapolation`` as in ONNX.
    """

    shape: Shape
    scales: tuple[float | None, ...]
    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    roi: tuple[float, ...] = ()
    extrapolation: float = 0.0

    layer_type: ClassVar[str] = "Resize"
    arity: ClassVar[int] = 1

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(inputs[0].dtype, tuple(self.shape)),)
