// One to eight rows times packed weights: bound by reading the weights once, at their packed size.
#include "mma.cuh"
#include "packed.cuh"

// out[m][n] = epilogue(sum_k A[m][k] * W[n][k]) for `rows` <= ROWS <= 8 rows m, on tensor cores (the rows of a fragment that are not there are zeros).
//   A block has 16 columns n, its WARPS warps take turns over the groups of 64 of the depth; weights go straight to registers, UNROLL groups
//   in flight. A: [rows][k], k % 8 == 0. weights, scaling: packed.cuh; columns: a multiple of 16. Grid: ceil(n / 16).
// Limits: sm_75 (fp16), sm_80+; fp32 sums.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    packed_gemv(const IN_T* __restrict__ a, const uint4* __restrict__ weights, const unsigned* __restrict__ scaling, OUT_T* __restrict__ out, int rows,
                int n, int k, int columns, EpilogueArgs args) {
    __shared__ float part[WARPS][ROWS * 16];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, quad = lane % 4;
    const int groups = (k + 63) / 64;
    const uint4* mine = weights + static_cast<long long>(blockIdx.x) * groups * (PACKED_VECTORS * 32) + lane;
    const unsigned* scale = scaling + blockIdx.x * 16 + row;  // this lane's columns are those of its fragments of B
    float sum[2][4] = {};
    uint4 held[UNROLL][PACKED_VECTORS] = {};

    auto fetch = [&](int first) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u)
            if (first + u * WARPS < groups)
#pragma unroll
                for (int v = 0; v < PACKED_VECTORS; ++v)
                    held[u][v] = mine[static_cast<long long>(first + u * WARPS) * (PACKED_VECTORS * 32) + v * 32];
    };
    fetch(warp);
    pdl_start();
    for (int first = warp; first < groups; first += WARPS * UNROLL) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int k0 = (first + u * WARPS) * 64;  // beyond the depth rows and scales are zeros: no branch, so that all loads go ahead
            unsigned scales[2] = {};
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                if (step * 16 % PACKED_UNIT == 0 && k0 + step * 16 < k) {
                    const long long block = static_cast<long long>((k0 + step * 16) / PACKED_BLOCK) * columns;
                    scales[0] = scale[block], scales[1] = scale[block + 8];
                }
                unsigned x[4] = {};
                const int at = k0 + step * 16 + quad * 2;
                if (row < rows) {
                    const IN_T* from = a + static_cast<long long>(row) * k + at;
                    if (at < k) x[0] = *reinterpret_cast<const unsigned*>(from);
                    if (at + 8 < k) x[2] = *reinterpret_cast<const unsigned*>(from + 8);
                }
#pragma unroll
                for (int tile = 0; tile < 2; ++tile) {
                    unsigned b0, b1;
                    packed_fragment(held[u], tile, step, scales[tile], b0, b1);
                    mma_16x8<IN_T>(sum[tile], x, b0, b1);
                }
            }
        }
        fetch(first + WARPS * UNROLL);
    }
    if (row < ROWS)
#pragma unroll
        for (int tile = 0; tile < 2; ++tile)
#pragma unroll
            for (int e = 0; e < 2; ++e) part[warp][row * 16 + tile * 8 + quad * 2 + e] = sum[tile][e];
    __syncthreads();
    for (int index = threadIdx.x; index < rows * 16; index += WARPS * 32) {
        float total[1] = {0.0f};
        for (int w = 0; w < WARPS; ++w) total[0] += part[w][index];
        const int m = index / 16, column = blockIdx.x * 16 + index % 16;
        if (column < n) {
            epilogue(total, args, m, column, n);
            out[static_cast<long long>(m) * n + column] = from_float<OUT_T>(total[0]);
        }
    }
}
