// Tensor-core matrix product with mma.sync: out[b] = epilogue(A[b] * B[b]), fp16 / bf16 / tf32 / fp8 in, fp32 sums; int8 or uint8 (A) in, int32 sums.
#include "mma_tile.cuh"

// Computes a BM x BN tile of out[batch][m][n] per block, in BK-deep stages through a cp.async pipeline of STAGES.
//   A: [m][k], row length lda. B: [n][k] (default) or [k][n] (B_KN=1), row length ldb. out: dense [batch][m][n].
//   Batch z of the grid is (z / batch_inner, z % batch_inner); the strides of A and B are in elements, 0 broadcasts.
//   Grid: x = tiles_m * tiles_n * batch, y = splits of k (each k_split deep, a multiple of BK); block: 32 * warps.
//   VEC_A, VEC_B: alignment in bytes of every row start and length of A and B (16, 8, 4; 2 for 2-byte elements; 1). 8 bits: B is [n][k].
//   With CLUSTER_K > 1 the y blocks form a cluster and add their tiles through distributed shared memory; with PARTIAL
//   they write fp32 tiles to `partial` ([split][batch][m][n]) for splitk_reduce. With HAS_PROLOGUE every thread applies a function to what
//   it copied of A (prologue.cuh) before the block multiplies it.
// Limits: m, n, k < 2^31, batch * tiles < 2^31; sm_75 (fp16 and int8 only), sm_80+; CLUSTER_K needs sm_90+.
// Source: PTX ISA, mma.m16n8k16 / m16n8k8; the pipeline is the usual multistage cp.async loop (CUDA C++ Programming Guide,
// "Asynchronous data copies").
extern "C" __global__ void __launch_bounds__(THREADS)
#if CLUSTER_K > 1 && SM_ARCH >= 900
    __cluster_dims__(1, CLUSTER_K, 1)
#endif
        mma_gemm(const IN_T* __restrict__ a, const IN_T* __restrict__ b, OUT_T* __restrict__ out, SUM_T* __restrict__ partial, int m,
                 int n, int k, int lda, int ldb, int batch_inner, long long a_outer, long long a_inner, long long b_outer,
                 long long b_inner, int k_split, EpilogueArgs args PROLOGUE_PARAMETER) {
    extern __shared__ __align__(128) char memory[];
    const int tiles_m = (m + BM - 1) / BM, tiles_n = (n + BN - 1) / BN;
    const int batch = blockIdx.x / (tiles_m * tiles_n);
    int tile_m, tile_n;
    tile_of(blockIdx.x - batch * tiles_m * tiles_n, tiles_m, tiles_n, tile_m, tile_n);
    const int row0 = tile_m * BM, n0 = tile_n * BN;
    const int k_begin = blockIdx.y * k_split, k_end = min(k, k_begin + k_split);
    const long long a_offset = batch / batch_inner * a_outer + batch % batch_inner * a_inner;
    a += a_offset;
    b += batch / batch_inner * b_outer + batch % batch_inner * b_inner;

    constexpr int STEP = THREADS / A_CHUNKS, LOADS = (BM + STEP - 1) / STEP;
    const int a_row = threadIdx.x / A_CHUNKS, a_chunk = threadIdx.x % A_CHUNKS;
    const IN_T* source = a + static_cast<long long>(row0 + a_row) * lda + k_begin + a_chunk * PER_CHUNK;
    int a_left = k_end - k_begin - a_chunk * PER_CHUNK;
    auto load_a = [&](unsigned target) {
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const int r = a_row + i * STEP;
            if (BM % STEP != 0 && r >= BM) break;
            copy_chunk<VEC_A>(target + swizzled<A_CHUNKS>(r, a_chunk), source + static_cast<long long>(i * STEP) * lda,
                              row0 + r < m ? a_left : 0);
        }
        source += BK;
        a_left -= BK;
    };
#ifdef HAS_PROLOGUE
    prefetch_prologue(before_args, k_begin, k_end - k_begin);
    const long long first_row = a_offset / lda + row0;
    int depth_in = k_begin + a_chunk * PER_CHUNK;
    auto change_a = [&](unsigned stage) {
        constexpr int PIECE = VEC_A < ELEMENT ? 1 : VEC_A / ELEMENT, TOGETHER = LOADS < 4 ? LOADS : 4;
#pragma unroll
        for (int i = 0; i < LOADS; i += TOGETHER) {
            uint4 chunk[TOGETHER];
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j)  // all loads first: operands that the rows share are then read once
                if (a_row + (i + j) * STEP < BM) chunk[j] = load_shared_16(stage + swizzled<A_CHUNKS>(a_row + (i + j) * STEP, a_chunk));
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j) {
                const int r = a_row + (i + j) * STEP;
                if (r < BM && row0 + r < m) prologue_chunk<IN_T, PIECE>(chunk[j], before_args, first_row + r, depth_in, k_end - depth_in, k);
            }
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j)
                if (a_row + (i + j) * STEP < BM)
                    store_shared_16(stage + swizzled<A_CHUNKS>(a_row + (i + j) * STEP, a_chunk), chunk[j].x, chunk[j].y, chunk[j].z, chunk[j].w);
        }
        depth_in += BK;
    };
#else
    const Nothing change_a;
#endif
    LoadB<VEC_B> load_b(b, ldb, n0, n, k_begin, k_end);

    SUM_T sum[MI][NI][4];
    const int depth = max(0, k_end - k_begin);
    pdl_prefetch_constants(args, n);
    multiply_tile(shared_address(memory), (depth + BK - 1) / BK, load_a, load_b, sum, change_a);

#ifdef PARTIAL
    const int batches = gridDim.x / (tiles_m * tiles_n);
    partial += static_cast<long long>(blockIdx.y) * batches * m * n;
#endif
    const Target to{out, partial, {static_cast<long long>(batch) * m}, m, n, 0, n};
    store_tile(reinterpret_cast<SUM_T*>(memory), to, args, sum, row0, n0);
}
