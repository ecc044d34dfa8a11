"""A convolution or deconvolution in the kernels' terms: three spatial dimensions, channels last."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from fusion.ops import Convolution, Deconvolution
from tactics.cuda.gemm.common import fixed, round_up, sizes
from tactics.tactic import Refusal, Workload

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """Sizes of a (de)convolution; missing spatial dimensions are 1. Triples are (z, y, x).

    ``channels_fixed``: the input and output channel counts never vary (else alignment is 1 element).
    """

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    input: Triple
    output: Triple
    taps: Triple
    stride: Triple
    pad: Triple
    dilation: Triple
    transposed: bool = False

    @property
    def group_in(self) -> int:
        """Input channels of a group."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of a group."""
        return self.out_channels // self.groups

    @property
    def pixels(self) -> int:
        """Output pixels of the whole batch."""
        return self.batch * prod(self.output)

    @property
    def depth(self) -> int:
        """Products summed for one output."""
        return prod(self.taps) * self.group_in

    @property
    def pointwise(self) -> bool:
        """Whether it is a plain matrix product of the input as it lies in memory."""
        return self.taps == self.stride == (1, 1, 1) and self.pad == (0, 0, 0) and self.groups == 1 and self.input == self.output


def _triple(values: tuple, missing: int) -> Triple:
    padded = (missing,) * (3 - len(values)) + tuple(int(value) for value in values)
    return padded[0], padded[1], padded[2]


def window_of(workload: Workload) -> Window | Refusal:
    """The workload's sizes, or why these kernels cannot take it."""
    op = workload.op
    assert isinstance(op, Convolution | Deconvolution)
    if not op.channels_last:
        return Refusal("activations are channels-first; this kernel wants them channels-last")
    if len(op.stride) > 3:
        return Refusal(f"{len(op.stride)} spatial dimensions; this kernel takes up to 3")
    x, weights, out = sizes(workload, 0), sizes(workload, 1), sizes(workload, len(workload.inputs))
    if any(workload.axis_varies(1, axis) for axis in range(len(weights))):
        return Refusal("the weights' shape may vary")
    return Window(
        x[0], x[-1], out[-1], op.groups, _triple(x[1:-1], 1), _triple(out[1:-1], 1), _triple(weights[2:], 1), _triple(op.stride, 1),
        _triple(op.pre_padding, 0), _triple(op.dilation, 1), isinstance(op, Deconvolution),
    )  # fmt: skip


def merge_columns(window: Window, workload: Workload) -> Window:
    """When windows do not overlap along x (stride = taps, no padding), a row of taps is contiguous: taps_x * channels channels
    of one coarser pixel. Patch embeddings and other stems become aligned this way; the packed weights stay the same."""
    taps_x = window.taps[2]
    if taps_x == 1 or window.stride[2] != taps_x or window.pad[2] or window.dilation[2] != 1 or window.groups != 1:
        return window
    if window.input[2] % taps_x or window.transposed or workload.axis_varies(0, len(workload.inputs[0].shape) - 2):
        return window
    return Window(
        window.batch, window.in_channels * taps_x, window.out_channels, 1, (*window.input[:2], window.input[2] // taps_x), window.output,
        (*window.taps[:2], 1), (*window.stride[:2], 1), window.pad, window.dilation,
    )  # fmt: skip


def pack_weights(weights: np.ndarray, groups: int, transposed: bool) -> np.ndarray:
    """[O][taps..., C / groups] as rows padded with zeros to 16 bytes; from [O, C / groups, *taps] or, transposed, [C, O / groups, *taps]."""
    if transposed:
        c, group_out, *taps = weights.shape
        weights = weights.reshape(groups, c // groups, group_out, *taps).swapaxes(1, 2).reshape(groups * group_out, c // groups, *taps)
    rows = np.moveaxis(weights, 1, -1).reshape(weights.shape[0], -1)
    pad = round_up(rows.shape[1], 16 // weights.dtype.itemsize) - rows.shape[1]
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, pad))))


def channel_alignment(workload: Workload, window: Window) -> tuple[int, int]:
    """Input and output channels of a group that alignment may rely on (1 where the count varies)."""
    x_fixed = fixed(workload, 0, -1) != 1 or window.in_channels == 1
    return (window.group_in if x_fixed else 1), window.group_out
