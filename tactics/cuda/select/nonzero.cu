// Indices of the non-zero elements of x in row-major order: how many there are before each tile, then one row of RANK indices for each.
// A tile is THREADS * ITEMS neighbouring elements.
#include "functions.cuh"
#include "pdl.cuh"

constexpr unsigned TILE = THREADS * ITEMS;

__device__ __forceinline__ bool is_set(const IN_T* __restrict__ x, unsigned index, unsigned count) {
    return index < count && fx::widen(x[index]) != static_cast<WORK>(0);
}

// The sum of `value` over the threads before this one, and over all of them. Both calls of a kernel need a barrier between them.
__device__ __forceinline__ unsigned sum_before(unsigned value, unsigned& total) {
    __shared__ unsigned of_warp[THREADS / 32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned running = value;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const unsigned before = __shfl_up_sync(0xffffffffu, running, lanes);
        if (lane >= lanes) running += before;
    }
    __syncthreads();
    if (lane == 31) of_warp[warp] = running;
    __syncthreads();
    unsigned ahead = 0;
    total = 0;
#pragma unroll
    for (unsigned other = 0; other < THREADS / 32; ++other) {
        if (other < warp) ahead += of_warp[other];
        total += of_warp[other];
    }
    return ahead + running - value;
}

#if STEP == 0
// Grid: a block per tile. counts[tile] = its non-zero elements.
extern "C" __global__ void __launch_bounds__(THREADS) count_tiles(const IN_T* __restrict__ x, unsigned* __restrict__ counts, unsigned count) {
    pdl_wait();
    pdl_launch_next();
    unsigned found = 0, total;
#pragma unroll
    for (unsigned item = 0; item < ITEMS; ++item) found += is_set(x, blockIdx.x * TILE + item * THREADS + threadIdx.x, count);
    sum_before(found, total);
    if (threadIdx.x == 0) counts[blockIdx.x] = total;
}
#elif STEP == 1
// One block. counts[tile] becomes the sum of those before it; `found` gets the sum of all.
extern "C" __global__ void __launch_bounds__(THREADS) scan_tiles(unsigned* __restrict__ counts, long long* __restrict__ found, unsigned tiles) {
    pdl_wait();
    pdl_launch_next();
    unsigned carry = 0;
    for (unsigned start = 0; start < tiles; start += THREADS) {
        const unsigned tile = start + threadIdx.x;
        const unsigned own = tile < tiles ? counts[tile] : 0;
        unsigned total;
        const unsigned before = sum_before(own, total);
        if (tile < tiles) counts[tile] = carry + before;
        carry += total;
    }
    if (threadIdx.x == 0) *found = carry;
}
#else
struct Sizes {
    unsigned of[RANK];
};

// Grid: a block per tile; a thread has ITEMS neighbours, so that rows come out in order.
extern "C" __global__ void __launch_bounds__(THREADS)
    write_rows(const IN_T* __restrict__ x, const unsigned* __restrict__ before_tile, long long* __restrict__ rows, unsigned count, const Sizes sizes) {
    pdl_wait();
    pdl_launch_next();
    const unsigned first = blockIdx.x * TILE + threadIdx.x * ITEMS;
    unsigned flags = 0, total;
#pragma unroll
    for (unsigned item = 0; item < ITEMS; ++item) flags |= static_cast<unsigned>(is_set(x, first + item, count)) << item;
    unsigned place = before_tile[blockIdx.x] + sum_before(__popc(flags), total);
#pragma unroll
    for (unsigned item = 0; item < ITEMS; ++item) {
        if (!(flags >> item & 1)) continue;
        long long* row = rows + static_cast<long long>(place++) * RANK;
        unsigned rest = first + item;
#pragma unroll
        for (int axis = RANK - 1; axis > 0; --axis) {
            row[axis] = rest % sizes.of[axis];
            rest /= sizes.of[axis];
        }
        row[0] = rest;
    }
}
#endif
