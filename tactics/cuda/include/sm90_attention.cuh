// What the attention kernels for sm_90a are made of: the product of probabilities in registers with values in shared memory, their
// conversion, the exponential, the 4-D copy. Defines: WGMMA_N (keys of a product of scores, set before sm90_wgmma.cuh), HEAD, OUT_T (of 16 or 8 bits).
#pragma once
#include "sums.cuh"
#undef WGMMA_N
#define WGMMA_N HEAD
#define WG_C(v) "+f"(v)

// d += x * y, x 64 x 16 in registers, y 16 x HEAD with its columns contiguous in shared memory.
template <class T>
__device__ __forceinline__ void weigh(float (&d)[HEAD / 2], const u32 (&x)[4], u64 y, int accumulate);
template <>
__device__ __forceinline__ void weigh<half>(float (&d)[HEAD / 2], const u32 (&x)[4], u64 y, int accumulate) {
  WG_EMIT_REGISTERS("k16.f32.f16.f16", ", 1, 1, 1");
}
template <>
__device__ __forceinline__ void weigh<__nv_bfloat16>(float (&d)[HEAD / 2], const u32 (&x)[4], u64 y, int accumulate) {
  WG_EMIT_REGISTERS("k16.f32.bf16.bf16", ", 1, 1, 1");
}
#undef WG_C

__device__ __forceinline__ u32 pack(half, float a, float b) {
  const __half2 both = __floats2half2_rn(a, b);
  return *(const u32*)&both;
}
__device__ __forceinline__ u32 pack(__nv_bfloat16, float a, float b) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
  return *(const u32*)&both;
}
// Two neighbouring results as they are stored; those of 8 bits in the lower half.
__device__ __forceinline__ u32 stored_pair(float a, float b) {
#ifdef HAS_EPILOGUE
  const float pair[2] = {a, b};
  fx::Vec<OUT_T, 2> stored;
  store_sums(stored.value, pair, EpilogueArgs(), 0, 0, 0);
  if constexpr (sizeof(stored) == 2) return *(const unsigned short*)&stored;
  else return *(const u32*)&stored;
#else
  return pack(OUT_T(), a, b);
#endif
}
// Eight neighbouring results at `target` (aligned to eight), from four pairs.
__device__ __forceinline__ void store_eight(OUT_T* target, const u32 (&pairs)[4]) {
  if constexpr (sizeof(OUT_T) == 2) *(uint4*)target = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  else *(uint2*)target = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}
__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float exponential(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
struct Strides {  // of batch, head and position, in elements
  long long b, h, s;
};
