// Slices of x along one axis, x seen as [outer, n, inner]; they are ordered by their elements (order.cuh), the first that differs deciding.
#pragma once
#include "order.cuh"

struct Slices {
    unsigned outer, n, inner;
};

// Below, equal to or above 0 as slice a stands before, with or after slice b.
template <typename T>
__device__ __forceinline__ int compare_slices(const T* __restrict__ x, const Slices& s, unsigned a, unsigned b) {
    for (unsigned o = 0; o < s.outer; ++o)
        for (unsigned i = 0; i < s.inner; ++i) {
            const long long base = static_cast<long long>(o) * s.n * s.inner + i;
            const auto left = fx::order_key(x[base + static_cast<long long>(a) * s.inner]);
            const auto right = fx::order_key(x[base + static_cast<long long>(b) * s.inner]);
            if (left != right) return left < right ? -1 : 1;
        }
    return 0;
}
