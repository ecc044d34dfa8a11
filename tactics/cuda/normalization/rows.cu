// Normalisation of rows: (x - mean) / sqrt(variance + epsilon), or x / sqrt(mean(x * x) + epsilon) with CENTER=0, then the
// epilogue. A row is n neighbouring elements; `last` is the size of the output's last axis (n is a multiple of it or equal).
// VEC divides n and last. The variance is taken around the mean, not as a difference of squares.
#include "finish.cuh"
#include "functions.cuh"
#include "group.cuh"
#include "pdl.cuh"
#include "pitch.cuh"
#include "root.cuh"

struct Add {
    __device__ __forceinline__ WORK operator()(WORK a, WORK b) const { return a + b; }
};

#if KIND != 1
// One group of GROUP threads keeps a row in registers: at most GROUP * VECTORS * VEC elements. Grid: ceil(rows / (THREADS / GROUP)).

// Brings what a thread has of a row, `sum` together, around the row's mean (with CENTER); returns 1 over its root mean square.
__device__ __forceinline__ WORK center(WORK (&value)[VECTORS][VEC], WORK sum, int lane, int end, int n, float epsilon) {
    const WORK mean = CENTER ? fx::group_reduce<GROUP>(sum, Add{}) / n : WORK(0);
    WORK squares = 0;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j)
        if ((j * GROUP + lane) * VEC < end)
#pragma unroll
            for (int i = 0; i < VEC; ++i) {
                if (CENTER) value[j][i] -= mean;
                squares += value[j][i] * value[j][i];
            }
    return inverse_root(fx::group_reduce<GROUP>(squares, Add{}) / n + static_cast<WORK>(epsilon));
}

// The epilogue of value * scale, to the row's place in the output.
__device__ __forceinline__ void store(WORK (&value)[VECTORS][VEC], WORK scale, OUT_T* __restrict__ out, int lane, int end, long long row, int n,
                                      int last, const EpilogueArgs& args) {
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int column = (j * GROUP + lane) * VEC;
        if (column >= end) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[j][i] *= scale;
#if ONE_ROW
        finish_store<VEC>(out + row * OUT_ROW(n) + column, value[j], args, row, column, n);
#else
        finish_store_flat<VEC>(out, value[j], args, row * n + column, last);
#endif
    }
}
#endif

#if KIND == 0
// One read, one write.
extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_row(const IN_T* __restrict__ x, OUT_T* __restrict__ out, int rows, int n, int last, float epsilon, const EpilogueArgs args) {
    pdl_prefetch_constants(args, last);
    pdl_start();
    const long long row = static_cast<long long>(blockIdx.x) * (THREADS / GROUP) + threadIdx.x / GROUP;
    const int lane = threadIdx.x % GROUP;
    const int end = row < rows ? n : 0;
    WORK value[VECTORS][VEC], sum = 0;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int column = (j * GROUP + lane) * VEC;
#ifdef HEADS
        if (column < end) fx::load<VEC>(value[j], x + x_place(row * n) + column);  // rows are heads, some of every X_PITCH elements
#else
        if (column < end) fx::load<VEC>(value[j], x + row * X_ROW(n) + column);
#endif
    }
    if (CENTER) {
#pragma unroll
        for (int j = 0; j < VECTORS; ++j)
            if ((j * GROUP + lane) * VEC < end)
#pragma unroll
                for (int i = 0; i < VEC; ++i) sum += value[j][i];
    }
    const WORK scale = center(value, sum, lane, end, n, epsilon);
    store(value, scale, out, lane, end, row, n, last, args);
}
#elif KIND == 2
// Rows of x + y. KEEP_SUM=1 writes the sum, rounded, to `total` as well.
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
    const WORK scale = center(value, sum, lane, end, n, epsilon);
    store(value, scale, out, lane, end, row, n, last, args);
}
#else
// One block per row of any length: three reads, two of them mostly from L2.
extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_long(const IN_T* __restrict__ x, OUT_T* __restrict__ out, int rows, int n, int last, float epsilon, const EpilogueArgs args) {
    pdl_prefetch_constants(args, last);
    pdl_start();
    const long long base = static_cast<long long>(blockIdx.x) * n;
    WORK mean = 0;
    if (CENTER) {
        WORK sum = 0;
        for (int column = threadIdx.x * VEC; column < n; column += THREADS * VEC) {
            WORK value[VEC];
            fx::load<VEC>(value, x + base + column);
#pragma unroll
            for (int i = 0; i < VEC; ++i) sum += value[i];
        }
        mean = fx::group_reduce<THREADS>(sum, Add{}) / n;
    }
    WORK squares = 0;
    for (int column = threadIdx.x * VEC; column < n; column += THREADS * VEC) {
        WORK value[VEC];
        fx::load<VEC>(value, x + base + column);
#pragma unroll
        for (int i = 0; i < VEC; ++i) squares += (value[i] - mean) * (value[i] - mean);
    }
    const WORK scale = inverse_root(fx::group_reduce<THREADS>(squares, Add{}) / n + static_cast<WORK>(epsilon));
    for (int column = threadIdx.x * VEC; column < n; column += THREADS * VEC) {
        WORK value[VEC];
        fx::load<VEC>(value, x + base + column);
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[i] = (value[i] - mean) * scale;
        finish_store_flat<VEC>(out, value, args, base + column, last);
    }
}
#endif
