// The k largest (smallest) elements along the middle axis of [outer, n, inner], best first, of equals the lower index first, and
// their int64 indices. A NaN counts as the largest element.
#include "division.cuh"
#include "functions.cuh"
#include "group.cuh"
#include "pdl.cuh"

using WORK = fx::Compute<ELEM_T>;

#if KIND == 0
// The plainest: the place of an element is how many stand before it. One thread per element, n reads each.
__device__ __forceinline__ bool before(WORK a, int i, WORK b, int j) {
    const bool nan_a = fx::is_nan(a), nan_b = fx::is_nan(b);
    if (nan_a != nan_b) return nan_a == static_cast<bool>(LARGEST);
    if (!nan_a && a != b) return LARGEST ? a > b : a < b;
    return i < j;
}
extern "C" __global__ void __launch_bounds__(THREADS)
    topk_rank(const ELEM_T* __restrict__ x, ELEM_T* __restrict__ values, long long* __restrict__ indices, unsigned count, int n, int k,
              const Divider inner, const Divider axis) {
    pdl_wait();
    pdl_launch_next();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned rest = index;
    const unsigned column = inner.split(rest);
    const int mine = axis.split(rest);
    const long long base = static_cast<long long>(rest) * n * inner.divisor + column;
    const WORK value = fx::widen(x[index]);
    int rank = 0;
    for (int j = 0; j < n; ++j) rank += before(fx::widen(x[base + static_cast<long long>(j) * inner.divisor]), j, value, mine);
    if (rank < k) {
        const long long target = (static_cast<long long>(rest) * k + rank) * inner.divisor + column;
        values[target] = x[index];
        indices[target] = mine;
    }
}
#else
// A value and its index as one number: larger is better. 0 is worse than any.
__device__ __forceinline__ unsigned long long key_of(WORK value, unsigned index) {
    unsigned bits;
    if constexpr (fx::IsFloat<WORK>::value) {
        const float x = static_cast<float>(value) + 0.0f;  // -0 equals 0
        bits = x != x ? 0x7fc00000u : __float_as_uint(x);
        bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    } else {
        bits = static_cast<unsigned>(static_cast<int>(value)) ^ (static_cast<WORK>(-1) < WORK(0) ? 0x80000000u : 0u);
    }
    return static_cast<unsigned long long>(LARGEST ? bits : ~bits) << 32 | ~index;
}

#if KIND == 1
// Small k: THREADS threads keep the keys of a row in registers; k times the best one is found and taken out by its owner.
// Grid: outer * inner.
extern "C" __global__ void __launch_bounds__(THREADS)
    topk_rounds(const ELEM_T* __restrict__ x, ELEM_T* __restrict__ values, long long* __restrict__ indices, int n, int k, int inner) {
    pdl_wait();
    pdl_launch_next();
    const long long outer = blockIdx.x / inner;
    const int column = blockIdx.x % inner;
    const ELEM_T* source = x + outer * n * inner + column;
    unsigned long long key[ITEMS], mine = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int j = i * THREADS + threadIdx.x;
        key[i] = j < n ? key_of(fx::widen(source[static_cast<long long>(j) * inner]), j) : 0;
        mine = key[i] > mine ? key[i] : mine;
    }
    for (int round = 0; round < k; ++round) {
        const unsigned long long best =
            fx::group_reduce<THREADS>(mine, [](unsigned long long a, unsigned long long b) { return a > b ? a : b; });
        if (best == mine) {
            const unsigned index = ~static_cast<unsigned>(best);
            const long long target = (outer * k + round) * inner + column;
            values[target] = source[static_cast<long long>(index) * inner];
            indices[target] = index;
            mine = 0;
#pragma unroll
            for (int i = 0; i < ITEMS; ++i) {
                if (key[i] == best) key[i] = 0;
                mine = key[i] > mine ? key[i] : mine;
            }
        }
    }
}
#else
// One block sorts a row in shared memory (SIZE keys, a power of two >= n), bitonic, best first. Grid: outer * inner.
extern "C" __global__ void __launch_bounds__(THREADS)
    topk_sort(const ELEM_T* __restrict__ x, ELEM_T* __restrict__ values, long long* __restrict__ indices, int n, int k, int inner) {
    extern __shared__ unsigned long long keys[];
    pdl_wait();
    pdl_launch_next();
    const long long outer = blockIdx.x / inner;
    const int column = blockIdx.x % inner;
    const ELEM_T* source = x + outer * n * inner + column;
    for (int j = threadIdx.x; j < SIZE; j += THREADS)
        keys[j] = j < n ? key_of(fx::widen(source[static_cast<long long>(j) * inner]), j) : 0;
    for (int run = 2; run <= SIZE; run *= 2)
        for (int step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < SIZE / 2; pair += THREADS) {
                const int low = pair / step * step * 2 + pair % step, high = low + step;
                const unsigned long long a = keys[low], b = keys[high];
                if ((a < b) == ((low & run) == 0)) keys[low] = b, keys[high] = a;
            }
        }
    __syncthreads();
    for (int j = threadIdx.x; j < k; j += THREADS) {
        const unsigned index = ~static_cast<unsigned>(keys[j]);
        const long long target = (outer * k + j) * inner + column;
        values[target] = source[static_cast<long long>(index) * inner];
        indices[target] = index;
    }
}
#endif
#endif
