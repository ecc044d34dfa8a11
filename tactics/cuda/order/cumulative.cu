// Running sums and products along the middle axis of x, seen as [outer, n, inner]; computed in WORK. REVERSE=1 runs from the
// end, EXCLUSIVE=1 leaves the element itself out.
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

__device__ __forceinline__ WORK neutral() { return static_cast<WORK>(PRODUCT ? 1 : 0); }
__device__ __forceinline__ WORK join(WORK a, WORK b) { return PRODUCT ? fx::mul(a, b) : fx::add(a, b); }

#if KIND == 0
template <typename T>
__device__ __forceinline__ T shuffle_up(T value, int lanes, int width) {
    if constexpr (sizeof(T) < 4) return static_cast<T>(__shfl_up_sync(0xffffffffu, static_cast<int>(value), lanes, width));
    else return __shfl_up_sync(0xffffffffu, value, lanes, width);
}

// GROUP threads per line (a part of a warp, or the whole block), ITEMS neighbours per thread and step: scanned in the thread, then over the
// group; `carry` goes on to the next step. Grid: ceil(lines / (THREADS / GROUP)).
extern "C" __global__ void __launch_bounds__(THREADS)
    scan_lines(const IN_T* __restrict__ x, IN_T* __restrict__ out, unsigned lines, unsigned n, const Divider inner) {
    constexpr int LANES = GROUP < 32 ? GROUP : 32, WARPS = GROUP > 32 ? GROUP / 32 : 1;
    __shared__ WORK warp_total[WARPS];
    pdl_start();
    const unsigned line = blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP, place = threadIdx.x % GROUP;
    const unsigned length = line < lines ? n : 0;
    unsigned outer = line;
    const unsigned column = inner.split(outer);
    const long long base = static_cast<long long>(outer) * n * inner.divisor + column;
    WORK carry = neutral();
    for (unsigned start = 0; start < n; start += GROUP * ITEMS) {
        WORK value[ITEMS], total = neutral();
        long long offset[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const unsigned k = start + place * ITEMS + i;
            offset[i] = base + static_cast<long long>(REVERSE ? n - 1 - k : k) * inner.divisor;
            value[i] = k < length ? fx::widen(x[offset[i]]) : neutral();
        }
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) total = join(total, value[i]);
        WORK running = total;  // of this thread and those before it in the warp
#pragma unroll
        for (int lanes = 1; lanes < LANES; lanes *= 2) {
            const WORK before = shuffle_up(running, lanes, LANES);
            if (place % LANES >= lanes) running = join(before, running);
        }
        WORK before = shuffle_up(running, 1, LANES);
        if (place % LANES == 0) before = neutral();
        before = join(carry, before);
        if constexpr (GROUP > 32) {
            __syncthreads();  // the step before may still be reading
            if (threadIdx.x % 32 == 31) warp_total[threadIdx.x / 32] = running;
            __syncthreads();
            WORK ahead = neutral(), all = neutral();
#pragma unroll
            for (int warp = 0; warp < WARPS; ++warp) {
                if (warp == static_cast<int>(threadIdx.x / 32)) ahead = all;
                all = join(all, warp_total[warp]);
            }
            before = join(before, ahead);
            carry = join(carry, all);
        } else {
            WORK last = running;
            if constexpr (sizeof(WORK) < 4) last = static_cast<WORK>(__shfl_sync(0xffffffffu, static_cast<int>(running), LANES - 1, LANES));
            else last = __shfl_sync(0xffffffffu, running, LANES - 1, LANES);
            carry = join(carry, last);
        }
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const WORK after = join(before, value[i]);
            if (start + place * ITEMS + i < length) out[offset[i]] = fx::narrow<IN_T>(EXCLUSIVE ? before : after);
            before = after;
        }
    }
}
#else
// One thread per line; neighbouring threads have neighbouring lines. Grid: ceil(lines / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    scan_columns(const IN_T* __restrict__ x, IN_T* __restrict__ out, unsigned lines, unsigned n, const Divider inner) {
    pdl_start();
    unsigned outer = blockIdx.x * THREADS + threadIdx.x;
    if (outer >= lines) return;
    const unsigned column = inner.split(outer);
    const long long base = static_cast<long long>(outer) * n * inner.divisor + column;
    WORK total = neutral();
#pragma unroll 4
    for (unsigned k = 0; k < n; ++k) {
        const long long offset = base + static_cast<long long>(REVERSE ? n - 1 - k : k) * inner.divisor;
        const WORK after = join(total, fx::widen(x[offset]));
        out[offset] = fx::narrow<IN_T>(EXCLUSIVE ? total : after);
        total = after;
    }
}
#endif
