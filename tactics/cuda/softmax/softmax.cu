// Softmax (or its logarithm with LOG=1) along the middle axis of [outer, n, inner], with a prologue on each element and an
// epilogue on each result. WORK is float or double. The prelude defines WORK, prologue and, maybe, finish.
#include "cluster.cuh"
#include "finish.cuh"
#include "functions.cuh"
#include "group.cuh"
#include "pdl.cuh"
#include "pitch.cuh"

__device__ __forceinline__ WORK power(WORK x) {
#if FAST
    return fx::fast::exp(x);
#else
    return fx::exp(x);
#endif
}

constexpr float LOWEST = -3.402823466e38f;  // a start that stays finite: rows of -inf give NaN, as in NumPy

// A running maximum and the sum of exp(x - maximum).
struct Running {
    WORK top, sum;
};
__device__ __forceinline__ Running merge(Running a, Running b) {
    const WORK top = fx::max(a.top, b.top);
    return {top, a.sum * power(a.top - top) + b.sum * power(b.top - top)};
}

#if KIND == 0
// One group of GROUP threads keeps a row (inner == 1) in registers: one read, one write. A group holds at most
// GROUP * VECTORS * VEC elements. n % VEC == 0. Grid: ceil(rows / (THREADS / GROUP)).
extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_row(const IN_T* __restrict__ x, OUT_T* __restrict__ out, int rows, int n, const EpilogueArgs args) {
    pdl_start();
    const long long row = static_cast<long long>(blockIdx.x) * (THREADS / GROUP) + threadIdx.x / GROUP;
    const int lane = threadIdx.x % GROUP;
    const int end = row < rows ? n : 0;
    fx::Vec<IN_T, VEC> raw[VECTORS];
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int column = (j * GROUP + lane) * VEC;
        if (column < end) raw[j] = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(x + row * X_ROW(n) + column);
    }
    WORK value[VECTORS][VEC], top = LOWEST;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        if ((j * GROUP + lane) * VEC >= end) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            value[j][i] = prologue(fx::widen(raw[j].value[i]));
            top = fx::max(top, value[j][i]);
        }
    }
    top = fx::group_reduce<GROUP>(top, [](WORK a, WORK b) { return fx::max(a, b); });
    WORK sum = 0;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        if ((j * GROUP + lane) * VEC >= end) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            value[j][i] -= top;
            const WORK p = power(value[j][i]);
            if (!LOG) value[j][i] = p;
            sum += p;
        }
    }
    sum = fx::group_reduce<GROUP>(sum, [](WORK a, WORK b) { return a + b; });
    const WORK scale = LOG ? fx::log(sum) : WORK(1) / sum;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int column = (j * GROUP + lane) * VEC;
        if (column >= end) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[j][i] = LOG ? value[j][i] - scale : value[j][i] * scale;
        finish_store<VEC>(out + row * OUT_ROW(n) + column, value[j], args, row, column, n);
    }
}
#elif KIND == 1
// One block per row (inner == 1) of any length: one pass for the running maximum and sum, a second (mostly from L2) to write.
extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_long(const IN_T* __restrict__ x, OUT_T* __restrict__ out, int rows, int n, const EpilogueArgs args) {
    pdl_start();
    const long long row = blockIdx.x;
    x += row * n;
    Running running{LOWEST, 0};
    for (int column = threadIdx.x * VEC; column < n; column += THREADS * VEC) {
        WORK value[VEC];
        const fx::Vec<IN_T, VEC> raw = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(x + column);
        WORK top = running.top;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            value[i] = prologue(fx::widen(raw.value[i]));
            top = fx::max(top, value[i]);
        }
        running.sum *= power(running.top - top);
        running.top = top;
#pragma unroll
        for (int i = 0; i < VEC; ++i) running.sum += power(value[i] - top);
    }
    const WORK top = fx::group_reduce<THREADS>(running.top, [](WORK a, WORK b) { return fx::max(a, b); });
    const WORK sum = fx::group_reduce<THREADS>(running.sum * power(running.top - top), [](WORK a, WORK b) { return a + b; });
    const WORK scale = LOG ? fx::log(sum) : WORK(1) / sum;
    for (int column = threadIdx.x * VEC; column < n; column += THREADS * VEC) {
        WORK value[VEC];
        const fx::Vec<IN_T, VEC> raw = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(x + column);
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const WORK shifted = prologue(fx::widen(raw.value[i])) - top;
            value[i] = LOG ? shifted - scale : power(shifted) * scale;
        }
        finish_store<VEC>(out + row * n + column, value, args, row, column, n);
    }
}
#elif KIND == 3
// The blocks of a cluster keep a row (inner == 1) of at most CLUSTER * THREADS * VECTORS * VEC elements in registers: one read, one write.
// n % VEC == 0; WORK is float. Grid: rows * CLUSTER; dynamic shared memory 4 * (THREADS / 32 + 2 * CLUSTER) bytes.
extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_cluster(const IN_T* __restrict__ x, OUT_T* __restrict__ out, int n, const EpilogueArgs args) {
    extern __shared__ float memory[];
    float* const exchange = memory + THREADS / 32;  // of every block: its largest value, and the sum against it
    cluster_arrive();                               // a block may write to another one's shared memory once that one runs
    pdl_start();
    const int rank = blockIdx.x % CLUSTER;
    const long long row = blockIdx.x / CLUSTER;
    const int first = (rank * VECTORS * THREADS + static_cast<int>(threadIdx.x)) * VEC;
    fx::Vec<IN_T, VEC> raw[VECTORS];
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int column = first + j * THREADS * VEC;
        if (column < n) raw[j] = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(x + row * n + column);
    }
    WORK value[VECTORS][VEC], top = LOWEST;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        if (first + j * THREADS * VEC >= n) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            value[j][i] = prologue(fx::widen(raw[j].value[i]));
            top = fx::max(top, value[j][i]);
        }
    }
    top = fx::block_reduce<THREADS>(top, [](WORK a, WORK b) { return fx::max(a, b); }, memory);
    WORK sum = 0;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        if (first + j * THREADS * VEC >= n) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            value[j][i] -= top;
            const WORK p = power(value[j][i]);
            if (!LOG) value[j][i] = p;
            sum += p;
        }
    }
    sum = fx::block_reduce<THREADS>(sum, [](WORK a, WORK b) { return a + b; }, memory);
    cluster_wait();
    if (threadIdx.x < CLUSTER) {
        store_cluster_shared(exchange + 2 * rank, threadIdx.x, __float_as_int(top));
        store_cluster_shared(exchange + 2 * rank + 1, threadIdx.x, __float_as_int(sum));
    }
    cluster_arrive();
    cluster_wait();
    Running all{exchange[0], exchange[1]};
