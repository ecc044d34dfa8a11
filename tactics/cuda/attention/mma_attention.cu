// Fused attention with tensor cores: out = softmax(scale * q k^T + mask) v, fp16, bf16 or fp32, without a score matrix in memory.
#include "attention_mask.cuh"
#include "mma.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int BLOCK_Q = WARPS * 16 * ROW_TILES;
constexpr int SIZE = sizeof(IN_T);
constexpr int PER = 16 / SIZE;  // elements of a chunk
constexpr int CHUNKS = HEAD / PER;
constexpr int STEPS = HEAD * SIZE / 32;  // of the first product
constexpr int KV_BYTES = BLOCK_KV * HEAD * SIZE;
constexpr int Q_BYTES = BLOCK_Q * HEAD * SIZE;
constexpr bool KEEP_Q = ROW_TILES * HEAD * SIZE <= 256;  // q's fragments stay in registers

#ifndef WINDOW
#define WINDOW 0
#endif
#ifndef F32
#define F32 0
#endif
#ifndef EXACT
#define EXACT 0
#endif
#ifndef GROUPED
#define GROUPED 0
#endif
#ifndef SPLIT
#define SPLIT 0
#endif

#ifndef BUFFERS
#define BUFFERS 2
#endif

struct Strides {  // of batch, head and position, in elements; the head dimension is contiguous
    long long b, h, s;
};

// Of the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

template <typename T>
__device__ __forceinline__ unsigned pack_pair(float low, float high);
template <>
__device__ __forceinline__ unsigned pack_pair<__half>(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}
template <>
__device__ __forceinline__ unsigned pack_pair<__nv_bfloat16>(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}

#ifndef WIDE
// Two neighbouring results as they are stored, of 16 bits or fewer each.
__device__ __forceinline__ unsigned stored_pair(float low, float high) {
#ifdef HAS_EPILOGUE
    const float pair[2] = {low, high};
    fx::Vec<OUT_T, 2> stored;
    store_sums(stored.value, pair, EpilogueArgs(), 0, 0, 0);
    if constexpr (sizeof(stored) == 2) return *reinterpret_cast<const unsigned short*>(&stored);
    else return *reinterpret_cast<const unsigned*>(&stored);
#else
    return pack_pair<OUT_T>(low, high);
#endif
}
#endif

#ifdef SOFTCAP
// c * tanh(s / c) in units of log2(e), of a score in these units. tanh by the exponential: 1 - 2 / (e^2x + 1) is right at both ends.
__device__ __forceinline__ float capped(float score) {
    constexpr float unit = SOFTCAP * 1.4426950408889634f;
    return unit - 2.0f * unit / (exp2_fast(score * (2.0f / SOFTCAP)) + 1.0f);
}
#endif

// d += a b for a step of either product. fp32 is rounded to tf32; EXACT=1 multiplies its two tf32 parts by each other instead, of which
// the smallest product is left out: 21 bits of every factor count. (Markidis et al., "NVIDIA Tensor Core Programmability", 2018.)
__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    if constexpr (SIZE == 2) {
        mma_16x8<IN_T>(d, a, b0, b1);
        return;
    } else {
        auto rest = [](unsigned bits, unsigned high) { return round_to_tf32(__float_as_uint(__uint_as_float(bits) - __uint_as_float(high))); };
        unsigned high[4], low[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) high[r] = round_to_tf32(a[r]), low[r] = EXACT ? rest(a[r], high[r]) : 0u;
        const unsigned high0 = round_to_tf32(b0), high1 = round_to_tf32(b1);
        if (EXACT) {
            mma_16x8<IN_T>(d, low, high0, high1);
            mma_16x8<IN_T>(d, high, rest(b0, high0), rest(b1, high1));
        }
        mma_16x8<IN_T>(d, high, high0, high1);
    }
}

// Copies `BLOCK` rows of a matrix with row stride `stride`, the first at `source`; rows from `rows` on and columns from
// `width` on become zeros.
template <int BLOCK>
__device__ __forceinline__ void load_rows(unsigned target, const IN_T* source, long long stride, int rows, int width) {
#pragma unroll 4
    for (int first = 0; first < BLOCK * CHUNKS; first += THREADS) {
        const int index = first + threadIdx.x;
        if (BLOCK * CHUNKS % THREADS != 0 && index >= BLOCK * CHUNKS) break;
        const int row = index / CHUNKS, chunk = index % CHUNKS;
        copy_chunk<VEC_IN>(target + swizzled<CHUNKS>(row, chunk), source + row * stride + chunk * PER, row < rows ? width - chunk * PER : 0);
    }
}

