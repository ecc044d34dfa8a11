// Matrix product on the ordinary cores: the reference that other GEMM tactics are compared with. Plain CUDA C++, any GPU.
#include "prologue.cuh"
#include "simt.cuh"

// Computes a 64 x 64 tile of out[batch][m][n] = epilogue(sum_k A[m][k] * B[k][n]) per block of 128 threads.
//   Strides are in elements, so that both operands may be transposed or broadcast; out is dense.
//   Batch z is (z / batch_inner, z % batch_inner). Grid: x = tiles_m * tiles_n * batch.
//   B_ALONG_N=1 when b_n == 1 (only speed depends on it). Any sizes; A_T, B_T and OUT_T are element types (sums.cuh says how 8-bit ones are summed).
extern "C" __global__ void __launch_bounds__(SIMT_THREADS, 2)
    simt_gemm(const A_T* __restrict__ a, const B_T* __restrict__ b, OUT_T* __restrict__ out, int m, int n, int k, long long a_m,
              long long a_k, long long b_k, long long b_n, int batch_inner, long long a_outer, long long a_inner, long long b_outer,
              long long b_inner, EpilogueArgs args PROLOGUE_PARAMETER) {
    const int tiles_m = (m + SIMT_M - 1) / SIMT_M, tiles_n = (n + SIMT_N - 1) / SIMT_N;
    const int batch = blockIdx.x / (tiles_m * tiles_n), tile = blockIdx.x % (tiles_m * tiles_n);
    const int row0 = tile / tiles_n * SIMT_M, n0 = tile % tiles_n * SIMT_N;
    const long long a_offset = batch / batch_inner * a_outer + batch % batch_inner * a_inner;
    a += a_offset;
    b += batch / batch_inner * b_outer + batch % batch_inner * b_inner;

    auto load_a = [&](int i, int k0) {
        const int depth = k0 + threadIdx.x % SIMT_K, row = row0 + threadIdx.x / SIMT_K + i * (SIMT_THREADS / SIMT_K);
        if (row >= m || depth >= k) return SUM_T(0);
#ifdef HAS_PROLOGUE  // a is [..., m, k]
        float value[1] = {to_float(a[row * a_m + depth * a_k])};
        prologue<A_T>(value, before_args, a_offset / a_m + row, depth, k);
        return value[0];
#else
        return to_sum(a[row * a_m + depth * a_k]);
#endif
    };
    auto load_b = [&](int column, int depth) {
        return n0 + column < n && depth < k ? to_sum(b[depth * b_k + (n0 + column) * b_n]) : SUM_T(0);
    };
    SUM_T sum[8][4];
    simt_tile<B_ALONG_N>(k, load_a, load_b, sum);
    simt_store(out, args, sum, static_cast<long long>(batch) * m, row0, m, n0, n, 0, n);
}
