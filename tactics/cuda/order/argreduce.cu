// The index of the largest (LARGEST=1) or smallest element; of equal ones the first, or the last (SELECT_LAST=1). A NaN wins
// against every number, as in NumPy. Elements become unsigned ranks (the greater the better, include/order.cuh).
#include "group.cuh"
#include "order.cuh"
#include "pdl.cuh"

struct Best {
    KEY rank;
    unsigned place;
};

__device__ __forceinline__ KEY rank_of(IN_T x) {
    const KEY key = fx::order_key(x);
#if LARGEST
    return key;
#else
    const auto wide = fx::widen(x);
    return wide != wide ? ~KEY(0) : static_cast<KEY>(~key);
#endif
}
// Loses against every element: of rank 0 the place decides.
__device__ __forceinline__ Best nothing() { return {KEY(0), SELECT_LAST ? 0u : 0xffffffffu}; }
__device__ __forceinline__ void take(Best& best, KEY rank, unsigned place) {
    const bool wins = SELECT_LAST ? place >= best.place : place < best.place;
    if (rank > best.rank || (rank == best.rank && wins)) best = {rank, place};
}

#if KIND == 0
// x is [rows, n], n neighbouring: GROUP threads per row, n % VEC == 0. Grid: ceil(rows / (THREADS / GROUP)).
extern "C" __global__ void __launch_bounds__(THREADS)
    arg_rows(const IN_T* __restrict__ x, long long* __restrict__ out, unsigned rows, unsigned n) {
    pdl_start();
    const unsigned row = blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    const unsigned end = row < rows ? n : 0;
    const IN_T* source = x + static_cast<long long>(row) * n;
    Best best = nothing();
#pragma unroll 4
    for (unsigned k = threadIdx.x % GROUP * VEC; k < end; k += GROUP * VEC) {
        const fx::Vec<IN_T, VEC> raw = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(source + k);
#pragma unroll
        for (int i = 0; i < VEC; ++i) take(best, rank_of(raw.value[i]), k + i);
    }
    const KEY top = fx::group_reduce<GROUP>(best.rank, [](KEY a, KEY b) { return a > b ? a : b; });
    const unsigned mine = best.rank == top ? best.place : nothing().place;
    const unsigned place = fx::group_reduce<GROUP>(mine, [](unsigned a, unsigned b) { return (a < b) != SELECT_LAST ? a : b; });
    if (threadIdx.x % GROUP == 0 && row < rows) out[row] = place;
}
#else
// x is [outer, n, inner]: TX threads walk inner, TY share n. Grid: outer * ceil(inner / TX).
extern "C" __global__ void __launch_bounds__(TX * TY)
    arg_columns(const IN_T* __restrict__ x, long long* __restrict__ out, unsigned n, unsigned inner) {
    __shared__ Best shared[TY][TX];
    pdl_start();
    const unsigned chunks = (inner + TX - 1) / TX, outer = blockIdx.x / chunks, column = blockIdx.x % chunks * TX + threadIdx.x;
    Best best = nothing();
    if (column < inner) {
        const IN_T* source = x + static_cast<long long>(outer) * n * inner + column;
#pragma unroll 4
        for (unsigned k = threadIdx.y; k < n; k += TY) take(best, rank_of(source[static_cast<long long>(k) * inner]), k);
    }
    shared[threadIdx.y][threadIdx.x] = best;
    __syncthreads();
    if (threadIdx.y != 0 || column >= inner) return;
#pragma unroll
    for (int y = 1; y < TY; ++y) take(best, shared[y][threadIdx.x].rank, shared[y][threadIdx.x].place);
    out[static_cast<long long>(outer) * inner + column] = best.place;
}
#endif
