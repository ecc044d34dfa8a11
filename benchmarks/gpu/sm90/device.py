"""Loads and launches the kernels on torch's tensors, and times and judges what they wrote."""

from __future__ import annotations

import ctypes
import statistics
import struct

from benchmarks.gpu.sm90.kernels import (
    SIZE,
    attention_rings,
    attention_unit,
    cubin_path,
    shared_bytes,
    short_unit,
    stem_rows,
    stem_shared_bytes,
    stem_unit,
    threads,
    tile_of,
    unit,
    window_unit,
)
from fusion.dtypes import DataType
from tactics.cuda.simple import divider
from tactics.cuda.sm90 import attention_sm90, conv_window_sm90, tile_sm90


def make_mask(torch, kind, batch, heads, s_q, s_k, dtype):
    """(mask, what to add to the scores in float64) for a kind of SHORT_CHECKS."""
    shape = (batch, 1, 1, s_k) if "row" in kind else (1, heads, s_q, s_k)
    keep = torch.rand(shape, device="cuda") > 0.3
    keep[..., 0] = True
    if "bool" in kind:
        return keep, torch.where(keep, 0.0, float("-inf")).double()
    low = torch.finfo(torch.float16).min if kind == "row" else float("-inf")
    mask = torch.where(keep, torch.randn(shape, device="cuda"), low).to(torch.float32 if kind == "float" else dtype)
    return mask, mask.double()


