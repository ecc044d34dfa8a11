// Reductions. The prelude defines WORK, prologue and, maybe, finish. KIND is one of the names below; ACC is what is accumulated.
// With SPLIT=1 a kernel reduces the part blockIdx.y of n and writes partial[split][output]; reduce_final adds the parts in order.
#include "division.cuh"
#include "finish.cuh"
#include "functions.cuh"
#include "group.cuh"
#include "pdl.cuh"

#define SUM 0
#define MEAN 1
#define PROD 2
#define MAX 3
#define MIN 4
#define LOGSUMEXP 5

#if KIND == LOGSUMEXP
// The maximum and the sum of exp(x - maximum); an infinite maximum counts as 0 there, as in NumPy.
struct Acc {
    WORK top, sum;
};
__device__ __forceinline__ WORK anchor(WORK top) { return top - top == WORK(0) ? top : WORK(0); }
__device__ __forceinline__ Acc neutral() { return {WORK(LOWEST), WORK(0)}; }
__device__ __forceinline__ Acc start(WORK x) { return {x, fx::exp(x - anchor(x))}; }
__device__ __forceinline__ Acc merge(Acc a, Acc b) {
    const WORK top = fx::max(a.top, b.top), base = anchor(top);
    const WORK left = a.sum == WORK(0) ? WORK(0) : a.sum * fx::exp(anchor(a.top) - base);
    const WORK right = b.sum == WORK(0) ? WORK(0) : b.sum * fx::exp(anchor(b.top) - base);
    return {top, left + right};
}
__device__ __forceinline__ WORK result_of(Acc a, unsigned) { return fx::log(a.sum) + anchor(a.top); }
template <int G>
__device__ __forceinline__ Acc reduce_group(Acc a) {
    const WORK top = fx::group_reduce<G>(a.top, [](WORK x, WORK y) { return fx::max(x, y); });
    const WORK part = a.sum == WORK(0) ? WORK(0) : a.sum * fx::exp(anchor(a.top) - anchor(top));
    return {top, fx::group_reduce<G>(part, [](WORK x, WORK y) { return x + y; })};
}
#else
using Acc = ACC;
__device__ __forceinline__ Acc neutral() { return static_cast<Acc>(LOWEST); }  // LOWEST: the neutral element
__device__ __forceinline__ Acc start(WORK x) { return static_cast<Acc>(x); }
__device__ __forceinline__ Acc merge(Acc a, Acc b) {
#if KIND == SUM || KIND == MEAN
    return fx::add(a, b);
#elif KIND == PROD
    return fx::mul(a, b);
#elif KIND == MAX
    return fx::max(a, b);
#else
    return fx::min(a, b);
#endif
}
__device__ __forceinline__ WORK result_of(Acc a, unsigned n) {
#if KIND == MEAN
    return static_cast<WORK>(a / static_cast<Acc>(n));
#else
    return a;
#endif
}
template <int G>
__device__ __forceinline__ Acc reduce_group(Acc a) {
    return fx::group_reduce<G>(a, [](Acc x, Acc y) { return merge(x, y); });
}
#endif

__device__ __forceinline__ void write_one(OUT_T* out, Acc* partial, Acc total, long long output, long long outputs, unsigned n, int last,
                                          const EpilogueArgs& args) {
#if SPLIT
    partial[blockIdx.y * outputs + output] = total;
#else
    const WORK value[1] = {result_of(total, n)};
    finish_store_flat<1>(out, value, args, output, last);
#endif
}