// Each block computes BLOCK_Q = WARPS * ROW_TILES * 16 query rows of one (batch, head), walking BLOCK_KV keys at a time with
// an online softmax; a warp owns whole rows. K and V come in a ring (cp.async), V behind K.
//   q, k, v, out: any strides of batch, head and position; head dimension contiguous, d and d_v <= HEAD (32, 64, 96, 128 ...,
//   a multiple of 32). VEC_IN: alignment in bytes of every row (16, 8, 4, 2).
//   F32=1: they are fp32. WIDE: they or the results are.
//   heads_per_kv query heads share one key/value head. scale_log2 is the scale times log2(e).
//   SOFTCAP=c (float): c * tanh(score / c) takes the place of a scaled score.
//   MASK: 0 none; 1 additive of type MASK_T; 2 boolean bytes (true keeps); strides in elements, 0 broadcasts. The scores start
//   from it, so its loads are under way before the keys have come; needs scale > 0. With SOFTCAP it is added behind. MASK_ROWS=0: one row serves all queries.
//   MASK_PAIRS=1: neighbouring keys are neighbours in memory, aligned in pairs.
//   CAUSAL=1 keeps key t <= s + s_k - s_q, WINDOW=w key t > s + s_k - s_q - w. Rows without any key give zeros.
//   GROUPED=1: the rows of a block are queries of all heads that share a key head, row g * s_q + s query s of the g-th, so that keys are read
//   once for them; the grid's y counts key heads. SPLIT=1: the grid's x has `splits` blocks for every block of rows, each with a share of the
//   keys, and `partial` gets what attention_combine.cu joins: per (batch, key head, split, row) HEAD sums, then the peaks and totals of all.
//   BUFFERS of keys and of values: one less than that is under way beside the step that is computed. 1: no block has more than one step.
//   Grid: x = ceil(s_q / BLOCK_Q), y = heads, z = batch; block WARPS * 32; dynamic shared memory (BLOCK_Q + 2 * BUFFERS * BLOCK_KV) * HEAD * SIZE.
// Source: Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023; the online
// softmax is Milakov and Gimelshein, 2018. sm_75 (fp16), sm_80+.
extern "C" __global__ void __launch_bounds__(THREADS)
    mma_attention(const IN_T* __restrict__ q, const IN_T* __restrict__ k, const IN_T* __restrict__ v, const void* __restrict__ mask,
                  OUT_T* __restrict__ out, int heads_per_kv, int s_q, int s_k, int d, int d_v, Strides q_stride, Strides k_stride,
                  Strides v_stride, Strides out_stride, Strides mask_stride, int mask_k, float scale_log2, float* __restrict__ partial,
                  int splits) {
    extern __shared__ __align__(128) char memory[];
    const unsigned shared_q = shared_address(memory), shared_k = shared_q + Q_BYTES, shared_v = shared_k + BUFFERS * KV_BYTES;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int part = SPLIT ? blockIdx.x % splits : 0, q0 = (SPLIT ? blockIdx.x / splits : blockIdx.x) * BLOCK_Q, batch = blockIdx.z;
    const int head = GROUPED ? blockIdx.y * heads_per_kv : blockIdx.y, rows = GROUPED ? heads_per_kv * s_q : s_q;
    const int reach = s_k - s_q;  // causal: key t is visible from query s when t <= s + reach
    // The queries of the block's rows, and of row `row`; where a row lies.
    const int low = GROUPED ? 0 : q0, high = GROUPED ? s_q - 1 : q0 + BLOCK_Q - 1;
    auto query = [&](int row) { return GROUPED ? row % s_q : row; };
    auto place = [&](const Strides& stride, int row) { return GROUPED ? row / s_q * stride.h + row % s_q * stride.s : row * stride.s; };
    const int keys = CAUSAL ? max(0, min(s_k, high + 1 + reach)) : s_k;
    int first_tile = WINDOW ? max(0, low + reach - WINDOW + 1) / BLOCK_KV : 0;
    int tiles = max((keys + BLOCK_KV - 1) / BLOCK_KV, first_tile);
    if (SPLIT) {
        const int share = (tiles - first_tile + splits - 1) / splits;
        first_tile = min(first_tile + part * share, tiles);
        tiles = min(first_tile + share, tiles);
    }
    q += batch * q_stride.b + head * q_stride.h;
    k += batch * k_stride.b + head / heads_per_kv * k_stride.h;
    v += batch * v_stride.b + head / heads_per_kv * v_stride.h;
    out += batch * out_stride.b + head * out_stride.h;

    auto load_k = [&](int tile) {
        const int first = tile * BLOCK_KV;
        load_rows<BLOCK_KV>(shared_k + tile % BUFFERS * KV_BYTES, k + first * k_stride.s, k_stride.s, s_k - first, d);
    };
    auto load_v = [&](int tile) {
        const int first = tile * BLOCK_KV;
        load_rows<BLOCK_KV>(shared_v + tile % BUFFERS * KV_BYTES, v + first * v_stride.s, v_stride.s, s_k - first, d_v);
    };
    auto load_step = [&](int tile) {  // a group of copies for the keys and one for the values, empty ones behind the last step
        if (tile < tiles) load_k(tile);
        copy_async_commit();
        if (tile < tiles) load_v(tile);
        copy_async_commit();
    };
    constexpr int AHEAD = BUFFERS == 1 ? 1 : BUFFERS - 1;  // steps asked for before the first is computed
    pdl_start();
    if (GROUPED) {
        for (int index = threadIdx.x; index < BLOCK_Q * CHUNKS; index += THREADS) {
            const int row = index / CHUNKS, chunk = index % CHUNKS;
            copy_chunk<VEC_IN>(shared_q + swizzled<CHUNKS>(row, chunk), q + place(q_stride, min(q0 + row, rows - 1)) + chunk * PER,
                               q0 + row < rows ? d - chunk * PER : 0);
        }
    } else {
        load_rows<BLOCK_Q>(shared_q, q + q0 * q_stride.s, q_stride.s, s_q - q0, d);
    }
#pragma unroll
    for (int step = 0; step < AHEAD; ++step) load_step(first_tile + step);  // the first group holds the queries, too

    float result[ROW_TILES][HEAD / 8][4] = {};
    float top[ROW_TILES][2], total[ROW_TILES][2] = {};
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i) top[i][0] = top[i][1] = -INFINITY;
    unsigned fragment_q[KEEP_Q ? ROW_TILES : 1][KEEP_Q ? STEPS : 1][4];
    const int q_row = warp * ROW_TILES * 16 + lane % 16;
