// A depthwise and a pointwise convolution in one kernel, both on tensor cores (mma.sync); fp16 / bf16 with fp32 sums, int8 or uint8 with int32 sums.
#define ROW_MAP
#define ROW_HOLES
struct RowMap {  // from a row of the block's tile to the pixel of the output; -1 where the tile hangs over the image
    int first, left_y, left_x, out_x;
    __device__ __forceinline__ long long operator()(long long row) const {
        const int y = static_cast<int>(row) / TILE_X, x = static_cast<int>(row) % TILE_X;
        return y < TILE_Y && y < left_y && x < left_x ? first + y * out_x + x : -1;
    }
};
#include "mma_tile.cuh"
#include "separable.cuh"

constexpr int HALO_Y = (TILE_Y - 1) * STRIDE_Y + (TAPS_Y - 1) * DILATION_Y + 1, HALO_X = (TILE_X - 1) * STRIDE_X + (TAPS_X - 1) * DILATION_X + 1;
constexpr int HALO = HALO_Y * HALO_X;
constexpr int PIXEL = BK * ELEMENT + 16;  // bytes between pixels in shared memory: eight neighbours fall into different banks
constexpr int TAPS = TAPS_Y * TAPS_X;
constexpr int JOINED = ELEMENT == 1 ? 2 : 1;  // taps of one mma: 32 bytes are 16 channels of each
constexpr int TAP_STEPS = (TAPS + JOINED - 1) / JOINED;
constexpr int GROUPS = BK / 16;               // of 16 channels
constexpr int FILTER_BYTES = TAP_STEPS * JOINED * 16 * ELEMENT;  // of one group
constexpr int HALO_BYTES = (HALO * PIXEL + 127) / 128 * 128, B_BYTES = BN * BK * ELEMENT;
constexpr int OWN_STAGE = (HALO_BYTES + B_BYTES + GROUPS * FILTER_BYTES + 127) / 128 * 128;
constexpr int UNITS = BM / 16 * GROUPS / WARPS;  // pieces of 16 pixels x 16 channels that a warp computes in each stage
static_assert(sizeof(X_T) == ELEMENT && WARPS_K == 1, "one size of elements");
static_assert(WARPS % GROUPS == 0 && BM / 16 % (WARPS / GROUPS) == 0, "a warp computes one group of channels, for as many pixels as others");
static_assert(TILE_Y * TILE_X <= BM, "a row for each pixel");

// Four elements as they lie in memory.
struct alignas(4 * ELEMENT) Four {
    unsigned word[ELEMENT];

    __device__ __forceinline__ void set(const fx::Vec<IN_T, 4>& from) {
        if constexpr (ELEMENT == 1)
            word[0] = static_cast<unsigned char>(from.value[0]) | static_cast<unsigned char>(from.value[1]) << 8 |
                      static_cast<unsigned char>(from.value[2]) << 16 | static_cast<unsigned>(static_cast<unsigned char>(from.value[3])) << 24;
        else
            memcpy(word, &from, sizeof word);
    }
};

// Integer sums begin with the bits of 1.5 * 2^23, beside which the last bits of a float count ones: then they need no conversion.
constexpr int FIRST_SUM = fx::Same<SUM_T, int>::value ? 0x4b400000 : 0;
__device__ __forceinline__ float real_sum(int sum) { return __int_as_float(sum) - 12582912.0f; }
__device__ __forceinline__ float real_sum(float sum) { return sum; }

__device__ __forceinline__ constexpr int tap_place(int tap) {
    return tap >= TAPS ? 0 : (tap / TAPS_X * DILATION_Y * HALO_X + tap % TAPS_X * DILATION_X) * PIXEL;
}

// One block: TILE_Y x TILE_X output pixels of one image x BN output channels. It walks the channels BK at a time: their pixels, with the halo that
// windows reach into, come to shared memory; 16 pixels x 16 channels of depthwise results are mma with the filters on the diagonal of the right
// operand, one tap after the other (two at a time for 8 bits); they pass their epilogue and wait in shared memory as the left operand of the
// pointwise product. Most of the diagonal mma multiplies zeros, and still it costs fewer instructions than the products one by one.
// The columns of the right operand are the channels in an order that leaves four neighbours in each lane.
//   x: [batch][in_y][in_x] pixels x_row elements apart, VEC_X bytes of alignment; filters: [channels / 16][taps, padded to JOINED][16], zeros to a
//   multiple of BK channels; w: [out_channels][w_row], rows padded with zeros to 16 bytes; out: [pixels][out_channels].
//   Grid: x = images * tiles of pixels * tiles of output channels, y = CLUSTER_K, which share the channels (k_split each, a multiple of BK).
//   CLUSTER_K as in mma_gemm.cu. A value that is not finite spoils the other 15 channels of its pixel, too. Fewer than 2^31 elements of x.
// VEC_D: channels that one inner epilogue takes (4, or 1 where 4 does not divide their number).
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
#if CLUSTER_K > 1 && SM_ARCH >= 900
    __cluster_dims__(1, CLUSTER_K, 1)
