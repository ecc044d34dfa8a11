// Normalisation of the rows of x + y (see rows.cu): out = epilogue((s - mean) / sqrt(variance + epsilon)) with s = x + y, or
// s / sqrt(mean(s * s) + epsilon) with CENTER=0. KEEP_SUM=1 writes s, rounded, to `total` as well. One group of GROUP threads keeps a row in
// registers: at most GROUP * VECTORS * VEC elements. VEC divides n and last. Grid: ceil(rows / (THREADS / GROUP)).
#include "finish.cuh"
#include "functions.cuh"
#include "group.cuh"
#include "pdl.cuh"

struct Add {
    __device__ __forceinline__ WORK operator()(WORK a, WORK b) const { return a + b; }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_sum(const IN_T* __restrict__ x, const IN_T* __restrict__ y, OUT_T* __restrict__ out, IN_T* __restrict__ total, int rows, int n,
                  int last, float epsilon, const EpilogueArgs args) {
    pdl_prefetch_constants(args, last);
    pdl_start();
    const long long row = static_cast<long long>(blockIdx.x) * (THREADS / GROUP) + threadIdx.x / GROUP;
    const int lane = threadIdx.x % GROUP;
    const int end = row < rows ? n : 0;
    WORK value[VECTORS][VEC], sum = 0;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int column = (j * GROUP + lane) * VEC;
        if (column >= end) continue;
        WORK other[VEC];
        fx::load<VEC>(value[j], x + row * n + column);
        fx::load<VEC>(other, y + row * n + column);
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            value[j][i] += other[i];
            sum += value[j][i];
        }
#if KEEP_SUM
        fx::store<VEC>(total + row * n + column, value[j]);
#endif
    }
    const WORK mean = CENTER ? fx::group_reduce<GROUP>(sum, Add{}) / n : WORK(0);
    WORK squares = 0;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j)
        if ((j * GROUP + lane) * VEC < end)
#pragma unroll
            for (int i = 0; i < VEC; ++i) {
                value[j][i] -= mean;
                squares += value[j][i] * value[j][i];
            }
    const WORK scale = fx::rsqrt(fx::group_reduce<GROUP>(squares, Add{}) / n + static_cast<WORK>(epsilon));
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int column = (j * GROUP + lane) * VEC;
        if (column >= end) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[j][i] *= scale;
        finish_store_flat<VEC>(out, value[j], args, row * n + column, last);
    }
}
