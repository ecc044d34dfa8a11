"""The sm_90a tactics without a GPU: what they refuse, that every configuration is legal, that launches describe the right product
(the tensor maps are read as TMA would), and that a representative set compiles without spills."""

from __future__ import annotations

from dataclasses import replace
from itertools import product as every

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import TensorType
from fusion.ops import Attention, Convolution, Deconvolution, MatrixMultiply
from tactics.compiler import compile_cubin
from tactics.cuda.sm90.attention_sm90 import Sm90Attention, Sm90ShortAttention
from tactics.cuda.sm90.conv_sm90 import Sm90Convolution
from tactics.cuda.sm90.conv_window_sm90 import POSITIONS, ROW, Sm90WindowConvolution, patch_of
from tactics.cuda.sm90.deconv_sm90 import Sm90Deconvolution
from tactics.cuda.sm90.gemm_sm90 import Sm90Gemm
from tactics.cuda.sm90.patches_sm90 import Sm90Patches
from tactics.cuda.sm90.stem_sm90 import Rows, Sm90Stem, pack_stem, rows_of
from tactics.cuda.sm90.tile_sm90 import (
    GROUP,
    Problem,
    Tile,
    candidates,
    illegal,
    tile_of,
    tile_order,
    tiles_along,
    with_stages,
)
from tactics.tactic import DeviceSpec, Launch, Refusal, Scalar, Struct, Tactic, TensorMap, Workload

H200 = DeviceSpec("cuda", "H200", "sm_90a", 90, 132, 227 * 1024, 50 << 20, 140 << 30, 4.3e12,
                  {"float16": 8e14, "bfloat16": 8e14, "tf32": 4e14, "float32": 6e13})  # fmt: skip
A100 = DeviceSpec("cuda", "A100", "sm_80", 80, 108, 163 * 1024, 40 << 20, 40 << 30, 1.5e12, {"float16": 3e14})
HALF = DataType.HALF
RELU_BIAS = apply("relu", apply("add", Operand(0), Operand(1)))


def gemm(a, b, transpose_a=False, transpose_b=False, constant=False, dtype=HALF, varies=(), bias=False) -> Workload:
    op = MatrixMultiply(transpose_a, transpose_b, RELU_BIAS if bias else Operand(0))
    inputs = [TensorType(dtype, tuple(a)), TensorType(dtype, tuple(b))]
    if bias:
        inputs.append(TensorType(dtype, (b[-2] if transpose_b else b[-1],)))
    return Workload(op, tuple(inputs), op.infer(inputs), (False, constant, True)[: len(inputs)], varies)


def conv(x, weights, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1, last=True, dtype=HALF, varies=(), planes=False) -> Workload:
    half = len(stride)
    op = Convolution(tuple(stride), tuple(pads[:half]), tuple(pads[half:]), tuple(dilation), groups, last, RELU_BIAS, False if planes else None)
    inputs = [TensorType(dtype, tuple(x)), TensorType(dtype, tuple(weights)), TensorType(dtype, (weights[0],))]
    return Workload(op, tuple(inputs), op.infer(inputs), (False, True, True), varies)


def deconv(x, weights, stride, dtype=HALF, pads=(0, 0), cut=(0, 0), end=None, dilation=(1, 1)) -> Workload:
    op = Deconvolution(tuple(stride), tuple(pads), tuple(end or pads), tuple(dilation), tuple(cut), 1, True, RELU_BIAS)
    inputs = [TensorType(dtype, tuple(x)), TensorType(dtype, tuple(weights)), TensorType(dtype, (weights[1],))]
    return Workload(op, tuple(inputs), op.infer(inputs), (False, True, True))


GEMMS = {
    "bert": gemm((1, 128, 768), (768, 3072), constant=True, bias=True),
    "vit": gemm((32, 197, 768), (768, 768), constant=True),
    "transposed weight": gemm((200, 768), (1000, 768), transpose_b=True, constant=True),
    "scores": gemm((12, 128, 64), (12, 128, 64), transpose_b=True),
    "context": gemm((2, 12, 128, 128), (2, 12, 128, 64)),
    "shared b": gemm((6, 40, 64), (64, 72)),
    "shared a": gemm((40, 64), (6, 64, 72)),
    "a transposed": gemm((3, 64, 40), (3, 64, 72), transpose_a=True),
    "one row": gemm((1, 2048), (2048, 1000), constant=True, bias=True),
    "odd columns": gemm((33, 64), (64, 67), constant=True),
    "square": gemm((4096, 4096), (4096, 4096), constant=True),
    "tf32": gemm((130, 260), (260, 72), constant=True, dtype=DataType.FLOAT),
    "bf16": gemm((130, 264), (264, 72), constant=True, dtype=DataType.BF16),
}
CONVS = {
    "3x3": conv((2, 14, 14, 64), (72, 64, 3, 3), (1, 1), (1, 1, 1, 1)),
    "1x1": conv((2, 14, 14, 64), (72, 64, 1, 1)),
    "1x1 stride 2": conv((2, 15, 14, 64), (72, 64, 1, 1), (2, 2)),
    "stride and uneven pads": conv((2, 15, 18, 24), (40, 24, 3, 5), (2, 3), (0, 2, 1, 1)),
    "dilation": conv((1, 15, 18, 16), (40, 16, 3, 3), (1, 1), (2, 3, 2, 3), (2, 3)),
    "patches": conv((2, 32, 48, 3), (64, 3, 16, 16), (16, 16)),
    "patches of 4": conv((2, 16, 16, 4), (32, 4, 4, 4), (4, 4)),
    "one dimension": conv((2, 30, 32), (48, 32, 3), (2,), (1, 0), (1,)),
    "depth folded": conv((2, 3, 9, 9, 16), (24, 16, 1, 3, 3), (1, 1, 1), (0, 1, 1, 0, 1, 1), (1, 1, 1)),
    "deep": conv((1, 7, 7, 512), (512, 512, 3, 3), (1, 1), (1, 1, 1, 1)),
    "tf32": conv((1, 9, 9, 12), (20, 12, 3, 3), (1, 1), (1, 1, 1, 1), dtype=DataType.FLOAT),
}
WINDOWS = {
    "resnet": conv((4, 56, 56, 64), (64, 64, 3, 3), (1, 1), (1, 1, 1, 1)),
    "densenet": conv((2, 28, 28, 128), (32, 128, 3, 3), (1, 1), (1, 1, 1, 1)),
    "wide": conv((1, 20, 259, 64), (128, 64, 3, 3)),
    "uneven": conv((2, 13, 37, 64), (96, 64, 3, 5), (1, 1), (0, 1, 2, 3), dtype=DataType.BF16),
}
DECONVS = {
    "u-net": deconv((2, 16, 16, 128), (128, 64, 2, 2), (2, 2)),
    "deep": deconv((1, 9, 7, 1024), (1024, 520, 2, 2), (2, 2)),
    "uneven": deconv((3, 5, 11, 40), (40, 33, 3, 2), (3, 2), DataType.BF16),
    "a line": deconv((2, 1, 301, 72), (72, 24, 1, 4), (1, 4)),
}
PATCHES = {
    "vit": conv((3, 3, 64, 48), (96, 3, 16, 16), (16, 16), planes=True),
    "clip": conv((2, 3, 42, 56), (64, 3, 14, 14), (14, 14), planes=True),
    "convnext": conv((2, 3, 32, 40), (33, 3, 4, 8), (4, 8), planes=True, dtype=DataType.BF16),
}
STEMS = {
    "resnet": conv((1, 224, 224, 3), (64, 3, 7, 7), (2, 2), (3, 3, 3, 3)),
    "mobilenet": conv((32, 224, 224, 3), (32, 3, 3, 3), (2, 2), (1, 1, 1, 1)),
    "one channel": conv((3, 28, 28, 1), (24, 1, 5, 5), (1, 1), (2, 2, 2, 2)),
    "planes": conv((2, 3, 224, 200), (64, 3, 7, 7), (2, 2), (3, 3, 3, 3), planes=True),
}


