// How the sums of a product are held and leave the kernel.
//
// SUM_T is their type: float (default), or int for products of 8-bit integers. With TYPED_SUMS, which goes with operands of 8 bits (and with int),
// the generated epilogue is `finish` (any data type to any data type: see tactics/cuda/epilogue.py), else `epilogue`
// (float to float, in place). Plain CUDA C++, so that it also compiles for the CPU harness.
#pragma once
#include "epilogue.cuh"
#include "vector.cuh"

#ifndef SUM_T
#define SUM_T float
#endif

struct alignas(8) Sum2 {
    SUM_T x, y;
};
struct alignas(16) Sum4 {
    SUM_T x, y, z, w;
};

// One element of an operand in the type of the sums.
template <typename T>
__device__ __forceinline__ SUM_T to_sum(T value) { return static_cast<SUM_T>(fx::widen(value)); }

// Applies the epilogue to V sums at row m, columns n .. n + V - 1 of an output with rows of ld, and stores them at `target`
// (aligned to V elements, at most 16 bytes).
template <int V, typename O>
__device__ __forceinline__ void store_sums(O* target, SUM_T (&value)[V], const EpilogueArgs& args, long long m, int n, int ld) {
#ifdef TYPED_SUMS
#ifdef HAS_EPILOGUE
    FINISHED result[V];
    finish<V>(value, result, args, m, n, ld);
    fx::store<V>(target, result);
#else
    fx::store<V>(target, value);
#endif
#else
    epilogue(value, args, m, n, ld);
    store_vector(target, value);
#endif
}
