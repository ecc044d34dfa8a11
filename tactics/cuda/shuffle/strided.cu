// out[base + sum c_r * out_step_r] = in[base + sum c_r * in_step_r]: transposes, slices, expansions, tilings and concatenations.
// MOVE_T is a raw element of 1 to 16 bytes (a vector of neighbours, where all steps and sizes allow it). Steps may be 0 or
// negative. With CONVERT elements change on the way (convert.cuh), VEC of them at a time. `count` < 2^31 elements of MOVE_T, or vectors. Grid: ceil(count / (THREADS * ITEMS)).
#include "convert.cuh"
#include "copy.cuh"
#include "pdl.cuh"

#ifdef CONVERT
using Source = fx::Vec<MOVE_T, VEC>;
using Target = fx::Vec<OUT_T, VEC>;

__device__ __forceinline__ Target moved(const Source& source) {
    Target target;
#pragma unroll
    for (int i = 0; i < VEC; ++i) target.value[i] = converted(source.value[i]);
    return target;
}
#else
using Source = MOVE_T;
using Target = MOVE_T;

__device__ __forceinline__ Target moved(const Source& source) { return source; }
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    strided_copy(const Source* __restrict__ in, Target* __restrict__ out, unsigned count, long long in_base, long long out_base, const Axes<RANK> axes) {
    pdl_start();
    const unsigned first = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
    Source value[ITEMS];
    long long target[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const unsigned index = first + i * THREADS;
        if (index >= count) break;
        long long source = in_base;
        target[i] = out_base;
        axes.locate(index, source, target[i]);
        value[i] = in[source];
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (first + i * THREADS >= count) break;
        out[target[i]] = moved(value[i]);
    }
}
