// Tensor-core convolution as an implicit GEMM with mma.sync, channels last, fp16 / bf16 / tf32 / fp8 in, fp32 sums; int8 or uint8 (x) in, int32 sums.
#ifndef TRANSPOSED
#define TRANSPOSED 0
#endif

#if TRANSPOSED
#define ROW_MAP
struct RowMap {  // from a pixel of one output phase (batch, z, y, x of the phase flattened) to the pixel of the output
    int z, y, x, out_z, out_y, out_x, stride_z, stride_y, stride_x, phase_z, phase_y, phase_x;
    __device__ __forceinline__ long long operator()(long long row) const {
        const int line = static_cast<int>(row) / x, plane = line / y, image = plane / z;
        const int at_z = (plane - image * z) * stride_z + phase_z, at_y = (line - plane * y) * stride_y + phase_y;
        const int at_x = (static_cast<int>(row) - line * x) * stride_x + phase_x;
        return ((static_cast<long long>(image) * out_z + at_z) * out_y + at_y) * out_x + at_x;
    }
};
#endif
#include "mma_tile.cuh"

#if TRANSPOSED
// Output coordinates o with o % stride == phase, along one dimension: input coordinate o / stride + first - i * step for
// the i-th of `taps` taps, those with (phase + pad - tap * dilation) % stride == 0.
struct Phase {
    int taps, first, step;
    __device__ __forceinline__ Phase(int phase, int all, int stride, int pad, int dilation) : taps(0), first(0), step(0) {
        for (int tap = 0; tap < all; ++tap) {
            const int reach = phase + pad - tap * dilation;
            if (reach % stride != 0) continue;
            if (taps == 0) first = reach / stride;
            if (taps == 1) step = first - reach / stride;
            ++taps;
        }
    }
};
#endif

// Computes BM output pixels x BN output channels of one group per block; nothing is unfolded in memory: each stage gathers
// its slice of the window with predicated cp.async.
//   x: [batch][in_z][in_y][in_x][in_channels]; w: [channels][w_row] with columns (tap z, y, x, channel of the group), rows
//   padded with zeros to w_row, a multiple of 16 bytes; out: [pixels][channels], pixels = batch * out_z * out_y * out_x.
//   Grid: x = tiles of pixels * tiles of a group's channels, y = splits of the depth (k_split each, a multiple of BK),
//   z = groups; block: 32 * warps. VEC_A: bytes that divide a group's channels and in_channels (16, 8, 4, 2 or 1).
//   TRANSPOSED=1 computes the deconvolution, one phase of output pixels (coordinates modulo the strides) after the other: the
//   taps that reach a phase are a plain convolution with stride 1. Then z of the grid = phases * groups, `pixels` are those of
//   the largest phase, and w is [phase z, y, x][channels][w_row] with the phase's taps alone.
//   OUT_PLANES: out is [batch][channels][out_z][out_y][out_x].
//   CLUSTER_K and PARTIAL as in mma_gemm.cu (PARTIAL: one group per launch of the reduction covers all channels).
//   A row keeps one offset and one mask with a bit per tap coordinate that lies inside the image, so taps_z + taps_y +
//   taps_x <= 32. Offsets are 32-bit: fewer than 2^31 elements of x.
// Source: implicit-precomputed GEMM is described in Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014.
extern "C" __global__ void __launch_bounds__(THREADS)
#if CLUSTER_K > 1 && SM_ARCH >= 900
    __cluster_dims__(1, CLUSTER_K, 1)
