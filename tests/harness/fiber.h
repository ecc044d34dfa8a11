// Runs a CUDA kernel on the CPU: every thread of a block is a fiber (ucontext), blocks run one after another, those of a cluster together.
//
// Enough of CUDA for kernels without inline PTX: thread indices, static and dynamic shared memory, __syncthreads, __syncwarp,
// shuffles, votes, atomics, and the fast intrinsics (as their exact functions). A barrier that not all threads reach is
// reported as an error, as is the case that hardware leaves undefined: a thread that has returned.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <type_traits>
#include <utility>
#include <vector>

#undef __global__
#undef __device__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __cluster_dims__
#define __global__
#define __device__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)

static uint3 threadIdx, blockIdx;
static uint3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace fiber {

constexpr size_t STACK = 128 * 1024;
constexpr size_t SHARED = 256 * 1024;
alignas(1024) static char dynamic_shared[SHARED];

struct Barrier {
    int arrived = 0;
    long generation = 0;
};
struct Warp {
    std::map<unsigned, Barrier> barriers;  // by mask
    alignas(16) char slot[32][16];
};
struct Fiber {
    ucontext_t context;
    uint3 index;
    uint3 block;
    int in_cluster;
    bool done;
    long cluster_phase;
};

static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static std::vector<char*> stacks;
static std::vector<Warp> warps;
static std::vector<Barrier> block_barriers;  // of the blocks that run together
static Barrier cluster_barrier;
static unsigned cluster_size = 1;
static std::vector<char*> more_shared;  // of the second block of a cluster and those behind it
static int current;
static long events;
static const std::function<void()>* body;

static void yield() { swapcontext(&fibers[current].context, &scheduler); }

static void wait(Barrier& barrier, int count) {
    const long generation = barrier.generation;
    ++events;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        ++barrier.generation;
    } else {
        while (barrier.generation == generation) yield();
    }
}

static char* shared_of(int block) { return block ? more_shared[block - 1] : dynamic_shared; }
static char* shared() { return shared_of(fibers[current].in_cluster); }
static int lane() { return current % 32; }
static Warp& warp() { return warps[current / 32]; }
static void wait_warp(unsigned mask) {
    const int threads = static_cast<int>(fibers.size()) - current / 32 * 32;
    if (threads < 32) mask &= (1u << threads) - 1;
    wait(warp().barriers[mask], __builtin_popcount(mask));
}

static void entry() {
    (*body)();
    fibers[current].done = true;
    ++events;
    swapcontext(&fibers[current].context, &scheduler);
}

// Runs `kernel` for every thread of the grid; 0, or 1 when threads wait for each other for ever.
static int run(const unsigned* grid, const unsigned* block, size_t shared, const std::function<void()>& kernel) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const int each = block[0] * block[1] * block[2], threads = each * cluster_size;
    if (cluster_size > 1 && (each % 32 || grid[0] % cluster_size)) return 3;
    while (more_shared.size() + 1 < cluster_size) more_shared.push_back(static_cast<char*>(aligned_alloc(1024, SHARED)));
    body = &kernel;
    while (static_cast<int>(stacks.size()) < threads) stacks.push_back(static_cast<char*>(malloc(STACK)));
    for (unsigned z = 0; z < grid[2]; ++z)
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0]; x += cluster_size) {
                for (unsigned one = 0; one < cluster_size; ++one) memset(shared_of(one), 0xff, std::min(shared, SHARED));
                fibers.resize(threads);
                warps.assign((threads + 31) / 32, Warp{});
                block_barriers.assign(cluster_size, Barrier{});
                cluster_barrier = Barrier{};
                for (int i = 0; i < threads; ++i) {
                    Fiber& f = fibers[i];
                    const unsigned u = i % each;
                    f.in_cluster = i / each;
                    f.block = {x + f.in_cluster, y, z};
                    f.index = {u % block[0], u / block[0] % block[1], u / block[0] / block[1]};
                    f.done = false;
                    getcontext(&f.context);
                    f.context.uc_stack.ss_sp = stacks[i];
                    f.context.uc_stack.ss_size = STACK;
                    f.context.uc_link = &scheduler;
                    makecontext(&f.context, entry, 0);
                }
                for (int left = threads; left > 0;) {
                    const long before = events;
                    left = 0;
                    for (current = 0; current < threads; ++current) {
                        if (fibers[current].done) continue;
                        threadIdx = fibers[current].index;
                        blockIdx = fibers[current].block;
                        swapcontext(&scheduler, &fibers[current].context);
                        left += !fibers[current].done;
                    }
                    if (left > 0 && events == before) return 1;
                }
            }
    return 0;
}

