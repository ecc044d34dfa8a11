// Normalisation over any set of axes. The input is viewed as kept axes x reduced axes, each merged into at most KEPT and
// REDUCED runs (innermost first) with strides in elements. Grid: one block per kept position (x), splits (y).
//   KIND 0: the whole work in one block per kept position (three reads).
//   KIND 1: partial sums of (x - shift) and its square for `share` reduced elements, to partial[position][split]; KIND 2 applies them.
// shift is the position's first element, which keeps the sum of squares from cancelling.
#include "division.cuh"
#include "finish.cuh"
#include "functions.cuh"
#include "group.cuh"
#include "pdl.cuh"
#include "root.cuh"

struct Runs {
    Divider kept_size[KEPT];
    unsigned kept_stride[KEPT];
    Divider reduced_size[REDUCED];
    unsigned reduced_stride[REDUCED];
};

struct Add {
    __device__ __forceinline__ WORK operator()(WORK a, WORK b) const { return a + b; }
};

__device__ __forceinline__ unsigned kept_offset(const Runs& runs, unsigned index) {
    unsigned offset = 0;
#pragma unroll
    for (int r = 0; r < KEPT; ++r) offset += (r == KEPT - 1 ? index : runs.kept_size[r].split(index)) * runs.kept_stride[r];
    return offset;
}
__device__ __forceinline__ unsigned reduced_offset(const Runs& runs, unsigned index) {
    unsigned offset = 0;
#pragma unroll
    for (int r = 0; r < REDUCED; ++r) offset += (r == REDUCED - 1 ? index : runs.reduced_size[r].split(index)) * runs.reduced_stride[r];
    return offset;
}

#if KIND == 0
extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_strided(const IN_T* __restrict__ x, OUT_T* __restrict__ out, unsigned n, int last, float epsilon, const Runs runs,
                      const EpilogueArgs args) {
    pdl_prefetch_constants(args, last);
    pdl_start();
    const unsigned base = kept_offset(runs, blockIdx.x);
    WORK mean = 0;
    if (CENTER) {
        WORK sum = 0;
        for (unsigned k = threadIdx.x * VEC; k < n; k += THREADS * VEC) {
            WORK value[VEC];
            fx::load<VEC>(value, x + x_place(base + reduced_offset(runs, k)));
#pragma unroll
            for (int i = 0; i < VEC; ++i) sum += value[i];
        }
        mean = fx::group_reduce<THREADS>(sum, Add{}) / n;
    }
    WORK squares = 0;
    for (unsigned k = threadIdx.x * VEC; k < n; k += THREADS * VEC) {
        WORK value[VEC];
        fx::load<VEC>(value, x + x_place(base + reduced_offset(runs, k)));
#pragma unroll
        for (int i = 0; i < VEC; ++i) squares += (value[i] - mean) * (value[i] - mean);
    }
    const WORK scale = inverse_root(fx::group_reduce<THREADS>(squares, Add{}) / n + static_cast<WORK>(epsilon));
    for (unsigned k = threadIdx.x * VEC; k < n; k += THREADS * VEC) {
        const unsigned index = base + reduced_offset(runs, k);
        WORK value[VEC];
        fx::load<VEC>(value, x + x_place(index));
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[i] = (value[i] - mean) * scale;
        finish_store_flat<VEC>(out, value, args, index, last);
    }
}
#elif KIND == 1
extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_partial(const IN_T* __restrict__ x, WORK* __restrict__ partial, unsigned n, unsigned share, const Runs runs) {
    pdl_start();
    const unsigned base = kept_offset(runs, blockIdx.x);
    const unsigned begin = blockIdx.y * share, end = min(n, begin + share);
    const WORK shift = CENTER ? fx::widen(x[x_place(base)]) : WORK(0);
    WORK sum = 0, squares = 0;
    for (unsigned k = begin + threadIdx.x * VEC; k < end; k += THREADS * VEC) {
        WORK value[VEC];
        fx::load<VEC>(value, x + x_place(base + reduced_offset(runs, k)));
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            sum += value[i] - shift;
            squares += (value[i] - shift) * (value[i] - shift);
        }
    }
    sum = fx::group_reduce<THREADS>(sum, Add{});
    squares = fx::group_reduce<THREADS>(squares, Add{});
    if (threadIdx.x == 0) {
        WORK* target = partial + 2 * (static_cast<long long>(blockIdx.x) * gridDim.y + blockIdx.y);
        target[0] = sum;
        target[1] = squares;
    }
}
#else
extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_apply(const IN_T* __restrict__ x, const WORK* __restrict__ partial, OUT_T* __restrict__ out, unsigned n, unsigned share,
                    int last, float epsilon, const Runs runs, const EpilogueArgs args) {
    pdl_prefetch_constants(args, last);
    pdl_start();
    const unsigned base = kept_offset(runs, blockIdx.x);
    const unsigned begin = blockIdx.y * share, end = min(n, begin + share);
    const WORK shift = CENTER ? fx::widen(x[x_place(base)]) : WORK(0);
    WORK sum = 0, squares = 0;
    for (unsigned split = threadIdx.x; split < gridDim.y; split += THREADS) {
        const WORK* source = partial + 2 * (static_cast<long long>(blockIdx.x) * gridDim.y + split);
        sum += source[0];
        squares += source[1];
    }
    sum = fx::group_reduce<THREADS>(sum, Add{}) / n;
    squares = fx::group_reduce<THREADS>(squares, Add{}) / n;
    const WORK mean = CENTER ? shift + sum : WORK(0);
    const WORK variance = CENTER ? fx::max(squares - sum * sum, WORK(0)) : squares;
    const WORK scale = inverse_root(variance + static_cast<WORK>(epsilon));
    for (unsigned k = begin + threadIdx.x * VEC; k < end; k += THREADS * VEC) {
        const unsigned index = base + reduced_offset(runs, k);
        WORK value[VEC];
        fx::load<VEC>(value, x + x_place(index));
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[i] = (value[i] - mean) * scale;
        finish_store_flat<VEC>(out, value, args, index, last);
    }
}
#endif
