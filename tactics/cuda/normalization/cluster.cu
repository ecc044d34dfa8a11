// Normalisation of sets larger than a block keeps: the blocks of a cluster hold a set in registers together, one read, one write.
// (x - mean) / sqrt(variance + epsilon), or x / sqrt(mean(x * x) + epsilon) with CENTER=0, then the epilogue.
//
// A set is `segments` runs of WIDTH neighbouring elements, `stride` elements from one to the next (the channels of a group, channels last), or,
// with WHOLE, n neighbouring elements, taken as segments of `stride` = TX * VEC. A cluster of CLUSTER blocks serves BANDS neighbouring
// sets at once; each block takes `share` segments, a thread ITEMS vectors at most: thread (x, y) of TX x TY has vector x of the
// segments y, y + TY ...
//
// A block takes mean and sum of squares around its own mean, blocks exchange them and each puts them together; so nothing cancels.
// `chunks`: clusters that the sets of one outer index need; `last`: size of the output's last axis. WORK is float.
// Grid: x = outer * chunks * CLUSTER; block TX * TY, a multiple of 32; dynamic shared memory 4 * (TX * TY + BANDS + 2 * BANDS * CLUSTER) bytes.
// Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
#include "cluster.cuh"
#include "finish.cuh"
#include "functions.cuh"
#include "pdl.cuh"
#include "root.cuh"

constexpr int THREADS = TX * TY;

// The sum over the threads of this thread's band; all threads of the block call it. `scratch` has THREADS + BANDS places.
__device__ __forceinline__ float band_sum(float value, float* scratch) {
    scratch[threadIdx.x] = value;
    __syncthreads();
    constexpr int EACH = TX / BANDS, WARPS = THREADS / 32;
    const int lane = threadIdx.x % 32;
    for (int band = threadIdx.x / 32; band < BANDS; band += WARPS) {
        float sum = 0;
        for (int i = lane; i < EACH * TY; i += 32) sum += scratch[i / EACH * TX + band * EACH + i % EACH];
#pragma unroll
        for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
        if (lane == 0) scratch[THREADS + band] = sum;
    }
    __syncthreads();
    return scratch[THREADS + threadIdx.x % TX / EACH];
}

extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_cluster(const IN_T* __restrict__ x, OUT_T* __restrict__ out, int n, int segments, int stride, int share, int chunks, int last,
                      float epsilon, const EpilogueArgs args) {
    extern __shared__ float memory[];
    float* const scratch = memory;                     // THREADS + BANDS
    float* const exchange = memory + THREADS + BANDS;  // of every block of the cluster: the sums of BANDS sets, then their squares
    const int rank = blockIdx.x % CLUSTER, task = blockIdx.x / CLUSTER;
    const int outer = task / chunks, chunk = task % chunks;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX, band = tx / (TX / BANDS);
#if CLUSTER > 1
    cluster_arrive();  // a block may write to another one's shared memory once that one runs
#endif
    pdl_prefetch_constants(args, last);
    pdl_start();
    const int column = chunk * BANDS * WIDTH + tx * VEC;  // without WHOLE: of the row of `stride` elements
    const long long base = WHOLE ? static_cast<long long>(task) * n + tx * VEC : static_cast<long long>(outer) * segments * stride + column;
    const long long base_x = WHOLE ? base : static_cast<long long>(outer) * segments * X_ROW(stride) + column;
    const int first = rank * share + ty, end = min(segments, (rank + 1) * share);
    // How many elements of a set block r holds.
    auto count = [&](int r) {
        const int from = min(segments, r * share), to = min(segments, (r + 1) * share);
        return static_cast<float>(WHOLE ? min(n, to * stride) - min(n, from * stride) : (to - from) * WIDTH);
    };
    auto inside = [&](int s) { return s < end && (!WHOLE || s * stride + tx * VEC < n); };

    fx::Vec<IN_T, VEC> raw[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k)
        if (inside(first + k * TY)) raw[k] = *reinterpret_cast<const fx::Vec<IN_T, VEC>*>(x + base_x + static_cast<long long>(first + k * TY) * (WHOLE ? stride : X_ROW(stride)));
    float sum = 0, middle = 0, squares = 0;
    const float mine = count(rank);
    if (CENTER) {
#pragma unroll
        for (int k = 0; k < ITEMS; ++k)
            if (inside(first + k * TY))
#pragma unroll
                for (int i = 0; i < VEC; ++i) sum += fx::widen(raw[k].value[i]);
        sum = band_sum(sum, scratch);
        middle = mine > 0 ? sum / mine : 0;
    }
#pragma unroll
    for (int k = 0; k < ITEMS; ++k)
        if (inside(first + k * TY))
#pragma unroll
            for (int i = 0; i < VEC; ++i) {
                const float value = fx::widen(raw[k].value[i]) - middle;
                squares += value * value;
            }
    squares = band_sum(squares, scratch);
    float mean = middle;
#if CLUSTER > 1
    if (ty == 0 && tx % (TX / BANDS) == 0) scratch[band] = sum;  // band_sum has ended with a barrier
    __syncthreads();
    cluster_wait();
    for (int i = threadIdx.x; i < CLUSTER * BANDS; i += THREADS) {
        const int target = i / BANDS, one = i % BANDS;
        store_cluster_shared(exchange + (rank * BANDS + one) * 2, target, __float_as_int(scratch[one]));
        store_cluster_shared(exchange + (rank * BANDS + one) * 2 + 1, target, __float_as_int(scratch[THREADS + one]));
    }
    cluster_arrive();
    cluster_wait();
    mean = 0;
    if (CENTER) {
#pragma unroll
        for (int r = 0; r < CLUSTER; ++r) mean += exchange[(r * BANDS + band) * 2];
        mean /= n;
    }
    squares = 0;
#pragma unroll
    for (int r = 0; r < CLUSTER; ++r) {
        const float elements = count(r), off = CENTER && elements > 0 ? exchange[(r * BANDS + band) * 2] / elements - mean : 0;
        squares += exchange[(r * BANDS + band) * 2 + 1] + elements * off * off;
    }
#endif
    const float scale = inverse_root(squares / n + epsilon);
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int s = first + k * TY;
        if (!inside(s)) continue;
        float value[VEC];
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[i] = (fx::widen(raw[k].value[i]) - mean) * scale;
        const long long index = base + static_cast<long long>(s) * stride;
#if WHOLE
        finish_store_flat<VEC>(out, value, args, index, last);
#else
        finish_store<VEC>(out + out_place(index), value, args, static_cast<long long>(outer) * segments + s, column, last);
#endif
    }
}
