// Small device helpers shared by all kernels: type conversion, vector loads and stores, and the arguments of no epilogue.
// Plain CUDA C++ (no inline PTX), so that it also compiles for a CPU harness. The contract is in docs/kernels.md.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef INFINITY  // NVRTC has no math.h
#define INFINITY __int_as_float(0x7f800000)
#endif

#ifndef HAS_EPILOGUE
struct EpilogueArgs {
    const void* operand[1];
};
#endif

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// V values of T moved as one access of up to 16 bytes (several when V * sizeof(T) > 16).
template <typename T, int V>
struct alignas(sizeof(T) * V > 16 ? 16 : sizeof(T) * V) Pack {
    T value[V];
};

// V consecutive elements at `source` (aligned to V * sizeof(T), at most 16 bytes) as floats.
template <int V, typename T>
__device__ __forceinline__ void load_vector(float (&result)[V], const T* source) {
    const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(source);
#pragma unroll
    for (int i = 0; i < V; ++i) result[i] = to_float(pack.value[i]);
}

// V floats converted to T and stored at `target` (aligned to V * sizeof(T), at most 16 bytes).
template <int V, typename T>
__device__ __forceinline__ void store_vector(T* target, const float (&values)[V]) {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) pack.value[i] = from_float<T>(values[i]);
    *reinterpret_cast<Pack<T, V>*>(target) = pack;
}
