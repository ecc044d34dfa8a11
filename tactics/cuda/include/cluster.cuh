// What blocks of a cluster do together (sm_90 and later). The CPU harness of the tests defines the same functions.
// Source: PTX ISA, "barrier.cluster", "mapa", "st", "st.async", "mbarrier".
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

// An Inbox counts the bytes that other blocks send to this one's shared memory. A phase ends when it was told how many bytes to expect and
// they are there; whoever has waited for its end sees them. Bytes of a phase may come before it is told.
struct alignas(8) Inbox {
    unsigned long long bits;
};
__device__ __forceinline__ unsigned shared_place(const void* pointer) { return static_cast<unsigned>(__cvta_generic_to_shared(pointer)); }
// By one thread, before a cluster_arrive after which others send.
__device__ __forceinline__ void inbox_init(Inbox* inbox) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1; fence.mbarrier_init.release.cluster;" ::"r"(shared_place(inbox)) : "memory");
}
__device__ __forceinline__ void inbox_expect(Inbox* inbox, unsigned bytes) {  // by one thread, once a phase
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_place(inbox)), "r"(bytes) : "memory");
}
// Whether the phase of this parity (0 for the first) has ended; waits a moment for it.
__device__ __forceinline__ bool inbox_try(Inbox* inbox, unsigned parity) {
    unsigned done;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_place(inbox)), "r"(parity)
                 : "memory");
    return done;
}
// As store_cluster_shared, without waiting; the four bytes are counted in `inbox` of block `rank`.
__device__ __forceinline__ void send_cluster_shared(void* target, unsigned rank, unsigned bits, Inbox* inbox) {
    asm volatile(
        "{ .reg .b32 there, box; mapa.shared::cluster.u32 there, %0, %3; mapa.shared::cluster.u32 box, %1, %3;"
        " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [there], %2, [box]; }" ::"r"(shared_place(target)),
        "r"(shared_place(inbox)), "r"(bits), "r"(rank)
        : "memory");
}
#endif