#endif
        separable_mma(const X_T* __restrict__ x, const IN_T* __restrict__ filters, const IN_T* __restrict__ w, OUT_T* __restrict__ out, int in_y,
                      int in_x, int x_row, int out_y, int out_x, int pad_y, int pad_x, int channels, int out_channels, int w_row, int k_split,
                      InnerArgs inner_args, EpilogueArgs args) {
    extern __shared__ __align__(128) char memory[];
    const int tiles_n = (out_channels + BN - 1) / BN, tiles_x = (out_x + TILE_X - 1) / TILE_X, tiles_y = (out_y + TILE_Y - 1) / TILE_Y;
    const int tile = blockIdx.x / tiles_n, n0 = (blockIdx.x - tile * tiles_n) * BN;
    const int line = tile / tiles_x, image = line / tiles_y;
    const int y0 = (line - image * tiles_y) * TILE_Y, x0 = (tile - line * tiles_x) * TILE_X;
    const RowMap place{(image * out_y + y0) * out_x + x0, out_y - y0, out_x - x0, out_x};
    const int k_begin = blockIdx.y * k_split, k_end = min(channels, k_begin + k_split);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    // --- copies: pixels of the halo, filters, weights
    constexpr int STEP = THREADS / A_CHUNKS, LOADS = (HALO + STEP - 1) / STEP;
    const int chunk = threadIdx.x % A_CHUNKS;
    int from[LOADS];  // a pixel's first element of this thread's chunk, or -1 outside of the image
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        const int pixel = threadIdx.x / A_CHUNKS + i * STEP;
        const int iy = y0 * STRIDE_Y - pad_y + pixel / HALO_X, ix = x0 * STRIDE_X - pad_x + pixel % HALO_X;
        const bool inside = iy >= 0 && iy < in_y && ix >= 0 && ix < in_x;
        from[i] = inside ? ((image * in_y + iy) * in_x + ix) * x_row : -1;
    }
    int depth = k_begin + chunk * PER_CHUNK;
    auto load_x = [&](unsigned target) {
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const int pixel = threadIdx.x / A_CHUNKS + i * STEP;
            if (HALO % STEP != 0 && pixel >= HALO) break;
            copy_chunk<VEC_X>(target + pixel * PIXEL + chunk * 16, x + (from[i] < 0 ? 0 : from[i] + depth), from[i] < 0 ? 0 : k_end - depth);
        }
        depth += BK;
    };
    const char* filter = reinterpret_cast<const char*>(filters) + static_cast<long long>(k_begin / 16) * FILTER_BYTES;
    LoadB<16> load_b(w, w_row, n0, out_channels, k_begin, k_end);
    auto load_constants = [&](unsigned target) {
        load_b(target + HALO_BYTES);
#pragma unroll
        for (int first = 0; first < GROUPS * FILTER_BYTES; first += THREADS * 16) {
            const int at = first + threadIdx.x * 16;
            if (first + THREADS * 16 <= GROUPS * FILTER_BYTES || at < GROUPS * FILTER_BYTES) copy_async<16>(target + HALO_BYTES + B_BYTES + at, filter + at, true);
        }
        filter += GROUPS * FILTER_BYTES;
    };

    // --- the depthwise results of one stage
    const int group = warp % GROUPS;
    int corner[UNITS];  // where this lane's pixel's window starts in shared memory
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        const int row = (warp / GROUPS + u * (WARPS / GROUPS)) * 16 + lane % 16, pixel = row < TILE_Y * TILE_X ? row : 0;
        corner[u] = (pixel / TILE_X * STRIDE_Y * HALO_X + pixel % TILE_X * STRIDE_X) * PIXEL + group * 16 * ELEMENT + (JOINED == 1 ? lane / 16 * 16 : 0);
    }
    // The lane holds rows lane % 4 .. of column lane / 4 of the right operand: what of a word of filters lies on the diagonal.
    unsigned mask[2][2];