#if MASK
#ifdef SOFTCAP
    const float unscale = 1.4426950408889634f;
#else
    const float unscale = 1.4426950408889634f / scale_log2;
#endif
    const long long mask_base = batch * mask_stride.b + head * mask_stride.h;
    auto mask_pair = [&](int row, int key) {  // what the scores of two neighbouring keys start from
        const long long at = mask_base + place(mask_stride, row) + static_cast<long long>(key) * mask_k;
        return mask_start(mask_load(static_cast<const Masked*>(mask) + at, mask_k, row < rows && key < s_k, row < rows && key + 1 < s_k), unscale);
    };
#endif

    for (int tile = first_tile; tile < tiles; ++tile) {
        float score[ROW_TILES][BLOCK_KV / 8][4] = {};
#if MASK && !defined(SOFTCAP)
#pragma unroll
        for (int j = 0; j < BLOCK_KV / 8; ++j) {
            const int key = tile * BLOCK_KV + j * 8 + lane % 4 * 2;
            const float2 shared_start = mask_pair(MASK_ROWS ? rows : 0, key);
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = q0 + (warp * ROW_TILES + i) * 16 + half * 8 + lane / 4;
                    const float2 start = MASK_ROWS ? mask_pair(row, key) : shared_start;
                    score[i][j][half * 2] = start.x, score[i][j][half * 2 + 1] = start.y;
                }
        }
