// A few rows times a large weight: memory-bound, so the weight streams through registers once in 16-byte loads.
#include "mma.cuh"
#include "prologue.cuh"

constexpr int CHUNK = 16 / sizeof(IN_T);

// out[m][n] = epilogue(sum_k A[m][k] * B[n][k]) for ROWS = 1..8 rows m.
//   SPLIT warps share the depth of one group of COLUMNS outputs n; a block has WARPS warps, WARPS % SPLIT == 0.
//   A: [ROWS][k], B: [n][k], both dense with k % (16 / sizeof(IN_T)) == 0. Grid: ceil(n / (COLUMNS * WARPS / SPLIT)).
//   UNROLL 16-byte loads of each of the COLUMNS weight rows are in flight per lane. With PDL and B_CONSTANT the first weights
//   are fetched before the previous kernel has ended.
// Limits: any GPU; fp32 accumulation. out's element (m, n) goes through the scalar epilogue.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    gemv(const IN_T* __restrict__ a, const IN_T* __restrict__ b, OUT_T* __restrict__ out, int n, int k,
         EpilogueArgs args PROLOGUE_PARAMETER) {
    __shared__ float part[WARPS][ROWS * COLUMNS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int n0 = (blockIdx.x * (WARPS / SPLIT) + warp / SPLIT) * COLUMNS;
    const int chunks = k / CHUNK;
    float sum[ROWS][COLUMNS] = {};
    Pack<IN_T, CHUNK> weight[UNROLL][COLUMNS];

    auto fetch = [&](int first) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const int chunk = first + u * 32 * SPLIT;
                if (chunk < chunks && n0 + c < n)
                    weight[u][c] = *reinterpret_cast<const Pack<IN_T, CHUNK>*>(b + static_cast<long long>(n0 + c) * k + chunk * CHUNK);
            }
    };
    int first = warp % SPLIT * 32 + lane;
    pdl_prefetch_constants(args, n);
#ifdef B_CONSTANT
    fetch(first);
    pdl_wait();
#else
    pdl_wait();
    fetch(first);
#endif
    pdl_launch_next();
    while (first < chunks) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int chunk = first + u * 32 * SPLIT;
            if (chunk >= chunks) break;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float x[CHUNK];
                load_vector(x, a + static_cast<long long>(r) * k + chunk * CHUNK);
#ifdef HAS_PROLOGUE
                prologue<IN_T>(x, before_args, r, chunk * CHUNK, k);
#endif
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
                    for (int e = 0; e < CHUNK; ++e) sum[r][c] += x[e] * to_float(weight[u][c].value[e]);
            }
        }
        first += UNROLL * 32 * SPLIT;
        fetch(first);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
            for (int step = 16; step > 0; step /= 2) sum[r][c] += __shfl_xor_sync(0xffffffffu, sum[r][c], step);
            if (lane == 0) part[warp][r * COLUMNS + c] = sum[r][c];
        }
    __syncthreads();
    for (int index = threadIdx.x; index < WARPS / SPLIT * ROWS * COLUMNS; index += WARPS * 32) {
        const int group = index / (ROWS * COLUMNS), cell = index % (ROWS * COLUMNS);
        const int row = cell / COLUMNS, column = (blockIdx.x * (WARPS / SPLIT) + group) * COLUMNS + cell % COLUMNS;
        float total[1] = {0.0f};
        for (int s = 0; s < SPLIT; ++s) total[0] += part[group * SPLIT + s][cell];
        if (column < n) {
            store_sums(out + static_cast<long long>(row) * n + column, total, args, row, column, n);
        }
    }
}
