// Division of unsigned numbers below 2^31 by a number known at launch: a multiplication and a shift.
// Source: Granlund and Montgomery, "Division by invariant integers using multiplication" (1994), for 32 bits.
#pragma once

struct Divider {
    unsigned divisor, multiplier, shift;

    __device__ __forceinline__ unsigned quotient(unsigned value) const { return (__umulhi(value, multiplier) + value) >> shift; }
    // Divides `value` and returns the remainder.
    __device__ __forceinline__ unsigned split(unsigned& value) const {
        const unsigned whole = quotient(value), rest = value - whole * divisor;
        value = whole;
        return rest;
    }
};
