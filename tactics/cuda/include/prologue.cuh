// The prologue of a product: a generated function of each element of the left operand, applied where a kernel has read it.
//
// With HAS_PROLOGUE the generated code defines before::finish and before::EpilogueArgs (an epilogue of what is read, docs/kernels.md), and the
// kernel's last parameter is PROLOGUE_PARAMETER. Padding and what lies past an operand's edges must not go through it: f(0) need not be 0, and
// may be infinite. Plain CUDA C++, so that it also compiles for the CPU harness.
#pragma once
#include "epilogue.cuh"

#ifdef HAS_PROLOGUE
#define PROLOGUE_PARAMETER , before::EpilogueArgs before_args

// V elements of row m at depth k .. k + V - 1, of ld, through the prologue, rounded to T as if they were stored.
template <typename T, int V>
__device__ __forceinline__ void prologue(float (&value)[V], const before::EpilogueArgs& args, long long m, int k, int ld) {
    float result[V];
    before::finish<V>(value, result, args, m, k, ld);
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = to_float(from_float<T>(result[i]));
}

// The same for V of the 16 bytes `chunk`, from element `first` on.
template <typename T, int V>
__device__ __forceinline__ void prologue_part(uint4& chunk, int first, const before::EpilogueArgs& args, long long m, int k, int ld) {
    Pack<T, 16 / sizeof(T)> pack = *reinterpret_cast<Pack<T, 16 / sizeof(T)>*>(&chunk);
    float value[V], result[V];
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = to_float(pack.value[first + i]);
    before::finish<V>(value, result, args, m, k, ld);
#pragma unroll
    for (int i = 0; i < V; ++i) pack.value[first + i] = from_float<T>(result[i]);
    chunk = *reinterpret_cast<uint4*>(&pack);
}

// The same for all 16 bytes, at depth k, of which `count` elements are there (any integer; clamped), in pieces of V that are there or not.
template <typename T, int V>
__device__ __forceinline__ void prologue_chunk(uint4& chunk, const before::EpilogueArgs& args, long long m, int k, int count, int ld) {
#pragma unroll
    for (int piece = 0; piece < 16 / static_cast<int>(sizeof(T)); piece += V)
        if (piece < count) prologue_part<T, V>(chunk, piece, args, m, k + piece, ld);
}

// What the prologue reads in every row (scales of channels), of `count` columns from k on, on its way to the multiprocessor's own cache.
__device__ __forceinline__ void prefetch_prologue(const before::EpilogueArgs& args, int k, int count) {
#ifdef PROLOGUE_CONSTANTS
    before::prefetch_columns(args, k, count, threadIdx.x);
#endif
}
#else
#define PROLOGUE_PARAMETER
#endif