#pragma unroll
    for (int r = 1; r < CLUSTER; ++r) all = merge(all, {exchange[2 * r], exchange[2 * r + 1]});
    const WORK scale = LOG ? fx::log(all.sum) + (all.top - top) : power(top - all.top) / all.sum;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        const int column = first + j * THREADS * VEC;
        if (column >= n) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[j][i] = LOG ? value[j][i] - scale : value[j][i] * scale;
        finish_store<VEC>(out + row * n + column, value[j], args, row, column, n);
    }
}
#elif KIND == 4
// Any axis, in registers: a block of TX x TY threads serves TX * VEC neighbouring columns of inner, a thread n / TY rows of them, ITEMS at
// most: one read, one write. TX is a power of two, TX * TY a multiple of 32; inner % VEC == 0; `last` is the size of the output's last axis.
// Grid: outer * ceil(inner / (TX * VEC)).
constexpr int GROUPS = TX < 32 ? TX * TY / 32 : TY;  // partial results of a column
constexpr bool AGAIN = sizeof(IN_T) == 2;            // exponentials twice: 16-bit inputs take half the registers of their exponentials

template <typename Op>
__device__ __forceinline__ void reduce_columns(WORK (&value)[VEC], Op op, WORK (&shared)[GROUPS][TX * VEC]) {
#pragma unroll
    for (int bits = TX; bits < 32; bits *= 2)
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[i] = op(value[i], fx::shuffle_xor(value[i], bits));
    if constexpr (GROUPS > 1) {
        const int tx = threadIdx.x % TX;
        __syncthreads();  // an earlier call may still be reading
        if (TX >= 32 || threadIdx.x % 32 < TX)
#pragma unroll
            for (int i = 0; i < VEC; ++i) shared[threadIdx.x / (TX < 32 ? 32 : TX)][tx * VEC + i] = value[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[i] = shared[0][tx * VEC + i];
        for (int group = 1; group < GROUPS; ++group)
#pragma unroll
            for (int i = 0; i < VEC; ++i) value[i] = op(value[i], shared[group][tx * VEC + i]);
    }
}

extern "C" __global__ void __launch_bounds__(TX* TY)
    softmax_columns(const IN_T* __restrict__ x, OUT_T* __restrict__ out, int n, int inner, int last, const EpilogueArgs args) {
    __shared__ WORK shared[GROUPS][TX * VEC];
    pdl_start();
    const int chunks = (inner + TX * VEC - 1) / (TX * VEC), ty = threadIdx.x / TX;
    const long long outer = blockIdx.x / chunks;
    const int column = (blockIdx.x % chunks * TX + threadIdx.x % TX) * VEC;
    const int end = column < inner ? n : 0;
    const long long base = outer * n * inner + column;
    fx::Vec<IN_T, VEC> raw[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k)
        if (ty + k * TY < end) raw[k] = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(x + base + static_cast<long long>(ty + k * TY) * inner);
    WORK value[AGAIN ? 1 : ITEMS][VEC], top[VEC], sum[VEC], scale[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) top[i] = LOWEST, sum[i] = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        if (ty + k * TY >= end) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const WORK given = prologue(fx::widen(raw[k].value[i]));
            if (!AGAIN) value[AGAIN ? 0 : k][i] = given;
            top[i] = fx::max(top[i], given);
        }
    }
    reduce_columns(top, [](WORK a, WORK b) { return fx::max(a, b); }, shared);
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        if (ty + k * TY >= end) continue;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const WORK shifted = (AGAIN ? prologue(fx::widen(raw[k].value[i])) : value[AGAIN ? 0 : k][i]) - top[i], p = power(shifted);
            if (!AGAIN) value[AGAIN ? 0 : k][i] = LOG ? shifted : p;
            sum[i] += p;
        }
    }
    reduce_columns(sum, [](WORK a, WORK b) { return a + b; }, shared);
