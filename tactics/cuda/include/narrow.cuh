// The rarer types of 8 bits and less, a byte each: FNUZ floats, powers of two, 4-bit floats (computed as float), 4- and 2-bit
// integers (computed as 8 bits). (e4m3 and e5m2 are in vector.cuh.)
// Plain arithmetic, so that every architecture and the CPU harness have them. Source of the formats: ONNX's pages on float8 and
// float4, and the OCP microscaling specification; rounding is to nearest, ties to even.
#pragma once

namespace fx {

// FNUZ: no infinity, and one NaN in place of minus zero. Else all values are finite.
template <int E, int M, int BIAS, bool FNUZ>
struct MiniFloat {
    unsigned char bits;

    __device__ __forceinline__ float unpack() const {
        const int exponent = bits >> M & ((1 << E) - 1), fraction = bits & ((1 << M) - 1);
        const bool negative = bits >> (E + M) & 1;
        if (FNUZ && bits == 128) return __int_as_float(0x7fc00000);
        const float value = exponent ? ::ldexpf(static_cast<float>(fraction + (1 << M)), exponent - BIAS - M)
                                     : ::ldexpf(static_cast<float>(fraction), 1 - BIAS - M);
        return negative ? -value : value;
    }

    static __device__ __forceinline__ MiniFloat pack(float x) {
        constexpr int sign_bit = 1 << (E + M), largest = sign_bit - 1;
        const int sign = ::copysignf(1.0f, x) < 0.0f ? sign_bit : 0;
        const float size = ::fabsf(x);
        int magnitude = 0;
        if (size > 1e38f) {
            magnitude = largest + 1;
        } else if (size > 0.0f) {
            int exponent = 0;
            ::frexpf(size, &exponent);
            exponent = exponent - 1 > 1 - BIAS ? exponent - 1 : 1 - BIAS;
            // A fraction that rounds up to the next power of two carries into the exponent by itself.
            magnitude = ((exponent + BIAS - 1) << M) + static_cast<int>(::rintf(::ldexpf(size, M - exponent)));
        }
        MiniFloat result;
        if (x != x) result.bits = sign_bit;  // FNUZ's NaN; minus zero where there is none
        else if (magnitude > largest) result.bits = FNUZ ? sign_bit : sign | largest;
        else result.bits = FNUZ && magnitude == 0 ? 0 : sign | magnitude;
        return result;
    }
};
using e4m3fnuz = MiniFloat<4, 3, 8, true>;
using e5m2fnuz = MiniFloat<5, 2, 16, true>;
using e2m1 = MiniFloat<2, 1, 1, false>;

// A power of two; 255 is NaN, and so is what is not positive or not finite.
struct e8m0 {
    unsigned char bits;

    __device__ __forceinline__ float unpack() const {
        return bits == 255 ? __int_as_float(0x7fc00000) : ::ldexpf(1.0f, static_cast<int>(bits) - 127);
    }
    static __device__ __forceinline__ e8m0 pack(float x) {
        e8m0 result;
        int exponent = 0;
        const float fraction = ::frexpf(x, &exponent);
        const int rounded = exponent + 126 + (fraction >= 0.75f);
        result.bits = x > 0.0f && x < __int_as_float(0x7f800000) && rounded < 255 ? (rounded < 0 ? 0 : rounded) : 255;
        return result;
    }
};

template <int BITS, typename C>
struct MiniInt {
    unsigned char bits;

    __device__ __forceinline__ C unpack() const {
        constexpr int top = 1 << (BITS - 1);
        return static_cast<C>(C(-1) < C(0) ? ((bits & (2 * top - 1)) ^ top) - top : bits & (2 * top - 1));
    }
    template <typename S>
    static __device__ __forceinline__ MiniInt pack(S x) {
        MiniInt result;
        result.bits = static_cast<unsigned char>(static_cast<long long>(x) & ((1 << BITS) - 1));
        return result;
    }
};
using i2 = MiniInt<2, signed char>;
using i4 = MiniInt<4, signed char>;
using u2 = MiniInt<2, unsigned char>;
using u4 = MiniInt<4, unsigned char>;

template <typename T>
struct IsMini {
    static constexpr bool value = false;
};
template <int E, int M, int BIAS, bool FNUZ>
struct IsMini<MiniFloat<E, M, BIAS, FNUZ>> {
    static constexpr bool value = true;
};
template <>
struct IsMini<e8m0> {
    static constexpr bool value = true;
};
template <int BITS, typename C>
struct IsMini<MiniInt<BITS, C>> {
    static constexpr bool value = true;
};

}  // namespace fx