template <typename... A, size_t... I>
static int call(void (*kernel)(A...), void** arguments, const unsigned* grid, const unsigned* block, size_t shared,
                std::index_sequence<I...>) {
    return run(grid, block, shared, [&] { kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...); });
}
template <typename... A>
static int launch(void (*kernel)(A...), void** arguments, const unsigned* grid, const unsigned* block, size_t shared, int count) {
    if (count != static_cast<int>(sizeof...(A))) return 2;
    return call(kernel, arguments, grid, block, shared, std::index_sequence_for<A...>{});
}

}  // namespace fiber

// --- barriers, shuffles, votes
static inline void __syncthreads() {
    fiber::wait(fiber::block_barriers[fiber::fibers[fiber::current].in_cluster], static_cast<int>(fiber::fibers.size() / fiber::cluster_size));
}

// A fiber that waits for memory to change lets the others run.
static inline void __nanosleep(unsigned) {
    ++fiber::events;
    fiber::yield();
}

// --- clusters (the functions of include/cluster.cuh)
static inline void cluster_arrive() {
    fiber::Barrier& barrier = fiber::cluster_barrier;
    fiber::fibers[fiber::current].cluster_phase = barrier.generation;
    ++fiber::events;
    if (++barrier.arrived == static_cast<int>(fiber::fibers.size())) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
}
static inline void cluster_wait() {
    while (fiber::cluster_barrier.generation == fiber::fibers[fiber::current].cluster_phase) fiber::yield();
}
static inline void store_cluster_shared(void* target, unsigned rank, unsigned bits) {
    const size_t offset = static_cast<char*>(target) - fiber::shared();
    if (offset + 4 > fiber::SHARED || offset % 4 || rank >= fiber::cluster_size) abort();
    memcpy(fiber::shared_of(rank) + offset, &bits, 4);
}
struct alignas(8) Inbox {
    int missing;
    unsigned short told, phase;
};
static inline void inbox_turn(Inbox* inbox) {
    if (inbox->told && inbox->missing == 0) inbox->told = 0, inbox->phase ^= 1;
    ++fiber::events;
}
static inline void inbox_init(Inbox* inbox) { *inbox = Inbox{}; }
static inline void inbox_expect(Inbox* inbox, unsigned bytes) {
    if (inbox->told) abort();
    inbox->missing += static_cast<int>(bytes), inbox->told = 1;
    inbox_turn(inbox);
}
static inline bool inbox_try(Inbox* inbox, unsigned parity) {
    if (inbox->phase != parity) return true;
    fiber::yield();
    return inbox->phase != parity;
}
static inline void send_cluster_shared(void* target, unsigned rank, unsigned bits, Inbox* inbox) {
    store_cluster_shared(target, rank, bits);
    const size_t offset = reinterpret_cast<char*>(inbox) - fiber::shared();
    if (offset + 8 > fiber::SHARED || offset % 8) abort();
    Inbox* theirs = reinterpret_cast<Inbox*>(fiber::shared_of(rank) + offset);
    theirs->missing -= 4;
    inbox_turn(theirs);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) { fiber::wait_warp(mask); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

template <typename T>
static inline T fiber_shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 16);
    memcpy(fiber::warp().slot[fiber::lane()], &value, sizeof value);
    fiber::wait_warp(mask);
    T result;
    memcpy(&result, fiber::warp().slot[source], sizeof result);
    fiber::wait_warp(mask);
    return result;
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return fiber_shuffle(mask, value, fiber::lane() / width * width + source % width);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const int source = fiber::lane() ^ bits;
    return fiber_shuffle(mask, value, source / width == fiber::lane() / width ? source : fiber::lane());
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32) {
    const int source = fiber::lane() + delta;
    return fiber_shuffle(mask, value, source / width == fiber::lane() / width ? source : fiber::lane());
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32) {
    const int source = fiber::lane() - delta;
    return fiber_shuffle(mask, value, source >= fiber::lane() / width * width ? source : fiber::lane());
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned bits = 0;
    const int mine = fiber::lane();
    for (int i = 0; i < 32; ++i) {
        const int set = fiber_shuffle(mask, predicate != 0 ? 1 : 0, (mask >> i) & 1 ? i : mine);
        if ((mask >> i) & 1 && fiber::current / 32 * 32 + i < static_cast<int>(fiber::fibers.size())) bits |= static_cast<unsigned>(set) << i;
    }
    return bits;
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
static inline int __syncthreads_or(int predicate) {
    static int any;
    __syncthreads();
    any = 0;
    __syncthreads();
    any |= predicate != 0;
    __syncthreads();
    return any;
}

// --- atomics: fibers never interrupt each other
template <typename T, typename U>
static inline T atomicAdd(T* p, U v) { const T old = *p; *p = static_cast<T>(old + static_cast<T>(v)); return old; }
template <typename T, typename U>
static inline T atomicMax(T* p, U v) { const T old = *p; *p = std::max(old, static_cast<T>(v)); return old; }
template <typename T, typename U>
static inline T atomicMin(T* p, U v) { const T old = *p; *p = std::min(old, static_cast<T>(v)); return old; }
template <typename T, typename U>
static inline T atomicExch(T* p, U v) { const T old = *p; *p = static_cast<T>(v); return old; }
template <typename T>
static inline T atomicCAS(T* p, T compare, T v) { const T old = *p; if (old == compare) *p = v; return old; }
static inline unsigned atomicInc(unsigned* p, unsigned limit) { const unsigned old = *p; *p = old >= limit ? 0 : old + 1; return old; }

// --- intrinsics
template <typename T>
static inline T fiber_bits(auto value) { static_assert(sizeof(T) == sizeof value); T result; memcpy(&result, &value, sizeof result); return result; }
static inline float __int_as_float(int v) { return fiber_bits<float>(v); }
static inline int __float_as_int(float v) { return fiber_bits<int>(v); }
static inline float __uint_as_float(unsigned v) { return fiber_bits<float>(v); }
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(both >> (selector >> i * 4 & 7) * 8 & 0xff) << i * 8;
    return result;
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {  // the product of two halves is exact in float; one rounding more than the GPU's
    return __floats2half2_rn(__low2float(a) * __low2float(b) + __low2float(c), __high2float(a) * __high2float(b) + __high2float(c));
}
static inline unsigned __float_as_uint(float v) { return fiber_bits<unsigned>(v); }
static inline double __longlong_as_double(long long v) { return fiber_bits<double>(v); }
static inline long long __double_as_longlong(double v) { return fiber_bits<long long>(v); }
#define __expf expf
#define __logf logf
#define __powf powf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32); }
static inline float __saturatef(float x) { return x > 1.0f ? 1.0f : x > 0.0f ? x : 0.0f; }
template <typename T>
static inline T __ldg(const T* p) { return *p; }
template <typename T>
static inline T __ldcs(const T* p) { return *p; }
template <typename T>
static inline void __stcs(T* p, T v) { *p = v; }
template <typename A, typename B>
static inline auto min(A a, B b) { using C = std::common_type_t<A, B>; return static_cast<C>(b) < static_cast<C>(a) ? static_cast<C>(b) : static_cast<C>(a); }
template <typename A, typename B>
static inline auto max(A a, B b) { using C = std::common_type_t<A, B>; return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a); }
