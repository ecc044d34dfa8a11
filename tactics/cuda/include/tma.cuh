// mbarriers and the tensor copy engine (TMA) as small functions. Source: PTX ISA 8.x, chapters "mbarrier" and "cp.async.bulk.tensor".
//
// Defines: DEBUG_TIMEOUT (0/1) makes a wait that never ends trap. With MMA_EMULATION "tma_emulation.h" defines the functions instead: the CPU
// harness of the tests does so.
#pragma once

#ifndef DEBUG_TIMEOUT
#define DEBUG_TIMEOUT 0
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef MMA_EMULATION
#include "tma_emulation.h"
#else

// A TMA descriptor, made by cuTensorMapEncodeTiled / cuTensorMapEncodeIm2col and passed by value as a __grid_constant__ parameter.
struct __align__(64) TensorMap {
  char bytes[128];
};

// ---------------------------------------------------------------------------------------------------------------- mbarriers
__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes barrier_init visible to the copy engine, and with CLUSTERED to the other blocks of the cluster (a full memory barrier, so
// only where there are some). The threads that wait still have to be synchronised with the one that initialised.
template <bool CLUSTERED = false>
__device__ __forceinline__ void barrier_init_fence() {
  if constexpr (CLUSTERED) asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {  // one arrival, and `bytes` more to come
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ bool barrier_try(u32 barrier, u32 parity) {
  u32 done;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done;
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
#if DEBUG_TIMEOUT
  for (int i = 0; !barrier_try(barrier, parity); ++i)
    if (i > (1 << 20)) __trap();
#else
  while (!barrier_try(barrier, parity)) {
  }
#endif
}

// --------------------------------------------------------------------------------------------------------------------- TMA
__device__ __forceinline__ void tensormap_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// A box of a 3-D tensor (x fastest) to shared memory; the bytes are counted on `barrier`.
__device__ __forceinline__ void tma_load(u32 target, const TensorMap* map, u32 barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// A box of a 4-D tensor.
__device__ __forceinline__ void tma_load(u32 target, const TensorMap* map, u32 barrier, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
// The same to every block of the cluster whose bit is set in `mask`, at the same shared address, counted on each one's barrier.
__device__ __forceinline__ void tma_load_multicast(u32 target, const TensorMap* map, u32 barrier, int x, int y, int z,
                                                   unsigned short mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(mask)
      : "memory");
}
// im2col mode of a 4-D (n, h, w, c) tensor: the map's pixels-per-column pixels from (n, h, w) on, moved by the filter offset.
__device__ __forceinline__ void tma_load_im2col(u32 target, const TensorMap* map, u32 barrier, int c, int w, int h, int n,
                                                unsigned short offset_w, unsigned short offset_h) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(target),
      "l"(map), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(n), "h"(offset_w), "h"(offset_h)
      : "memory");
}
__device__ __forceinline__ void tma_load_im2col_multicast(u32 target, const TensorMap* map, u32 barrier, int c, int w, int h, int n,
                                                          unsigned short offset_w, unsigned short offset_h, unsigned short mask) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;" ::"r"(target),
      "l"(map), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(n), "h"(offset_w), "h"(offset_h), "h"(mask)
      : "memory");
}

// `bytes` (a multiple of 16) of plain memory to shared memory, counted on `barrier`.
__device__ __forceinline__ void bulk_load(u32 target, const void* source, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target), "l"(source),
               "r"(bytes), "r"(barrier)
               : "memory");
}

#endif  // MMA_EMULATION
