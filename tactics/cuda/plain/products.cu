// Products of types that neither tensor cores nor the tiled kernels multiply (float64, wide integers): one thread per output element,
// summed in SUM in the order of the reduction, handed on as RESULT. KIND 0: matrices, 1: convolution, 2: attention,
// 3: transposed convolution.
#include "division.cuh"
#include "finish.cuh"
#include "functions.cuh"
#include "pdl.cuh"

#if KIND == 0
// Batch axes innermost first; a stride of 0 broadcasts. Grid: ceil(count / THREADS).
struct Batch {
    Divider size[RANK];
    long long a[RANK], b[RANK];
};
extern "C" __global__ void __launch_bounds__(THREADS)
    plain_matmul(const IN_T* __restrict__ a, const IN_T* __restrict__ b, OUT_T* __restrict__ out, unsigned count, int depth, long long a_row,
                 long long a_step, long long b_column, long long b_step, const Divider columns, const Divider rows, const Batch batch,
                 const EpilogueArgs args) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned rest = index;
    const unsigned n = columns.split(rest), m = rows.split(rest);
    const IN_T* left = a + m * a_row;
    const IN_T* right = b + n * b_column;
#pragma unroll
    for (int r = 0; r < RANK; ++r) {
        const unsigned place = batch.size[r].split(rest);
        left += place * batch.a[r];
        right += place * batch.b[r];
    }
    SUM total = SUM(0);
    for (int k = 0; k < depth; ++k) total += static_cast<SUM>(fx::widen(left[k * a_step])) * static_cast<SUM>(fx::widen(right[k * b_step]));
    const RESULT value[1] = {static_cast<RESULT>(total)};
    finish_store_flat<1>(out, value, args, index, static_cast<int>(columns.divisor));
}
#elif KIND == 1 || KIND == 3
// Strides in elements. Grid: ceil(count / THREADS).
#include "window.cuh"

