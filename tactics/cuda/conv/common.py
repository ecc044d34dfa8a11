"""A convolution or deconvolution in the kernels' terms: three spatial dimensions, channels last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from fusion.ops import Convolution, Deconvolution, PlanarConvolution
from tactics.cuda.gemm.common import fixed, round_up, sizes
from tactics.tactic import Refusal, Workload, every_tensor

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


def reads_planes(workload: Workload) -> bool:
    """Whether x is [N, C, spatial...] while the output is channels-last (a first convolution that reads an image as it is)."""
    op = workload.op
    return isinstance(op, Convolution) and op.channels_last and not op.reads_channels_last


def window_of(workload: Workload, planes: bool = False) -> Window | Refusal:
    """The workload's sizes, or why these kernels cannot take it. ``planes``: the kernel can read x as channel planes."""
    op = workload.op
    assert isinstance(op, Convolution | Deconvolution)
    if not op.channels_last:
        return Refusal("activations are channels-first; this kernel wants them channels-last")
    planar = reads_planes(workload)
    if planar and not planes:
        return Refusal("the input is channels-first and the output channels-last; this kernel wants both channels-last")
    if len(op.stride) > 3:
        return Refusal(f"{len(op.stride)} spatial dimensions; this kernel takes up to 3")
    x, weights, out = sizes(workload, 0), sizes(workload, 1), sizes(workload, len(workload.inputs))
    if planar:
        x = (x[0], *x[2:], x[1])
    if any(workload.axis_varies(1, axis) for axis in range(len(weights))):
        return Refusal("the weights' shape may vary")
    return Window(
        x[0], x[-1], out[-1], op.groups, _triple(x[1:-1], 1), _triple(out[1:-1], 1), _triple(weights[2:], 1), _triple(op.stride, 1),
        _triple(op.pre_padding, 0), _triple(op.dilation, 1), isinstance(op, Deconvolution),
    )  # fmt: skip


def channels_last(workload: Workload) -> Workload:
    """The convolution of a :class:`PlanarConvolution` by itself."""
    op, varies = workload.op, workload.varies
    assert isinstance(op, PlanarConvolution)
    if varies and varies[-1]:
        batch, channels, *spatial = varies[-1]
        varies = (*varies[:-1], (batch, *spatial, channels))
    return replace(workload, op=op.convolution, outputs=op.convolution.infer(workload.inputs), varies=varies)


def planes_as_depth(window: Window) -> Window | Refusal:
    """A convolution over channel planes seen as one over a volume: the channels become the z axis of a one-channel input, which the
    window spans whole. The rows of ``pack_weights`` are then the model's own weights, [O][C, taps...]."""
    if window.groups != 1 or window.input[0] != 1 or window.taps[0] != 1:
        return Refusal(f"channel planes of {window.groups} groups or three spatial dimensions; this kernel takes one group of two")
    channels = window.in_channels
    return Window(
        window.batch, 1, window.out_channels, 1, (channels, *window.input[1:]), (1, *window.output[1:]), (channels, *window.taps[1:]),
        (1, *window.stride[1:]), (0, *window.pad[1:]), (1, *window.dilation[1:]),
    )  # fmt: skip


def merge_groups(window: Window, itemsize: int) -> int:
    """How many groups to multiply as one, their weights block-diagonal: tiles are 16 columns wide and rows 16 bytes at least, so
    groups of fewer channels cost no more together than alone, and their loads become vectors."""
    wanted = 1
    if window.groups == 1 or window.transposed:
        return wanted
    while (window.group_out * wanted < 32 and window.group_in * wanted < 64) or window.group_in * wanted * itemsize < 16:
        larger = next((count for count in range(wanted + 1, window.groups + 1) if window.groups % count == 0), wanted)
        if larger == wanted or window.group_in * larger > 128:
            break
        wanted = larger
    return wanted


def with_groups(window: Window, groups: int) -> Window:
    """The same convolution in ``groups`` groups (after ``merge_groups``)."""
    return replace(window, groups=groups)


