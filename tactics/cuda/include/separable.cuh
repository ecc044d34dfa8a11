// What the kernels of a depthwise and a pointwise convolution share: the types, and the epilogue between the two, whose code stands in
// the namespace `inner` (DEPTHWISE_EPILOGUE; without it the sums are rounded to IN_T).
//
// X_T is what the depthwise convolution reads, IN_T what it makes and the pointwise one reads. Sums of both are SUM_T; the epilogue between takes the
// first ones as floats, which hold those of 8-bit integers exactly (49 taps).
#pragma once
#include "pdl.cuh"
#include "sums.cuh"

#ifdef DEPTHWISE_EPILOGUE
using InnerArgs = inner::EpilogueArgs;
#else
struct InnerArgs {
    const void* operand[1];
};
#endif

// The depthwise results of V sums at pixel m, channels n .. n + V - 1 of `channels`, as they would be stored.
template <int V>
__device__ __forceinline__ void finish_depthwise(const float (&sum)[V], fx::Vec<IN_T, V>& result, const InnerArgs& args, long long m, int n, int channels) {
#ifdef DEPTHWISE_EPILOGUE
    inner::FINISHED value[V];
    inner::finish<V>(sum, value, args, m, n, channels);
#else
    const float (&value)[V] = sum;
#endif
#pragma unroll
    for (int i = 0; i < V; ++i) result.value[i] = fx::narrow<IN_T>(value[i]);
}
