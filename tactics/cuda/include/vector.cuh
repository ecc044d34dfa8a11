// Element types and vector access for generated code and for memory-bound kernels. Everything is in namespace fx, so it
// stands beside epilogue.cuh. Plain CUDA C++ (no inline PTX), so that it also compiles for the CPU harness.
//
// Values are stored as T and computed as Compute<T>: float for float, __half and __nv_bfloat16, else T itself.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fx {

using i8 = signed char;
using i16 = short;
using i32 = int;
using i64 = long long;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// One element of `bytes` bytes, for kernels that only move data.
struct alignas(16) b128 {
    u64 low, high;
};

template <typename T>
struct ComputeOf {
    using type = T;
};
template <>
struct ComputeOf<__half> {
    using type = float;
};
template <>
struct ComputeOf<__nv_bfloat16> {
    using type = float;
};
template <typename T>
using Compute = typename ComputeOf<T>::type;

template <typename T>
struct IsFloat {
    static constexpr bool value = false;
};
template <>
struct IsFloat<float> {
    static constexpr bool value = true;
};
template <>
struct IsFloat<double> {
    static constexpr bool value = true;
};

template <typename A, typename B>
struct Same {
    static constexpr bool value = false;
};
template <typename A>
struct Same<A, A> {
    static constexpr bool value = true;
};

template <typename T>
__device__ __forceinline__ Compute<T> widen(T value) { return value; }
template <>
__device__ __forceinline__ float widen<__half>(__half value) { return __half2float(value); }
template <>
__device__ __forceinline__ float widen<__nv_bfloat16>(__nv_bfloat16 value) { return __bfloat162float(value); }

// A conversion between computed types as ONNX Cast does it: to bool `!= 0`, from float to integer truncated.
template <typename T, typename S>
__device__ __forceinline__ T cast(S value) {
    if constexpr (Same<T, S>::value) return value;
    else if constexpr (Same<T, bool>::value) return value != S(0);
    else if constexpr (IsFloat<S>::value && !IsFloat<T>::value && sizeof(T) < 4) return static_cast<T>(static_cast<i64>(value));
    else return static_cast<T>(value);
}

// Rounds a computed value to the stored type T.
template <typename T, typename S>
__device__ __forceinline__ T narrow(S value) {
    if constexpr (Same<T, __half>::value) {
        if constexpr (Same<S, double>::value) return __double2half(value);
        else return __float2half_rn(static_cast<float>(value));
    } else if constexpr (Same<T, __nv_bfloat16>::value) {
        if constexpr (Same<S, double>::value) return __double2bfloat16(value);
        else return __float2bfloat16_rn(static_cast<float>(value));
    } else {
        return cast<T>(value);
    }
}

// V values of T moved together, in accesses of at most 16 bytes.
template <typename T, int V>
struct alignas(sizeof(T) * V > 16 ? 16 : sizeof(T) * V) Vec {
    T value[V];
};

// V consecutive elements at `source`, which is aligned to V * sizeof(T) bytes (at most 16), widened.
template <int V, typename T>
__device__ __forceinline__ void load(Compute<T> (&result)[V], const T* source) {
    const Vec<T, V> pack = *reinterpret_cast<const Vec<T, V>*>(source);
#pragma unroll
    for (int i = 0; i < V; ++i) result[i] = widen(pack.value[i]);
}

// V values rounded to T and stored at `target`, aligned as for load.
template <int V, typename T, typename S>
__device__ __forceinline__ void store(T* target, const S (&values)[V]) {
    Vec<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) pack.value[i] = narrow<T>(values[i]);
    *reinterpret_cast<Vec<T, V>*>(target) = pack;
}

}  // namespace fx
