// Attention on the ordinary cores: the reference of its family. Plain CUDA C++, any GPU.
#include "sums.cuh"

#ifndef WINDOW
#define WINDOW 0
#endif

struct Strides {  // of batch, head, position and head dimension, in elements
    long long b, h, s, d;
};

// out = softmax(scale * q k^T + mask) v, in fp32. One warp per query row, 4 warps per block: lane t scores key t of the next
// 32, the softmax runs online, then lane e owns output dimensions e, e + 32, ...
//   Any strides, any lengths; d <= 512 (the row of q is staged in shared memory), d_v <= 32 * D_PER_LANE.
//   MASK: 0 none; 1 additive of type MASK_T; 2 boolean bytes (true keeps); mask_stride.d is the stride of the key.
//   CAUSAL=1 keeps key t <= s + s_k - s_q, WINDOW=w t > s + s_k - s_q - w. SOFTCAP=c: c * tanh(score / c) before the mask. Rows without any key give zeros.
//   Grid: x = ceil(s_q / 4), y = heads, z = batch; block 128.
extern "C" __global__ void __launch_bounds__(128)
    simt_attention(const IN_T* __restrict__ q, const IN_T* __restrict__ k, const IN_T* __restrict__ v, const void* __restrict__ mask,
                   OUT_T* __restrict__ out, int heads_per_kv, int s_q, int s_k, int d, int d_v, Strides q_stride, Strides k_stride,
                   Strides v_stride, Strides out_stride, Strides mask_stride, float scale) {
    __shared__ float row_q[4][512];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.x * 4 + warp, head = blockIdx.y, batch = blockIdx.z;
    if (row < s_q)
        for (int e = lane; e < d; e += 32)
            row_q[warp][e] = to_float(q[batch * q_stride.b + head * q_stride.h + row * q_stride.s + e * q_stride.d]) * scale;
    __syncthreads();
    if (row >= s_q) return;
    k += batch * k_stride.b + head / heads_per_kv * k_stride.h;
    v += batch * v_stride.b + head / heads_per_kv * v_stride.h;
    const int keys = CAUSAL ? min(s_k, row + 1 + s_k - s_q) : s_k;

    const int oldest = WINDOW ? max(0, row + s_k - s_q - WINDOW + 1) : 0;

    float top = -INFINITY, total = 0.0f, sum[D_PER_LANE] = {};
    for (int first = oldest; first < keys; first += 32) {
        const int key = first + lane;
        float score = -INFINITY;
        if (key < keys) {
            score = 0.0f;
            for (int e = 0; e < d; ++e) score += row_q[warp][e] * to_float(k[key * k_stride.s + e * k_stride.d]);
#ifdef SOFTCAP
            score = SOFTCAP * tanhf(score / SOFTCAP);
#endif
#if MASK
            const long long at = batch * mask_stride.b + head * mask_stride.h + row * mask_stride.s + key * mask_stride.d;
#if MASK == 1
            score += to_float(static_cast<const MASK_T*>(mask)[at]);
#else
            if (!static_cast<const unsigned char*>(mask)[at]) score = -INFINITY;
#endif
#endif
        }
        float peak = fmaxf(top, score);
        for (int step = 16; step > 0; step /= 2) peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, step));
        const float base = peak == -INFINITY ? 0.0f : peak;
        const float shrink = expf(top - base), weight = expf(score - base);
        top = peak;
        float part = weight;
        for (int step = 16; step > 0; step /= 2) part += __shfl_xor_sync(0xffffffffu, part, step);
        total = total * shrink + part;
#pragma unroll
        for (int i = 0; i < D_PER_LANE; ++i) sum[i] *= shrink;
        for (int t = 0; t < 32 && first + t < keys; ++t) {
            const float one = __shfl_sync(0xffffffffu, weight, t);
#pragma unroll
            for (int i = 0; i < D_PER_LANE; ++i)
                if (lane + i * 32 < d_v) sum[i] += one * to_float(v[(first + t) * v_stride.s + (lane + i * 32) * v_stride.d]);
        }
    }
    const float factor = total > 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
    for (int i = 0; i < D_PER_LANE; ++i)
        if (lane + i * 32 < d_v) {
            const float result[1] = {sum[i] * factor};
            store_sums(out + batch * out_stride.b + head * out_stride.h + row * out_stride.s + (lane + i * 32) * out_stride.d, result, EpilogueArgs(), 0, 0, 0);
        }
}