def pack_stem(torch, weight, c):
    """[o, r, s, c] -> the order that stem_sm90.cu or stem_rows_sm90.cu asks for."""
    if c["PATCHES"]:
        packed = stem_rows(c).pack(weight.permute(0, 3, 1, 2).float().cpu().numpy(), c["BN"], c["DIRECT"])
        return torch.from_numpy(packed).to(weight.device, weight.dtype)
    o, r, s, ch = weight.shape
    taps, bn = -(-s // 4), c["BN"]
    tiles = -(-o // bn)
    full = torch.zeros(tiles * bn, r, taps * 4, 4, device=weight.device, dtype=weight.dtype)
    full[:o, :, :s, :ch] = weight
    full = full.view(tiles, bn // 8, 8, r, taps, 4, 2, 2)  # tile, eights, output, r, group, tap, channel / 2, channel % 2
    return full.permute(0, 3, 4, 6, 1, 2, 5, 7).contiguous()


def numbers(fields):
    """A parameter of unsigned numbers by value."""
    return struct.pack(f"<{len(fields)}I", *(field.value for field in fields))


def permuted(rows):
    """tile_sm90.permute_rows of a tensor."""
    return rows.reshape(-1, 4, 4, 2, *rows.shape[1:]).transpose(1, 2).contiguous().view(rows.shape)


class Gpu:
    """Loads and launches kernels through the driver, on torch's context and stream."""

    def __init__(self):
        import torch
        from cuda.bindings import driver

        self.torch, self.driver = torch, driver
        torch.cuda.init()
        torch.zeros(1, device="cuda")
        self.functions, self.promoted, self.surprises = {}, 128, {}
        self.types = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
        self.multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count

    def ok(self, result):
        if int(result[0]) != 0:
            raise RuntimeError(str(result[0]))
        return result[1] if len(result) > 1 else None

    def function(self, one, entry, shared):
        key = (one, entry)
        if key not in self.functions:
            path = cubin_path(one)
            if not path.exists():
                raise RuntimeError("not compiled")
            module = self.ok(self.driver.cuModuleLoadData(path.read_bytes()))
            self.functions[key] = self.ok(self.driver.cuModuleGetFunction(module, entry.encode()))
        attribute = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.ok(self.driver.cuFuncSetAttribute(self.functions[key], attribute, shared))  # one kernel may need more for another shape
        return self.functions[key]

    def blocks_per_multiprocessor(self, function, block, shared):
        return max(1, int(self.ok(self.driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, block, shared))))

    def occupancy(self, c, function, shared):
        """What the tactic takes for the blocks of a multiprocessor; notes where the driver says otherwise."""
        expected, actual = tile_sm90.per_multiprocessor(tile_of(c)), self.blocks_per_multiprocessor(function, threads(c), shared)
        self.surprises = {} if expected == actual else {"occupancy": actual, "expected": expected}
        return expected

    def tiled(self, pointer, in_type, dims, strides, box, swizzle):
        d = self.driver
        kinds = {"f16": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16, "bf16": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                 "f32": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_TFLOAT32, "float": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                 "byte": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT8}
        modes = {128: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B, 64: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B,
                 32: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_32B, 0: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_NONE}
        made = self.ok(d.cuTensorMapEncodeTiled(
            kinds[in_type], len(dims), pointer, [d.cuuint64_t(v) for v in dims], [d.cuuint64_t(v) for v in strides],
            [d.cuuint32_t(v) for v in box], [d.cuuint32_t(1)] * len(dims), d.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            modes[swizzle], self.promotion(),
            d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
        return ctypes.string_at(made.getPtr(), 128)

    def promotion(self):
        """How many bytes around what a box asks for L2 fetches."""
        kinds = self.driver.CUtensorMapL2promotion
        return {0: kinds.CU_TENSOR_MAP_L2_PROMOTION_NONE, 64: kinds.CU_TENSOR_MAP_L2_PROMOTION_L2_64B, 128: kinds.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                256: kinds.CU_TENSOR_MAP_L2_PROMOTION_L2_256B}[self.promoted]

    def im2col(self, pointer, in_type, dims, strides, lower, upper, channels, pixels, steps, swizzle):
        d = self.driver
        kinds = {"f16": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16, "bf16": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                 "f32": d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_TFLOAT32}
        modes = {128: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B, 64: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B,
                 32: d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_32B}
        made = self.ok(d.cuTensorMapEncodeIm2col(
            kinds[in_type], len(dims), pointer, [d.cuuint64_t(v) for v in dims], [d.cuuint64_t(v) for v in strides],
            list(lower), list(upper), channels, pixels, [d.cuuint32_t(v) for v in steps],
            d.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE, modes[swizzle],
            self.promotion(), d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
        return ctypes.string_at(made.getPtr(), 128)

    def launcher(self, function, grid, block, shared, arguments, pdl=False):
        """A function that launches on torch's current stream; arguments are bytes (by value), ints (i32) or pointers (('p', v))."""
        buffers = []
        for value in arguments:
            if isinstance(value, bytes):
                buffers.append(ctypes.create_string_buffer(value, len(value)))
            elif isinstance(value, tuple):
                buffers.append(ctypes.c_uint64(value[1]))
            else:
                buffers.append(ctypes.c_int32(value))
        # a by-value TensorMap must not straddle: the driver copies it, alignment of the host copy does not matter
        array = (ctypes.c_void_p * len(buffers))(*[ctypes.addressof(b) for b in buffers])
        driver, torch = self.driver, self.torch
        config = driver.CUlaunchConfig()
        grid = (*grid, 1, 1)[:3] if isinstance(grid, tuple) else (grid, 1, 1)
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
        config.sharedMemBytes = shared
        if pdl:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            value = driver.CUlaunchAttributeValue()
            value.programmaticStreamSerializationAllowed = 1
            attribute.value = value
            config.attrs, config.numAttrs = [attribute], 1

        def launch():
            config.hStream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
            (error,) = driver.cuLaunchKernelEx(config, function, ctypes.addressof(array), 0)
            if int(error):
                raise RuntimeError(str(error))

        launch.keep = (buffers, array)
        return launch

    # -- the two kernels
    def gemm(self, c, a, b, out, operands, in_type, out_type, epilogue, vec, debug=0, constant=1):
        """Launcher of out[batch, m, n] from a [batch, m, k] (or [batch, k, m]) and b [batch or 1, n, k] (or [.., k, n])."""
        es = SIZE[in_type]
        self.promoted = c.get("PROMOTION", 128)
        one = unit("gemm", c, epilogue, in_type, out_type, vec, debug, constant)
        shared = shared_bytes(c)
        function = self.function(one, "gemm", shared)
        batches, m, n = out.shape
        bk = c["SWIZZLE"] // es
        k = a.shape[1] if c.get("A_KM") else a.shape[2]

        def operand(tensor, rows, mn, x_side):
            batch = tensor.shape[0]
            if mn:
                width = 128 if x_side else (128 if c["BN"] % 64 == 0 else 64 if c["BN"] % 32 == 0 else 32)
                return self.tiled(tensor.data_ptr(), in_type, (rows, k, batch), (rows * es, rows * k * es), (width // es, bk, 1), width)
            box = c["BM"] // c["CLUSTER_Y"] if x_side else c["BN"] // c["CLUSTER_X"]
            return self.tiled(tensor.data_ptr(), in_type, (k, rows, batch), (k * es, rows * k * es), (bk, box, 1), c["SWIZZLE"])

        if c["DIRECT"]:
            b = permuted(b[0])[None]
        maps = operand(a, m, c.get("A_KM", 0), not c["SWAP"]), operand(b, n, c.get("B_KN", 0), bool(c["SWAP"]))
        x, y = (n, m) if c["SWAP"] else (m, n)
        cluster = c["CLUSTER_X"] * c["CLUSTER_Y"] * c["SPLIT"]
        tiles = -(-x // (c["BM"] * c["CLUSTER_X"])) * -(-y // (c["BN"] * c["CLUSTER_Y"])) * batches * cluster
        per = self.occupancy(c, function, shared)
        grid = tiles if c["SPLIT"] > 1 else min(tiles, self.multiprocessors * per // cluster * cluster)
        pointers = b"".join(int(t.data_ptr()).to_bytes(8, "little") for t in operands) or bytes(8)
        order = numbers(tile_sm90.tile_order(tile_of(c), tile_sm90.Problem(m, n, batches, 1, k, DataType.HALF, 0), c["GROUP"]))
        arguments = (*maps, ("p", out.data_ptr()), m, n, k, batches, int(a.shape[0] > 1), int(b.shape[0] > 1), order, pointers)
        launch = self.launcher(function, grid, threads(c), shared, arguments, bool(c["PDL"]))
        launch.keep += (b,)
        return launch

    def conv(self, c, image, weight, out, operands, stride, pads, dilation, in_type, out_type, epilogue, vec, corner="wh", debug=0):
        """Launcher of an NHWC convolution; weight is [o, r, s, c], pads (top, left, bottom, right)."""
        es = SIZE[in_type]
        self.promoted = c.get("PROMOTION", 128)
        one = unit("conv", c, epilogue, in_type, out_type, vec, debug)
        shared = shared_bytes(c)
        function = self.function(one, "convolution", shared)
        n, h, w, ch = image.shape
        o, r, s, _ = weight.shape
        _, p, q, _ = out.shape
        bk = c["SWIZZLE"] // es
        lower = (-pads[1], -pads[0])
        upper = ((q - 1) * stride[1] - pads[1] - (w - 1), (p - 1) * stride[0] - pads[0] - (h - 1))  # the last place of the first tap
        if corner == "hw":
            lower, upper = lower[::-1], upper[::-1]
        if c["DIRECT"]:
            weight = permuted(weight)
        image_map = self.im2col(image.data_ptr(), in_type, (ch, w, h, n), (ch * es, w * ch * es, h * w * ch * es), lower, upper, bk,
                                c["BM"] // c["CLUSTER_Y"], (1, stride[1], stride[0], 1), c["SWIZZLE"])
        weight_map = self.tiled(weight.data_ptr(), in_type, (ch, r * s, o), (ch * es, r * s * ch * es), (bk, 1, c["BN"] // c["CLUSTER_X"]),
                                c["SWIZZLE"])
        pixels = n * p * q
        cluster = c["CLUSTER_X"] * c["CLUSTER_Y"] * c["SPLIT"]
        tiles = -(-pixels // (c["BM"] * c["CLUSTER_X"])) * -(-o // (c["BN"] * c["CLUSTER_Y"])) * cluster
        per = self.occupancy(c, function, shared)
        grid = tiles if c["SPLIT"] > 1 else min(tiles, self.multiprocessors * per // cluster * cluster)
        pointers = b"".join(int(t.data_ptr()).to_bytes(8, "little") for t in operands)
        order = numbers(tile_sm90.tile_order(tile_of(c), tile_sm90.Problem(pixels, o, 1, r * s, ch, DataType.HALF, 0), c["GROUP"]))
        taps_inner = c.get("TAPS_INNER", 0)
        divisors = numbers([field for value in (p, q, s, r * s if taps_inner else -(-ch // bk)) for field in divider(value)])
        arguments = (image_map, weight_map, ("p", out.data_ptr()), pixels, o, ch, r * s, *stride, pads[0], pads[1], *dilation, taps_inner, divisors, order, pointers)
        launch = self.launcher(function, grid, threads(c), shared, arguments, bool(c["PDL"]))
        launch.keep += (weight,)
        return launch

    def window(self, c, image, weight, out, operands, pads, in_type, out_type, epilogue, debug=0):
        """Launcher of conv_window_sm90.cu; weight is [o, r, s, c], pads (top, left, bottom, right)."""
        n, h, w, ch = image.shape
        o, r, s, _ = weight.shape
        _, p, q, _ = out.shape
        patch = conv_window_sm90.patch_of(p, q, (r, s))
        one = window_unit(c, epilogue, in_type, out_type, debug)
        shared = conv_window_sm90.shared_bytes(patch, ch, c["BN"], c["PATCHES"])
        function = self.function(one, "convolution_window", shared)
        weight = permuted(weight)
        image_map = self.tiled(image.data_ptr(), in_type, (ch, w, h, n), (ch * 2, w * ch * 2, h * w * ch * 2), (64, patch.pitch, patch.rows, 1), 128)
        weight_map = self.tiled(weight.data_ptr(), in_type, (ch, r * s, o), (ch * 2, r * s * ch * 2), (64, 1, c["BN"]), 128)
        along = -(-q // patch.width)
        tiles, ranges = n * -(-p // patch.height) * along, -(-o // c["BN"])
        by = numbers([*divider(tiles // n), *divider(along)])
        pointers = b"".join(int(t.data_ptr()).to_bytes(8, "little") for t in operands)
        arguments = (image_map, weight_map, ("p", out.data_ptr()), n, p, q, o, patch.height, patch.width, pads[0], pads[1], patch.bytes, by, pointers)
        launch = self.launcher(function, (min(tiles, self.multiprocessors // ranges), ranges), 2 * 128 + 32, shared, arguments, bool(c["PDL"]))
        launch.keep += (weight,)
        return launch

    def stem(self, c, image, packed, out, operands, image_type, in_type, out_type, epilogue, debug=0):
        one = stem_unit(c, epilogue, image_type, in_type, out_type, 8, debug)
        shared = stem_shared_bytes(c)
        function = self.function(one, "convolution_stem_rows" if c["PATCHES"] else "convolution_stem", shared)
        n, p, q, o = out.shape
        h, w = image.shape[2:] if c["NCHW"] else image.shape[1:3]
        tiles = -(-p // (4 * c["WARPGROUPS"])) * -(-q // 16) * n
        threads_ = 128 * c["WARPGROUPS"]
        per = self.blocks_per_multiprocessor(function, threads_, shared)
        pointers = b"".join(int(t.data_ptr()).to_bytes(8, "little") for t in operands)
        if c["PATCHES"]:
            rows, ch = stem_rows(c), c["CHANNELS"]
            row, high = w * rows.together * 2, rows.height(c["WARPGROUPS"])
            dims, strides, box = ((w, h, ch, n), (row, row * h, row * h * ch), (high, ch, 1)) if c["NCHW"] else ((w * ch, h, n), (row, row * h), (high, 1))
            image_map = self.tiled(image.data_ptr(), image_type, dims, strides, (rows.width, *box), 0)
            arguments = (image_map, ("p", packed.data_ptr()), ("p", out.data_ptr()), n, p, q, o, pointers)
        else:
            arguments = (("p", image.data_ptr()), ("p", packed.data_ptr()), ("p", out.data_ptr()), n, h, w, p, q, o, pointers)
        return self.launcher(function, (min(tiles, self.multiprocessors * per), -(-o // c["BN"])), threads_, shared, arguments, bool(c["PDL"]))

    def attention(self, q, k, v, out, how, causal, in_type="f16", mask=None, kind=""):
        """Launcher of softmax(q k^T / sqrt(d) + mask) v on [b, h, s, d] views whose head dimension is contiguous; the mask of a kind of SHORT_CHECKS."""
        (batch, heads, s_q, d), (_, kv_heads, s_k, _) = q.shape, k.shape
        one, (block_kv, steady, _) = attention_unit(d, *how, causal, in_type, kind, s_k), how
        rings, step = attention_rings(d, block_kv, kind, s_k)
        shared = attention_sm90.shared_bytes(-(-d // 16) * 16, block_kv, rings, step)
        function = self.function(one, "attention_steady_sm90" if steady else "attention_sm90", shared)
        maps = [self.tiled(t.data_ptr(), in_type, (d, t.shape[2], t.shape[1], batch), (t.stride(2) * 2, t.stride(1) * 2, t.stride(0) * 2),
                           (64, rows, 1, 1), 128) for t, rows in ((q, attention_sm90.ROWS), (k, block_kv), (v, block_kv))]
        strides = b"".join(int(out.stride(axis)).to_bytes(8, "little") for axis in range(3))
        scale = struct.pack("f", d**-0.5 * 1.4426950408889634)
        steps = [0 if mask is None or mask.shape[axis] == 1 else mask.stride(axis) for axis in range(4)]
        mask_strides = b"".join(int(step).to_bytes(8, "little") for step in steps[:3])
        masked = ("p", 0 if mask is None else mask.data_ptr())
        if step:
            dims = [mask.shape[axis] for axis in (3, 2, 1, 0)]
            box = (block_kv, 1, 1, 1) if step.one_row else (step.width(block_kv) // step.size, attention_sm90.ROWS, 1, 1)
            masked = self.tiled(mask.data_ptr(), {1: "byte", 2: in_type, 4: "float"}[step.size], dims, [stride * step.size or 16 for stride in steps[2::-1]], box,
                                0 if step.one_row else step.width(block_kv))
        arguments = (*maps, *([masked] if steady else []), ("p", out.data_ptr()), heads // kv_heads, s_q, s_k,
                     heads, batch, heads * batch if causal else batch if kind and "row" not in kind else 1, strides, *([mask_strides, steps[3]] if steady else []), scale)
        tiles = -(-s_q // attention_sm90.ROWS) * heads * batch
        return self.launcher(function, (min(tiles, self.multiprocessors), 1, 1), 384, shared, arguments, True)

    def short(self, q, k, v, out, mask, kind, causal, in_type="f16", debug=0):
        """The same for up to 256 keys, with a mask of a kind of SHORT_CHECKS."""
        (batch, heads, s_q, d), (_, kv_heads, s_k, _) = q.shape, k.shape
        keys, panel = -(-s_k // 16) * 16, min(d, 64)
        shared = attention_sm90.short_bytes(d, keys, "row" in kind)
        function = self.function(short_unit(d, keys, causal, in_type, kind, debug), "attention_short_sm90", shared)
        maps = [self.tiled(t.data_ptr(), in_type, (d, t.shape[2], t.shape[1], batch), (t.stride(2) * 2, t.stride(1) * 2, t.stride(0) * 2),
                           (panel, rows, 1, 1), 2 * panel) for t, rows in ((q, 64), (k, keys), (v, keys))]
        strides = b"".join(int(out.stride(axis)).to_bytes(8, "little") for axis in range(3))
        steps = [0 if mask is None or mask.shape[axis] == 1 else mask.stride(axis) for axis in range(4)]
        mask_strides = b"".join(int(step).to_bytes(8, "little") for step in steps[:3])
        scale = struct.pack("f", d**-0.5 * 1.4426950408889634)
        arguments = (*maps, ("p", 0 if mask is None else mask.data_ptr()), ("p", out.data_ptr()), heads // kv_heads, s_q, s_k, strides, mask_strides,
                     steps[3], scale)
        return self.launcher(function, (heads, -(-s_q // 64), batch), 128, shared, arguments, True)

    # -- judging
    def compare(self, out, reference):
        """(relative error of the norms, largest error over the reference's rms); NaN counts as infinite."""
        difference = (out.double() - reference).abs()
        if not bool(self.torch.isfinite(difference).all()):
            return float("inf"), float("inf")
        rms = reference.pow(2).mean().sqrt().item() + 1e-30
        return difference.pow(2).mean().sqrt().item() / rms, difference.max().item() / rms

    def graph(self, launches, count):
        """A graph of ``count`` launches that rotate over ``launches``."""
        torch = self.torch
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for launch in launches:
                launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin()
            for i in range(count):
                launches[i % len(launches)]()
            graph.capture_end()
        return graph

    def replay(self, graphs, count, replays):
        """Microseconds a launch of every replay of every graph. The graphs take turns, so that all meet the same clocks."""
        torch = self.torch
        events = [[] for _ in graphs]
        with torch.cuda.stream(torch.cuda.Stream()):
            for graph in graphs:
                graph.replay()
            for _ in range(replays):
                for graph, own in zip(graphs, events, strict=True):
                    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    start.record()
                    graph.replay()
                    end.record()
                    own.append((start, end))
        torch.cuda.synchronize()
        return [[a.elapsed_time(b) * 1e3 / count for a, b in own] for own in events]

    def graph_time(self, launches, count=24, replays=10):
        """Median seconds a launch, from replays of a graph of its own."""
        return statistics.median(self.replay([self.graph(launches, count)], count, replays)[0]) * 1e-6


def effort(flops):
    """(launches in a graph, replays): fewer for launches of more than about 0.3 ms."""
    return (24, 10) if flops < 6e10 else (6, 7)


def poisoned(torch, shape, dtype):
    """A NaN-filled tensor inside a larger sentinel buffer: (tensor, function that says whether the margins are intact)."""
    count = 1
    for d in shape:
        count *= d
    margin = 4096
    whole = torch.full((count + 2 * margin,), float("nan"), device="cuda", dtype=dtype)
    whole[:margin] = 7.0
    whole[-margin:] = 7.0
    return whole[margin : margin + count].view(shape), lambda: bool((whole[:margin] == 7).all() and (whole[-margin:] == 7).all())
