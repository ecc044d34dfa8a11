// Element types and vector access for generated code and for memory-bound kernels. Everything is in namespace fx, so it
// stands beside epilogue.cuh. Plain CUDA C++ but for one guarded instruction, so that it also compiles for the CPU harness.
//
// Values are stored as T and computed as Compute<T>: float for float, __half, __nv_bfloat16 and 8-bit floats, else T itself; narrow.cuh has the others.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "narrow.cuh"

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

// 8-bit floats as ONNX and ml_dtypes have them: e4m3 has no infinity (beyond 448 is NaN), e5m2 has.
struct e4m3 {
    unsigned char bits;
};
struct e5m2 {
    unsigned char bits;
};

__device__ __forceinline__ float small_to_float(unsigned bits, int mantissa, int bias) {
    const unsigned sign = (bits & 0x80u) << 24, magnitude = bits & 0x7fu;
    const unsigned exponent = magnitude >> mantissa, fraction = magnitude & ((1u << mantissa) - 1);
    // A subnormal is its fraction times the smallest step, 2^(1 - bias - mantissa).
    const float value = exponent == 0 ? static_cast<float>(fraction) * __int_as_float((128 - bias - mantissa) << 23)
                                      : __int_as_float(static_cast<int>((exponent + 127 - bias) << 23 | fraction << (23 - mantissa)));
    return __int_as_float(static_cast<int>(static_cast<unsigned>(__float_as_int(value)) | sign));
}

// The bits of `value` rounded to nearest even; what is larger than `largest` (as float bits) becomes `beyond`.
__device__ __forceinline__ unsigned char small_from_float(float value, int mantissa, int bias, unsigned largest, unsigned beyond) {
    const unsigned bits = static_cast<unsigned>(__float_as_int(value)), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
    const int drop = 23 - mantissa;
    unsigned result;
    if (magnitude > 0x7f800000u) result = 0x7fu;
    else if (magnitude > largest) result = beyond;
    else if (magnitude >= static_cast<unsigned>(128 - bias) << 23)
        result = ((magnitude + ((1u << (drop - 1)) - 1) + (magnitude >> drop & 1)) >> drop) - (static_cast<unsigned>(127 - bias) << mantissa);
    else  // adding 2^(24 - bias - mantissa) leaves the steps of subnormals in the last bits
        result = static_cast<unsigned>(__float_as_int(__int_as_float(static_cast<int>(magnitude)) +
                                                      __int_as_float((127 + 24 - bias - mantissa) << 23))) & 0xffu;
    return static_cast<unsigned char>(sign | result);
}

__device__ __forceinline__ unsigned char e4m3_from_float(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890  // one instruction, which would make 448 of all larger numbers
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
    return static_cast<unsigned char>(fabsf(value) > 464.0f ? pair | 0x7f : pair);
#else
    return small_from_float(value, 3, 7, 0x43e80000u, 0x7fu);
#endif
}

template <typename T>
struct ComputeOf {
    using type = T;
};
template <>
struct ComputeOf<e4m3> {
    using type = float;
};
template <>
struct ComputeOf<e5m2> {
    using type = float;
};
template <>
struct ComputeOf<__half> {
    using type = float;
};
template <>
struct ComputeOf<__nv_bfloat16> {
    using type = float;
};
template <int E, int M, int BIAS, bool FNUZ>
struct ComputeOf<MiniFloat<E, M, BIAS, FNUZ>> {
    using type = float;
};
template <>
struct ComputeOf<e8m0> {
    using type = float;
};
template <int BITS, typename C>
struct ComputeOf<MiniInt<BITS, C>> {
    using type = C;
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
__device__ __forceinline__ Compute<T> widen(T value) {
    if constexpr (IsMini<T>::value) return value.unpack();
    else return value;
}
template <>
__device__ __forceinline__ float widen<__half>(__half value) { return __half2float(value); }
template <>
__device__ __forceinline__ float widen<__nv_bfloat16>(__nv_bfloat16 value) { return __bfloat162float(value); }

template <>
__device__ __forceinline__ float widen<e4m3>(e4m3 value) {
    return (value.bits & 0x7f) == 0x7f ? __int_as_float(0x7fc00000) : small_to_float(value.bits, 3, 7);
}
template <>
__device__ __forceinline__ float widen<e5m2>(e5m2 value) {
    const unsigned magnitude = value.bits & 0x7fu;
    if (magnitude < 0x7cu) return small_to_float(value.bits, 2, 15);
    return __int_as_float(static_cast<int>(magnitude == 0x7cu ? (0x7f800000u | (value.bits & 0x80u) << 24) : 0x7fc00000u));
}

// A conversion between computed types as ONNX Cast does it: to bool `!= 0`, from float to integer truncated.
template <typename T, typename S>
__device__ __forceinline__ T cast(S value) {
    if constexpr (Same<T, S>::value) return value;
    else if constexpr (Same<T, bool>::value) return value != S(0);
    else if constexpr (IsFloat<S>::value && !IsFloat<T>::value && sizeof(T) < 4) return static_cast<T>(static_cast<i32>(value));
    else return static_cast<T>(value);
}

// `value` limited to [low, high] and rounded, half to even, plus `zero`: an 8-bit integer without a conversion. Beside 1.5 * 2^23 the last
// bits of a float count ones. NaN becomes `low`.
template <typename T>
__device__ __forceinline__ T quantize(float value, float low, float high, int zero) {
    return static_cast<T>(__float_as_int(fminf(fmaxf(value, low), high) + 12582912.0f) + zero);
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
    } else if constexpr (Same<T, e4m3>::value) {  // 464 is half way between 448 and what is not there: to even
        return e4m3{e4m3_from_float(static_cast<float>(value))};
    } else if constexpr (Same<T, e5m2>::value) {  // below 61440, half way to infinity
        return e5m2{small_from_float(static_cast<float>(value), 2, 15, 0x476fffffu, 0x7cu)};
    } else if constexpr (IsMini<T>::value) {
        return T::pack(cast<Compute<T>>(value));
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