def merge_columns(window: Window, workload: Workload) -> Window:
    """When windows do not overlap along x (stride = taps, no padding), a row of taps is contiguous: taps_x * channels channels
    of one coarser pixel. Patch embeddings and other stems become aligned this way; the packed weights stay the same."""
    taps_x = window.taps[2]
    if workload.inputs[0].pitch:
        return window  # pixels are apart
    if taps_x == 1 or window.stride[2] != taps_x or window.pad[2] or window.dilation[2] != 1 or window.groups != 1:
        return window
    if window.input[2] % taps_x or window.transposed or workload.axis_varies(0, -1 if reads_planes(workload) else -2):
        return window
    return Window(
        window.batch, window.in_channels * taps_x, window.out_channels, 1, (*window.input[:2], window.input[2] // taps_x), window.output,
        (*window.taps[:2], 1), (*window.stride[:2], 1), window.pad, window.dilation,
    )  # fmt: skip


def pack_weights(weights: np.ndarray, groups: int, transposed: bool = False, merge: int = 1) -> np.ndarray:
    """[O][taps..., C / groups] as rows padded with zeros to 16 bytes; from [O, C / groups, *taps] or, transposed, [C, O / groups, *taps].

    With ``merge`` > 1, so many groups become one with block-diagonal weights: [O][taps..., merge * C / groups].
    """
    if transposed:
        c, group_out, *taps = weights.shape
        weights = weights.reshape(groups, c // groups, group_out, *taps).swapaxes(1, 2).reshape(groups * group_out, c // groups, *taps)
    rows = np.moveaxis(weights, 1, -1)
    if merge > 1:
        out, group_in = len(rows) // groups, rows.shape[-1]
        whole = np.zeros((*rows.shape[:-1], merge * group_in), rows.dtype)
        for group in range(groups):
            at = group % merge * group_in
            whole[group * out : (group + 1) * out, ..., at : at + group_in] = rows[group * out : (group + 1) * out]
        rows = whole
    return _padded(rows.reshape(len(rows), -1), 0)


def phase_taps(window: Window) -> list[list[list[int]]]:
    """Of a transposed convolution, per dimension (z, y, x) and output phase (coordinate modulo stride): the taps that reach it."""
    return [
        [[tap for tap in range(taps) if (phase + pad - tap * dilation) % stride == 0] for phase in range(stride)]
        for taps, stride, pad, dilation in zip(window.taps, window.stride, window.pad, window.dilation, strict=True)
    ]


def phase_depth(window: Window) -> int:
    """The most products summed for one output of a transposed convolution."""
    return prod(max(map(len, phases)) for phases in phase_taps(window)) * window.group_in


def pack_phases(weights: np.ndarray, window: Window) -> np.ndarray:
    """[phase z, y, x][O][taps of the phase, C / groups] of transposed weights [C, O / groups, *taps]; all rows equally long."""
    c, group_out = weights.shape[:2]
    full = weights.reshape(window.groups, window.group_in, group_out, *window.taps).swapaxes(1, 2).reshape(-1, window.group_in, *window.taps)
    rows = np.moveaxis(full, 1, -1)
    of_z, of_y, of_x = phase_taps(window)
    depth = phase_depth(window)
    packed = [_padded(rows[:, z][:, :, y][:, :, :, x].reshape(len(rows), -1), depth) for z in of_z for y in of_y for x in of_x]
    return np.ascontiguousarray(np.stack(packed))


def _padded(rows: np.ndarray, least: int) -> np.ndarray:
    length = round_up(max(rows.shape[1], least), 16 // rows.dtype.itemsize)
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, length - rows.shape[1]))))


def pixel_step(workload: Workload, window: Window) -> int:
    """Elements between neighbouring pixels of a channels-last input."""
    return workload.inputs[0].pitch or window.in_channels


def activations(workload: Workload) -> list[int]:
    """The tensors of a (de)convolution that these kernels take as columns of wider ones: x unless it is planes, operands, the output."""
    return [number for number in every_tensor(workload) if number > 1 or (number == 0 and not reads_planes(workload))]


def channel_alignment(workload: Workload, window: Window) -> tuple[int, int]:
    """Input and output channels of a group that alignment may rely on (1 where the count varies)."""
    x_fixed = fixed(workload, 0, -1) != 1 or window.in_channels == 1
    return (window.group_in if x_fixed else 1), window.group_out
