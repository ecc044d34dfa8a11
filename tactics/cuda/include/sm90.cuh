// Hopper's own instructions as small functions: clusters, programmatic dependent launch, wgmma descriptors and fences; tma.cuh has mbarriers
// and the tensor copy engine. Source: PTX ISA 8.x, chapters "mbarrier", "wgmma" and "griddepcontrol".
//
// Defines: PDL (0/1) turns the dependent-launch instructions on.
#pragma once
#include "tma.cuh"

#ifndef PDL
#define PDL 0
#endif

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

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
// The same barrier in block `rank` of the cluster. Says that this warp's wgmmas have read a stage (wgmma_wait came before); it publishes
// no ordinary stores: release at cluster scope would be a full memory barrier a stage.
__device__ __forceinline__ void barrier_arrive_remote(u32 barrier, u32 rank) {
  asm volatile("{ .reg .b32 a; mapa.shared::cluster.u32 a, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [a]; }" ::"r"(
                   barrier),
               "r"(rank)
               : "memory");
}
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
