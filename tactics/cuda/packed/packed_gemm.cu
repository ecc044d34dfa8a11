// Tensor-core product with packed weights: out = epilogue(A * W^T), fp16 or bf16 A, W of 4 or 8 bits with scales by block (packed.cuh).
#include "mma_tile.cuh"

// Computes a BM x BN tile of out[m][n] per block, in BK-deep stages; the loop, the splits and the way out are those of mma_tile.cuh.
//   A: [m][k], row length k; VEC_A: alignment in bytes of its rows. weights, scaling: as packed.cuh has them, `columns` (a multiple of 16)
//   columns and ceil(k / 64) groups of the depth. Grid: x = tiles_m * tiles_n, y = splits of k (each k_split deep, a multiple of BK).
// Limits: m, n, k < 2^31; sm_75 (fp16), sm_80+; CLUSTER_K needs sm_90+.
extern "C" __global__ void __launch_bounds__(THREADS)
#if CLUSTER_K > 1 && SM_ARCH >= 900
    __cluster_dims__(1, CLUSTER_K, 1)
#endif
        packed_gemm(const IN_T* __restrict__ a, const uint4* __restrict__ weights, const unsigned* __restrict__ scaling, OUT_T* __restrict__ out,
                    SUM_T* __restrict__ partial, int m, int n, int k, int columns, int k_split, EpilogueArgs args) {
    extern __shared__ __align__(128) char memory[];
    const int tiles_m = (m + BM - 1) / BM, tiles_n = (n + BN - 1) / BN;
    int tile_m, tile_n;
    tile_of(blockIdx.x, tiles_m, tiles_n, tile_m, tile_n);
    const int row0 = tile_m * BM, n0 = tile_n * BN;
    const int k_begin = blockIdx.y * k_split, k_end = min(k, k_begin + k_split);

    constexpr int STEP = THREADS / A_CHUNKS, LOADS = (BM + STEP - 1) / STEP;
    const int a_row = threadIdx.x / A_CHUNKS, a_chunk = threadIdx.x % A_CHUNKS;
    const IN_T* source = a + static_cast<long long>(row0 + a_row) * k + k_begin + a_chunk * PER_CHUNK;
    int a_left = k_end - k_begin - a_chunk * PER_CHUNK;
    auto load_a = [&](unsigned target) {
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const int r = a_row + i * STEP;
            if (BM % STEP != 0 && r >= BM) break;
            copy_chunk<VEC_A>(target + swizzled<A_CHUNKS>(r, a_chunk), source + static_cast<long long>(i * STEP) * k, row0 + r < m ? a_left : 0);
        }
        source += BK;
        a_left -= BK;
    };

    const int groups = (k + 63) / 64, blocks = (k + PACKED_BLOCK - 1) / PACKED_BLOCK;
    int k_at = k_begin;
    auto load_b = [&](unsigned target) {
        constexpr int RUN = PACKED_GROUPS * PACKED_VECTORS * 32, CHUNKS = BN / 16 * RUN;
#pragma unroll
        for (int first = 0; first < CHUNKS; first += THREADS) {
            const int chunk = first + threadIdx.x;
            if (CHUNKS % THREADS != 0 && chunk >= CHUNKS) break;
            const int group_n = n0 / 16 + chunk / RUN, group_k = k_at / 64 + chunk % RUN / (PACKED_VECTORS * 32);
            copy_async<16>(target + chunk * 16,
                           weights + (static_cast<long long>(group_n) * groups + k_at / 64) * (PACKED_VECTORS * 32) + chunk % RUN,
                           group_n * 16 < columns && group_k < groups);
        }
        constexpr int ROW = BN / 4, WORDS = SCALING_ROWS * ROW;  // in chunks of four columns
#pragma unroll
        for (int first = 0; first < WORDS; first += THREADS) {
            const int chunk = first + threadIdx.x;
            if (WORDS % THREADS != 0 && chunk >= WORDS) break;
            const int block = (k_at + chunk / ROW * PACKED_UNIT) / PACKED_BLOCK, column = n0 + chunk % ROW * 4;
            copy_async<16>(target + PACKED_BYTES + chunk * 16, scaling + static_cast<long long>(block) * columns + column,
                           column < columns && block < blocks);
        }
        k_at += BK;
    };

    SUM_T sum[MI][NI][4];
    const int depth = max(0, k_end - k_begin);
    multiply_tile(shared_address(memory), (depth + BK - 1) / BK, load_a, load_b, sum);
#ifdef PARTIAL
    partial += static_cast<long long>(blockIdx.y) * m * n;
#endif
    const Target to{out, partial, {0}, m, n, 0, n};
    store_tile(reinterpret_cast<SUM_T*>(memory), to, args, sum, row0, n0);
}
