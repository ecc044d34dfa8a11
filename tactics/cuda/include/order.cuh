// Unsigned keys in the order that NumPy sorts by: NaN after everything else, -0 equal to 0.
#pragma once
#include "vector.cuh"

namespace fx {

__device__ __forceinline__ u32 order_key(float x) {
    if (x != x) return 0xffffffffu;
    const u32 bits = __float_as_uint(x == 0.0f ? 0.0f : x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ u64 order_key(double x) {
    if (x != x) return ~0ull;
    const u64 bits = static_cast<u64>(__double_as_longlong(x == 0.0 ? 0.0 : x));
    return bits >> 63 ? ~bits : bits | 1ull << 63;
}
__device__ __forceinline__ u32 order_key(i32 x) { return static_cast<u32>(x) ^ 0x80000000u; }
__device__ __forceinline__ u32 order_key(u32 x) { return x; }
__device__ __forceinline__ u32 order_key(i16 x) { return order_key(static_cast<i32>(x)); }
__device__ __forceinline__ u32 order_key(i8 x) { return order_key(static_cast<i32>(x)); }
__device__ __forceinline__ u32 order_key(u16 x) { return x; }
__device__ __forceinline__ u32 order_key(u8 x) { return x; }
__device__ __forceinline__ u32 order_key(bool x) { return x; }
__device__ __forceinline__ u64 order_key(i64 x) { return static_cast<u64>(x) ^ 1ull << 63; }
__device__ __forceinline__ u64 order_key(u64 x) { return x; }
__device__ __forceinline__ u32 order_key(__half x) { return order_key(__half2float(x)); }
__device__ __forceinline__ u32 order_key(__nv_bfloat16 x) { return order_key(__bfloat162float(x)); }

}  // namespace fx
