// How the sums of a product are held and leave the kernel.
//
// SUM_T is their type: float (default), or int for products of 8-bit integers. The generated epilogue is `finish`, from that type to any
// (tactics/cuda/epilogue.py). Plain CUDA C++, so that it also compiles for the CPU harness.
#pragma once
#include "epilogue.cuh"
#include "pitch.cuh"
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

// What the epilogue leaves of a sum, before it is rounded to the output's type.
#ifdef HAS_EPILOGUE
using Finished = FINISHED;
#else
using Finished = SUM_T;
#endif

// The epilogue of V sums at row m, columns n .. n + V - 1 of an output with rows of ld.
template <int V>
__device__ __forceinline__ void finish_sums(const SUM_T (&value)[V], Finished (&result)[V], const EpilogueArgs& args, long long m, int n, int ld) {
#ifdef HAS_EPILOGUE
    finish<V>(value, result, args, m, n, ld);
#else
#pragma unroll
    for (int i = 0; i < V; ++i) result[i] = value[i];
#endif
}

// Rounds and stores V finished values at `target` (aligned to V elements, at most 16 bytes).
template <int V, typename O>
__device__ __forceinline__ void store_finished(O* target, const Finished (&value)[V]) {
    fx::store<V>(target, value);
}

#ifdef OUT_PLANES
// The epilogue of V sums at row m, columns n .. n + V - 1, stored channels-first: `out` is [image][ld channels][plane], and row m is element m % plane of
// image m / plane.
template <int V, typename O>
__device__ __forceinline__ void store_planes(O* out, const SUM_T (&value)[V], const EpilogueArgs& args, long long m, int n, int ld, int plane) {
    Finished result[V];
    finish_sums(value, result, args, m, n, ld);
    const long long image = m / plane;
    O* at = out + (image * ld + n) * plane + (m - image * plane);
#pragma unroll
    for (int v = 0; v < V; ++v) {
        const Finished one[1] = {result[v]};
        store_finished(at + static_cast<long long>(v) * plane, one);
    }
}
#endif

// Both.
template <int V, typename O>
__device__ __forceinline__ void store_sums(O* target, const SUM_T (&value)[V], const EpilogueArgs& args, long long m, int n, int ld) {
    Finished result[V];
    finish_sums(value, result, args, m, n, ld);
    store_finished(target, result);
}
