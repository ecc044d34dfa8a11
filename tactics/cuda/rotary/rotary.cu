// Rotary position embedding: out = [x1 * cos - x2 * sin, x2 * cos + x1 * sin] for the halves x1, x2 of every row of x.
// x is [rows, 2 * half]; a thread turns VEC pairs. COS_WIDE=1: a row of cos has one value per element, else one per pair; SIN_WIDE
// likewise. The place of a row of cos and sin follows from the axes of x before the last, AXES of them, innermost first.
// VEC divides half. Grid: ceil(rows * half / VEC / THREADS).
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

struct Axes {
    Divider size[AXES];
    unsigned cos_stride[AXES];
    unsigned sin_stride[AXES];
};

extern "C" __global__ void __launch_bounds__(THREADS)
    rotary_embedding(const IN_T* __restrict__ x, const IN_T* __restrict__ cos, const IN_T* __restrict__ sin, IN_T* __restrict__ out,
                     unsigned count, unsigned half, const Divider vectors, const Axes axes) {
    pdl_start();
    unsigned row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= count) return;
    const unsigned column = vectors.split(row) * VEC;  // row is the row now
    const unsigned base = row * 2 * half + column;
    unsigned c = column, s = column;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) {
        const unsigned index = axis == AXES - 1 ? row : axes.size[axis].split(row);
        c += index * axes.cos_stride[axis];
        s += index * axes.sin_stride[axis];
    }
    using WORK = fx::Compute<IN_T>;
    WORK first[VEC], second[VEC], cos1[VEC], cos2[VEC], sin1[VEC], sin2[VEC];
    fx::load<VEC>(first, x + base);
    fx::load<VEC>(second, x + base + half);
    fx::load<VEC>(cos1, cos + c);
    fx::load<VEC>(cos2, cos + c + (COS_WIDE ? half : 0));
    fx::load<VEC>(sin1, sin + s);
    fx::load<VEC>(sin2, sin + s + (SIN_WIDE ? half : 0));
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
        const WORK a = first[i], b = second[i];
        first[i] = a * cos1[i] - b * sin1[i];
        second[i] = b * cos2[i] + a * sin2[i];
    }
    fx::store<VEC>(out + base, first);
    fx::store<VEC>(out + base + half, second);
}