#endif
        mma_conv(const IN_T* __restrict__ x, const IN_T* __restrict__ w, OUT_T* __restrict__ out, SUM_T* __restrict__ partial, int pixels,
                 int in_z, int in_y, int in_x, int in_channels, int out_z, int out_y, int out_x, int channels, int group_in,
                 int group_out, int w_row, int taps_z, int taps_y, int taps_x, int stride_z, int stride_y, int stride_x, int pad_z,
                 int pad_y, int pad_x, int dilation_z, int dilation_y, int dilation_x, int k_split, EpilogueArgs args PROLOGUE_PARAMETER) {
    extern __shared__ __align__(128) char memory[];
    const int tiles_m = (pixels + BM - 1) / BM, tiles_n = (group_out + BN - 1) / BN;
    int tile_m, tile_n;
    tile_of(blockIdx.x, tiles_m, tiles_n, tile_m, tile_n);
    const int row0 = tile_m * BM, n0 = tile_n * BN;
#ifdef OUT_PLANES
    const int plane = out_z * out_y * out_x;
#endif
#if TRANSPOSED
    const int phases = stride_z * stride_y * stride_x, groups = gridDim.z / phases;
    const int phase = blockIdx.z / groups, group = blockIdx.z - phase * groups;
    const int phase_x = phase % stride_x, phase_y = phase / stride_x % stride_y, phase_z = phase / stride_x / stride_y;
    const Phase of_z(phase_z, taps_z, stride_z, pad_z, dilation_z), of_y(phase_y, taps_y, stride_y, pad_y, dilation_y);
    const Phase of_x(phase_x, taps_x, stride_x, pad_x, dilation_x);
    const int batch = pixels / (((out_z + stride_z - 1) / stride_z) * ((out_y + stride_y - 1) / stride_y) * ((out_x + stride_x - 1) / stride_x));
    const RowMap place{(out_z + stride_z - 1 - phase_z) / stride_z, (out_y + stride_y - 1 - phase_y) / stride_y,
                       (out_x + stride_x - 1 - phase_x) / stride_x, out_z, out_y, out_x, stride_z, stride_y, stride_x, phase_z, phase_y, phase_x};
    const int all_pixels = batch * out_z * out_y * out_x;
    pixels = batch * place.z * place.y * place.x;
    out_z = max(1, place.z), out_y = max(1, place.y), out_x = max(1, place.x);
    taps_z = of_z.taps, taps_y = of_y.taps, taps_x = of_x.taps;
    stride_z = stride_y = stride_x = 1;
    pad_z = -of_z.first, pad_y = -of_y.first, pad_x = -of_x.first;
    dilation_z = -of_z.step, dilation_y = -of_y.step, dilation_x = -of_x.step;
    w += static_cast<long long>(phase) * channels * w_row;
#else
    const int group = blockIdx.z;
    const RowMap place{0};
    const int all_pixels = pixels;
#endif
    const int k = taps_z * taps_y * taps_x * group_in;
#if TRANSPOSED
    taps_z = max(1, taps_z), taps_y = max(1, taps_y), taps_x = max(1, taps_x);  // no division by zero where no tap reaches a phase
#endif
    const int k_begin = blockIdx.y * k_split, k_end = min(k, k_begin + k_split);
    x += group * group_in;

    constexpr int STEP = THREADS / A_CHUNKS, LOADS = (BM + STEP - 1) / STEP;
    const int a_row = threadIdx.x / A_CHUNKS, a_chunk = threadIdx.x % A_CHUNKS;
    int base[LOADS];
    unsigned inside[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        const int row = row0 + a_row + i * STEP;
        const int oy = row / out_x, ox = row - oy * out_x;
        const int oz = oy / out_y, image = oz / out_z;
        const int z0 = (oz - image * out_z) * stride_z - pad_z, y0 = (oy - oz * out_y) * stride_y - pad_y, x0 = ox * stride_x - pad_x;
        base[i] = (((image * in_z + z0) * in_y + y0) * in_x + x0) * in_channels;
        unsigned mask = 0;
        for (int tap = 0; tap < taps_x; ++tap) mask |= (static_cast<unsigned>(x0 + tap * dilation_x) < in_x ? 1u : 0u) << tap;
        for (int tap = 0; tap < taps_y; ++tap)
            mask |= (static_cast<unsigned>(y0 + tap * dilation_y) < in_y ? 1u : 0u) << (taps_x + tap);
        for (int tap = 0; tap < taps_z; ++tap)
            mask |= (static_cast<unsigned>(z0 + tap * dilation_z) < in_z ? 1u : 0u) << (taps_x + taps_y + tap);
        inside[i] = row < pixels ? mask : 0u;
    }

    constexpr int PIECE = VEC_A / ELEMENT, PIECES = PER_CHUNK / PIECE;
    constexpr int JOINED = VEC_A >= 4 ? 1 : 4 / VEC_A;  // pieces that one store to shared memory holds
    struct Walk {
        int c, x, y, z;
    };
    auto advance = [&](Walk& at, int c, int x, int y, int z) {  // adds a displacement smaller than the window's sizes
        at.c += c;
        int carry = at.c >= group_in;
        at.c -= carry ? group_in : 0;
        at.x += x + carry;
        carry = at.x >= taps_x;
        at.x -= carry ? taps_x : 0;
        at.y += y + carry;
        carry = at.y >= taps_y;
        at.y -= carry ? taps_y : 0;
        at.z += z + carry;
    };
    auto split = [&](int depth) {
        const int tap = depth / group_in, line = tap / taps_x, plane = line / taps_y;
        return Walk{depth - tap * group_in, tap - line * taps_x, line - plane * taps_y, plane};
    };
    int depth = k_begin + a_chunk * PER_CHUNK;
    Walk at = split(depth);
    const Walk step = split(BK);

    auto load_a = [&](unsigned target) {
        Walk piece_at = at;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece += JOINED) {
            bool there[JOINED];
            int offset[JOINED];
            unsigned needed[JOINED];
#pragma unroll
            for (int p = 0; p < JOINED; ++p) {
                there[p] = depth + (piece + p) * PIECE < k_end;
                offset[p] = ((piece_at.z * dilation_z * in_y + piece_at.y * dilation_y) * in_x + piece_at.x * dilation_x) * in_channels +
                            piece_at.c;
                needed[p] = 1u << piece_at.x | 1u << (taps_x + piece_at.y) | 1u << (taps_x + taps_y + piece_at.z);
                if (PIECES > 1) advance(piece_at, PIECE, 0, 0, 0);
            }
#pragma unroll
            for (int i = 0; i < LOADS; ++i) {
                const int r = a_row + i * STEP;
                if (BM % STEP != 0 && r >= BM) break;
                const unsigned place = target + swizzled<A_CHUNKS>(r, a_chunk) + piece * VEC_A;
                if constexpr (VEC_A >= 4) {
                    copy_async<VEC_A>(place, x + (base[i] + offset[0]), there[0] && (inside[i] & needed[0]) == needed[0]);
                } else {
                    unsigned word = 0;
#pragma unroll
                    for (int p = 0; p < JOINED; ++p)
                        if (there[p] && (inside[i] & needed[p]) == needed[p])
                            word |= load_bits<VEC_A>(x + (base[i] + offset[p]), 0) << p * VEC_A * 8;
                    store_shared_4(place, word);
                }
            }
        }
        depth += BK;
        advance(at, step.c, step.x, step.y, step.z);
    };
