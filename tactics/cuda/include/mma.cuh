// Thin wrappers of the PTX instructions that the tensor-core kernels use: ldmatrix, mma.sync, cp.async, programmatic
// dependent launch. Source: PTX ISA 8.x, sections "mma", "ldmatrix", "cp.async", "griddepcontrol", "mapa".
// What an architecture lacks has a fallback here (sm_75: plain copies for cp.async, two m16n8k8 for one m16n8k16).
//
// With MMA_EMULATION (a header's name) that header defines these functions instead: the CPU harness of the tests does so.
#pragma once
#include "pdl.cuh"
#include "sums.cuh"
#include "swizzle.cuh"

#if !defined(__CUDA_ARCH__)
#define SM_ARCH 0
#else
#define SM_ARCH __CUDA_ARCH__
#endif

// --- shared memory -------------------------------------------------------------------------------------------------

#ifdef MMA_EMULATION
#include MMA_EMULATION
#else

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_transposed(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// --- asynchronous copies -------------------------------------------------------------------------------------------

// Copies BYTES (4, 8, 16) from global to shared memory, or writes zeros when `valid` is false (nothing is read then).
template <int BYTES>
__device__ __forceinline__ void copy_async(unsigned target, const void* source, bool valid) {
#if SM_ARCH >= 800
    const int size = valid ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(size) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(source), "n"(BYTES), "r"(size) : "memory");
#else
    if constexpr (BYTES == 16) {
        const uint4 value = valid ? *static_cast<const uint4*>(source) : make_uint4(0, 0, 0, 0);
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                     : "memory");
    } else if constexpr (BYTES == 8) {
        const uint2 value = valid ? *static_cast<const uint2*>(source) : make_uint2(0, 0);
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(target), "r"(value.x), "r"(value.y) : "memory");
    } else {
        const unsigned value = valid ? *static_cast<const unsigned*>(source) : 0u;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(target), "r"(value) : "memory");
    }
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#if SM_ARCH >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING of this thread's most recent groups are unfinished.
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
#if SM_ARCH >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

__device__ __forceinline__ void store_shared_16(unsigned target, unsigned a, unsigned b, unsigned c, unsigned d) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ __forceinline__ void store_shared_4(unsigned target, unsigned value) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(target), "r"(value) : "memory");
}

__device__ __forceinline__ unsigned load_shared_4(unsigned source) {
    unsigned value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(source) : "memory");
    return value;
}

__device__ __forceinline__ uint4 load_shared_16(unsigned source) {
    uint4 value;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "r"(source) : "memory");
    return value;
}

__device__ __forceinline__ uint2 load_shared_8(unsigned source) {
    uint2 value;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(source) : "memory");
    return value;
}

__device__ __forceinline__ float exp2_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// --- matrix multiply-accumulate: d[16 x 8] += a[16 x 32 bytes] * b[32 bytes x 8] -------------------------------------

__device__ __forceinline__ unsigned round_to_tf32(unsigned bits) {
#if SM_ARCH >= 800
    unsigned result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(__uint_as_float(bits)));
    return result;
#else
    return bits;
#endif
}

// 8-bit integers sum into int32: T is the type of a; b is signed. 8-bit floats sum into fp32 and have the same type.
template <typename T>
__device__ __forceinline__ void mma_16x8(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if SM_ARCH >= 800
    if constexpr (fx::Same<T, fx::u8>::value)
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // i: (row half, depth half); registers of a lie as (depth half, row half)
        const int rows = i / 2, depth = i % 2;
        if constexpr (fx::Same<T, fx::u8>::value)
            asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                         : "+r"(d[2 * rows]), "+r"(d[2 * rows + 1])
                         : "r"(a[depth * 2 + rows]), "r"(depth ? b1 : b0));
        else
            asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                         : "+r"(d[2 * rows]), "+r"(d[2 * rows + 1])
                         : "r"(a[depth * 2 + rows]), "r"(depth ? b1 : b0));
    }
#endif
}

template <typename T>
__device__ __forceinline__ void mma_16x8(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

#if SM_ARCH >= 890
template <>
__device__ __forceinline__ void mma_16x8<fx::e4m3>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_16x8<fx::e5m2>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

template <>
__device__ __forceinline__ void mma_16x8<__half>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if SM_ARCH >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

#if SM_ARCH >= 800
template <>
__device__ __forceinline__ void mma_16x8<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>  // tf32: `a` and `b` hold fp32 bits already rounded to tf32
__device__ __forceinline__ void mma_16x8<float>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// --- clusters (sm_90 and later) --------------------------------------------------------------------------------------

#if SM_ARCH >= 900
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Four sums at shared address `address` of block `rank` of this cluster.
__device__ __forceinline__ Sum4 load_cluster_shared(unsigned address, unsigned rank) {
    unsigned remote, word[4];
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(remote)
                 : "memory");
    if constexpr (fx::Same<SUM_T, int>::value)
        return Sum4{static_cast<SUM_T>(static_cast<int>(word[0])), static_cast<SUM_T>(static_cast<int>(word[1])),
                    static_cast<SUM_T>(static_cast<int>(word[2])), static_cast<SUM_T>(static_cast<int>(word[3]))};
    else
        return Sum4{static_cast<SUM_T>(__uint_as_float(word[0])), static_cast<SUM_T>(__uint_as_float(word[1])),
                    static_cast<SUM_T>(__uint_as_float(word[2])), static_cast<SUM_T>(__uint_as_float(word[3]))};
}
#endif

#endif  // MMA_EMULATION

// Piece `index` of `source`, in pieces of BYTES (1 or 2).
template <int BYTES>
__device__ __forceinline__ unsigned load_bits(const void* source, long long index) {
    static_assert(BYTES == 1 || BYTES == 2, "larger pieces are copied asynchronously");
    if constexpr (BYTES == 1) return static_cast<const unsigned char*>(source)[index];
    else return static_cast<const unsigned short*>(source)[index];
}

// Fills one 16-byte chunk of shared memory from `count` (any integer; clamped) consecutive elements at `source`, zeros
// after them. VEC is the alignment of `source` in bytes; it divides the bytes of every count that is not clamped.
template <int VEC, typename T>
__device__ __forceinline__ void copy_chunk(unsigned target, const T* source, int count) {
    constexpr int PER = 16 / sizeof(T);
    if constexpr (VEC == 16) {
        copy_async<16>(target, source, count > 0);
    } else if constexpr (VEC >= 4) {
        constexpr int STEP = VEC / sizeof(T);
#pragma unroll
        for (int i = 0; i < 16 / VEC; ++i) copy_async<VEC>(target + i * VEC, source + i * STEP, count > i * STEP);
    } else {
        unsigned word[4] = {};
#pragma unroll
        for (int i = 0; i < 16 / VEC; ++i)
            if (count > i * (PER * VEC / 16)) word[i * VEC / 4] |= load_bits<VEC>(source, i) << i * VEC % 4 * 8;
        store_shared_16(target, word[0], word[1], word[2], word[3]);
    }
}
