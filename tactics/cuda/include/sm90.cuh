// Hopper's own instructions as small functions: mbarriers, the tensor copy engine (TMA), clusters, programmatic dependent launch,
// wgmma descriptors and fences. Source: PTX ISA 8.x, chapters "mbarrier", "cp.async.bulk.tensor", "wgmma" and "griddepcontrol".
//
// Defines: PDL (0/1) turns the dependent-launch instructions on. DEBUG_TIMEOUT (0/1) makes a wait that never ends trap.
#pragma once

#ifndef PDL
#define PDL 0
#endif
#ifndef DEBUG_TIMEOUT
#define DEBUG_TIMEOUT 0
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

// A TMA descriptor, made by cuTensorMapEncodeTiled / cuTensorMapEncodeIm2col and passed by value as a __grid_constant__ parameter.
struct __align__(64) TensorMap {
  char bytes[128];
};

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

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
// The same barrier in block `rank` of the cluster. Says that this warp's wgmmas have read a stage (wgmma_wait came before); it publishes
// no ordinary stores: release at cluster scope would be a full memory barrier a stage.
__device__ __forceinline__ void barrier_arrive_remote(u32 barrier, u32 rank) {
  asm volatile("{ .reg .b32 a; mapa.shared::cluster.u32 a, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [a]; }" ::"r"(
                   barrier),
               "r"(rank)
               : "memory");
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

// Named barriers (bar.sync) 1..15 for part of a block; 0 is __syncthreads.
template <int ID>
__device__ __forceinline__ void named_sync(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(ID), "r"(threads) : "memory");
}
template <int ID>
__device__ __forceinline__ void named_arrive(int threads) {
  asm volatile("bar.arrive %0, %1;" ::"n"(ID), "r"(threads) : "memory");
}

// True in one lane of a warp that is all here. ptxas knows that it is one, and then takes TMA's operands from uniform registers without a loop
// over the lanes that might differ.
__device__ __forceinline__ bool elect_one() {
  u32 chosen;
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(chosen));
  return chosen;
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

// ---------------------------------------------------------------------------------------------------------------- clusters
__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Relaxed: says only that the block got here, no store of its is published (fence.mbarrier_init covers the barriers).
__device__ __forceinline__ void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// The address that a shared address has in block `rank` of the cluster, for store_remote.
__device__ __forceinline__ u32 remote_address(u32 address, u32 rank) {
  u32 remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
// Stores to a block of the cluster whose bytes are counted on `barrier`, of the same block: who waits there sees them. No memory barrier.
__device__ __forceinline__ void store_remote(u32 remote, float a, float b, u32 barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(remote), "f"(a), "f"(b), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void store_remote(u32 remote, float a, u32 barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(remote), "f"(a), "r"(barrier) : "memory");
}

// -------------------------------------------------------------------------------------------- programmatic dependent launch
// Until here a kernel may only read what no earlier kernel of the stream writes (weights); after it, all their writes are visible.
__device__ __forceinline__ void dependency_wait() {
#if PDL
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void dependents_launch() {
#if PDL
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ------------------------------------------------------------------------------------------------------------------- wgmma
// What this thread wrote to shared memory may be read by wgmma and TMA afterwards.
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The constant part of a matrix descriptor (PTX ISA, "Matrix descriptor"): the swizzle, and two strides in bytes.
//   K contiguous (rows of WIDTH bytes): `stride` from 8 rows to the next 8; `leading` unused.
//   rows contiguous (MN): `leading` from WIDTH bytes of rows to the next, `stride` from 8 values of K to the next 8.
template <int WIDTH>
__device__ __forceinline__ constexpr u64 matrix_descriptor(u32 leading, u32 stride) {
  static_assert(WIDTH == 128 || WIDTH == 64 || WIDTH == 32, "a swizzle of 128, 64 or 32 bytes");
  return ((u64)(WIDTH == 128 ? 1 : WIDTH == 64 ? 2 : 3) << 62) | ((u64)(stride >> 4) << 32) | ((u64)(leading >> 4) << 16);
}
// Without a swizzle: 8 rows x 16 bytes lie together; `leading` from 16 bytes of K to the next, `stride` from 8 rows to the next 8.
__device__ __forceinline__ constexpr u64 plain_descriptor(u32 leading, u32 stride) {
  return ((u64)(stride >> 4) << 32) | ((u64)(leading >> 4) << 16);
}
__device__ __forceinline__ u64 descriptor_start(u32 address) { return (u64)((address & 0x3FFFF) >> 4); }
