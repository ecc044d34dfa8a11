// Resize by tables: output coordinate c of a resized axis reads its taps, indices[c * taps + t] with weights[c * taps + t]. The
// view has RANK axes, innermost first; TAPS lists the taps of each (0: the axis stays). An index of -1 marks a coordinate
// outside the image, which gets `outside`. Axis 0 may count vectors of VEC neighbours when it stays.
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

struct View {
    Divider size[RANK];
    unsigned in_step[RANK];
    unsigned table[RANK];
};
__device__ constexpr int taps_of(int r) {
    constexpr int taps[] = {TAPS};
    return taps[r];
}

#if NEAREST
// One tap of weight 1: elements are moved, whatever their type. Grid: ceil(count / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    resize_nearest(const MOVE_T* __restrict__ x, const int* __restrict__ indices, MOVE_T* __restrict__ out, unsigned count,
                   unsigned long long outside, const View view) {
    pdl_wait();
    pdl_launch_next();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned rest = index, offset = 0;
    bool inside = true;
#pragma unroll
    for (int r = 0; r < RANK; ++r) {
        int c = r == RANK - 1 ? rest : view.size[r].split(rest);
        if (taps_of(r)) c = indices[view.table[r] + c];
        inside = inside && c >= 0;
        offset += c * view.in_step[r];
    }
    MOVE_T result;
    if (inside) {
        result = x[offset];
    } else {
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(MOVE_T) / sizeof(ELEMENT)); ++i)
            reinterpret_cast<ELEMENT*>(&result)[i] = static_cast<ELEMENT>(outside);
    }
    out[index] = result;
}
#else
struct Sources {
    const int* indices;
    const WORK* weights;
};

// Adds weight * (the taps of axes R, R - 1 .. 0) at `offset`.
template <int R>
__device__ __forceinline__ void accumulate(WORK (&total)[VEC], const ELEM_T* x, const Sources& sources, const View& view,
                                           const unsigned (&c)[RANK], unsigned offset, WORK weight) {
    if constexpr (R < 0) {
        fx::Compute<ELEM_T> value[VEC];
        fx::load<VEC>(value, x + offset);
#pragma unroll
        for (int i = 0; i < VEC; ++i) total[i] += weight * static_cast<WORK>(value[i]);
    } else if constexpr (taps_of(R) == 0) {
        accumulate<R - 1>(total, x, sources, view, c, offset + c[R] * view.in_step[R], weight);
    } else {
        const unsigned entry = view.table[R] + c[R] * taps_of(R);
#if MANY
#pragma unroll 1
#else
#pragma unroll
#endif
        for (int t = 0; t < taps_of(R); ++t)
            accumulate<R - 1>(total, x, sources, view, c, offset + sources.indices[entry + t] * view.in_step[R],
                              weight * sources.weights[entry + t]);
    }
}

// Weighted taps, computed in WORK (float, or double). Grid: ceil(count / THREADS); count is in vectors.
extern "C" __global__ void __launch_bounds__(THREADS)
    resize_weighted(const ELEM_T* __restrict__ x, const int* __restrict__ indices, const WORK* __restrict__ weights,
                    ELEM_T* __restrict__ out, unsigned count, double outside, const View view) {
    pdl_wait();
    pdl_launch_next();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned rest = index, c[RANK];
    bool inside = true;
#pragma unroll
    for (int r = 0; r < RANK; ++r) {
        c[r] = r == RANK - 1 ? rest : view.size[r].split(rest);
        if (taps_of(r)) inside = inside && indices[view.table[r] + c[r] * taps_of(r)] >= 0;
    }
    WORK total[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) total[i] = inside ? WORK(0) : static_cast<WORK>(outside);
    if (inside) accumulate<RANK - 1>(total, x, Sources{indices, weights}, view, c, 0, WORK(1));
    fx::store<VEC>(out + static_cast<long long>(index) * VEC, total);
}
#endif
