// Indexed reads and writes. INDEX_T is fx::i32 or fx::i64; a negative index counts from the end, others are clamped into the
// axis, so that no bad index can reach outside the tensor. MOVE_T is a raw element, or a vector of neighbours.
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

__device__ __forceinline__ unsigned wrapped(INDEX_T index, int size) {
    long long i = index;
    if (i < 0) i += size;
    return static_cast<unsigned>(i < 0 ? 0 : i >= size ? size - 1 : i);
}

#if KIND == 0
// Gather: out[outer][index][inner] = in[outer][indices[index]][inner]; inner counts MOVE_T. Grid: ceil(count / (THREADS * ITEMS)).
extern "C" __global__ void __launch_bounds__(THREADS)
    gather(const MOVE_T* __restrict__ in, const INDEX_T* __restrict__ indices, MOVE_T* __restrict__ out, unsigned count, int axis_size,
           const Divider inner, const Divider index_count) {
    pdl_start();
    const unsigned first = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
    MOVE_T value[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        unsigned rest = first + i * THREADS;
        if (rest >= count) break;
        const unsigned column = inner.split(rest), index = index_count.split(rest);
        const long long row = static_cast<long long>(rest) * axis_size + wrapped(indices[index], axis_size);
        value[i] = in[row * inner.divisor + column];
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
        if (first + i * THREADS < count) out[first + i * THREADS] = value[i];
}
#elif KIND == 1
// GatherElements: out[c] = in[c with the axis' coordinate replaced by indices[c]]. size[] are the indices' axes, innermost first;
// step[] the input's. Grid: ceil(count / THREADS).
struct Elements {
    Divider size[RANK];
    unsigned step[RANK];
};
extern "C" __global__ void __launch_bounds__(THREADS)
    gather_elements(const MOVE_T* __restrict__ in, const INDEX_T* __restrict__ indices, MOVE_T* __restrict__ out, unsigned count,
                    int axis_size, const Elements axes) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned rest = index, offset = 0;
#pragma unroll
    for (int r = 0; r < RANK; ++r) {
        unsigned c = r == RANK - 1 ? rest : axes.size[r].split(rest);
        if (r == AXIS) c = wrapped(indices[index], axis_size);
        offset += c * axes.step[r];
    }
    out[index] = in[offset];
}
#elif KIND == 2
// GatherND: each index tuple (DEPTH numbers) names a slice of `inner` MOVE_T in its batch's part of the input, which has
// `batch_step` MOVE_T. size[], step[]: the indexed axes, step in MOVE_T. Grid: ceil(count / THREADS).
struct Tuple {
    int size[DEPTH];
    unsigned step[DEPTH];
};
extern "C" __global__ void __launch_bounds__(THREADS)
    gather_nd(const MOVE_T* __restrict__ in, const INDEX_T* __restrict__ indices, MOVE_T* __restrict__ out, unsigned count,
              const Divider inner, const Divider tuples, long long batch_step, const Tuple axes) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned rest = index;
    const unsigned column = inner.split(rest), tuple = rest;
    long long offset = tuples.quotient(tuple) * batch_step + column;
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
        offset += static_cast<long long>(wrapped(indices[static_cast<long long>(tuple) * DEPTH + d], axes.size[d])) * axes.step[d];
    out[index] = in[offset];
}
#endif
