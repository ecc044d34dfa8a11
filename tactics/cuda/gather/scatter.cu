// Scatter into a copy of the input that already stands in `out`. REDUCTION 0: write, 1: add, 2: multiply, 3: min, 4: max.
// No atomics: updates that may meet are done by one thread, in the order of the indices, so results never change from run
// to run and of equal indices the last one wins.
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

__device__ __forceinline__ unsigned wrapped(INDEX_T index, int size) {
    long long i = index;
    if (i < 0) i += size;
    return static_cast<unsigned>(i < 0 ? 0 : i >= size ? size - 1 : i);
}

__device__ __forceinline__ void put(ELEM_T* target, ELEM_T update) {
#if REDUCTION == 0
    *target = update;
#else
    using C = fx::Compute<ELEM_T>;
    const C a = fx::widen(*target), b = fx::widen(update);
#if REDUCTION == 1
    *target = fx::narrow<ELEM_T>(fx::add(a, b));
#elif REDUCTION == 2
    *target = fx::narrow<ELEM_T>(fx::mul(a, b));
#elif REDUCTION == 3
    *target = fx::narrow<ELEM_T>(fx::min(a, b));
#else
    *target = fx::narrow<ELEM_T>(fx::max(a, b));
#endif
#endif
}

#if KIND == 0
// ScatterElements: one thread per line along the axis. size[]: the indices' axes without the scattered one, innermost first.
struct Lines {
    Divider size[RANK];
    unsigned index_step[RANK];
    unsigned out_step[RANK];
};
extern "C" __global__ void __launch_bounds__(THREADS)
    scatter_elements(const INDEX_T* __restrict__ indices, const ELEM_T* __restrict__ updates, ELEM_T* __restrict__ out, unsigned lines,
                     int length, int axis_size, unsigned index_axis_step, unsigned out_axis_step, const Lines axes) {
    pdl_start();
    unsigned rest = blockIdx.x * THREADS + threadIdx.x;
    if (rest >= lines) return;
    unsigned source = 0, target = 0;
#pragma unroll
    for (int r = 0; r < RANK; ++r) {
        const unsigned c = r == RANK - 1 ? rest : axes.size[r].split(rest);
        source += c * axes.index_step[r];
        target += c * axes.out_step[r];
    }
    for (int k = 0; k < length; ++k) {
        const unsigned place = source + k * index_axis_step;
        put(out + target + wrapped(indices[place], axis_size) * out_axis_step, updates[place]);
    }
}
#else
// ScatterND: tuples of DEPTH indices, each with a slice of `inner` updates. PARALLEL 1 (only without reduction; ONNX leaves the
// result of equal indices open): one thread per update. PARALLEL 0: one thread per column of the slices, tuple after tuple.
struct Tuple {
    int size[DEPTH];
    unsigned step[DEPTH];
};
__device__ __forceinline__ long long place_of(const INDEX_T* indices, unsigned tuple, const Tuple& axes) {
    long long offset = 0;
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
        offset += static_cast<long long>(wrapped(indices[static_cast<long long>(tuple) * DEPTH + d], axes.size[d])) * axes.step[d];
    return offset;
}
extern "C" __global__ void __launch_bounds__(THREADS)
    scatter_nd(const INDEX_T* __restrict__ indices, const ELEM_T* __restrict__ updates, ELEM_T* __restrict__ out, unsigned tuples,
               const Divider inner, const Tuple axes) {
    pdl_start();
    unsigned rest = blockIdx.x * THREADS + threadIdx.x;
#if PARALLEL
    if (rest >= tuples * inner.divisor) return;
    const unsigned index = rest, column = inner.split(rest);
    put(out + place_of(indices, rest, axes) + column, updates[index]);
#else
    if (rest >= inner.divisor) return;
    for (unsigned tuple = 0; tuple < tuples; ++tuple)
        put(out + place_of(indices, tuple, axes) + rest, updates[static_cast<long long>(tuple) * inner.divisor + rest]);
#endif
}
#endif
