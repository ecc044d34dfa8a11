// The end of a memory-bound kernel: the generated epilogue `finish` (any data type) where there is one, and the store.
#pragma once
#include "pitch.cuh"
#include "vector.cuh"

#ifndef HAS_EPILOGUE
struct EpilogueArgs {
    const void* operand[1];
};
#endif

// Applies the epilogue to N results at row m, columns n .. n + N - 1 of an output with rows of ld, and stores them.
template <int N, typename O, typename S>
__device__ __forceinline__ void finish_store(O* target, const S (&values)[N], const EpilogueArgs& args, long long m, int n, int ld) {
#ifdef HAS_EPILOGUE
    FINISHED result[N];
    finish<N>(values, result, args, m, n, ld);
    fx::store<N>(target, result);
#else
    fx::store<N>(target, values);
#endif
}

// The same at flat element `index` of the output `base`, whose last axis has `last` elements (a multiple of N, or N = 1).
template <int N, typename O, typename S>
__device__ __forceinline__ void finish_store_flat(O* base, const S (&values)[N], const EpilogueArgs& args, long long index, int last) {
#ifdef HAS_EPILOGUE
    const long long m = index / last;
    finish_store<N>(base + out_place(index), values, args, m, static_cast<int>(index - m * last), last);
#else
    fx::store<N>(base + out_place(index), values);
#endif
}
