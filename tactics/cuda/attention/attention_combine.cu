// Joins what blocks found in their shares of the keys (mma_attention.cu, attention_decode_sm90.cu): out = sum of 2^(peak - highest) * sums over the
// splits, divided by the sum of totals weighted alike. A warp adds every eighth split, a lane has every 32nd column.
//
// Defines: OUT_T, HEAD (a multiple of 32), those of an epilogue (sums.cuh). `partial`: per (batch, key head, split, row) HEAD sums, then the peaks and totals of all.
// Grid: x = rows of a group, y = key heads, z = batch; block 256.
#include "mma.cuh"

struct Strides {  // of batch, head and position, in elements
    long long b, h, s;
};

constexpr int WARPS = 8, AT_ONCE = 4;  // splits of a warp that are asked for before the first is looked at

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    attention_combine(const float* __restrict__ partial, OUT_T* __restrict__ out, int heads_per_kv, int s_q, int d_v, Strides out_stride, int splits) {
    __shared__ float sums[WARPS][HEAD], totals[WARPS];
    pdl_start();
    const int row = blockIdx.x, rows = gridDim.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long first_row = (static_cast<long long>(blockIdx.z) * gridDim.y + blockIdx.y) * splits * rows + row;
    const float2* statistics = reinterpret_cast<const float2*>(partial + static_cast<long long>(gridDim.z) * gridDim.y * splits * rows * HEAD) + first_row;
    float found[AT_ONCE][HEAD / 32];
    float2 about[AT_ONCE];
    auto ask = [&](int first) {  // for `first`, and every eighth split after it
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) {
            const int i = min(first + u * WARPS, splits - 1);
            about[u] = statistics[static_cast<long long>(i) * rows];
            const float* from = partial + (first_row + static_cast<long long>(i) * rows) * HEAD + lane;
#pragma unroll
            for (int j = 0; j < HEAD / 32; ++j) found[u][j] = from[32 * j];
        }
    };
    ask(warp);
    float highest = -INFINITY, total = 0.0f, sum[HEAD / 32] = {};
    for (int i = lane; i < splits; i += 32) highest = fmaxf(highest, statistics[static_cast<long long>(i) * rows].x);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, step));
    if (highest == -INFINITY) highest = 0.0f;
    for (int first = warp; first < splits; first += AT_ONCE * WARPS) {
        if (first != warp) ask(first);
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) {
            if (first + u * WARPS >= splits) break;  // asked for twice: 0 times an infinite value would be no number
            const float weight = exp2_fast(about[u].x - highest);
            total += weight * about[u].y;
#pragma unroll
            for (int j = 0; j < HEAD / 32; ++j) sum[j] += weight * found[u][j];
        }
    }
#pragma unroll
    for (int j = 0; j < HEAD / 32; ++j) sums[warp][lane + 32 * j] = sum[j];
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    total = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) total += totals[i];
    const float factor = total > 0.0f ? 1.0f / total : 0.0f;
    const int head = blockIdx.y * heads_per_kv + row / s_q;
    out += blockIdx.z * out_stride.b + head * out_stride.h + row % s_q * out_stride.s;
    for (int column = threadIdx.x; column < d_v; column += 32 * WARPS) {
        float result = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) result += sums[i][column];
        const float one[1] = {result * factor};
        store_sums(out + column, one, EpilogueArgs(), 0, 0, 0);
    }
}