// The output channel of element `index`, its place along each axis (`place`) and, left in `index`, its image.
__device__ __forceinline__ unsigned split_output(unsigned& index, int (&place)[RANK], const Divider& out_channels, const Axes& axes) {
    unsigned channel = 0;
    if (CHANNELS_LAST) channel = out_channels.split(index);
#pragma unroll
    for (int r = RANK - 1; r >= 0; --r) place[r] = static_cast<int>(axes.axis[r].out.split(index));
    return CHANNELS_LAST ? channel : out_channels.split(index);
}
#if KIND == 1
// Weights are [O, channels of a group, *window].
extern "C" __global__ void __launch_bounds__(THREADS)
    plain_convolution(const IN_T* __restrict__ x, const IN_T* __restrict__ weights, OUT_T* __restrict__ out, unsigned count, int last,
                      int channels, int channel_step, int taps, long long image_step, const Divider out_channels, const Divider per_group,
                      const Axes axes, const EpilogueArgs args) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned image = index;
    int place[RANK];
    const unsigned channel = split_output(image, place, out_channels, axes);
    const IN_T* source = x + image * image_step + static_cast<long long>(per_group.quotient(channel)) * channels * channel_step;
    const IN_T* w = weights + static_cast<long long>(channel) * channels * taps;
    SUM total = SUM(0);
    for (int tap = 0; tap < taps; ++tap) {
        int rest = tap;
        long long offset = 0;
        bool inside = true;
#pragma unroll
        for (int r = RANK - 1; r >= 0; --r) {
            const Axis& axis = axes.axis[r];
            const int at = place[r] * axis.stride - axis.padding + rest % axis.window * axis.dilation;
            rest /= axis.window;
            inside = inside && at >= 0 && at < axis.size;
            offset += static_cast<long long>(at) * axis.step;
        }
        if (!inside) continue;
        for (int c = 0; c < channels; ++c)
            total += static_cast<SUM>(fx::widen(source[offset + static_cast<long long>(c) * channel_step])) *
                     static_cast<SUM>(fx::widen(w[static_cast<long long>(c) * taps + tap]));
    }
    const RESULT value[1] = {static_cast<RESULT>(total)};
    finish_store_flat<1>(out, value, args, index, last);
}
#else
// Weights are [C, outputs of a group, *window]; `channels` are those of a group. An output element is the sum over the taps that reach it.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    plain_deconvolution(const IN_T* __restrict__ x, const IN_T* __restrict__ weights, OUT_T* __restrict__ out, unsigned count, int last,
                        int channels, int channel_step, int taps, long long image_step, const Divider out_channels, const Divider per_group,
                        const Axes axes, const EpilogueArgs args) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned image = index;
    int place[RANK];
    unsigned group = split_output(image, place, out_channels, axes);
    const unsigned channel = per_group.split(group);
    const long long first = static_cast<long long>(group) * channels;
    const IN_T* source = x + image * image_step + first * channel_step;
    const IN_T* w = weights + (first * per_group.divisor + channel) * taps;
    const long long weight_step = static_cast<long long>(per_group.divisor) * taps;
    SUM total = SUM(0);
    for (int tap = 0; tap < taps; ++tap) {
        int rest = tap;
        long long offset = 0;
        bool reaches = true;
#pragma unroll
        for (int r = RANK - 1; r >= 0; --r) {
            const Axis& axis = axes.axis[r];
            const int from = place[r] + axis.padding - rest % axis.window * axis.dilation, at = from / axis.stride;
            rest /= axis.window;
            reaches = reaches && from >= 0 && at * axis.stride == from && at < axis.size;
            offset += static_cast<long long>(at) * axis.step;
        }
        if (!reaches) continue;
        for (int c = 0; c < channels; ++c)
            total += static_cast<SUM>(fx::widen(source[offset + static_cast<long long>(c) * channel_step])) *
                     static_cast<SUM>(fx::widen(w[c * weight_step + tap]));
    }
    const RESULT value[1] = {static_cast<RESULT>(total)};
    finish_store_flat<1>(out, value, args, index, last);
}
#endif
#else
// One block per row of the scores, which lie in `scratch`. Strides of batch, head, row, column. Grid: batch * heads * rows.
struct Strides {
    long long axis[4];
};
extern "C" __global__ void __launch_bounds__(THREADS)
    plain_attention(const IN_T* __restrict__ q, const IN_T* __restrict__ k, const IN_T* __restrict__ v, const MASK_T* __restrict__ mask,
                    IN_T* __restrict__ out, SUM* __restrict__ scratch, int heads, int group, int rows, int keys, int depth, int width,
                    SUM scale, const Strides sq, const Strides sk, const Strides sv, const Strides sm,
                    const Strides so) {
    pdl_start();
    const long long row = blockIdx.x % rows, head = blockIdx.x / rows % heads, batch = blockIdx.x / rows / heads;
    SUM* scores = scratch + static_cast<long long>(blockIdx.x) * keys;
    q += batch * sq.axis[0] + head * sq.axis[1] + row * sq.axis[2];
    k += batch * sk.axis[0] + head / group * sk.axis[1];
    v += batch * sv.axis[0] + head / group * sv.axis[1];
    for (int t = threadIdx.x; t < keys; t += THREADS) {
        SUM total = SUM(0);
        for (int d = 0; d < depth; ++d) total += fx::widen(q[d * sq.axis[3]]) * fx::widen(k[t * sk.axis[2] + d * sk.axis[3]]);
        total *= scale;
#ifdef SOFTCAP
        total = SUM(SOFTCAP) * fx::tanh(total / SUM(SOFTCAP));
#endif
#if MASKED
        const MASK_T given = mask[batch * sm.axis[0] + head * sm.axis[1] + row * sm.axis[2] + t * sm.axis[3]];
#if MASKED == 2
        if (!given) total = -fx::div(SUM(1), SUM(0));
#else
        total += fx::widen(given);
#endif
#endif
#if CAUSAL
        if (t > row + keys - rows) total = -fx::div(SUM(1), SUM(0));
#endif
#ifdef WINDOW
        if (t <= row + keys - rows - WINDOW) total = -fx::div(SUM(1), SUM(0));
#endif
        scores[t] = total;
    }
    __syncthreads();
    const SUM lowest = -fx::div(SUM(1), SUM(0));
    SUM peak = lowest, total = SUM(0);
    for (int t = 0; t < keys; ++t) peak = fx::max(peak, scores[t]);
    if (peak == lowest) peak = SUM(0);
    for (int t = 0; t < keys; ++t) total += fx::exp(scores[t] - peak);
    if (total == SUM(0)) total = SUM(1);
    out += batch * so.axis[0] + head * so.axis[1] + row * so.axis[2];
    for (int d = threadIdx.x; d < width; d += THREADS) {
        SUM result = SUM(0);
        for (int t = 0; t < keys; ++t) result += fx::exp(scores[t] - peak) / total * fx::widen(v[t * sv.axis[2] + d * sv.axis[3]]);
        out[d * so.axis[3]] = fx::narrow<IN_T>(result);
    }
}
#endif
