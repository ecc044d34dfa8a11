// What blocks of a cluster do together (sm_90 and later). The CPU harness of the tests defines the same functions.
// Source: PTX ISA, "barrier.cluster", "mapa", "st".
#pragma once

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// A thread's writes to shared memory anywhere in the cluster, before it arrives, are seen by all who have waited.
__device__ __forceinline__ void cluster_arrive() {
    __syncwarp();  // the aligned forms want whole warps
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes 4 bytes to the place that `target` has, in the shared memory of block `rank`.
__device__ __forceinline__ void store_cluster_shared(void* target, unsigned rank, unsigned bits) {
    unsigned there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(static_cast<unsigned>(__cvta_generic_to_shared(target))), "r"(rank));
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(there), "r"(bits) : "memory");
}
#endif