#pragma unroll
    for (int i = 0; i < VEC; ++i) scale[i] = LOG ? fx::log(sum[i]) : WORK(1) / sum[i];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        if (ty + k * TY >= end) continue;
        WORK result[VEC];
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            if (AGAIN) {
                const WORK shifted = prologue(fx::widen(raw[k].value[i])) - top[i];
                result[i] = LOG ? shifted : power(shifted);
            } else {
                result[i] = value[AGAIN ? 0 : k][i];
            }
            result[i] = LOG ? result[i] - scale[i] : result[i] * scale[i];
        }
        finish_store_flat<VEC>(out, result, args, base + static_cast<long long>(ty + k * TY) * inner, last);
    }
}
#else
// Any axis: a block of TX x TY threads serves TX * VEC neighbouring columns of inner, its TY rows share n. Two reads.
// inner % VEC == 0; `last` is the size of the output's last axis. Grid: outer * ceil(inner / (TX * VEC)).
extern "C" __global__ void __launch_bounds__(TX * TY)
    softmax_strided(const IN_T* __restrict__ x, OUT_T* __restrict__ out, int n, int inner, int last, const EpilogueArgs args) {
    __shared__ Running shared[TY][TX][VEC];
    pdl_start();
    const int chunks = (inner + TX * VEC - 1) / (TX * VEC);
    const long long outer = blockIdx.x / chunks;
    const int column = (blockIdx.x % chunks * TX + threadIdx.x) * VEC;
    const bool inside = column < inner;
    const long long base = outer * n * inner + column;
    Running running[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) running[i] = {LOWEST, 0};
    if (inside)
        for (int k = threadIdx.y; k < n; k += TY) {
            fx::Compute<IN_T> value[VEC];
            fx::load<VEC>(value, x + base + static_cast<long long>(k) * inner);
#pragma unroll
            for (int i = 0; i < VEC; ++i) running[i] = merge(running[i], {prologue(value[i]), 1});
        }
#pragma unroll
    for (int i = 0; i < VEC; ++i) shared[threadIdx.y][threadIdx.x][i] = running[i];
    __syncthreads();
    if (!inside) return;
    WORK scale[VEC], top[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
        Running all = shared[0][threadIdx.x][i];
        for (int y = 1; y < TY; ++y) all = merge(all, shared[y][threadIdx.x][i]);
        top[i] = all.top;
        scale[i] = LOG ? fx::log(all.sum) : WORK(1) / all.sum;
    }
    for (int k = threadIdx.y; k < n; k += TY) {
        fx::Compute<IN_T> value[VEC];
        WORK result[VEC];
        const long long index = base + static_cast<long long>(k) * inner;
        fx::load<VEC>(value, x + index);
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const WORK shifted = prologue(value[i]) - top[i];
            result[i] = LOG ? shifted - scale[i] : power(shifted) * scale[i];
        }
        finish_store_flat<VEC>(out, result, args, index, last);
    }
}
#endif
