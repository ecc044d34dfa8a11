// Reductions over a group of neighbouring threads: a part of a warp (1, 2, 4 .. 32) or the whole block (64 and more).
// All threads of the block must call them. Every thread of the group gets the result.
#pragma once
#include "vector.cuh"

namespace fx {

template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int bits) {
    if constexpr (sizeof(T) < 4) return static_cast<T>(__shfl_xor_sync(0xffffffffu, static_cast<int>(value), bits));
    else return __shfl_xor_sync(0xffffffffu, value, bits);
}

// Over a block of G threads, a multiple of 32; `partial` is shared memory for G / 32 values.
template <int G, typename T, typename Op>
__device__ __forceinline__ T block_reduce(T value, Op op, T* partial) {
    constexpr int WARPS = G / 32;
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) value = op(value, shuffle_xor(value, bits));
    __syncthreads();  // an earlier call may still be reading
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = partial[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) value = op(value, partial[warp]);
    return value;
}

// `op(a, b)` must be associative and commutative.
template <int G, typename T, typename Op>
__device__ __forceinline__ T group_reduce(T value, Op op) {
    if constexpr (G > 32) {
        __shared__ T partial[G / 32];
        return block_reduce<G>(value, op, partial);
    } else {
#pragma unroll
        for (int bits = G / 2; bits > 0; bits /= 2) value = op(value, shuffle_xor(value, bits));
        return value;
    }
}

}  // namespace fx
