// Attention of few queries over many keys, as in generation, with the copy engine: out = softmax(scale * q k^T + mask) v, fp16 or bf16.
//
// A block has 16 rows, the queries of all heads that share keys (row g * s_q + s is query s of the g-th), and a share of the keys; each of its
// warps takes every WARPS-th step of KEYS of them, on its own: its first lane asks for keys and values through TMA, STAGES steps ahead, and asks for a place's
// next keys as soon as the warp has multiplied those before. Nothing but that is between memory and the tensor cores, no address arithmetic
// and no barrier of the block. At the end warps add up what they found, and attention_combine.cu joins the `splits` blocks of the same rows.
//
// Defines: IN_T (half or __nv_bfloat16), OUT_T, those of an epilogue (sums.cuh), HEAD (a multiple of 64, at most 128), WARPS, KEYS (a multiple of 16) of a step, STAGES, BLOCKS (of a multiprocessor),
// CAUSAL (1 keeps key t <= s + s_k - s_q), WINDOW (w keeps t > s + s_k - s_q - w; 0 all), SPLIT (1: `partial` gets what attention_combine joins,
// of `splits` blocks), PDL; MASK (0 none; 1 additive of type MASK_T; 2 boolean bytes, true keeps), strides in elements, 0 broadcasts; MASK_PAIRS = 1: keys
// are contiguous, and their number and all other strides even.
// Arguments: k, v are 4-D tiled maps (head dimension, position, head, batch), box 64 x KEYS, swizzle 128 bytes; q and `out` have any strides of batch, head and position
// (elements, even), their head dimension of d <= HEAD contiguous. scale_log2 > 0 is the scale times log2(e). Rows without any key give zeros.
// Grid: x = splits for each sixteen rows, y = key heads, z = batch; block 32 * WARPS; dynamic shared memory SHARED_BYTES.
// Source: Dao et al., "Flash-Decoding", 2023; Milakov and Gimelshein, 2018 (online softmax).
#include "attention_mask.cuh"
#include "mma.cuh"
#include "tma.cuh"

#ifndef WINDOW
#define WINDOW 0
#endif
#ifndef SPLIT
#define SPLIT 0
#endif

struct Strides {  // of batch, head and position, in elements
    long long b, h, s;
};

constexpr int ROWS = 16, PITCH = HEAD + 8;  // of a warp's results in shared memory: eight rows lie in different banks
constexpr int TILE_BYTES = KEYS * HEAD * 2, STAGE_BYTES = 2 * TILE_BYTES, RING_BYTES = STAGES * STAGE_BYTES;
constexpr int BARRIERS = WARPS * RING_BYTES, STATISTICS = BARRIERS + WARPS * STAGES * 16, SHARED_BYTES = STATISTICS + WARPS * ROWS * 8;
static_assert(HEAD % 64 == 0 && HEAD <= 128 && KEYS % 16 == 0 && ROWS * PITCH * 4 <= RING_BYTES && SHARED_BYTES <= 227 * 1024, "tiles that fit");

