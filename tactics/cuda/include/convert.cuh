// What a kernel that moves data stores of each element that it reads: the element itself, or with CONVERT what the prelude's `value` makes of it
// (of the computed value of MOVE_T), rounded to OUT_T.
#pragma once
#include "vector.cuh"

#ifdef CONVERT
#include "functions.cuh"

__device__ __forceinline__ OUT_T converted(MOVE_T element) { return fx::narrow<OUT_T>(value(fx::widen(element))); }
#else
using OUT_T = MOVE_T;

__device__ __forceinline__ MOVE_T converted(MOVE_T element) { return element; }
#endif

// The narrower of the two, for what lies between in shared memory: elements are converted before where that is OUT_T, else behind.
template <bool OUT>
struct HeldType {
    using type = OUT_T;
};
template <>
struct HeldType<false> {
    using type = MOVE_T;
};
constexpr bool CONVERTS_EARLY = sizeof(OUT_T) <= sizeof(MOVE_T);
using HELD_T = typename HeldType<CONVERTS_EARLY>::type;

template <bool NOW, typename To, typename From>
__device__ __forceinline__ To converted_if(From element) {
    if constexpr (NOW) return converted(element);
    else return element;
}