#ifdef HAS_PROLOGUE
    prefetch_prologue(before_args, group * group_in, group_in);
    int depth_in = depth;
    Walk at_in = at;
    auto change_a = [&](unsigned stage) {  // the turns of mma_gemm.cu's (a function for both, called with what differs, took up to eight registers more)
        constexpr int V = PIECE < 1 ? 1 : PIECE, PARTS = PER_CHUNK / V, TOGETHER = LOADS < 4 ? LOADS : 4;
        int pixel[PARTS], channel[PARTS];
        unsigned needed[PARTS];  // no bit of a row that has none where nothing is read
        Walk part_at = at_in;
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
            pixel[p] = (part_at.z * dilation_z * in_y + part_at.y * dilation_y) * in_x + part_at.x * dilation_x;
            channel[p] = group * group_in + part_at.c;
            needed[p] = depth_in + p * V < k_end ? 1u << part_at.x | 1u << (taps_x + part_at.y) | 1u << (taps_x + taps_y + part_at.z) : 0u;
            if (PARTS > 1) advance(part_at, V, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < LOADS; i += TOGETHER) {
            uint4 chunk[TOGETHER];
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j)  // all loads first: operands that the rows share are then read once
                if (a_row + (i + j) * STEP < BM) chunk[j] = load_shared_16(stage + swizzled<A_CHUNKS>(a_row + (i + j) * STEP, a_chunk));
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j) {
                if (a_row + (i + j) * STEP >= BM) continue;
                const int first = base[i + j] / in_channels;
#pragma unroll
                for (int p = 0; p < PARTS; ++p)
                    if (needed[p] != 0 && (inside[i + j] & needed[p]) == needed[p])
                        prologue_part<IN_T, V>(chunk[j], p * V, before_args, first + pixel[p], channel[p], gridDim.z * group_in);
            }
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j)
                if (a_row + (i + j) * STEP < BM)
                    store_shared_16(stage + swizzled<A_CHUNKS>(a_row + (i + j) * STEP, a_chunk), chunk[j].x, chunk[j].y, chunk[j].z, chunk[j].w);
        }
        depth_in += BK;
        advance(at_in, step.c, step.x, step.y, step.z);
    };
#else
    const Nothing change_a;
#endif
    LoadB<16> load_b(w + static_cast<long long>(group) * group_out * w_row, w_row, n0, group_out, k_begin, k_end);

    SUM_T sum[MI][NI][4];
    const int length = max(0, k_end - k_begin);
    pdl_prefetch_constants(args, channels);
    multiply_tile(shared_address(memory), (length + BK - 1) / BK, load_a, load_b, sum, change_a);

#ifdef PARTIAL
    partial += static_cast<long long>(blockIdx.y) * all_pixels * channels;
#endif
#ifdef OUT_PLANES
    const Target to{out, partial, place, pixels, group_out, group * group_out, channels, plane};
#else
    const Target to{out, partial, place, pixels, group_out, group * group_out, channels};
#endif
    store_tile(reinterpret_cast<SUM_T*>(memory), to, args, sum, row0, n0);
}