def one_launch(tactic: Tactic, workload: Workload, config) -> Launch:
    (step,) = tactic.plan(workload, config, H200).steps
    assert isinstance(step, Launch)
    return step


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("tactic", "workload", "device", "text"),
    [
        (Sm90Gemm(), GEMMS["bert"], A100, "sm_90a"),
        (Sm90Gemm(), gemm((8, 20), (20, 8)), H200, "multiple of 8"),
        (Sm90Gemm(), gemm((8, 24), (24, 20)), H200, "rows of b"),
        (Sm90Gemm(), gemm((8, 24), (24, 8), dtype=DataType.FLOAT), H200, "K contiguous"),
        (Sm90Gemm(), gemm((2, 1, 8, 24), (1, 3, 24, 8)), H200, "follows only some axes"),
        (Sm90Gemm(), gemm((0, 24), (24, 8)), H200, "empty"),
        (Sm90Gemm(), gemm((8, 24), (24, 8), varies=((False, True), (False, False), (False, False))), H200, "varies"),
        (Sm90Convolution(), conv((1, 9, 9, 3), (8, 3, 3, 3)), H200, "multiple of 8"),
        (Sm90Convolution(), conv((1, 9, 9, 16), (8, 8, 3, 3), groups=2), H200, "groups"),
        (Sm90Convolution(), conv((1, 8, 10, 10), (8, 8, 3, 3), last=False), H200, "channels-first"),
        (Sm90Convolution(), conv((1, 40, 40, 8), (8, 8, 3, 3), (9, 9)), H200, "steps of up to 8"),
        (Sm90Convolution(), conv((1, 400, 400, 8), (8, 8, 3, 3), dilation=(130, 1)), H200, "8 bits"),
        (Sm90Convolution(), conv((1, 9, 9, 9, 8), (8, 8, 3, 3, 3), (1, 1, 1), (0,) * 6, (1, 1, 1)), H200, "three dimensions"),
        (Sm90Convolution(), conv((1, 8, 9, 9), (8, 8, 3, 3), planes=True), H200, "channels-first"),
        (Sm90WindowConvolution(), CONVS["deep"], H200, "do not fit in shared memory"),
        (Sm90WindowConvolution(), CONVS["1x1"], H200, "several taps"),
        (Sm90WindowConvolution(), conv((1, 9, 9, 64), (64, 64, 3, 3), (2, 2)), H200, "stride and dilation 1"),
        (Sm90WindowConvolution(), conv((1, 9, 9, 72), (64, 72, 3, 3)), H200, "multiples of 64 and 32"),
        (Sm90WindowConvolution(), conv((1, 9, 9, 64), (64, 64, 3, 3), varies=((False, True, True, False), (False,) * 4, (False, True, True, False))), H200, "varies"),
        (Sm90Stem(), CONVS["3x3"], H200, "input channels"),
        (Sm90Stem(), conv((1, 3, 9, 9), (8, 3, 3, 3), planes=True, varies=((False, True, False, False), (False,) * 4, (False,) * 4)), H200, "do not vary"),
        (Sm90Stem(), conv((1, 64, 64, 3), (8, 3, 3, 3), dilation=(2, 2)), H200, "dilation"),
    ],
)
def test_refuses(tactic, workload, device, text):
    refusal = tactic.supports(workload, device)
    assert isinstance(refusal, Refusal)
    assert text in refusal.reason


# ------------------------------------------------------------------------------------------------------- configurations
@pytest.mark.parametrize("name", [*GEMMS, *CONVS])
def test_configurations_are_legal(name):
    tactic, workload = (Sm90Gemm(), GEMMS[name]) if name in GEMMS else (Sm90Convolution(), CONVS[name])
    if name == "tf32":
        workload = GEMMS[name]
        tactic = Sm90Gemm()
    assert tactic.supports(workload, H200) is None
    configs = tactic.configs(workload, H200)
    assert 1 <= len(configs) <= 40 and len(set(configs)) == len(configs)
    for config in configs:
        tile, launch = tile_of(config), one_launch(tactic, workload, config)
        assert tile.config() == config
        assert launch.shared_memory <= 227 * 1024
        assert launch.grid[0] % tile.cluster == 0 and launch.grid[0] >= 1
        assert launch.block[0] == tile.threads <= 1024
    estimates = [tactic.estimate(workload, config, H200) for config in configs]
    assert estimates[0] == min(estimates) > 0


def test_illegal_tiles_say_why():
    problem = Problem(4096, 4096, 1, 1, 4096, HALF, 1e6)
    assert illegal(Tile(128, 128, 2, 4), problem) == ""
    assert "evenly" in illegal(Tile(192, 128, 2, 4), problem)
    assert "8 blocks" in illegal(Tile(128, 128, 2, 2, cluster_x=4, split=4), problem)
    assert "shared memory" in illegal(Tile(128, 256, 2, 5), problem)
    assert "8 rows" in illegal(Tile(128, 128, 2, 4, pingpong=1, split=2), problem)
    assert "take turns" in illegal(Tile(192, 64, 3, 4, pingpong=1), problem)
    assert "registers" in illegal(Tile(256, 128, 2, 2, blocks=2), problem)
    assert "whole chunks" in illegal(Tile(64, 48, 1, 4, swap=1, chunk=32), replace(problem, m=48))


def test_partial_sums_of_a_split_overlay_the_stages():
    small, large = Tile(64, 64, 1, 4, split=4), Tile(128, 192, 2, 5, split=4)
    assert small.shared_bytes == 4 * (small.stage_bytes + 4 * 16 * 72) + 16  # 4 stages, 4 blocks' 16 rows of 64 + 8 floats, a barrier
    assert large.shared_bytes == 5 * large.stage_bytes + 16 and large.partial_bytes > 96 * 1024
    assert replace(large, stages=2).shared_bytes == large.partial_bytes + 3 * 16  # few stages: the partial sums need more


def test_configurations_fill_one_wave():
    """1024 x 2304 x 768 on 132 multiprocessors: 128 x 128 tiles take two waves, 128 x 144 ones take one."""
    best = tile_of(Sm90Gemm().configs(gemm((1024, 768), (768, 2304), constant=True), H200)[0])
    along_x, along_y = tiles_along(best, Problem(1024, 2304, 1, 1, 768, HALF, 0))
    assert 108 <= along_x * along_y * best.cluster <= 132


