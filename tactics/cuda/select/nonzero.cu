// Indices of the non-zero elements of x in row-major order: how many there are before each tile, then one row of RANK indices for each.
// A tile is THREADS * ITEMS neighbouring elements.
#include "functions.cuh"
#include "pdl.cuh"
#include "scan.cuh"

constexpr unsigned TILE = THREADS * ITEMS;

__device__ __forceinline__ bool is_set(const IN_T* __restrict__ x, unsigned index, unsigned count) {
    return index < count && fx::widen(x[index]) != static_cast<WORK>(0);
}

#if STEP == 0
// Grid: a block per tile. counts[tile] = its non-zero elements.
extern "C" __global__ void __launch_bounds__(THREADS) count_tiles(const IN_T* __restrict__ x, unsigned* __restrict__ counts, unsigned count) {
    pdl_start();
    unsigned found = 0, total;
#pragma unroll
    for (unsigned item = 0; item < ITEMS; ++item) found += is_set(x, blockIdx.x * TILE + item * THREADS + threadIdx.x, count);
    fx::sum_before<THREADS>(found, total);
    if (threadIdx.x == 0) counts[blockIdx.x] = total;
}
#else
struct Sizes {
    unsigned of[RANK];
};

// Grid: a block per tile; a thread has ITEMS neighbours, so that rows come out in order.
extern "C" __global__ void __launch_bounds__(THREADS)
    write_rows(const IN_T* __restrict__ x, const unsigned* __restrict__ before_tile, long long* __restrict__ rows, unsigned count, const Sizes sizes) {
    pdl_start();
    const unsigned first = blockIdx.x * TILE + threadIdx.x * ITEMS;
    unsigned flags = 0, total;
#pragma unroll
    for (unsigned item = 0; item < ITEMS; ++item) flags |= static_cast<unsigned>(is_set(x, first + item, count)) << item;
    unsigned place = before_tile[blockIdx.x] + fx::sum_before<THREADS>(__popc(flags), total);
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
