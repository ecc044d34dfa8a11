// One 64 x 64 output tile on the ordinary cores: C[m][n] = sum_k A(m, k) * B(k, n), accumulated in SUM_T (see sums.cuh).
//
// 128 threads, 8 x 4 results each; 16-deep slices of A and B are double-buffered in shared memory (17.4 KB) while the
// next slice waits in registers. The two operands come from functions, so that GEMM and implicit-GEMM convolution share
// the loop. No inline PTX: every GPU from sm_75 on, and a CPU harness, can run it.
#pragma once
#include "sums.cuh"

constexpr int SIMT_M = 64, SIMT_N = 64, SIMT_K = 16, SIMT_THREADS = 128;
constexpr int SIMT_LOADS = SIMT_M * SIMT_K / SIMT_THREADS;

// `load_a(i, k0)` returns A at tile row threadIdx.x / 16 + i * 8 and column k0 + threadIdx.x % 16; `load_b(n, k)` returns B at tile column n and
// absolute row k; both return 0 outside their operand. ALONG_N says that neighbouring threads should walk n, not k.
template <bool ALONG_N, typename LoadA, typename LoadB>
__device__ __forceinline__ void simt_tile(int depth, LoadA load_a, LoadB load_b, SUM_T (&sum)[8][4]) {
    __shared__ SUM_T tile_a[2][SIMT_K][SIMT_M + 4];
    __shared__ SUM_T tile_b[2][SIMT_K][SIMT_N + 4];
    const int thread = threadIdx.x;
    const int column = thread % 16 * 4, row = thread / 16 * 8;
    SUM_T next_a[SIMT_LOADS], next_b[SIMT_LOADS];

    auto fetch = [&](int k0) {
#pragma unroll
        for (int i = 0; i < SIMT_LOADS; ++i) {
            const int element = thread + i * SIMT_THREADS;
            next_a[i] = load_a(i, k0);
            next_b[i] = ALONG_N ? load_b(element % SIMT_N, k0 + element / SIMT_N)
                                  : load_b(element / SIMT_K, k0 + element % SIMT_K);
        }
    };
    auto publish = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < SIMT_LOADS; ++i) {
            const int element = thread + i * SIMT_THREADS;
            tile_a[buffer][element % SIMT_K][element / SIMT_K] = next_a[i];
            if (ALONG_N)
                tile_b[buffer][element / SIMT_N][element % SIMT_N] = next_b[i];
            else
                tile_b[buffer][element % SIMT_K][element / SIMT_K] = next_b[i];
        }
    };

#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = SUM_T(0);

    fetch(0);
    publish(0);
    __syncthreads();
    int buffer = 0;
    for (int k0 = 0; k0 < depth; k0 += SIMT_K) {
        const bool more = k0 + SIMT_K < depth;
        if (more) fetch(k0 + SIMT_K);
#pragma unroll
        for (int k = 0; k < SIMT_K; ++k) {
            SUM_T a[8], b[4];
#pragma unroll
            for (int i = 0; i < 8; ++i) a[i] = tile_a[buffer][k][row + i];
#pragma unroll
            for (int j = 0; j < 4; ++j) b[j] = tile_b[buffer][k][column + j];
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
        }
        if (more) publish(buffer ^ 1);
        __syncthreads();
        buffer ^= 1;
    }
}

// Applies the epilogue to this thread's 8 x 4 results and stores them at rows row0.. of `out` (row length ld), output
// columns column0 + [0, columns) of it. `row_offset` is added to the row for the epilogue and for the address. OUT_PLANES: as store_planes says.
template <typename OUT>
__device__ __forceinline__ void simt_store(OUT* out, const EpilogueArgs& args, SUM_T (&sum)[8][4], long long row_offset,
                                           long long row0, long long rows, int n0, int columns, int column0, int ld, int plane = 0) {
    const int n = n0 + threadIdx.x % 16 * 4;
#ifdef OUT_PLANES
    for (int i = 0; i < 8; ++i) {
        const long long row = row0 + threadIdx.x / 16 * 8 + i;
        for (int j = 0; j < 4; ++j) {
            if (row >= rows || n + j >= columns) break;
            SUM_T one[1] = {sum[i][j]};
            store_planes(out, one, args, row_offset + row, column0 + n + j, ld, plane);
        }
    }
    return;
#endif
    const bool whole = n + 4 <= columns && ld % 4 == 0 && (column0 + n) % 4 == 0;
    for (int i = 0; i < 8; ++i) {
        const long long row = row0 + threadIdx.x / 16 * 8 + i;
        if (row >= rows) break;
        const long long m = row_offset + row;
        if (whole) {
            store_sums(out + m * OUT_ROW(ld) + column0 + n, sum[i], args, m, column0 + n, ld);
        } else {
            for (int j = 0; j < 4; ++j) {
                if (n + j >= columns) break;
                SUM_T one[1] = {sum[i][j]};
                store_sums(out + m * OUT_ROW(ld) + column0 + n + j, one, args, m, column0 + n + j, ld);
            }
        }
    }
}
