"""The first convolution of a network on Hopper, an image of up to four channels (``stem_sm90.cu``, ``stem_rows_sm90.cu``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Convolution
from tactics.cuda.conv.common import Window, reads_planes, window_of
from tactics.cuda.gemm.common import (
    C_TYPES,
    STORED_TYPES,
    Epilogue,
    ceil_div,
    defines,
    epilogue_of,
    fixed,
    pdl,
    refuse_epilogue,
    refuse_types,
    round_up,
)
from tactics.cuda.simple import out_pitch
from tactics.cuda.sm90.tile_sm90 import SHARED, SHARED_RESERVED, SHARED_SM, permute_rows, refused
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Plan,
    Refusal,
    Scalar,
    Tactic,
    TensorMap,
    Workload,
    config,
    every_tensor,
    workload_bytes,
)  # fmt: skip

CHANNELS = 4  # of a pixel in shared memory
TILE_W = 16  # output columns of a tile
ROWS_REGISTERS = 64  # that a thread of stem_rows_sm90.cu wants beside its sums


@dataclass(frozen=True)
class Rows:
    """How ``stem_rows_sm90.cu`` reads an image's rows; the properties are the constants of the same names there."""

    channels: int
    taps: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    planes: bool

    @property
    def together(self) -> int:
        """Values of a pixel that lie together."""
        return 1 if self.planes else self.channels

    @property
    def lead(self) -> int:
        """Values before a window in its row."""
        return -self.pad[1] * self.together % 8 % 2

    @property
    def row_k(self) -> int:
        """Values of K that a row of the image holds."""
        return round_up(self.lead + self.taps[1] * self.together, 8)

    @property
    def halves(self) -> int:
        """Eights of K, an even number."""
        return round_up(self.taps[0] * (self.channels if self.planes else 1) * (self.row_k // 8), 2)

    @property
    def width(self) -> int:
        """Values of a row that a tile needs."""
        shift = -self.pad[1] * self.together % 8
        return round_up(shift - self.lead + (TILE_W - 1) * self.stride[1] * self.together + self.row_k, 8)

    def height(self, warpgroups: int) -> int:
        """Rows of the image, or of a plane, that a tile needs."""
        return (4 * warpgroups - 1) * self.stride[0] + self.taps[0]

    def shared_bytes(self, bn: int, warpgroups: int, patches: int, direct: int) -> int:
        """Dynamic shared memory: the patches, the weights, the way out, the barriers."""
        patch = round_up(self.width * 2 * self.height(warpgroups) * (self.channels if self.planes else 1), 128)
        return patches * patch + self.halves * bn * 16 + (0 if direct else warpgroups * 4 * 16 * 32 * 4) + (patches + 1) * 8

    def pack(self, weights: np.ndarray, bn: int, direct: int) -> np.ndarray:
        """[O, C, R, S] as [tile of bn outputs][halves][bn / 8][8 outputs][8 values of K], zeros where there is nothing."""
        outputs, channels, r, s = weights.shape
        tiles = ceil_div(outputs, bn)
        rows = weights.reshape(outputs, channels * r, s) if self.planes else weights.transpose(0, 2, 3, 1).reshape(outputs, r, s * channels)
        full = np.zeros((tiles * bn, rows.shape[1], self.row_k), weights.dtype)
        full[:outputs, :, self.lead : self.lead + rows.shape[2]] = rows
        k = np.zeros((tiles * bn, self.halves * 8), weights.dtype)
        k[:, : full[0].size] = full.reshape(tiles * bn, -1)
        if direct:
            k = permute_rows(k)
        return np.ascontiguousarray(k.reshape(tiles, bn // 8, 8, self.halves, 8).transpose(0, 3, 1, 2, 4))


def rows_of(workload: Workload) -> Rows | Refusal:
    """The geometry for a workload whose image TMA can read row by row, or why it cannot."""
    window = window_of(workload, planes=True)
    if isinstance(window, Refusal):
        return window
    planes = reads_planes(workload)
    rows = Rows(window.in_channels, (window.taps[1], window.taps[2]), (window.stride[1], window.stride[2]), (window.pad[1], window.pad[2]), planes)
    if fixed(workload, 0, -1 if planes else -2) * rows.together * 2 % 16:
        return Refusal("rows of the image are no multiple of 16 bytes")
    if rows.stride[1] * rows.together % 2:
        return Refusal("neighbouring windows begin an odd number of values apart")
    if rows.width > 256 or rows.height(2) > 256:
        return Refusal("a patch of more than 256 values or rows")
    return rows


class Sm90Stem(Tactic):
    """Tiles of output pixels whose patch of the image lies in shared memory; the weights stay there from tile to tile. The image may be
    channels-last or channel planes."""

    id = "cuda.conv.sm90_stem"
    device = "cuda"
    ops = (Convolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if refusal := refuse_types(workload, 2, (DataType.HALF, DataType.BF16)) or refused(device, workload.inputs[0].dtype, True):
            return refusal
        if not workload.is_constant(1):
            return Refusal("the weights are not constant; they are repacked at build")
        window = window_of(workload, planes=True)
        if isinstance(window, Refusal):
            return window
        if window.in_channels > CHANNELS or (fixed(workload, 0, 1 if reads_planes(workload) else -1) == 1 and window.in_channels != 1):
            return Refusal(f"{window.in_channels} input channels; this kernel takes up to {CHANNELS}, which do not vary")
        if window.groups != 1 or window.input[0] != 1 or window.taps[0] != 1:
            return Refusal("groups or three spatial dimensions; this kernel takes plain two-dimensional windows")
        if window.dilation != (1, 1, 1):
            return Refusal(f"dilation {window.dilation[1:]}; this kernel takes none")
        if not 0 < window.pixels < 2**31:
            return Refusal(f"{window.pixels} output pixels; this kernel takes 1 to 2^31")
        if not list(self.configs(workload, device)):
            return Refusal(f"a window of {window.taps[1:]} with stride {window.stride[1:]}: its patch and weights exceed shared memory")
        return refuse_epilogue(workload)

    def pitched(self, workload: Workload) -> Collection[int]:
        return [number for number in every_tensor(workload) if number > 1]

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        window = _window(workload)
        widths = [size for size in (16, 32, 64, 96, 128) if size < 2 * window.out_channels or size == 16]
        bn = min(widths, key=lambda size: (round_up(window.out_channels, size), -size))
        found = []
        rows = rows_of(workload)
        direct = int(window.out_channels % 32 == 0 and bn % 32 == 0)
        for warpgroups, blocks, patches in ((1, 6, 3), (1, 5, 3), (1, 4, 3), (2, 3, 3), (2, 2, 3), (1, 2, 3), (1, 1, 3)):
            if isinstance(rows, Refusal) or blocks * warpgroups * (bn // 2 + ROWS_REGISTERS) * 128 > 65536:
                continue
            if blocks * (rows.shared_bytes(bn, warpgroups, patches, direct) + SHARED_RESERVED) <= SHARED_SM:
                found.append(config(bn=bn, warpgroups=warpgroups, blocks=blocks, patches=patches, direct=direct))
        for warpgroups, blocks in ((1, 4), (2, 2), (1, 5), (1, 1), (2, 1), (1, 3), (1, 2)):
            choice = config(bn=bn, warpgroups=warpgroups, blocks=blocks, patches=0, direct=0)
            shared = shared_bytes(window, choice)
            # A thread holds its sums, eight steps of X and the next tile's pixels; fewer registers would serialise wgmma.
            if blocks * warpgroups * (bn // 2 + 88) * 128 > 65536 or shared > SHARED or blocks * (shared + SHARED_RESERVED) > SHARED_SM:
                continue
            found.append(choice)
        return sorted(found, key=lambda choice: self.estimate(workload, choice, device))

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        choice, window = dict(config), _window(workload)
        tiles = _tiles(window, choice) * ceil_div(window.out_channels, choice["bn"])
        together = choice["blocks"] * choice["warpgroups"]  # warpgroups that share a multiprocessor
        waves = max(1.0, tiles / (device.multiprocessors * choice["blocks"]))
        turn = 0.5e-6 + (0.35e-6 if choice["patches"] else 0.7e-6) * together
        return 2.5e-6 + max(waves * turn, workload_bytes(workload) / device.bandwidth)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        choice, rows = dict(config), rows_of(workload)
        if choice["patches"]:
            assert isinstance(rows, Rows)
            return (rows.pack(constants[1], choice["bn"], choice["direct"]),)
        return (pack_stem(constants[1], choice["bn"]),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        choice, window, epilogue = dict(config), _window(workload), epilogue_of(workload)
        assert isinstance(epilogue, Epilogue)
        if choice["patches"]:
            return Plan((_rows_launch(workload, device, window, choice, epilogue),))
        dtype = C_TYPES[workload.inputs[0].dtype]
        values = defines(
            IN_T=dtype, IMAGE_T=dtype, OUT_T=STORED_TYPES[workload.outputs[0].dtype], NCHW=reads_planes(workload), CHANNELS=window.in_channels, FILTER_H=window.taps[1],
            FILTER_W=window.taps[2], STRIDE_H=window.stride[1], STRIDE_W=window.stride[2], PAD_H=window.pad[1], PAD_W=window.pad[2],
            BN=choice["bn"], WARPGROUPS=choice["warpgroups"], MIN_BLOCKS=choice["blocks"],
            VEC=gcd(8, window.out_channels), PDL=1 if pdl(device) else None, **out_pitch(workload),
        )  # fmt: skip
        kernel = Kernel("sm90/stem_sm90.cu", "convolution_stem", (*values, *epilogue.defines), epilogue.prelude)
        grid = (min(_tiles(window, choice), device.multiprocessors * choice["blocks"]), ceil_div(window.out_channels, choice["bn"]), 1)
        numbers = (window.batch, *window.input[1:], *window.output[1:], window.out_channels)
        return Plan((Launch(
            kernel, grid, (128 * choice["warpgroups"], 1, 1),
            (Buffer("input", 0), Buffer("packed", 0), Buffer("output"), *map(Scalar, numbers), epilogue.argument),
            shared_memory=shared_bytes(window, config), dependent=pdl(device),
        ),))  # fmt: skip


def _rows_launch(workload: Workload, device: DeviceSpec, window: Window, choice: Mapping[str, int], epilogue: Epilogue) -> Launch:
    """The launch of ``stem_rows_sm90.cu``."""
    rows = rows_of(workload)
    assert isinstance(rows, Rows)
    dtype, bn, warpgroups, patches, direct = workload.inputs[0].dtype, *(choice[key] for key in ("bn", "warpgroups", "patches", "direct"))
    values = defines(
        IN_T=C_TYPES[dtype], OUT_T=STORED_TYPES[workload.outputs[0].dtype], NCHW=rows.planes, CHANNELS=rows.channels, FILTER_H=rows.taps[0],
        FILTER_W=rows.taps[1], STRIDE_H=rows.stride[0], STRIDE_W=rows.stride[1], PAD_H=rows.pad[0], PAD_W=rows.pad[1], BN=bn,
        WARPGROUPS=warpgroups, PATCHES=patches, DIRECT=direct, MIN_BLOCKS=choice["blocks"], VEC=gcd(8, window.out_channels),
        PDL=1 if pdl(device) else None, **out_pitch(workload),
    )  # fmt: skip
    _, height, width = window.input
    row, high = width * rows.together * 2, rows.height(warpgroups)
    planes = (rows.channels,) if rows.planes else ()
    dims, strides = (width * rows.together, height, *planes, window.batch), (row, *(row * height * many for many in (1, *planes)))
    image = TensorMap(Buffer("input", 0), dtype, dims, strides, (rows.width, high, *planes, 1), swizzle=0)
    grid = (min(_tiles(window, choice), device.multiprocessors * choice["blocks"]), ceil_div(window.out_channels, bn), 1)
    return Launch(
        Kernel("sm90/stem_rows_sm90.cu", "convolution_stem_rows", (*values, *epilogue.defines), epilogue.prelude), grid, (128 * warpgroups, 1, 1),
        (image, Buffer("packed", 0), Buffer("output"), *map(Scalar, (window.batch, *window.output[1:], window.out_channels)), epilogue.argument),
        shared_memory=rows.shared_bytes(bn, warpgroups, patches, direct), dependent=pdl(device),
    )  # fmt: skip


def _window(workload: Workload) -> Window:
    window = window_of(workload, planes=True)
    assert isinstance(window, Window)
    return window


def shared_bytes(window: Window, config: Config) -> int:
    """Dynamic shared memory: the weights, the patch, the way out, a barrier."""
    choice = dict(config)
    bn, warpgroups = choice["bn"], choice["warpgroups"]
    groups = ceil_div(window.taps[2], 4)
    rows, columns = (4 * warpgroups - 1) * window.stride[1] + window.taps[1], (TILE_W - 1) * window.stride[2] + groups * 4
    return window.taps[1] * groups * bn * 32 + round_up(rows * columns * 8, 16) + warpgroups * 4 * 16 * 32 * 4 + 16


def _tiles(window: Window, choice: Mapping[str, int]) -> int:
    return ceil_div(window.output[1], 4 * choice["warpgroups"]) * ceil_div(window.output[2], TILE_W) * window.batch


def pack_stem(weights: np.ndarray, bn: int) -> np.ndarray:
    """[O, C, R, S] as [tile of bn outputs][R][S / 4][C / 2][bn / 8][8 outputs][4 taps][C % 2], zeros where there is nothing."""
    outputs, channels, r, s = weights.shape
    tiles, groups = ceil_div(outputs, bn), ceil_div(s, 4)
    full = np.zeros((tiles * bn, r, groups * 4, CHANNELS), weights.dtype)
    full[:outputs, :, :s, :channels] = weights.transpose(0, 2, 3, 1)
    parts = full.reshape(tiles, bn // 8, 8, r, groups, 4, CHANNELS // 2, 2)
    return np.ascontiguousarray(parts.transpose(0, 3, 4, 6, 1, 2, 5, 7))


TACTICS = (Sm90Stem(),)
