// Rotary position embedding: of every row of x, `width` elements, the first 2 * half turn in pairs (a, b) to (a * cos - b * sin,
// b * cos + a * sin); the others are copied. INTERLEAVED=1: a pair is two neighbours, else element i of the first and of the second half.
// A thread has VEC pairs, or 2 * VEC elements that stay. COS_WIDE=1: a row of cos has one value per element, else one per pair; SIN_WIDE
// likewise. The place of a row of x, cos and sin follows from the axes of the result before the last, AXES of them, innermost first.
// VEC divides half and the pairs that stay. Grid: ceil(rows * width / 2 / VEC / THREADS).
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

struct Axes {
    Divider size[AXES];
    unsigned x_stride[AXES];
    unsigned cos_stride[AXES];
    unsigned sin_stride[AXES];
};

using WORK = fx::Compute<IN_T>;

// The first and second elements of VEC pairs of a row, from `pair` on; one value serves both unless WIDE.
template <bool WIDE = true, class T>
__device__ __forceinline__ void load_pairs(WORK (&first)[VEC], WORK (&second)[VEC], const T* row, unsigned pair, unsigned half) {
    if constexpr (WIDE && INTERLEAVED) {
        WORK both[2 * VEC];
        fx::load<2 * VEC>(both, row + 2 * pair);
#pragma unroll
        for (int i = 0; i < VEC; ++i) first[i] = both[2 * i], second[i] = both[2 * i + 1];
    } else {
        fx::load<VEC>(first, row + pair);
        fx::load<VEC>(second, row + pair + (WIDE ? half : 0));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rotary_embedding(const IN_T* __restrict__ x, const ANGLE_T* __restrict__ cos, const ANGLE_T* __restrict__ sin, IN_T* __restrict__ out,
                     unsigned count, unsigned half, unsigned width, const Divider vectors, const Axes axes) {
    pdl_start();
    unsigned row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= count) return;
    const unsigned pair = vectors.split(row) * VEC;  // row is the row now
    IN_T* target = out + row * width;
    unsigned from = 0, c = 0, s = 0;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) {
        const unsigned index = axis == AXES - 1 ? row : axes.size[axis].split(row);
        from += index * axes.x_stride[axis];
        c += index * axes.cos_stride[axis];
        s += index * axes.sin_stride[axis];
    }
    const IN_T* source = x + from;
    if (PARTIAL && pair >= half) {
        WORK kept[2 * VEC];
        fx::load<2 * VEC>(kept, source + 2 * pair);
        fx::store<2 * VEC>(target + 2 * pair, kept);
        return;
    }
    WORK first[VEC], second[VEC], cos1[VEC], cos2[VEC], sin1[VEC], sin2[VEC];
    load_pairs(first, second, source, pair, half);
    load_pairs<COS_WIDE>(cos1, cos2, cos + c, pair, half);
    load_pairs<SIN_WIDE>(sin1, sin2, sin + s, pair, half);
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
        const WORK a = first[i], b = second[i];
        first[i] = a * cos1[i] - b * sin1[i];
        second[i] = b * cos2[i] + a * sin2[i];
    }
    if constexpr (INTERLEAVED) {
        WORK both[2 * VEC];
#pragma unroll
        for (int i = 0; i < VEC; ++i) both[2 * i] = first[i], both[2 * i + 1] = second[i];
        fx::store<2 * VEC>(target + 2 * pair, both);
    } else {
        fx::store<VEC>(target + pair, first);
        fx::store<VEC>(target + pair + half, second);
    }
}