#pragma unroll
    for (int tile_n = 0; tile_n < 2; ++tile_n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int channel = lane / 8 * 4 + tile_n * 2 + lane / 4 % 2;
            if (JOINED == 2) mask[tile_n][half] = channel / 4 == lane % 4 ? 0xffu << channel % 4 * 8 : 0u;
            else mask[tile_n][half] = channel / 2 == half * 4 + lane % 4 ? 0xffffu << channel % 2 * 16 : 0u;
        }
    auto depthwise = [&](unsigned pixels, const char* stage_filters, int k) {
        SUM_T sum[UNITS][2][4];
#pragma unroll
        for (int u = 0; u < UNITS; ++u)
#pragma unroll
            for (int r = 0; r < 8; ++r) sum[u][r / 4][r % 4] = SUM_T(FIRST_SUM);
        const char* words = stage_filters + group * FILTER_BYTES + lane % 4 * 4;
        if (k + group * 16 < channels)  // the last stage may have fewer
#pragma unroll
        for (int step = 0; step < TAP_STEPS; ++step) {
            unsigned word[2];  // of two taps, or of the two halves of one
#pragma unroll
            for (int half = 0; half < 2; ++half) word[half] = *reinterpret_cast<const unsigned*>(words + (step * 2 + half) * 16);
            const int shift = JOINED == 2 && lane >= 16 ? tap_place(step * JOINED + 1) : tap_place(step * JOINED);
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                unsigned a[4];
                ldmatrix_x4(a, pixels + corner[u] + shift);
#pragma unroll
                for (int tile_n = 0; tile_n < 2; ++tile_n) mma_16x8<X_T>(sum[u][tile_n], a, word[0] & mask[tile_n][0], word[1] & mask[tile_n][1]);
            }
        }
        const int n = group * 16 + lane % 4 * 4;  // of the stage's channels
        Four result[UNITS][2] = {};               // all before the first store, so that operands by channel are read once
        auto each = [&](auto&& what) {
#pragma unroll
            for (int u = 0; u < UNITS; ++u)
#pragma unroll
                for (int half = 0; half < 2; ++half) what(u, half, (warp / GROUPS + u * (WARPS / GROUPS)) * 16 + lane / 4 + half * 8);
        };
        if (k + n < channels)
            each([&](int u, int half, int row) {
                const long long there = place(row), m = there < 0 ? place.first : there;
                const float four[4] = {real_sum(sum[u][0][half * 2]), real_sum(sum[u][0][half * 2 + 1]), real_sum(sum[u][1][half * 2]),
                                       real_sum(sum[u][1][half * 2 + 1])};
                fx::Vec<IN_T, 4> done{};
                if constexpr (VEC_D == 4) {
                    finish_depthwise(four, done, inner_args, m, k + n, channels);
                } else {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const float one[1] = {four[e]};
                        fx::Vec<IN_T, 1> single{};
                        if (k + n + e < channels) finish_depthwise(one, single, inner_args, m, k + n + e, channels);
                        done.value[e] = single.value[0];
                    }
                }
                result[u][half].set(done);
            });
        const int byte = n * ELEMENT;
        each([&](int u, int half, int row) {
            *reinterpret_cast<Four*>(memory + swizzled<A_CHUNKS>(row, byte / 16) + byte % 16) = result[u][half];
        });
    };

    // --- the pipeline: as multiply_tile, with the depthwise results between the copies and the product
    SUM_T sum[MI][NI][4];
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NI; ++j)
#pragma unroll
            for (int r = 0; r < 4; ++r) sum[i][j][r] = SUM_T(0);
    const int blocks = max(0, k_end - k_begin + BK - 1) / BK;
    char* const stages = memory + A_BYTES;
    const unsigned a = shared_address(memory), first_stage = a + A_BYTES;
    pdl_prefetch_constants(args, out_channels);
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s)
        if (s < blocks) load_constants(first_stage + s * OWN_STAGE);
    pdl_start();
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < blocks) load_x(first_stage + s * OWN_STAGE);
        copy_async_commit();
    }
    int read = 0, write = STAGES - 1;
    for (int block = 0; block < blocks; ++block) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();  // this stage has come; nobody reads the one before any more, nor its depthwise results
        if (block + STAGES - 1 < blocks) {
            load_constants(first_stage + write * OWN_STAGE);
            load_x(first_stage + write * OWN_STAGE);
        }
        copy_async_commit();
        depthwise(first_stage + read * OWN_STAGE, stages + read * OWN_STAGE + HALO_BYTES + B_BYTES, k_begin + block * BK);
        __syncthreads();
        multiply_stage(a, first_stage + read * OWN_STAGE + HALO_BYTES, sum);
        read = read + 1 == STAGES ? 0 : read + 1;
        write = write + 1 == STAGES ? 0 : write + 1;
    }
    copy_async_wait<0>();
    __syncthreads();
    const Target to{out, nullptr, place, BM, out_channels, 0, out_channels};
    store_tile(reinterpret_cast<SUM_T*>(memory), to, args, sum, 0, n0);
}
