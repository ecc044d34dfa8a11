// out[base + sum c_r * out_step_r] = in[base + sum c_r * in_step_r]: transposes, slices, expansions, tilings and concatenations.
// MOVE_T is a raw element of 1 to 16 bytes (a vector of neighbours, where all steps and sizes allow it). Steps may be 0 or
// negative. `count` < 2^31 elements of MOVE_T. Grid: ceil(count / (THREADS * ITEMS)).
#include "copy.cuh"
#include "pdl.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    strided_copy(const MOVE_T* __restrict__ in, MOVE_T* __restrict__ out, unsigned count, long long in_base, long long out_base, const Axes<RANK> axes) {
    pdl_start();
    const unsigned first = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
    MOVE_T value[ITEMS];
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
        out[target[i]] = value[i];
    }
}