#endif
        copy_async_wait<2 * AHEAD - 1>();  // this tile's K
        __syncthreads();
        load_step(tile + AHEAD);

        const unsigned tile_k = shared_k + tile % BUFFERS * KV_BYTES, tile_v = shared_v + tile % BUFFERS * KV_BYTES;
        if (KEEP_Q && tile == first_tile) {
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int step = 0; step < STEPS; ++step)
                    ldmatrix_x4(fragment_q[KEEP_Q ? i : 0][KEEP_Q ? step : 0],
                                shared_q + swizzled<CHUNKS>(q_row + i * 16, step * 2 + lane / 16));
        }
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            unsigned now[ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) {
                if constexpr (KEEP_Q) {
#pragma unroll
                    for (int r = 0; r < 4; ++r) now[i][r] = fragment_q[i][step][r];
                } else {
                    ldmatrix_x4(now[i], shared_q + swizzled<CHUNKS>(q_row + i * 16, step * 2 + lane / 16));
                }
            }
#pragma unroll
            for (int j = 0; j < BLOCK_KV / 16; ++j) {
                unsigned b[4];
                ldmatrix_x4(b, tile_k + swizzled<CHUNKS>(j * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) {
                    multiply(score[i][2 * j], now[i], b[0], b[1]);
                    multiply(score[i][2 * j + 1], now[i], b[2], b[3]);
                }
            }
        }

        const bool edge = (tile + 1) * BLOCK_KV > s_k || (CAUSAL && (tile + 1) * BLOCK_KV > low + reach + 1) ||
                          (WINDOW && tile * BLOCK_KV <= high + reach - WINDOW);
#ifdef SOFTCAP
#pragma unroll
        for (int j = 0; j < BLOCK_KV / 8; ++j) {
#if MASK
            const int key = tile * BLOCK_KV + j * 8 + lane % 4 * 2;
            const float2 shared_start = mask_pair(MASK_ROWS ? rows : 0, key);
#endif
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#if MASK
                    const int row = q0 + (warp * ROW_TILES + i) * 16 + half * 8 + lane / 4;
                    const float2 added = MASK_ROWS ? mask_pair(row, key) : shared_start;
#else
                    const float2 added = make_float2(0.0f, 0.0f);
#endif
                    score[i][j][half * 2] = capped(score[i][j][half * 2] * scale_log2) + added.x;
                    score[i][j][half * 2 + 1] = capped(score[i][j][half * 2 + 1] * scale_log2) + added.y;
                }
        }
#endif
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {  // rows lane / 4 and lane / 4 + 8 of this 16-row tile
                const int row = query(q0 + (warp * ROW_TILES + i) * 16 + half * 8 + lane / 4);
                float peak = top[i][half];
#pragma unroll
                for (int j = 0; j < BLOCK_KV / 8; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float& value = score[i][j][half * 2 + e];
                        const int key = tile * BLOCK_KV + j * 8 + lane % 4 * 2 + e;
#ifndef SOFTCAP
                        value *= scale_log2;
#endif
                        if (edge && (key >= s_k || (CAUSAL && key > row + reach) || (WINDOW && key <= row + reach - WINDOW))) value = -INFINITY;
                        peak = fmaxf(peak, value);
                    }
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
                const float base = peak == -INFINITY ? 0.0f : peak;
                const float shrink = exp2_fast(top[i][half] - base);
                top[i][half] = peak;
                float sum = 0.0f;
#pragma unroll
                for (int j = 0; j < BLOCK_KV / 8; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float& value = score[i][j][half * 2 + e];
                        value = exp2_fast(value - base);
                        sum += value;
                    }
                total[i][half] = total[i][half] * shrink + sum;
#pragma unroll
                for (int j = 0; j < HEAD / 8; ++j) result[i][j][half * 2] *= shrink, result[i][j][half * 2 + 1] *= shrink;
            }

        copy_async_wait<2 * AHEAD>();  // this tile's V
        __syncthreads();
#if F32
        // Keys may be summed in any order: the one in which the scores lie, so that weights are fragments as they are.
#pragma unroll
        for (int step = 0; step < BLOCK_KV / 8; ++step) {
            unsigned p[ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int r = 0; r < 4; ++r) p[i][r] = __float_as_uint(score[i][step][r % 2 * 2 + r / 2]);
            const int row = step * 8 + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < HEAD / 8; ++j) {
                const int column = j * 8 + lane / 4;
                const unsigned b0 = load_shared_4(tile_v + swizzled<CHUNKS>(row, column / PER) + column % PER * SIZE);
                const unsigned b1 = load_shared_4(tile_v + swizzled<CHUNKS>(row + 1, column / PER) + column % PER * SIZE);
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) multiply(result[i][j], p[i], b0, b1);
            }
        }
    }
