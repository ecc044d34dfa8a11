// What attention kernels agree on about masks. Defines: MASK (0 none; 1 additive of type MASK_T; 2 boolean bytes, true keeps), strides in
// elements, 0 broadcasts; MASK_ROWS = 0: one row serves all queries; MASK_PAIRS = 1: neighbouring keys are neighbours in memory, aligned in pairs.
#pragma once
#include "vector.cuh"

#ifndef MASK
#define MASK 0
#endif
#ifndef MASK_ROWS
#define MASK_ROWS 1
#endif
#ifndef MASK_PAIRS
#define MASK_PAIRS 0
#endif
#if MASK == 1
typedef MASK_T Masked;
#else
typedef unsigned char Masked;
#endif

struct __align__(2 * sizeof(Masked)) MaskPair {  // of two neighbouring keys
  Masked of[2];
};

__device__ __forceinline__ float hidden() { return __int_as_float(0xff800000); }  // the score of a key that counts for nothing

// Whether a finite value of the mask may overflow where it is scaled: many models hide keys with the lowest finite number, and a row
// of which everything is hidden so is the mean of all values, not 0.
constexpr bool MASK_OVERFLOWS = MASK == 1 && !fx::Same<Masked, __half>::value;

#if MASK == 1
// A value of the mask times `factor`, finite if it is, so that `factor` may also be divided out again.
__device__ __forceinline__ float scaled_mask(Masked value, float factor) {
  const float wide = fx::widen(value);
  if constexpr (!MASK_OVERFLOWS) return wide * factor;
  return wide == hidden() ? wide : fmaxf(wide * factor, -1e38f * fminf(1.f, factor));
}
#endif

#if MASK
// The mask of two neighbouring keys, at `at` and mask_k elements on; what is not there hides nothing.
__device__ __forceinline__ MaskPair mask_load(const Masked* at, int mask_k, bool first, bool second) {
  MaskPair pair = {};
#if MASK == 2
  pair.of[0] = pair.of[1] = 1;
#endif
  if (MASK_PAIRS) {
    if (first) pair = *reinterpret_cast<const MaskPair*>(at);
  } else {
    if (first) pair.of[0] = at[0];
    if (second) pair.of[1] = at[mask_k];
  }
  return pair;
}

// What the scores of these keys start from, sums that are scaled afterwards: values grow by `unscale`.
__device__ __forceinline__ float2 mask_start(const MaskPair& pair, float unscale) {
#if MASK == 1
  return make_float2(scaled_mask(pair.of[0], unscale), scaled_mask(pair.of[1], unscale));
#else
  return make_float2(pair.of[0] ? 0.0f : hidden(), pair.of[1] ? 0.0f : hidden());
#endif
}
#endif