#if STAGE == 0
// x is [outputs, n] with n neighbouring: GROUP threads per row, UNROLL vectors in flight. n % VEC == 0 and share % VEC == 0.
// Grid: ceil(outputs / (THREADS / GROUP)), splits.
extern "C" __global__ void __launch_bounds__(THREADS)
    reduce_rows(const IN_T* __restrict__ x, OUT_T* __restrict__ out, Acc* __restrict__ partial, unsigned outputs, unsigned n,
                unsigned share, int last, const EpilogueArgs args) {
    pdl_start();
    const unsigned row = blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    const unsigned begin = blockIdx.y * share, end = row < outputs ? min(n, begin + share) : 0;
    const IN_T* source = x + static_cast<long long>(row) * n;
    Acc total = neutral();
    unsigned k = begin + threadIdx.x % GROUP * VEC;
    for (; k + (UNROLL - 1) * GROUP * VEC < end; k += UNROLL * GROUP * VEC) {
        fx::Vec<IN_T, VEC> raw[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) raw[u] = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(source + k + u * GROUP * VEC);
#pragma unroll
        for (int u = 0; u < UNROLL; ++u)
#pragma unroll
            for (int i = 0; i < VEC; ++i) total = merge(total, start(prologue(fx::widen(raw[u].value[i]))));
    }
    for (; k < end; k += GROUP * VEC) {
        const fx::Vec<IN_T, VEC> raw = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(source + k);
#pragma unroll
        for (int i = 0; i < VEC; ++i) total = merge(total, start(prologue(fx::widen(raw.value[i]))));
    }
    total = reduce_group<GROUP>(total);
    if (threadIdx.x % GROUP == 0 && row < outputs) write_one(out, partial, total, row, outputs, n, last, args);
}
#elif STAGE == 1
// x is [outer, n, inner]: TX threads walk inner (VEC columns each), TY share n. inner % VEC == 0.
// Grid: outer * ceil(inner / (TX * VEC)), splits.
extern "C" __global__ void __launch_bounds__(TX * TY)
    reduce_columns(const IN_T* __restrict__ x, OUT_T* __restrict__ out, Acc* __restrict__ partial, unsigned outer, unsigned n,
                   unsigned inner, unsigned share, int last, const EpilogueArgs args) {
    __shared__ Acc shared[TY][TX * VEC];
    pdl_start();
    const unsigned chunks = (inner + TX * VEC - 1) / (TX * VEC);
    const unsigned row = blockIdx.x / chunks, column = (blockIdx.x % chunks * TX + threadIdx.x) * VEC;
    const unsigned begin = blockIdx.y * share, end = column < inner ? min(n, begin + share) : 0;
    const IN_T* source = x + static_cast<long long>(row) * n * X_ROW(inner) + column;
    Acc total[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) total[i] = neutral();
    unsigned k = begin + threadIdx.y;
    for (; k + (UNROLL - 1) * TY < end; k += UNROLL * TY) {
        fx::Vec<IN_T, VEC> raw[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u)
            raw[u] = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(source + static_cast<long long>(k + u * TY) * X_ROW(inner));
#pragma unroll
        for (int u = 0; u < UNROLL; ++u)
#pragma unroll
            for (int i = 0; i < VEC; ++i) total[i] = merge(total[i], start(prologue(fx::widen(raw[u].value[i]))));
    }
    for (; k < end; k += TY) {
        const fx::Vec<IN_T, VEC> raw = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(source + static_cast<long long>(k) * X_ROW(inner));
#pragma unroll
        for (int i = 0; i < VEC; ++i) total[i] = merge(total[i], start(prologue(fx::widen(raw.value[i]))));
    }
#pragma unroll
    for (int i = 0; i < VEC; ++i) shared[threadIdx.y][threadIdx.x * VEC + i] = total[i];
    __syncthreads();
    const int thread = threadIdx.y * TX + threadIdx.x;
    for (int c = thread; c < TX * VEC; c += TX * TY) {
        const unsigned target = blockIdx.x % chunks * TX * VEC + c;
        if (target >= inner) break;
        Acc sum = shared[0][c];
#pragma unroll
        for (int y = 1; y < TY; ++y) sum = merge(sum, shared[y][c]);
        write_one(out, partial, sum, static_cast<long long>(row) * inner + target, static_cast<long long>(outer) * inner, n, last, args);
    }
}
#elif STAGE == 2
// Any axes: the output is KEPT runs of axes, each of its elements reduces REDUCED runs (innermost first, strides in elements).
// GROUP threads per output. Grid: ceil(outputs / (THREADS / GROUP)).
struct Runs {
    Divider kept_size[KEPT];
    unsigned kept_stride[KEPT];
    Divider reduced_size[REDUCED];
    unsigned reduced_stride[REDUCED];
};
extern "C" __global__ void __launch_bounds__(THREADS)
    reduce_strided(const IN_T* __restrict__ x, OUT_T* __restrict__ out, unsigned outputs, unsigned n, int last, const Runs runs,
                   const EpilogueArgs args) {
    pdl_start();
    const unsigned output = blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    const unsigned end = output < outputs ? n : 0;
    unsigned base = 0, rest = output;
#pragma unroll
    for (int r = 0; r < KEPT; ++r) base += (r == KEPT - 1 ? rest : runs.kept_size[r].split(rest)) * runs.kept_stride[r];
    Acc total = neutral();
    for (unsigned k = threadIdx.x % GROUP; k < end; k += GROUP) {
        unsigned offset = base, left = k;
#pragma unroll
        for (int r = 0; r < REDUCED; ++r)
            offset += (r == REDUCED - 1 ? left : runs.reduced_size[r].split(left)) * runs.reduced_stride[r];
        total = merge(total, start(prologue(fx::widen(x[offset]))));
    }
    total = reduce_group<GROUP>(total);
    if (threadIdx.x % GROUP == 0 && output < outputs) write_one(out, nullptr, total, output, outputs, n, last, args);
}
#else
// The second stage: one warp per output adds partial[split][output]. Grid: ceil(outputs / (THREADS / 32)).
extern "C" __global__ void __launch_bounds__(THREADS)
    reduce_final(const Acc* __restrict__ partial, OUT_T* __restrict__ out, unsigned outputs, unsigned splits, unsigned n, int last,
                 const EpilogueArgs args) {
    pdl_start();
    const unsigned output = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    Acc total = neutral();
    if (output < outputs)
        for (unsigned split = threadIdx.x % 32; split < splits; split += 32)
            total = merge(total, partial[static_cast<long long>(split) * outputs + output]);
    total = reduce_group<32>(total);
    if (threadIdx.x % 32 == 0 && output < outputs) write_one(out, nullptr, total, output, outputs, n, last, args);
}
#endif
