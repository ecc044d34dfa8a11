// Argument of the extreme, running sums and the top k along the middle axis of [outer, n, inner]. ELEM_T is the element,
// computed as fx::Compute<ELEM_T>. A NaN counts as the largest (for the smallest: ARGMIN finds it first; TopK puts it last).
#include "division.cuh"
#include "functions.cuh"
#include "group.cuh"
#include "pdl.cuh"

using WORK = fx::Compute<ELEM_T>;

#if KIND == 0
// Whether a stands before b: larger (smaller), a NaN first of all, of equals the first (last) place.
struct Place {
    WORK value;
    int index;
};
__device__ __forceinline__ bool better(WORK a, int i, WORK b, int j) {
    if (j < 0 || i < 0) return j < 0;
    const bool nan_a = fx::is_nan(a), nan_b = fx::is_nan(b);
    if (nan_a != nan_b) return nan_a;
    if (!nan_a && a != b) return LARGEST ? a > b : a < b;
    return SELECT_LAST ? i > j : i < j;
}

// GROUP threads per output, TX outputs side by side along inner (TX = 1 when inner = 1). Grid: outer * ceil(inner / TX).
extern "C" __global__ void __launch_bounds__(TX * TY)
    arg_reduce(const ELEM_T* __restrict__ x, long long* __restrict__ out, int n, int inner) {
    __shared__ WORK values[TY][TX];
    __shared__ int indices[TY][TX];
    pdl_wait();
    pdl_launch_next();
    const int chunks = (inner + TX - 1) / TX;
    const long long outer = blockIdx.x / chunks;
    const int column = blockIdx.x % chunks * TX + threadIdx.x;
    WORK best = WORK(0);
    int place = -1;
    if (column < inner)
        for (int k = threadIdx.y; k < n; k += TY) {
            const WORK value = fx::widen(x[(outer * n + k) * inner + column]);
            if (better(value, k, best, place)) best = value, place = k;
        }
    values[threadIdx.y][threadIdx.x] = best;
    indices[threadIdx.y][threadIdx.x] = place;
#pragma unroll
    for (int step = TY / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.y < step) {
            const WORK other = values[threadIdx.y + step][threadIdx.x];
            const int index = indices[threadIdx.y + step][threadIdx.x];
            if (better(other, index, values[threadIdx.y][threadIdx.x], indices[threadIdx.y][threadIdx.x])) {
                values[threadIdx.y][threadIdx.x] = other;
                indices[threadIdx.y][threadIdx.x] = index;
            }
        }
    }
    if (threadIdx.y == 0 && column < inner) out[outer * inner + column] = indices[0][threadIdx.x];
}
#elif KIND == 1
__device__ __forceinline__ WORK combine(WORK a, WORK b) { return PRODUCT ? fx::mul(a, b) : fx::add(a, b); }

// Running sums, inner > 1: one thread per line. Grid: ceil(outer * inner / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    cumulate_lines(const ELEM_T* __restrict__ x, ELEM_T* __restrict__ out, unsigned lines, int n, const Divider inner) {
    pdl_wait();
    pdl_launch_next();
    unsigned row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= lines) return;
    const unsigned column = inner.split(row);
    WORK total = static_cast<WORK>(PRODUCT);
    for (int k = 0; k < n; ++k) {
        const long long place = (static_cast<long long>(row) * n + (REVERSE ? n - 1 - k : k)) * inner.divisor + column;
        const WORK next = combine(total, fx::widen(x[place]));
        out[place] = fx::narrow<ELEM_T>(EXCLUSIVE ? total : next);
        total = next;
    }
}
#elif KIND == 2
__device__ __forceinline__ WORK combine(WORK a, WORK b) { return PRODUCT ? fx::mul(a, b) : fx::add(a, b); }
template <typename T>
__device__ __forceinline__ T shuffle_up(T value, int delta) {
    if constexpr (sizeof(T) < 4) return static_cast<T>(__shfl_up_sync(0xffffffffu, static_cast<int>(value), delta));
    else return __shfl_up_sync(0xffffffffu, value, delta);
}

// Running sums, inner = 1: one block per row, THREADS * ITEMS elements a step, carried on. Grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS) cumulate_rows(const ELEM_T* __restrict__ x, ELEM_T* __restrict__ out, int n) {
    __shared__ WORK warps[THREADS / 32];
    pdl_wait();
    pdl_launch_next();
    const long long base = static_cast<long long>(blockIdx.x) * n;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    constexpr WORK NONE = static_cast<WORK>(PRODUCT);
    WORK carry = NONE;
    for (int begin = 0; begin < n; begin += THREADS * ITEMS) {
        WORK value[ITEMS], total = NONE;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int k = begin + threadIdx.x * ITEMS + i;
            value[i] = k < n ? fx::widen(x[base + (REVERSE ? n - 1 - k : k)]) : NONE;
            total = combine(total, value[i]);
        }
        WORK scanned = total;
#pragma unroll
        for (int delta = 1; delta < 32; delta *= 2) {
            const WORK other = shuffle_up(scanned, delta);
            if (lane >= delta) scanned = combine(other, scanned);
        }
        if (lane == 31) warps[warp] = scanned;
        const WORK before_lane = shuffle_up(scanned, 1);
        __syncthreads();
        WORK running = carry;
        for (int w = 0; w < THREADS / 32; ++w) {
            if (w < warp) running = combine(running, warps[w]);
            carry = combine(carry, warps[w]);
        }
        if (lane > 0) running = combine(running, before_lane);
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int k = begin + threadIdx.x * ITEMS + i;
            const WORK next = combine(running, value[i]);
            if (k < n) out[base + (REVERSE ? n - 1 - k : k)] = fx::narrow<ELEM_T>(EXCLUSIVE ? running : next);
            running = next;
        }
        __syncthreads();
    }
}
#endif
