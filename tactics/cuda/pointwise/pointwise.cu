// Elementwise expressions over broadcast operands. The prelude defines Args, Loaded<N>, load_operands and compute.
// Every thread loads ITEMS vectors of VEC elements of each operand before it computes, so that enough loads are in flight.
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"
#include "pitch.cuh"

#ifdef FLAT
// out[i] = f(x0[i], x1[i], ...): operands have the output's shape or one element. Any count; the last count % VEC
// elements are done one by one by the first block. Grid: ceil(count / VEC / (THREADS * ITEMS)).
extern "C" __global__ void __launch_bounds__(THREADS) pointwise_flat(OUT_T* __restrict__ out, long long count, const Args args) {
    pdl_start();
    const long long vectors = count / VEC;
    const long long first = static_cast<long long>(blockIdx.x) * (THREADS * ITEMS) + threadIdx.x;
    Loaded<VEC> loaded[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const long long index = first + i * THREADS;
        if (index < vectors) load_operands(loaded[i], args, index * VEC);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const long long index = first + i * THREADS;
        if (index >= vectors) break;
        RESULT result[VEC];
        compute(loaded[i], result);
        fx::store<VEC>(out + index * VEC, result);
    }
    const long long tail = vectors * VEC + threadIdx.x;
    if (VEC > 1 && blockIdx.x == 0 && tail < count) {
        Loaded<1> one;
        load_operands(one, args, tail);
        RESULT result[1];
        compute(one, result);
        fx::store<1>(out + tail, result);
    }
}
#else
// The same with operands broadcast along some axes: the output as RANK merged axes, innermost first; size[0] counts vectors.
// stride[o][r] is operand o's step along axis r in elements, 0 where it is broadcast. Fewer than 2^31 elements.
struct Layout {
    Divider size[RANK];
    unsigned stride[OPERANDS][RANK];
};

extern "C" __global__ void __launch_bounds__(THREADS)
    pointwise_broadcast(OUT_T* __restrict__ out, unsigned vectors, const Args args, const Layout layout) {
    pdl_start();
    const unsigned first = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
    Loaded<VEC> loaded[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const unsigned index = first + i * THREADS;
        if (index >= vectors) break;
        unsigned offset[OPERANDS] = {}, rest = index;
#pragma unroll
        for (int r = 0; r < RANK; ++r) {
            const unsigned coordinate = r == RANK - 1 ? rest : layout.size[r].split(rest);
#pragma unroll
            for (int o = 0; o < OPERANDS; ++o) offset[o] += coordinate * layout.stride[o][r];
        }
        load_operands(loaded[i], args, offset);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const unsigned index = first + i * THREADS;
        if (index >= vectors) break;
        RESULT result[VEC];
        compute(loaded[i], result);
        fx::store<VEC>(out + out_place(static_cast<long long>(index) * VEC), result);
    }
}
#endif