__device__ __forceinline__ unsigned pack_pair(__half, float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ __forceinline__ unsigned pack_pair(__nv_bfloat16, float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}

// Where 16-byte chunk `chunk` of row `row` of a tile lies, as TMA puts it: panels of 64 columns, chunks of a row exchanged by its last three bits.
__device__ __forceinline__ unsigned placed(int row, int chunk) { return chunk / 8 * KEYS * 128 + row * 128 + (chunk % 8 ^ row % 8) * 16; }

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    attention_decode_sm90(const IN_T* __restrict__ q, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
                          const Masked* __restrict__ mask, OUT_T* __restrict__ out, int heads_per_kv, int s_q, int s_k, int d, const Strides q_stride,
                          const Strides out_stride, const Strides mask_stride, int mask_k, float scale_log2, float* __restrict__ partial, int splits) {
    extern __shared__ __align__(1024) char memory[];
    const int lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    const unsigned ring = shared_address(memory) + warp * RING_BYTES, full = shared_address(memory) + BARRIERS + warp * STAGES * 16;
    const int part = SPLIT ? blockIdx.x % splits : 0, row0 = (SPLIT ? blockIdx.x / splits : blockIdx.x) * ROWS, kv_head = blockIdx.y, batch = blockIdx.z;
    const int rows = min(ROWS, heads_per_kv * s_q - row0), reach = s_k - s_q;  // causal: key t is visible from query s when t <= s + reach
    auto query = [&](int row) { return (row0 + row) % s_q; };
    auto place = [&](const Strides& stride, int row) {
        return batch * stride.b + (kv_head * heads_per_kv + (row0 + row) / s_q) * stride.h + (row0 + row) % s_q * stride.s;
    };
    int begin = WINDOW ? max(0, reach - WINDOW + 1) / KEYS : 0, end = max((s_k + KEYS - 1) / KEYS, begin);  // steps of this block
    if (SPLIT) {
        const int share = (end - begin + splits - 1) / splits;
        begin = min(begin + part * share, end);
        end = min(begin + share, end);
    }

    if (lane == 0) {
        for (int i = 0; i < 2 * STAGES; ++i) barrier_init(full + 8 * i, 1);
        barrier_init_fence();
        tensormap_prefetch(&k_map), tensormap_prefetch(&v_map);
    }
    auto load = [&](const TensorMap& map, int step, int stage, int which) {  // which: 0 keys, 1 values
        barrier_expect(full + 16 * stage + 8 * which, TILE_BYTES);
        for (int i = 0; i < HEAD / 64; ++i)
            tma_load(ring + stage * STAGE_BYTES + which * TILE_BYTES + i * KEYS * 128, &map, full + 16 * stage + 8 * which, i * 64, step * KEYS, kv_head, batch);
    };
    __syncwarp();
    pdl_start();
    if (lane == 0)
        for (int i = 0, step = begin + warp; i < STAGES && step < end; ++i, step += WARPS) load(k_map, step, i, 0), load(v_map, step, i, 1);

    unsigned queries[HEAD / 16][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = lane / 4 + 8 * h;
        const IN_T* const from = q + (row < rows ? place(q_stride, row) : 0);
#pragma unroll
        for (int i = 0; i < HEAD / 8; ++i) {
            const int column = 8 * i + lane % 4 * 2;
            queries[i / 2][h + i % 2 * 2] = row < rows && column < d ? *reinterpret_cast<const unsigned*>(from + column) : 0u;
        }
    }
    float result[HEAD / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};

#if MASK  // a step's mask is asked for while the step before is multiplied
    MaskPair masked[KEYS / 8][2];
    auto fetch_mask = [&](int step) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = lane / 4 + 8 * h, key = step * KEYS + 8 * j + lane % 4 * 2;
                const bool there = row < rows && step < end;
                masked[j][h] = mask_load(mask + (there ? place(mask_stride, row) : 0) + static_cast<long long>(key) * mask_k, mask_k, there && key < s_k, there && key + 1 < s_k);
            }
    };
    fetch_mask(begin + warp);
#endif

    int stage = 0;
    unsigned parity = 0;
    for (int step = begin + warp; step < end; step += WARPS) {
        const unsigned keys = ring + stage * STAGE_BYTES, values = keys + TILE_BYTES, barrier = full + 16 * stage;
        const bool more = lane == 0 && step + WARPS * STAGES < end;
        float score[KEYS / 8][4] = {};
#if MASK
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float2 start = mask_start(masked[j][h], 1.4426950408889634f / scale_log2);
                score[j][2 * h] = start.x, score[j][2 * h + 1] = start.y;
            }
        fetch_mask(step + WARPS);
#endif
        barrier_wait(barrier, parity);
#pragma unroll
        for (int i = 0; i < HEAD / 16; ++i)