#else
#pragma unroll
        for (int step = 0; step < BLOCK_KV / 16; ++step) {
            unsigned p[ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    p[i][r] = pack_pair<IN_T>(score[i][2 * step + r / 2][r % 2 * 2], score[i][2 * step + r / 2][r % 2 * 2 + 1]);
#pragma unroll
            for (int j = 0; j < HEAD / 16; ++j) {
                unsigned b[4];
                ldmatrix_x4_transposed(b, tile_v + swizzled<CHUNKS>(step * 16 + lane % 16, j * 2 + lane / 16));
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) {
                    multiply(result[i][2 * j], p[i], b[0], b[1]);
                    multiply(result[i][2 * j + 1], p[i], b[2], b[3]);
                }
            }
        }
    }
#endif
    copy_async_wait<0>();
    if (tiles == first_tile) __syncthreads();  // q's own copies are still settling

#if SPLIT
    const long long first_row = ((static_cast<long long>(batch) * gridDim.y + blockIdx.y) * splits + part) * rows;
    float* const statistics = partial + static_cast<long long>(gridDim.z) * gridDim.y * splits * rows * HEAD;
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = quad_sum(total[i][half]);
            const int row = q0 + (warp * ROW_TILES + i) * 16 + half * 8 + lane / 4;
            if (row >= rows) continue;
            float* to = partial + (first_row + row) * HEAD;
#pragma unroll
            for (int j = 0; j < HEAD / 8; ++j)
                *reinterpret_cast<float2*>(to + j * 8 + lane % 4 * 2) = make_float2(result[i][j][half * 2], result[i][j][half * 2 + 1]);
            if (lane % 4 == 0) *reinterpret_cast<float2*>(statistics + 2 * (first_row + row)) = make_float2(top[i][half], sum);
        }
#elif defined(WIDE)  // from registers: quads of lanes store eight neighbours of a row each
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = quad_sum(total[i][half]);
            const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
            const int row = q0 + (warp * ROW_TILES + i) * 16 + half * 8 + lane / 4;
            if (row >= rows) continue;
            OUT_T* to = out + place(out_stride, row);
#pragma unroll
            for (int j = 0; j < HEAD / 8; ++j) {
                const int column = j * 8 + lane % 4 * 2;
                const float pair[2] = {result[i][j][half * 2] * factor, result[i][j][half * 2 + 1] * factor};
                if constexpr (VEC_IN >= 2 * SIZE) {
                    if (column < d_v) store_sums(to + column, pair, EpilogueArgs(), 0, 0, 0);
                } else {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float one[1] = {pair[e]};
                        if (column + e < d_v) store_sums(to + column + e, one, EpilogueArgs(), 0, 0, 0);
                    }
                }
            }
        }
#else
    // Through this warp's rows of q in shared memory, so that a store is eight results; those of 8 bits fill half of their 16 bytes there.
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = quad_sum(total[i][half]);
            const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
            const int row = (warp * ROW_TILES + i) * 16 + half * 8 + lane / 4;
#pragma unroll
            for (int j = 0; j < HEAD / 8; ++j) {
                const unsigned pair = stored_pair(result[i][j][half * 2] * factor, result[i][j][half * 2 + 1] * factor);
                if constexpr (sizeof(OUT_T) == 2) store_shared_4(shared_q + swizzled<CHUNKS>(row, j) + lane % 4 * 4, pair);
                else *reinterpret_cast<unsigned short*>(memory + swizzled<CHUNKS>(row, j) + lane % 4 * 2) = static_cast<unsigned short>(pair);
            }
        }
    __syncwarp();
    for (int index = lane; index < ROW_TILES * 16 * CHUNKS; index += 32) {
        const int row = warp * ROW_TILES * 16 + index / CHUNKS, chunk = index % CHUNKS;
        if (q0 + row >= rows || chunk * 8 >= d_v) continue;
        const char* from = memory + swizzled<CHUNKS>(row, chunk);
        OUT_T* to = out + place(out_stride, q0 + row) + chunk * 8;
        if constexpr (VEC_IN == 16) {
            using Eight = Pack<unsigned, 2 * sizeof(OUT_T)>;
            *reinterpret_cast<Eight*>(to) = *reinterpret_cast<const Eight*>(from);
        } else {
            for (int e = 0; e < 8 && chunk * 8 + e < d_v; ++e) to[e] = reinterpret_cast<const OUT_T*>(from)[e];
        }
    }
#endif
}
