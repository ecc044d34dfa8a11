// Index arithmetic of the kernels that only move data: tensors as RANK axes (innermost first) with steps in elements.
#pragma once
#include "division.cuh"
#include "vector.cuh"

template <int R>
struct Axes {
    Divider size[R];
    long long in_step[R];
    long long out_step[R];

    // The input's and output's offsets of element `index` of the product of all axes.
    __device__ __forceinline__ void locate(unsigned index, long long& in, long long& out) const {
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const unsigned coordinate = r == R - 1 ? index : size[r].split(index);
            in += coordinate * in_step[r];
            out += coordinate * out_step[r];
        }
    }
};