#pragma unroll
            for (int j = 0; j < KEYS / 16; ++j) {
                unsigned b[4];
                ldmatrix_x4(b, keys + placed(j * 16 + lane % 8 + lane / 16 * 8, i * 2 + lane / 8 % 2));
                mma_16x8<IN_T>(score[2 * j], queries[i], b[0], b[1]);
                mma_16x8<IN_T>(score[2 * j + 1], queries[i], b[2], b[3]);
            }
        __syncwarp();
        if (more) load(k_map, step + WARPS * STAGES, stage, 0);

        const bool edge = (step + 1) * KEYS > s_k || (CAUSAL && (step + 1) * KEYS > reach + 1) || (WINDOW && step * KEYS <= s_k - 1 - WINDOW);
        float shrink[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int last = query(lane / 4 + 8 * h) + reach;  // causal: the last key that this row sees
            float peak = top[h], sum = 0.0f;
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& value = score[j][h * 2 + e];
                    const int key = step * KEYS + j * 8 + lane % 4 * 2 + e;
                    value *= scale_log2;
                    if (edge && (key >= s_k || (CAUSAL && key > last) || (WINDOW && key <= last - WINDOW))) value = -INFINITY;
                    peak = fmaxf(peak, value);
                }
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
            const float base = peak == -INFINITY ? 0.0f : peak;
            shrink[h] = exp2_fast(top[h] - base);
            top[h] = peak;
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& value = score[j][h * 2 + e];
                    value = exp2_fast(value - base);
                    sum += value;
                }
            total[h] = total[h] * shrink[h] + sum;
        }
        if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
            for (int j = 0; j < HEAD / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) result[j][e] *= shrink[e / 2];
        }

        barrier_wait(barrier + 8, parity);
#pragma unroll
        for (int i = 0; i < KEYS / 16; ++i) {
            unsigned weights[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) weights[r] = pack_pair(IN_T(), score[2 * i + r / 2][r % 2 * 2], score[2 * i + r / 2][r % 2 * 2 + 1]);
#pragma unroll
            for (int j = 0; j < HEAD / 16; ++j) {
                unsigned b[4];
                ldmatrix_x4_transposed(b, values + placed(i * 16 + lane % 16, j * 2 + lane / 16));
                mma_16x8<IN_T>(result[2 * j], weights, b[0], b[1]);
                mma_16x8<IN_T>(result[2 * j + 1], weights, b[2], b[3]);
            }
        }
        __syncwarp();
        if (more) load(v_map, step + WARPS * STAGES, stage, 1);
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }

    // All that a warp asked for has come, so its ring takes its results.
    float2* const statistics = reinterpret_cast<float2*>(memory + STATISTICS);  // of a warp's rows: the largest score, and the sum against it
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = lane / 4 + 8 * h;
        float sum = total[h] + __shfl_xor_sync(0xffffffffu, total[h], 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (row >= rows) continue;
        float* const mine = reinterpret_cast<float*>(memory + warp * RING_BYTES) + row * PITCH + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < HEAD / 8; ++j) *reinterpret_cast<float2*>(mine + 8 * j) = make_float2(result[j][2 * h], result[j][2 * h + 1]);
        if (lane % 4 == 0) statistics[warp * ROWS + row] = make_float2(top[h], sum);
    }
    __syncthreads();
    for (int index = threadIdx.x; index < rows * HEAD / 2; index += WARPS * 32) {
        const int row = index / (HEAD / 2), column = index % (HEAD / 2) * 2;
        float highest = -INFINITY, all = 0.0f;
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int i = 0; i < WARPS; ++i) highest = fmaxf(highest, statistics[i * ROWS + row].x);
        const float base = highest == -INFINITY ? 0.0f : highest;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) {
            const float2 found = statistics[i * ROWS + row], one = *reinterpret_cast<const float2*>(memory + i * RING_BYTES + (row * PITCH + column) * 4);
            const float weight = exp2_fast(found.x - base);
            all += weight * found.y, sum.x += weight * one.x, sum.y += weight * one.y;
        }
#if SPLIT
        const long long sides = static_cast<long long>(gridDim.z) * gridDim.y, side = static_cast<long long>(batch) * gridDim.y + kv_head;
        const long long at = (side * splits + part) * (heads_per_kv * s_q) + row0 + row;
        *reinterpret_cast<float2*>(partial + at * HEAD + column) = sum;
        if (column == 0) *reinterpret_cast<float2*>(partial + sides * splits * (heads_per_kv * s_q) * HEAD + 2 * at) = make_float2(highest, all);
#else
        const float factor = all > 0.0f ? 1.0f / all : 0.0f;
        const float pair[2] = {sum.x * factor, sum.y * factor};
        if (column < d) store_sums(out + place(out_stride, row) + column, pair, EpilogueArgs(), 0, 0, 0);
#endif
    }
}