def test_stages_follow_what_a_block_waits_for():
    """One tile a block: seven stages, all blocks wait for memory at once. Several: the next tile's stages are loaded ahead, beyond K."""
    one, several = Problem(6272, 256, 1, 1, 1024, HALF, 0, permutable=True), Problem(6272, 1024, 1, 1, 256, HALF, 0, permutable=True)
    assert with_stages(Tile(128, 128, 2, cluster_y=2, direct=1), one).stages == 7
    assert with_stages(Tile(128, 128, 2, pingpong=1, direct=1), one).stages == 5
    assert with_stages(Tile(128, 128, 2, pingpong=1, direct=1), several).stages == 6 > several.iterations(Tile(128, 128, 2))


def test_whole_rows_are_offered_where_only_memory_counts():
    whole = Tile(128, 256, 2)
    places = {}
    for name, problem in {"few channels": Problem(100352, 256, 1, 1, 64, HALF, 64e6), "deep": Problem(100352, 256, 1, 1, 512, HALF, 154e6)}.items():
        places[name] = [replace(tile, stages=0, direct=0) for tile in candidates(problem, H200)].index(whole)
    assert places["few channels"] == 2 < places["deep"]


@given(st.integers(1, 70_000), st.integers(1, 5_000), st.integers(1, 3), st.sampled_from([(64, 64), (128, 96), (192, 128)]), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_order_of_tiles_walks_every_tile_once(m, n, batch, size, seed):
    """tile_at of sm90_pipeline.cuh, with multiplications and shifts for its divisions: groups of GROUP along X, each from Y = 0 on."""
    tile, problem = Tile(*size, size[0] // 64, 4), Problem(m, n, batch, 1, 64, HALF, 0)
    along_x, *fields = (int(field.value) for field in tile_order(tile, problem))
    per_batch, per_group, last = (fields[i : i + 3] for i in (0, 3, 6))

    def split(value: int, divider: list[int]) -> tuple[int, int]:
        divisor, multiplier, shift = divider
        whole = ((value * multiplier >> 32) + value) >> shift
        assert whole == value // divisor
        return whole, value - whole * divisor

    def place(index: int) -> tuple[int, int, int]:
        at, rest = split(index, per_batch)
        group, rest = split(rest, per_group)
        if (group + 1) * GROUP <= along_x:
            return group * GROUP + rest % GROUP, rest // GROUP, at
        y, x = split(rest, last)
        return group * GROUP + x, y, at

    along_y = per_batch[0] // along_x
    assert (along_x, along_y) == tiles_along(tile, problem)
    expected = [(x, y, at) for at in range(batch) for first in range(0, along_x, GROUP) for y in range(along_y) for x in range(first, min(first + GROUP, along_x))]
    begin = seed % len(expected)
    assert [place(index) for index in range(begin, min(begin + 500, len(expected)))] == expected[begin : begin + 500]


# ------------------------------------------------------------------------------------------- launches, read as TMA would
def view(tensor_map: TensorMap, array: np.ndarray) -> np.ndarray:
    """The tensor that a tiled map describes, outermost dimension first."""
    strides = (*reversed(tensor_map.strides), array.itemsize)
    return np.lib.stride_tricks.as_strided(array, tuple(reversed(tensor_map.dims)), strides)


def im2col(tensor_map: TensorMap, array: np.ndarray, pixels: int, taps) -> np.ndarray:
    """[pixels, taps, channels]: the image's values as im2col walks them, zero outside."""
    image, column = view(tensor_map, array), tensor_map.im2col
    assert column is not None
    n, h, w, _ = image.shape
    _, step_w, step_h, _ = tensor_map.element_strides
    across = range(column.lower_corner[0], w - 1 + column.upper_corner[0] + 1, step_w)
    down = range(column.lower_corner[1], h - 1 + column.upper_corner[1] + 1, step_h)
    places = list(every(range(n), down, across))
    assert len(places) == pixels
    result = np.zeros((pixels, len(taps), image.shape[3]), np.float32)
    for i, (b, y, x) in enumerate(places):
        for j, (dy, dx) in enumerate(taps):
            if 0 <= y + dy < h and 0 <= x + dx < w:
                result[i, j] = image[b, y + dy, x + dx]
    return result


def in_order(rows: np.ndarray, axis: int, direct: int) -> np.ndarray:
    """The rows of a packed B as they were before DIRECT's permutation: row 8 j + 2 c + e of 32 came from 8 c + 2 j + e."""
    if not direct:
        return rows
    found = np.empty_like(rows)
    for row in range(rows.shape[axis]):
        j, c, e = row % 32 // 8, row % 8 // 2, row % 2
        at = row // 32 * 32 + 8 * c + 2 * j + e
        found[(slice(None),) * axis + (at,)] = rows[(slice(None),) * axis + (row,)]
    return found


def divisors(argument) -> list[int]:
    """What the ``Divider`` fields of a parameter divide by."""
    assert isinstance(argument, Struct)
    return [field.value for field in argument.fields[::3]]


def close(result: np.ndarray, workload: Workload, inputs: list[np.ndarray]) -> None:
    expected = workload.op.evaluate(inputs)[0].astype(np.float32).ravel()
    if len(inputs) > 2:
        result = np.maximum(result.reshape(-1, len(inputs[2])) + inputs[2].astype(np.float32), 0)
    error = np.linalg.norm(result.ravel() - expected) / np.linalg.norm(expected)
    assert error < 1e-2


def values(workload: Workload) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    found = [generator.standard_normal(tensor.shape) for tensor in workload.inputs]
    return [one > 0 if tensor.dtype is DataType.BOOL else one.astype(tensor.dtype.numpy) for one, tensor in zip(found, workload.inputs, strict=True)]


@pytest.mark.parametrize("name", [name for name in GEMMS if name != "square"])
def test_gemm_launches_describe_the_product(name):
    tactic, workload = Sm90Gemm(), GEMMS[name]
    inputs = values(workload)
    for config in tactic.configs(workload, H200)[:4]:
        packed = tactic.prepare(workload, config, {1: inputs[1]})
        launch, tile = one_launch(tactic, workload, config), tile_of(config)
        a_map, b_map, _, *numbers, _ = launch.arguments
        m, n, k, batches, a_batch, b_batch = (number.value for number in numbers if isinstance(number, Scalar))
        defines = dict(launch.kernel.defines)
        assert isinstance(a_map, TensorMap) and isinstance(b_map, TensorMap)
        a = view(a_map, inputs[0]).astype(np.float32)
        b = view(b_map, packed[0] if b_map.buffer.kind == "packed" else inputs[1]).astype(np.float32)
        b = in_order(b, 1, tile.direct)
        a = a.swapaxes(1, 2) if defines["A_KM"] == "1" else a
        b = b.swapaxes(1, 2) if defines["B_KN"] == "1" else b
        assert a.shape == (batches if a_batch else 1, m, k) and b.shape == (batches if b_batch else 1, n, k)
        assert (int(defines["VEC"]) == 8) == (n % 8 == 0)
        result = np.stack([a[i * a_batch] @ b[i * b_batch].T for i in range(batches)])
        close(result, workload, inputs)
        x_map, y_map = (b_map, a_map) if tile.swap else (a_map, b_map)
        assert x_map.box[1] == tile.bm // tile.cluster_y or x_map.box[0] == 64
        assert y_map.box[1] == tile.bn // tile.cluster_x or y_map.box[0] in (16, 32, 64)


@pytest.mark.parametrize("name", list(DECONVS))
def test_deconvolution_launches_describe_the_product(name):
    tactic, workload = Sm90Deconvolution(), DECONVS[name]
    assert tactic.supports(workload, H200) is None
    inputs = values(workload)
    for config in tactic.configs(workload, H200)[:4]:
        (packed,) = tactic.prepare(workload, config, {1: inputs[1]})
        launch = one_launch(tactic, workload, config)
        assert ("ROWS_APART", "1") in launch.kernel.defines
        a_map, b_map, _, *numbers, _ = launch.arguments
        assert isinstance(a_map, TensorMap) and isinstance(b_map, TensorMap)
        m, n, k, batches, a_batch, b_batch, width, stride_y, stride_x = (number.value for number in numbers if isinstance(number, Scalar))
        assert (a_batch, b_batch) == (0, 1)
        a = view(a_map, inputs[0])[0].astype(np.float32)
        b = in_order(view(b_map, packed).astype(np.float32), 1, tile_of(config).direct)
        assert a.shape == (m, k) and b.shape == (batches, n, k)
        result = np.full((m * batches, n), np.nan, np.float32)
        lines, columns = np.divmod(np.arange(m), width)
        for batch in range(batches):  # as RowMap of gemm_sm90.cu
            rows = (lines * stride_y + batch // stride_x) * (width * stride_x) + columns * stride_x + batch % stride_x
            result[rows] = a @ b[batch].T
        close(result, workload, inputs)


@pytest.mark.parametrize("name", list(PATCHES))
def test_patches_are_copied_as_the_product_reads_them(name):
    tactic, workload = Sm90Patches(), PATCHES[name]
    assert tactic.supports(workload, H200) is None
    inputs = values(workload)
    config = tactic.configs(workload, H200)[0]
    (packed,) = tactic.prepare(workload, config, {1: inputs[1]})
    copy, launch = tactic.plan(workload, config, H200).steps
    assert isinstance(copy, Launch) and isinstance(launch, Launch)
    image, weight, *_ = launch.arguments
    assert isinstance(image, TensorMap) and isinstance(weight, TensorMap)
    (n, c, h, w), (_, _, high, wide) = inputs[0].shape, inputs[1].shape
    patches = np.ascontiguousarray(inputs[0].reshape(n, c, h // high, high, w // wide, wide).transpose(0, 2, 4, 1, 3, 5))
    patches = patches.reshape(n * (h // high) * (w // wide), -1)
    pitch = -(-patches.shape[1] // 8) * 8
    memory = np.full((len(patches), pitch), np.nan, patches.dtype)  # behind a row nothing is written
    memory[:, : patches.shape[1]] = patches
    assert tactic.plan(workload, config, H200).workspace == memory.nbytes and image.buffer.kind == "workspace"
    rows = in_order(view(weight, packed)[0].astype(np.float32), 0, tile_of(config).direct)
    close(view(image, memory)[0].astype(np.float32) @ rows[:, : patches.shape[1]].T, workload, inputs)
    assert not rows[:, patches.shape[1] :].any()


@pytest.mark.parametrize(
    ("workload", "text"),
    [
        (conv((2, 3, 64, 48), (96, 3, 8, 8), (16, 16), planes=True), "side by side"),
        (conv((2, 3, 65, 48), (96, 3, 16, 16), (16, 16), planes=True), "do not fill"),
        (conv((2, 64, 48, 3), (96, 3, 16, 16), (16, 16)), "channels-last"),
        (conv((2, 3, 9, 9), (96, 3, 3, 3), (3, 3), (1, 0, 0, 0), planes=True), "side by side"),
    ],
)
def test_patches_refuse(workload, text):
    refusal = Sm90Patches().supports(workload, H200)
    assert isinstance(refusal, Refusal) and text in refusal.reason


@pytest.mark.parametrize(
    ("workload", "text"),
    [
        (deconv((2, 5, 5, 16), (16, 8, 3, 3), (2, 2)), "overlap"),
        (deconv((2, 5, 5, 16), (16, 8, 2, 2), (2, 2), pads=(1, 0)), "cut off"),
        (deconv((2, 5, 5, 16), (16, 8, 2, 2), (2, 2), cut=(1, 0)), "cut off"),
        (deconv((2, 5, 5, 16), (16, 8, 2, 2), (2, 2), end=(1, 1), dilation=(2, 2)), "dilat"),  # twice the size, too, but taps two pixels apart
        (deconv((2, 5, 5, 12), (12, 8, 2, 2), (2, 2)), "12 input channels"),
    ],
)
def test_deconvolution_refuses(workload, text):
    refusal = Sm90Deconvolution().supports(workload, H200)
    assert isinstance(refusal, Refusal) and text in refusal.reason


@pytest.mark.parametrize("name", list(CONVS))
def test_convolution_launches_describe_the_product(name):
    tactic, workload = Sm90Convolution(), CONVS[name]
    assert tactic.supports(workload, H200) is None
    inputs = values(workload)
    config = tactic.configs(workload, H200)[0]
    (packed,) = tactic.prepare(workload, config, {1: inputs[1]})
    launch = one_launch(tactic, workload, config)
    image, weight, _, *rest, _ = launch.arguments
    assert isinstance(image, TensorMap) and isinstance(weight, TensorMap)
    numbers = [number.value for number in rest if isinstance(number, Scalar)]
    if launch.kernel.entry == "gemm":
        rows = in_order(view(weight, packed)[0].astype(np.float32), 0, tile_of(config).direct)
        result = view(image, inputs[0])[0].astype(np.float32) @ rows.T
    else:
        pixels, outputs, channels, taps_, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, taps_inner = numbers
        height, width, s, inner = divisors(rest[-2])
        r = taps_ // s
        assert inner == (taps_ if taps_inner else -(-channels // image.im2col.channels_per_pixel))
        assert taps_inner == (inputs[0].size >= packed.size)  # the larger operand decides the order of K
        assert image.im2col is not None
        assert image.im2col.lower_corner == (-pad_w, -pad_h) and image.element_strides == (1, stride_w, stride_h, 1)
        assert pixels % (height * width) == 0
        taps = [(i * dilation_h, j * dilation_w) for i in range(r) for j in range(s)]
        columns = im2col(image, inputs[0], pixels, taps)
        rows = in_order(view(weight, packed).astype(np.float32), 0, tile_of(config).direct)
        assert rows.shape == (outputs, r * s, channels)
        result = columns.reshape(pixels, -1) @ rows.reshape(outputs, -1).T
    close(result, workload, inputs)


def test_the_same_kernels_serve_every_batch():
    varies = ((True, False, False), (False, False), (True, False, False))
    small, large = gemm((1, 128, 768), (768, 768), constant=True, varies=varies), gemm((9, 128, 768), (768, 768), constant=True, varies=varies)
    tactic = Sm90Gemm()
    for config in tactic.configs(small, H200):
        first, second = one_launch(tactic, small, config), one_launch(tactic, large, config)
        assert first.kernel == second.kernel and first.shared_memory == second.shared_memory


def test_the_same_kernels_copy_patches_of_every_batch():
    """One image wants a copy of small pieces, many images large ones; a kernel that was compiled for one has to serve the others."""
    varies = ((True, *(False,) * 3), (), (), (True, *(False,) * 3))
    small, large = (conv((batch, 3, 224, 224), (768, 3, 16, 16), (16, 16), planes=True, varies=varies) for batch in (1, 128))
    tactic = Sm90Patches()
    (config, *_) = tactic.configs(small, H200)
    for first, second in zip(tactic.plan(small, config, H200).steps, tactic.plan(large, config, H200).steps, strict=True):
        assert isinstance(first, Launch) and isinstance(second, Launch)
        assert first.kernel == second.kernel and first.shared_memory == second.shared_memory


# --------------------------------------------------------------------------------------------------------------- windows
@pytest.mark.parametrize("height, width, taps", [(56, 56, (3, 3)), (28, 28, (3, 3)), (18, 257, (3, 3)), (12, 38, (3, 5)), (5, 3, (5, 5)), (1, 1, (3, 1)), (7, 300, (1, 7))])
def test_taps_are_shifts_of_a_patch(height, width, taps):
    """A tile's positions are rows of the flattened patch, and tap (r, s) of an output is r * pitch + s rows further on."""
    patch = patch_of(height, width, taps)
    assert patch.height * patch.pitch <= POSITIONS and max(patch.pitch, patch.rows) <= 256
    assert patch.bytes % 1024 == 0
    pixels = np.arange(patch.rows * patch.pitch).reshape(patch.rows, patch.pitch)
    seen = set()
    for position in range(POSITIONS):
        y, x = divmod(position, patch.pitch)
        for r, s in every(range(taps[0]), range(taps[1])):
            row = position + r * patch.pitch + s
            assert (row + 1) * ROW <= patch.bytes  # what no output comes from is read all the same
            if y < patch.height and x < patch.width:
                seen.add((y, x))
                assert pixels.ravel()[row] == pixels[y + r, x + s]
    assert len(seen) == patch.height * patch.width


@pytest.mark.parametrize("name", list(WINDOWS))
def test_window_convolutions_load_what_they_multiply(name):
    tactic, workload = Sm90WindowConvolution(), WINDOWS[name]
    assert tactic.supports(workload, H200) is None
    outputs, channels, r, s = (int(dim) for dim in workload.inputs[1].shape)
    weights = np.arange(outputs * channels * r * s, dtype=np.float64).reshape(outputs, channels, r, s)
    for config in tactic.configs(workload, H200):
        (packed,) = tactic.prepare(workload, config, {1: weights})
        launch = one_launch(tactic, workload, config)
        image, filters = launch.arguments[:2]
        assert isinstance(image, TensorMap) and isinstance(filters, TensorMap)
        assert image.dims == (channels, *reversed(workload.inputs[0].shape[:3])) and image.box[0] == filters.box[0] == 64
        assert filters.dims == (channels, r * s, outputs) and filters.box == (64, 1, dict(config)["bn"])
        # row 8 j + 2 c + e of each 32 is output 8 c + 2 j + e
        rows = packed.reshape(-1, 4, 4, 2, r * s, channels).swapaxes(1, 2).reshape(outputs, r, s, channels)
        np.testing.assert_array_equal(rows, weights.transpose(0, 2, 3, 1))
        assert launch.shared_memory <= 227 * 1024 and launch.grid[0] * launch.grid[1] <= 132
        assert tactic.estimate(workload, config, H200) > 0


# ----------------------------------------------------------------------------------------------------------------- stem
@pytest.mark.parametrize("name", list(STEMS))
def test_stem_weights_are_where_the_kernel_reads_them(name):
    tactic, workload = Sm90Stem(), STEMS[name]
    assert tactic.supports(workload, H200) is None
    outputs, channels, r, s = (int(dim) for dim in workload.inputs[1].shape)
    weights = np.arange(1, outputs * channels * r * s + 1, dtype=np.float64).reshape(outputs, channels, r, s)
    for config in tactic.configs(workload, H200):
        if dict(config)["patches"]:
            continue
        bn = dict(config)["bn"]
        packed = pack_stem(weights, bn).reshape(-1, r, -(-s // 4), 2, bn // 8, 8, 8)
        for o, c, i, j in every((0, outputs - 1), range(channels), range(r), range(s)):
            # k of a step: tap and channel % 2 in the eight values of a row, channel / 2 in the half of the step
            assert packed[o // bn, i, j // 4, c // 2, o % bn // 8, o % 8, 2 * (j % 4) + c % 2] == weights[o, c, i, j]
        assert np.count_nonzero(packed) == weights.size
        launch = one_launch(tactic, workload, config)
        assert launch.shared_memory <= 227 * 1024 and launch.grid[0] >= 1
        assert dict(launch.kernel.defines)["NCHW"] == str(int(name == "planes"))
        batch, h, w, p, q, o = (number.value for number in launch.arguments[3:9] if isinstance(number, Scalar))
        x, y = workload.inputs[0].shape, workload.outputs[0].shape
        assert (batch, h, w) == (x[0], *(x[2:] if name == "planes" else x[1:3])) and (p, q, o) == tuple(y[1:])


@pytest.mark.parametrize(
    ("rows", "outputs", "bn", "direct"),
    [
        (Rows(3, (7, 7), (2, 2), (3, 3), False), 64, 64, 1), (Rows(3, (7, 7), (2, 2), (3, 3), True), 64, 64, 1),
        (Rows(3, (3, 3), (2, 2), (1, 1), False), 40, 32, 0), (Rows(4, (3, 5), (1, 2), (0, 2), False), 32, 32, 1),
        (Rows(1, (5, 5), (2, 2), (2, 2), True), 16, 16, 0), (Rows(2, (3, 4), (1, 1), (1, 1), False), 64, 32, 1),
    ],
)  # fmt: skip
def test_rows_of_the_stem_meet_their_weights(rows, outputs, bn, direct):
    """The kernel's addresses in NumPy: a tile's patch as TMA copies it, the eights of K that each output pixel reads from it."""
    rng = np.random.default_rng(7)
    image = rng.integers(-4, 5, (rows.channels, 37, 48)).astype(np.float64)
    weights = rng.integers(-4, 5, (outputs, rows.channels, *rows.taps)).astype(np.float64)
    packed = rows.pack(weights, bn, direct)
    k = packed.transpose(0, 2, 3, 1, 4).reshape(-1, rows.halves * 8)  # rows as they lie in shared memory
    if direct:  # row 8 j + 2 c + e of each 32 is output 8 c + 2 j + e
        k = k.reshape(-1, 4, 4, 2, k.shape[1]).swapaxes(1, 2).reshape(k.shape)
    assert not k[outputs:].any()
    together, (stride_h, stride_w), (pad_h, pad_w), (r, s) = rows.together, rows.stride, rows.pad, rows.taps
    lines = image if rows.planes else image.transpose(1, 2, 0).reshape(1, 37, -1)  # [plane, row, values]
    per, start = rows.row_k // 8, -((pad_w * together + 7) // 8 * 8)
    shift = -pad_w * together - start
    padded = np.pad(image, ((0, 0), (pad_h, 40), (pad_w, 60)))
    for p0, q0 in ((0, 0), (8, 16)):
        patch = np.zeros((lines.shape[0], rows.height(1), rows.width))  # TMA: zeros outside of the image
        for y, x in every(range(rows.height(1)), range(rows.width)):
            at = p0 * stride_h - pad_h + y, q0 * stride_w * together + start + x
            if 0 <= at[0] < 37 and 0 <= at[1] < lines.shape[2]:
                patch[:, y, x] = lines[:, at[0], at[1]]
        for p, q in ((0, 0), (3, 15), (1, 8)):
            values = np.zeros(rows.halves * 8)
            for half in range(r * per * (rows.channels if rows.planes else 1)):
                row, at = divmod(half, per)
                plane, line = divmod(row, r) if rows.planes else (0, row)
                first = q * stride_w * together + shift - rows.lead + 8 * at
                assert first % 2 == 0  # pairs are whole words
                values[8 * half : 8 * half + 8] = patch[plane, p * stride_h + line, first : first + 8]
            y, x = (p0 + p) * stride_h, (q0 + q) * stride_w
            expected = np.einsum("crs,ocrs->o", padded[:, y : y + r, x : x + s], weights)
            np.testing.assert_array_equal((k @ values)[:outputs], expected)


def test_the_stem_reads_rows_where_tma_can():
    for name in ("resnet", "mobilenet", "planes"):
        rows = rows_of(STEMS[name])
        assert isinstance(rows, Rows) and rows.planes == (name == "planes")
        chosen = [config for config in Sm90Stem().configs(STEMS[name], H200) if dict(config)["patches"]]
        for launch in (one_launch(Sm90Stem(), STEMS[name], config) for config in chosen):
            image = launch.arguments[0]
            assert isinstance(image, TensorMap) and image.swizzle == 0 and all(stride % 16 == 0 for stride in image.strides)
            assert image.box[0] == rows.width and max(image.box) <= 256 and image.box[0] * 2 % 16 == 0
            assert launch.shared_memory <= 227 * 1024
        assert chosen
    assert "16 bytes" in rows_of(STEMS["one channel"]).reason
    odd = conv((1, 32, 32, 3), (32, 3, 3, 3), (1, 1), (1, 1, 1, 1))
    assert "odd number" in rows_of(odd).reason and Sm90Stem().supports(odd, H200) is None


# ------------------------------------------------------------------------------------------------------------ attention
def attention(shapes, layouts=("bhsd",) * 4, dtype=HALF, parts=(), causal=False, scale=0.125, masked=False, mask_type=None, window=0) -> Workload:
    op = Attention(scale, causal, masked, layouts, parts, window=window)
    inputs = tuple(TensorType(mask_type or dtype if number == 3 else dtype, tuple(shape)) for number, shape in enumerate(shapes))
    return Workload(op, inputs, op.infer(inputs))


ATTENTIONS = {
    "plain": attention([(2, 3, 200, 64)] * 3),
    "positions first": attention([(2, 200, 3, 64)] * 3, ("bshd",) * 4),
    "shared heads, long keys": attention([(2, 6, 40, 128), (2, 2, 300, 128), (2, 2, 300, 128)]),
    "packed": attention([(2, 130, 12, 64)], ("bshd",) * 4, parts=((0, 0, 4), (0, 4, 4), (0, 8, 4))),
    "keys and values packed": attention([(2, 40, 4, 64), (2, 130, 4, 64)], ("bshd",) * 4, parts=((0, 0, 4), (1, 0, 2), (1, 2, 2))),
    "causal": attention([(1, 2, 300, 128)] * 3, causal=True, dtype=DataType.BF16),
    "narrow heads": attention([(2, 3, 200, 40)] * 3),
    "wide heads": attention([(1, 2, 300, 256)] * 3),
    "wide heads, causal": attention([(1, 2, 300, 256)] * 3, causal=True),
    "key padding": attention([(2, 3, 40, 64), (2, 3, 300, 64), (2, 3, 300, 64), (2, 1, 1, 300)], masked=True),
    "position bias": attention([(2, 3, 200, 64)] * 3 + [(3, 200, 200)], masked=True),
    "causal key padding": attention([(2, 2, 304, 64)] * 3 + [(2, 1, 1, 304)], masked=True, causal=True),
    "a mask for all heads": attention([(2, 3, 200, 128)] * 3 + [(2, 1, 200, 200)], masked=True),
    "boolean": attention([(2, 3, 208, 64)] * 3 + [(3, 208, 208)], masked=True, mask_type=DataType.BOOL),
    "float mask": attention([(2, 3, 200, 64)] * 3 + [(200, 200)], masked=True, mask_type=DataType.FLOAT),
    "window": attention([(2, 3, 700, 64)] * 3, causal=True, window=150),
    "window behind a past": attention([(1, 2, 200, 96), (1, 2, 700, 96), (1, 2, 700, 96)], causal=True, window=300, dtype=DataType.BF16),
    "window forward, key padding": attention([(2, 2, 400, 128), (2, 2, 304, 128), (2, 2, 304, 128), (2, 1, 1, 304)], masked=True, window=40),
    "causal, odd mask": attention([(2, 2, 131, 96)] * 3 + [(2, 1, 131, 131)], masked=True, causal=True, dtype=DataType.BF16),
}


COPIED = ("causal key padding", "window forward, key padding", "position bias", "a mask for all heads", "boolean", "float mask")  # the mask comes through TMA


SHORT_ATTENTIONS = {
    **{name: ATTENTIONS[name] for name in ("plain", "positions first", "packed", "keys and values packed")},
    "short causal": attention([(1, 2, 77, 128)] * 3, causal=True, dtype=DataType.BF16),
    "narrow heads": attention([(2, 3, 49, 32)] * 3),
    "key padding": attention([(2, 3, 100, 64)] * 3 + [(2, 1, 1, 100)], masked=True),
    "position bias": attention([(2, 3, 49, 32)] * 3 + [(3, 49, 49)], masked=True),
}


def described(launch: Launch, workload: Workload) -> np.ndarray:
    """What an attention launch computes, [b, h, s, d], read off its arguments."""
    op, inputs = workload.op, values(workload)
    assert isinstance(op, Attention)
    maps = [one for one in launch.arguments if isinstance(one, TensorMap)]
    numbers = [one.value for one in launch.arguments if isinstance(one, Scalar) and one.ctype == "i32"]
    q, k, v = (view(one, inputs[one.buffer.index].ravel()[one.buffer.offset // 2 :]).astype(np.float32) for one in maps[:3])
    assert numbers[:3] == [q.shape[1] // k.shape[1], q.shape[2], k.shape[2]]
    k, v = (side.repeat(numbers[0], axis=1) for side in (k, v))
    scale = launch.arguments[-1]
    assert isinstance(scale, Scalar)
    scores = q @ k.swapaxes(2, 3) * (scale.value / np.log2(np.e))
    if op.masked:
        *steps, last = (*(field.value for field in launch.arguments[-3].fields), launch.arguments[-2].value)  # type: ignore[union-attr]
        mask = inputs[-1]
        if len(maps) == 4:  # strides only say which axes the map has
            mask = view(maps[3], mask.ravel())
            assert [size > 1 for size in mask.shape[:2]] == [step > 0 for step in steps[:2]] and last == 1
        else:
            mask = np.lib.stride_tricks.as_strided(mask, scores.shape, [step * mask.itemsize for step in (*steps, last)])
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if op.causal:
        scores = np.where(np.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2], dtype=bool), scores, -np.inf)
    if op.window:
        assert dict(launch.kernel.defines)["WINDOW"] == str(op.window)
        scores = np.where(np.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2] - op.window, dtype=bool), -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v


def placed(launch: Launch, workload: Workload, shape: tuple[int, ...]) -> np.ndarray:
    """The operation's own result as [b, h, s, d], through the launch's output strides."""
    out = workload.op.evaluate(values(workload))[0]
    strides = next(one for one in launch.arguments if isinstance(one, Struct))
    steps = [field.value * out.itemsize for field in strides.fields]
    return np.lib.stride_tricks.as_strided(out, shape, (*steps, out.itemsize)).astype(np.float32)


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_attention_launches_describe_the_operation(name):
    tactic, workload = Sm90Attention(), ATTENTIONS[name]
    assert tactic.supports(workload, H200) is None
    for config in tactic.configs(workload, H200):
        launch = one_launch(tactic, workload, config)
        result = described(launch, workload)
        expected = placed(launch, workload, result.shape)
        assert np.linalg.norm(result - expected) < 1e-2 * np.linalg.norm(expected)
        batch, heads, queries, _ = result.shape
        assert launch.grid == (min(-(-queries // 128) * heads * batch, H200.multiprocessors), 1, 1) and launch.shared_memory <= 227 * 1024
        defines = dict(launch.kernel.defines)
        assert (defines.get("MASK_ROWS"), defines.get("MASK_PAIRS")) == {
            "key padding": ("0", "1"), "causal key padding": ("0", "1"), "window forward, key padding": ("0", "1"), "causal, odd mask": ("1", "0")}.get(name, ("1", "1") if workload.op.masked else (None, None))
        assert (dict(config)["masks"] > 0) == (name in COPIED) == (dict(launch.kernel.defines).get("MASK_STAGES", "0") != "0")


@pytest.mark.parametrize("name", list(SHORT_ATTENTIONS))
def test_short_attention_launches_describe_the_operation(name):
    tactic, workload = Sm90ShortAttention(), SHORT_ATTENTIONS[name]
    assert tactic.supports(workload, H200) is None
    for config in tactic.configs(workload, H200):
        launch = one_launch(tactic, workload, config)
        result = described(launch, workload)
        expected = placed(launch, workload, result.shape)
        assert np.linalg.norm(result - expected) < 1e-2 * np.linalg.norm(expected)
        batch, heads, queries, _ = result.shape
        chosen, defines = dict(config), dict(launch.kernel.defines)
        assert launch.grid == (heads, -(-queries // 64), batch)
        assert defines.get("MASK_ROWS") == {"key padding": "0", "position bias": "1"}.get(name)
        assert chosen["blocks"] * (launch.shared_memory + 1024) <= 228 * 1024


def test_sides_with_one_mask_lie_together():
    """As many as share a mask, or all where causal, but no more than L2 holds keys of; batches inside heads where these have masks of their own."""
    sides = [(4, 16, 1024, 64)] * 3
    for shape, causal, together, inside in (((16, 1024, 1024), False, 4, "1"), ((4, 1, 1024, 1024), False, 16, None), ((1024, 1024), False, 64, None),
                                            ((4, 16, 1024, 1024), False, 1, None), ((4, 1, 1, 1024), False, 1, None), ((4, 1, 1, 1024), True, 64, None)):  # fmt: skip
        launch = one_launch(Sm90Attention(), attention([*sides, shape], masked=True, causal=causal), Sm90Attention().configs(attention(sides), H200)[0])
        assert [one.value for one in launch.arguments if isinstance(one, Scalar) and one.ctype == "i32"][5] == together
        assert dict(launch.kernel.defines).get("BATCH_INSIDE") == inside
    large = attention([(32, 16, 2048, 64)] * 3, causal=True)  # 512 KiB of keys and values a side
    launch = one_launch(Sm90Attention(), large, Sm90Attention().configs(large, H200)[0])
    assert [one.value for one in launch.arguments if isinstance(one, Scalar) and one.ctype == "i32"][5] == H200.l2_bytes // 2**20


def test_short_attention_refuses_long_and_varying_keys():
    refusal = Sm90ShortAttention().supports(attention([(1, 2, 300, 64)] * 3), H200)
    assert isinstance(refusal, Refusal) and "up to 256" in refusal.reason
    varies = ((False, False, True, False),) * 4
    refusal = Sm90ShortAttention().supports(replace(attention([(1, 2, 100, 64)] * 3), varies=varies), H200)
    assert isinstance(refusal, Refusal) and "vary" in refusal.reason


@pytest.mark.parametrize(
    ("workload", "text"),
    [
        (attention([(1, 2, 8, 84)] * 3), "multiples of 8"),
        (attention([(1, 2, 8, 64)] * 3, scale=-1.0), "positive"),
        (attention([(1, 2, 64, 8)] * 3, ("bhds",) * 4), "innermost"),
        (attention([(1, 2, 8, 64)] * 3, dtype=DataType.FLOAT), "FP32"),
    ],
)
def test_attention_refuses(workload, text):
    refusal = Sm90Attention().supports(workload, H200)
    assert isinstance(refusal, Refusal) and text.lower() in refusal.reason.lower()


# -------------------------------------------------------------------------------------------------------------- compile
def compiled(launch: Launch, spill: int = 0):
    cubin = compile_cubin(launch.kernel.source(), launch.kernel.defines, "sm_90a", launch.kernel.file)
    assert cubin.resources.spill_stores <= spill, (cubin.resources, launch.kernel.defines)
    assert "wgmma.mma_async instructions are serialized" not in cubin.log and "C7517" not in cubin.log, cubin.log
    return cubin


@pytest.mark.parametrize("name", ["bert", "context", "one row", "a transposed", "square", "tf32", "bf16"])
def test_gemm_kernels_compile_without_spills(name):
    tactic = Sm90Gemm()
    for config in tactic.configs(GEMMS[name], H200)[:3]:
        compiled(one_launch(tactic, GEMMS[name], config))


@pytest.mark.parametrize("name", ["3x3", "deep", "patches", "tf32"])
def test_convolution_kernels_compile_without_spills(name):
    tactic = Sm90Convolution()
    for config in tactic.configs(CONVS[name], H200)[:3]:
        compiled(one_launch(tactic, CONVS[name], config))


def test_residuals_are_asked_for_ahead_where_arithmetic_is_short():
    """Both ways are offered for a short product with a residual, and only one without it or for a long product; the kernel that asks ahead compiles."""
    def workload(rows: int, depth: int, residual: bool = True) -> Workload:
        plain = gemm((rows, depth), (depth, 768), constant=True, bias=True)
        if not residual:
            return plain
        op = replace(plain.op, epilogue=apply("add", apply("add", Operand(0), Operand(1)), Operand(2)))
        return Workload(op, (*plain.inputs, plain.outputs[0]), plain.outputs, (False, True, True, False))

    tactic, short = Sm90Gemm(), workload(1024, 768)
    found = [tile_of(config) for config in tactic.configs(short, H200)]
    assert [tile.ahead for tile in found[:6]] == [0, 1, 0, 1, 0, 1] and found[1] == replace(found[0], ahead=1) and not any(tile.ahead for tile in found[6:])
    for other in (workload(1024, 768, residual=False), workload(6304, 3072)):
        assert not any(tile_of(config).ahead for config in tactic.configs(other, H200))
    launch = one_launch(tactic, short, found[1].config())
    assert {("AHEAD", "1"), ("EPILOGUE_ROWS", "1")} <= set(launch.kernel.defines) and "prefetch_tile" in launch.kernel.prelude
    compiled(launch)


@pytest.mark.parametrize(("size", "channels", "outputs"), [(56, 64, 256), (28, 128, 512)])
def test_residuals_of_tiles_that_share_a_multiprocessor_park_two_values_at_most(size, channels, outputs):
    """The gate of tiles of which two to four share a multiprocessor, where a residual is added: beside the sums a thread has 32 to 40 registers, and
    ptxas parks one or two values of the loop over the epilogue, once a tile. They are the fastest for these layers, so they stay."""
    plain = conv((8, size, size, channels), (outputs, channels, 1, 1))
    op = replace(plain.op, epilogue=apply("relu", apply("add", apply("add", Operand(0), Operand(1)), Operand(2))))
    workload = Workload(op, (*plain.inputs, plain.outputs[0]), plain.outputs, (False, True, True, False))
    tactic = Sm90Convolution()
    shared = [config for config in tactic.configs(workload, H200) if dict(config)["blocks"] > 1]
    assert shared
    for config in shared[:2]:
        compiled(one_launch(tactic, workload, config), spill=8)


@pytest.mark.parametrize("name", list(WINDOWS))
def test_window_kernels_compile_without_spills(name):
    tactic = Sm90WindowConvolution()
    compiled(one_launch(tactic, WINDOWS[name], tactic.configs(WINDOWS[name], H200)[0]))


@pytest.mark.parametrize("name", list(STEMS))
def test_stem_kernels_compile_without_spills(name):
    tactic = Sm90Stem()
    for config in tactic.configs(STEMS[name], H200)[:4]:
        compiled(one_launch(tactic, STEMS[name], config))


MAY_SPILL = {("boolean", 128): 32, ("causal", 112): 8, ("wide heads", 64): 32, ("wide heads, causal", 64): 192}  # name, keys of a step: bytes


@pytest.mark.parametrize(("name", "count"), [("plain", 2), ("causal", 4), ("narrow heads", 1), ("position bias", 1), ("a mask for all heads", 1), ("float mask", 1), ("causal, odd mask", 1), ("window", 1)])
def test_attention_kernels_compile_without_spills(name, count):
    tactic = Sm90Attention()
    for config in tactic.configs(ATTENTIONS[name], H200)[:count]:
        if (name, dict(config)["block_kv"]) not in MAY_SPILL:
            compiled(one_launch(tactic, ATTENTIONS[name], config))


@pytest.mark.parametrize(("name", "block"), MAY_SPILL)
def test_attention_kernels_that_may_spill(name, block):
    """On the H100 longer steps are worth it: a boolean mask with 128 keys 52.9 us, 64 keys 58.5; heads of 256 with 64 keys 97.5, 48 keys 106.1,
    with a full mask 115.8, 32 keys 145.0; causal 65.9, 48 keys 67.8."""
    tactic, workload = Sm90Attention(), ATTENTIONS[name]
    for config in [one for one in tactic.configs(workload, H200) if dict(one)["block_kv"] == block][:1]:
        kernel = one_launch(tactic, workload, config).kernel
        assert compile_cubin(kernel.source(), kernel.defines, "sm_90a", kernel.file).resources.spill_stores <= MAY_SPILL[name, block]


@pytest.mark.parametrize("name", ["plain", "key padding", "position bias"])
def test_short_attention_kernels_compile_without_spills(name):
    tactic = Sm90ShortAttention()
    for config in tactic.configs(SHORT_ATTENTIONS[name], H200)[:2]:
        compiled(one_launch(tactic, SHORT_ATTENTIONS[name], config))


# ------------------------------------------------------------------------------------------------------------ on the GPU
@pytest.mark.parametrize("name", ["u-net", "deep", "uneven"])
def test_deconvolution_kernels_compile_without_spills(name):
    tactic = Sm90Deconvolution()
    for config in tactic.configs(DECONVS[name], H200)[:3]:
        compiled(one_launch(tactic, DECONVS[name], config))


def _cluster(config) -> tuple[int, int, int]:
    chosen = dict(config)
    return chosen["cluster_x"], chosen["cluster_y"], chosen["split"]


ON_GPU = {
    "deep product": (Sm90Gemm(), gemm((2, 200, 1032), (1032, 392), constant=True, bias=True)),
    "wide product": (Sm90Gemm(), gemm((1000, 520), (520, 1184), constant=True, bias=True)),
    "odd columns": (Sm90Gemm(), GEMMS["odd columns"]),
    "convolution": (Sm90Convolution(), conv((5, 14, 14, 256), (288, 256, 3, 3), (1, 1), (1, 1, 1, 1))),
    "convolution, taps first": (Sm90Convolution(), conv((16, 14, 14, 192), (96, 192, 3, 3), (1, 1), (1, 1, 1, 1))),
    "convolution, taps first, part of a stage": (Sm90Convolution(), conv((16, 15, 13, 96), (64, 96, 3, 5), (1, 1), (1, 2, 1, 2))),
    "strided convolution": (Sm90Convolution(), conv((5, 15, 14, 128), (160, 128, 3, 3), (2, 2), (1, 1, 1, 1))),
    **{f"deconvolution, {name}": (Sm90Deconvolution(), workload) for name, workload in DECONVS.items()},
    **{f"patches, {name}": (Sm90Patches(), workload) for name, workload in PATCHES.items()},
    **{f"window, {name}": (Sm90WindowConvolution(), workload) for name, workload in WINDOWS.items()},
    **{f"stem, {name}": (Sm90Stem(), workload) for name, workload in STEMS.items() if name != "mobilenet"},
    **{f"attention, {name}": (Sm90Attention(), workload) for name, workload in ATTENTIONS.items()},
    **{f"short attention, {name}": (Sm90ShortAttention(), workload) for name, workload in SHORT_ATTENTIONS.items()},
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_on_gpu(name: str) -> None:
    """The first configurations, the first of every shape of cluster, and clusters that also split K."""
    from runtime.devices import open_device
    from tests.harness.gpu import run_on_gpu

    tactic, workload = ON_GPU[name]
    spec = open_device("0").spec
    if tactic.supports(workload, spec) is not None:
        pytest.skip("needs Hopper")
    inputs = values(workload)
    expected = workload.op.evaluate(inputs)[0].astype(np.float64)
    found = list(tactic.configs(workload, spec))
    clustered = {_cluster(one): one for one in reversed(found)} if isinstance(tactic, Sm90Gemm | Sm90Convolution | Sm90Deconvolution) else {}
    shared = [Tile(128, 128, 2, 3, split=2, cluster_x=x, cluster_y=y).config() for x, y in ((2, 1), (1, 2), (2, 2))]
    for config in dict.fromkeys((*found[:3], *clustered.values(), *(shared if clustered and name not in ("odd columns", "deconvolution, uneven") else ()))):
        plan = tactic.plan(workload, config, spec)
        constants = {index: inputs[index] for index, constant in enumerate(workload.constant) if constant}
        (result,) = run_on_gpu(plan, inputs, workload.outputs, tactic.prepare(workload, config, constants))
        error = np.linalg.norm(result.astype(np.float64) - expected) / np.linalg.norm(expected)
        assert error < (1e-2 if workload.outputs[0].dtype is DataType.BF16 else 2e-3), (dict(config), error)
