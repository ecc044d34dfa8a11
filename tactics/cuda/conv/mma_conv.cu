// Tensor-core convolution as an implicit GEMM with mma.sync, channels last, fp16 / bf16 / tf32 in, fp32 accumulation.
#include "mma_tile.cuh"

// Computes BM output pixels x BN output channels of one group per block; nothing is unfolded in memory: each stage gathers
// its slice of the window with predicated cp.async.
//   x: [batch][in_z][in_y][in_x][in_channels]; w: [channels][w_row] with columns (tap z, y, x, channel of the group), rows
//   padded with zeros to w_row, a multiple of 16 bytes; out: [pixels][channels], pixels = batch * out_z * out_y * out_x.
//   Grid: x = tiles of pixels * tiles of a group's channels, y = splits of the depth (k_split each, a multiple of BK),
//   z = groups; block: 32 * warps. VEC_A: bytes that divide a group's channels and in_channels (16, 8, 4, or 2).
//   CLUSTER_K and PARTIAL as in mma_gemm.cu (PARTIAL: one group per launch of the reduction covers all channels).
//   A row keeps one offset and one mask with a bit per tap coordinate that lies inside the image, so taps_z + taps_y +
//   taps_x <= 32. Offsets are 32-bit: fewer than 2^31 elements of x.
// Source: implicit-precomputed GEMM is described in Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014.
extern "C" __global__ void __launch_bounds__(THREADS)
#if CLUSTER_K > 1 && SM_ARCH >= 900
    __cluster_dims__(1, CLUSTER_K, 1)
#endif
        mma_conv(const IN_T* __restrict__ x, const IN_T* __restrict__ w, OUT_T* __restrict__ out, float* __restrict__ partial, int pixels,
                 int in_z, int in_y, int in_x, int in_channels, int out_z, int out_y, int out_x, int channels, int group_in,
                 int group_out, int w_row, int taps_z, int taps_y, int taps_x, int stride_z, int stride_y, int stride_x, int pad_z,
                 int pad_y, int pad_x, int dilation_z, int dilation_y, int dilation_x, int k_split, EpilogueArgs args) {
    extern __shared__ __align__(128) char memory[];
    const int tiles_m = (pixels + BM - 1) / BM, tiles_n = (group_out + BN - 1) / BN;
    int tile_m, tile_n;
    tile_of(blockIdx.x, tiles_m, tiles_n, tile_m, tile_n);
    const int row0 = tile_m * BM, n0 = tile_n * BN, group = blockIdx.z;
    const int k = taps_z * taps_y * taps_x * group_in;
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
        for (int piece = 0; piece < PIECES; piece += VEC_A == 2 ? 2 : 1) {
            bool there[2];
            int offset[2];
            unsigned needed[2];
#pragma unroll
            for (int p = 0; p < (VEC_A == 2 ? 2 : 1); ++p) {
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
                const bool valid = there[0] && (inside[i] & needed[0]) == needed[0];
                if constexpr (VEC_A >= 4) {
                    copy_async<VEC_A>(place, x + (base[i] + offset[0]), valid);
                } else {
                    const unsigned short* bits = reinterpret_cast<const unsigned short*>(x);
                    const unsigned low = valid ? bits[base[i] + offset[0]] : 0;
                    const bool second = there[1] && (inside[i] & needed[1]) == needed[1];
                    const unsigned high = second ? bits[base[i] + offset[1]] : 0;
                    store_shared_4(place, low | high << 16);
                }
            }
        }
        depth += BK;
        advance(at, step.c, step.x, step.y, step.z);
    };
    LoadB<16> load_b(w + static_cast<long long>(group) * group_out * w_row, w_row, n0, group_out, k_begin, k_end);

    float sum[MI][NI][4];
    const int length = max(0, k_end - k_begin);
    multiply_tile(shared_address(memory), (length + BK - 1) / BK, load_a, load_b, sum);

#ifdef PARTIAL
    partial += static_cast<long long>(blockIdx.y) * pixels * channels;
#endif
    const Target to{out, partial, 0, pixels, group_out, group * group_out, channels};
    store_tile(reinterpret_cast<float*>(memory), to, args, sum, row0, n0);
}
