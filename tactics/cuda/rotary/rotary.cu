// Rotary position embedding: of every row of x, `width` elements, the first 2 * half turn in pairs (a, b) to (a * cos - b * sin,
// b * cos + a * sin); the others are copied. INTERLEAVED=1: a pair is two neighbours, else element i of the first and of the second half.
// A thread has VEC pairs, or 2 * VEC elements that stay. COS_WIDE=1: a row of cos has one value per element, else one per pair; SIN_WIDE
// likewise. The place of a row of x, cos and sin follows from the axes of the result before the last, AXES of them, innermost first.
// VEC divides half and the pairs that stay. Grid: ceil(rows * width / 2 / VEC / THREADS).
// NORMALIZED=1: a row is first divided by the root of its mean square and multiplied with a row of `scale`. GROUP threads, a power of two
// of at least width / 2 / VEC and at most 32, have a row. Grid: ceil(rows * GROUP / THREADS).
#include "division.cuh"
#include "functions.cuh"
#include "group.cuh"
#include "pdl.cuh"

struct Axes {
    Divider size[AXES];
    unsigned x_stride[AXES];
    unsigned cos_stride[AXES];
    unsigned sin_stride[AXES];
#if NORMALIZED
    unsigned scale_stride[AXES];
#endif
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

struct Add {
    __device__ __forceinline__ WORK operator()(WORK a, WORK b) const { return a + b; }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    rotary_embedding(const IN_T* __restrict__ x, const ANGLE_T* __restrict__ cos, const ANGLE_T* __restrict__ sin,
#if NORMALIZED
                     const SCALE_T* __restrict__ scale, float epsilon,
#endif
                     IN_T* __restrict__ out, unsigned count, unsigned half, unsigned width, const Divider vectors, const Axes axes) {
    pdl_start();
    unsigned row = blockIdx.x * THREADS + threadIdx.x;
#if NORMALIZED
    const unsigned pair = row % GROUP * VEC;
    const bool inside = row / GROUP < count && pair < width / 2;
    row = inside ? row / GROUP : 0;
#else
    if (row >= count) return;
    const unsigned pair = vectors.split(row) * VEC;  // row is the row now
#endif
    IN_T* target = out + row * width;
    unsigned from = 0, c = 0, s = 0, g = 0;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) {
        const unsigned index = axis == AXES - 1 ? row : axes.size[axis].split(row);
        from += index * axes.x_stride[axis];
        c += index * axes.cos_stride[axis];
        s += index * axes.sin_stride[axis];
#if NORMALIZED
        g += index * axes.scale_stride[axis];
#endif
    }
    const IN_T* source = x + from;
    const bool stays = PARTIAL && pair >= half;
    WORK first[VEC], second[VEC], cos1[VEC], cos2[VEC], sin1[VEC], sin2[VEC];
#if NORMALIZED
    WORK squares = 0;
    if (inside) {
        if (stays) {
            fx::load<VEC>(first, source + 2 * pair);
            fx::load<VEC>(second, source + 2 * pair + VEC);
        } else {
            load_pairs(first, second, source, pair, half);
        }
#pragma unroll
        for (int i = 0; i < VEC; ++i) squares += first[i] * first[i] + second[i] * second[i];
    }
    const WORK factor = fx::rsqrt(fx::group_reduce<GROUP>(squares, Add{}) / width + static_cast<WORK>(epsilon));
    if (!inside) return;
    WORK scale1[VEC], scale2[VEC];
    if (stays) {
        fx::load<VEC>(scale1, scale + g + 2 * pair);
        fx::load<VEC>(scale2, scale + g + 2 * pair + VEC);
    } else {
        load_pairs(scale1, scale2, scale + g, pair, half);
    }
#pragma unroll
    for (int i = 0; i < VEC; ++i) first[i] *= factor * scale1[i], second[i] *= factor * scale2[i];
#else
    if (stays) {
        fx::load<VEC>(first, source + 2 * pair);
        fx::load<VEC>(second, source + 2 * pair + VEC);
    } else {
        load_pairs(first, second, source, pair, half);
    }
#endif
    if (stays) {
        fx::store<VEC>(target + 2 * pair, first);
        fx::store<VEC>(target + 2 * pair + VEC, second);
        return;
    }
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
