// The pointwise functions of fusion/expression.py as device functions, for generated code. `fx::f` is exact (float32
// within a few ulp of the NumPy meaning, NaN carried on); `fx::fast::f` uses the hardware approximations and stays under
// the rounding of float16 (relative error below 2^-12), for expressions whose operands and result are all that narrow.
// Source of the approximations' errors: CUDA C++ Programming Guide, "Mathematical Functions".
#pragma once
#include "vector.cuh"

namespace fx {

#define FX_TEMPLATE template <typename T> __device__ __forceinline__

// --- exact float and double versions of the C library's functions
#define FX_LIBRARY(name, narrow_function, wide_function)                           \
    __device__ __forceinline__ float name(float x) { return narrow_function(x); } \
    __device__ __forceinline__ double name(double x) { return wide_function(x); }
FX_LIBRARY(exp, ::expf, ::exp)
FX_LIBRARY(expm1, ::expm1f, ::expm1)
FX_LIBRARY(log, ::logf, ::log)
FX_LIBRARY(log1p, ::log1pf, ::log1p)
FX_LIBRARY(sqrt, ::sqrtf, ::sqrt)
FX_LIBRARY(sin, ::sinf, ::sin)
FX_LIBRARY(cos, ::cosf, ::cos)
FX_LIBRARY(tan, ::tanf, ::tan)
FX_LIBRARY(asin, ::asinf, ::asin)
FX_LIBRARY(acos, ::acosf, ::acos)
FX_LIBRARY(atan, ::atanf, ::atan)
FX_LIBRARY(sinh, ::sinhf, ::sinh)
FX_LIBRARY(cosh, ::coshf, ::cosh)
FX_LIBRARY(tanh, ::tanhf, ::tanh)
FX_LIBRARY(asinh, ::asinhf, ::asinh)
FX_LIBRARY(acosh, ::acoshf, ::acosh)
FX_LIBRARY(atanh, ::atanhf, ::atanh)
FX_LIBRARY(erf, ::erff, ::erf)
FX_LIBRARY(floor, ::floorf, ::floor)
FX_LIBRARY(ceil, ::ceilf, ::ceil)
FX_LIBRARY(round, ::rintf, ::rint)
FX_LIBRARY(magnitude, ::fabsf, ::fabs)
#undef FX_LIBRARY

__device__ __forceinline__ float remainder_of(float a, float b) { return ::fmodf(a, b); }
__device__ __forceinline__ double remainder_of(double a, double b) { return ::fmod(a, b); }
__device__ __forceinline__ float with_sign(float a, float b) { return ::copysignf(a, b); }
__device__ __forceinline__ double with_sign(double a, double b) { return ::copysign(a, b); }
__device__ __forceinline__ float raise(float a, float b) { return ::powf(a, b); }
__device__ __forceinline__ double raise(double a, double b) { return ::pow(a, b); }

FX_TEMPLATE bool is_nan(T x) {
    if constexpr (IsFloat<T>::value) return x != x;
    else return false;
}

// --- binary arithmetic; integers wrap
FX_TEMPLATE T add(T a, T b) { return static_cast<T>(a + b); }
FX_TEMPLATE T sub(T a, T b) { return static_cast<T>(a - b); }
FX_TEMPLATE T mul(T a, T b) { return static_cast<T>(a * b); }
FX_TEMPLATE T neg(T x) { return static_cast<T>(-x); }

// Integers are divided towards zero, and by 1 instead of 0.
FX_TEMPLATE T div(T a, T b) {
    if constexpr (IsFloat<T>::value) return a / b;
    else if (b == T(0)) return a;
    else if (T(-1) < T(0) && b == T(-1)) return static_cast<T>(T(0) - static_cast<u64>(a));
    else return static_cast<T>(a / b);
}

FX_TEMPLATE T fmod(T a, T b) {
    if constexpr (IsFloat<T>::value) return remainder_of(a, b);
    else if (b == T(0) || (T(-1) < T(0) && b == T(-1))) return T(0);
    else return static_cast<T>(a % b);
}

FX_TEMPLATE T mod(T a, T b) {
    const T r = fmod(a, b);
    if constexpr (IsFloat<T>::value) {
        if (r == T(0)) return with_sign(T(0), b);
        return (r < T(0)) != (b < T(0)) && !is_nan(r) ? r + b : r;
    } else {
        return r != T(0) && (r < T(0)) != (b < T(0)) ? static_cast<T>(r + b) : r;
    }
}

template <typename T, typename E>
__device__ __forceinline__ T pow(T a, E b) {
    if constexpr (IsFloat<T>::value) {
        if constexpr (sizeof(E) == 8 && sizeof(T) == 4) return static_cast<T>(raise(static_cast<double>(a), static_cast<double>(b)));
        else return raise(a, static_cast<T>(b));
    } else if constexpr (IsFloat<E>::value) {
        return cast<T>(raise(static_cast<double>(a), static_cast<double>(b)));
    } else {
        if (b < E(0)) return a == T(1) ? T(1) : a == static_cast<T>(-1) ? (b % 2 ? a : T(1)) : T(0);
        u64 result = 1, base = static_cast<u64>(a);
        for (u64 n = static_cast<u64>(b); n; n >>= 1, base *= base)
            if (n & 1) result *= base;
        return static_cast<T>(result);
    }
}

// NaN in either argument is carried on.
FX_TEMPLATE T min(T a, T b) { return is_nan(a) || a < b ? a : b; }
FX_TEMPLATE T max(T a, T b) { return is_nan(a) || a > b ? a : b; }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ float min<float>(float a, float b) {
    float result;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
template <>
__device__ __forceinline__ float max<float>(float a, float b) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
#endif

// --- unary arithmetic
FX_TEMPLATE T abs(T x) {
    if constexpr (IsFloat<T>::value) return magnitude(x);
    else return x < T(0) ? static_cast<T>(-x) : x;
}
FX_TEMPLATE T sign(T x) {
    if constexpr (IsFloat<T>::value) return is_nan(x) ? x : static_cast<T>((x > T(0)) - (x < T(0)));
    else return static_cast<T>((x > T(0)) - (x < T(0)));
}
FX_TEMPLATE T square(T x) { return static_cast<T>(x * x); }
FX_TEMPLATE T reciprocal(T x) { return T(1) / x; }
FX_TEMPLATE T rsqrt(T x) { return T(1) / sqrt(x); }

// --- activations
FX_TEMPLATE T relu(T x) { return max(x, T(0)); }
FX_TEMPLATE T clip(T x, T low, T high) { return min(max(x, low), high); }
FX_TEMPLATE T sigmoid(T x) { return T(1) / (T(1) + exp(-x)); }
FX_TEMPLATE T softplus(T x) { return max(x, T(0)) + log1p(exp(-abs(x))); }
FX_TEMPLATE T softsign(T x) { return x / (T(1) + abs(x)); }
FX_TEMPLATE T elu(T x, T a) { return x > T(0) ? x : a * expm1(x); }
FX_TEMPLATE T celu(T x, T a) { return max(x, T(0)) + min(a * expm1(x / a), T(0)); }
FX_TEMPLATE T selu(T x, T a, T g) { return g * (x > T(0) ? x : a * expm1(x)); }
FX_TEMPLATE T leaky_relu(T x, T a) { return x >= T(0) ? x : static_cast<T>(a * x); }
FX_TEMPLATE T prelu(T x, T a) { return leaky_relu(x, a); }
FX_TEMPLATE T thresholded_relu(T x, T a) { return x > a ? x : T(0); }
FX_TEMPLATE T hard_sigmoid(T x, T a, T b) { return clip(a * x + b, T(0), T(1)); }
FX_TEMPLATE T hard_swish(T x) { return x * clip(x * T(1.0 / 6.0) + T(0.5), T(0), T(1)); }
FX_TEMPLATE T swish(T x, T a) { return x * sigmoid(a * x); }
// tanh(log(1 + e^x)) = n / (n + 2) with n = e^x (e^x + 2), which loses nothing to cancellation.
FX_TEMPLATE T mish(T x) {
    if (x > T(20)) return x;
    const T e = exp(x), n = e * (e + T(2));
    return x * (n / (n + T(2)));
}
FX_TEMPLATE T gelu(T x) { return T(0.5) * x * (T(1) + erf(x * T(0.70710678118654752440))); }
// (1 + tanh(u)) / 2 = sigmoid(2 u)
FX_TEMPLATE T gelu_tanh(T x) {
    return x * sigmoid(T(1.5957691216057307117) * (x + T(0.044715) * x * x * x));
}
FX_TEMPLATE T shrink(T x, T limit, T bias) { return x < -limit ? x + bias : x > limit ? x - bias : T(0); }

// --- comparison and logic
FX_TEMPLATE bool equal(T a, T b) { return a == b; }
FX_TEMPLATE bool less(T a, T b) { return a < b; }
FX_TEMPLATE bool less_or_equal(T a, T b) { return a <= b; }
FX_TEMPLATE bool greater(T a, T b) { return a > b; }
FX_TEMPLATE bool greater_or_equal(T a, T b) { return a >= b; }
FX_TEMPLATE bool logical_and(T a, T b) { return a != T(0) && b != T(0); }
FX_TEMPLATE bool logical_or(T a, T b) { return a != T(0) || b != T(0); }
FX_TEMPLATE bool logical_xor(T a, T b) { return (a != T(0)) != (b != T(0)); }
FX_TEMPLATE bool logical_not(T a) { return a == T(0); }
FX_TEMPLATE bool isnan(T x) { return is_nan(x); }
FX_TEMPLATE bool isinf(T x, T negative, T positive) {
    if constexpr (IsFloat<T>::value) {
        const bool infinite = x - x != T(0) && x == x;
        return infinite && (x > T(0) ? positive != T(0) : negative != T(0));
    } else {
        return false;
    }
}
template <typename C, typename T>
__device__ __forceinline__ T where(C condition, T a, T b) { return condition != C(0) ? a : b; }

// --- integers (a shift by the width or more moves every bit out)
FX_TEMPLATE T bitwise_and(T a, T b) { return static_cast<T>(a & b); }
FX_TEMPLATE T bitwise_or(T a, T b) { return static_cast<T>(a | b); }
FX_TEMPLATE T bitwise_xor(T a, T b) { return static_cast<T>(a ^ b); }
FX_TEMPLATE T bitwise_not(T a) {
    if constexpr (Same<T, bool>::value) return !a;
    else return static_cast<T>(~a);
}
FX_TEMPLATE T shift_left(T a, T b) {
    return static_cast<u64>(b) < sizeof(T) * 8 ? static_cast<T>(static_cast<u64>(a) << b) : T(0);
}
FX_TEMPLATE T shift_right(T a, T b) {
    return static_cast<u64>(b) < sizeof(T) * 8 ? static_cast<T>(a >> b) : a < T(0) ? static_cast<T>(-1) : T(0);
}

// --- hardware approximations, float only
namespace fast {
// 2^x and 1 / x as one instruction each: results below the least normal float are 0.
__device__ __forceinline__ float exp2(float x) {
#ifdef __CUDA_ARCH__
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return ::exp2f(x);
#endif
}
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return 1.0f / x;
#endif
}
__device__ __forceinline__ float exp(float x) { return exp2(1.4426950408889634f * x); }
__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + exp(-x)); }
__device__ __forceinline__ float tanh(float x) {
    const float square = x * x;
    if (square < 2.5e-3f) return x - x * square * (1.0f / 3.0f);
    return 1.0f - 2.0f * reciprocal(1.0f + exp(2.0f * x));
}
__device__ __forceinline__ float log1p_of_positive(float e) {
    return e < 0.015625f ? e * (1.0f - e * (0.5f - e * (1.0f / 3.0f))) : __logf(1.0f + e);
}
__device__ __forceinline__ float expm1(float x) {
    return fx::abs(x) < 0.03125f ? x * (1.0f + x * (0.5f + x * (1.0f / 6.0f))) : exp(x) - 1.0f;
}
__device__ __forceinline__ float softplus(float x) { return fx::max(x, 0.0f) + log1p_of_positive(exp(-fx::abs(x))); }
__device__ __forceinline__ float softsign(float x) { return x * (1.0f / (1.0f + fx::abs(x))); }
__device__ __forceinline__ float elu(float x, float a) { return x > 0.0f ? x : a * expm1(x); }
__device__ __forceinline__ float selu(float x, float a, float g) { return g * (x > 0.0f ? x : a * expm1(x)); }
__device__ __forceinline__ float celu(float x, float a) { return fx::max(x, 0.0f) + fx::min(a * expm1(x / a), 0.0f); }
__device__ __forceinline__ float swish(float x, float a) { return x * sigmoid(a * x); }
__device__ __forceinline__ float mish(float x) {
    if (x > 20.0f) return x;
    const float e = exp(x), n = e * (e + 2.0f);
    return x * (n * reciprocal(n + 2.0f));
}
// max(x, 0) - |x| Q(|x|), where the normal distribution's upper tail Q is 2 to a polynomial. The fit is minimax in the error over
// max(|result|, 6e-8), the least float16: 3.5e-5. Eleven instructions, one of them special, and few registers: a warpgroup that
// writes sums in turns has one warp a scheduler and 40 registers beside them, so that long chains are not hidden.
__device__ __forceinline__ float gelu(float x) {
    const float a = ::fminf(fx::abs(x), 8.0f), half = 0.5f * x;
    const float tail = exp2(-1.0000477f + a * (-1.1504142f + a * (-0.46072877f + a * (-0.051630203f + a * (
        0.0073585343f + a * (-0.00063836121f + a * 2.4686444e-05f))))));
    return half + fx::abs(half) - a * tail;  // NaN for minus infinity, as x times 0 is
}
__device__ __forceinline__ float gelu_tanh(float x) {
    return x * reciprocal(1.0f + exp2(x * (-2.3022082f - 0.10294324f * x * x)));  // 2 log2(e) sqrt(2 / pi), and 0.044715 of it
}
}  // namespace fast

#undef FX_TEMPLATE
}  // namespace fx
