// Local response normalisation: y = x / (bias + scale * sum of x^2 over SIZE neighbouring channels) ^ BETA.
// Squares are added in the order of the channels, in float (double for double). SIZE and BETA come from the operation.
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

#define BEFORE ((SIZE - 1) / 2)

__device__ __forceinline__ WORK normalized(WORK x, WORK total, WORK bias, WORK scale) {
    const WORK base = bias + scale * total;
#if BETA_3_4
    // base^0.75 = sqrt(base) * sqrt(sqrt(base))
    const WORK root = fx::sqrt(base);
    return x / (root * fx::sqrt(root));
#else
    return x / fx::raise(base, WORK(BETA));
#endif
}

#if CHANNELS_LAST
// x is [rows, channels], the channels innermost; VEC of them per thread, channels % VEC == 0, `count` vectors (< 2^31).
// A thread keeps the squares that its windows share. Grid: ceil(count / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    lrn_channels_last(const IN_T* __restrict__ x, IN_T* __restrict__ out, unsigned count, WORK bias, WORK scale, const Divider vectors) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned row = index;
    const int channel = static_cast<int>(vectors.split(row) * VEC), channels = static_cast<int>(vectors.divisor * VEC);
    const IN_T* source = x + static_cast<long long>(row) * channels;
    WORK square[VEC + SIZE - 1], value[VEC], result[VEC];
    fx::load<VEC>(value, source + channel);
#pragma unroll
    for (int i = 0; i < VEC + SIZE - 1; ++i) {
        const int c = channel + i - BEFORE;
        const WORK one = i >= BEFORE && i < BEFORE + VEC ? value[i - BEFORE] : c >= 0 && c < channels ? fx::widen(source[c]) : WORK(0);
        square[i] = one * one;
    }
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
        WORK total = WORK(0);
#pragma unroll
        for (int k = 0; k < SIZE; ++k) total += square[i + k];
        result[i] = normalized(value[i], total, bias, scale);
    }
    fx::store<VEC>(out + static_cast<long long>(index) * VEC, result);
}
#else
// x is [images, channels, inner]; a thread does VEC neighbouring places of one channel, inner % VEC == 0, `count` vectors
// (< 2^31). The other channels of the window come from the cache. Grid: ceil(count / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    lrn_channels_first(const IN_T* __restrict__ x, IN_T* __restrict__ out, unsigned count, WORK bias, WORK scale, const Divider vectors,
                       const Divider channels) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    const unsigned plane = vectors.quotient(index);
    unsigned image = plane;
    const int channel = static_cast<int>(channels.split(image)), size = static_cast<int>(channels.divisor);
    const long long step = static_cast<long long>(vectors.divisor) * VEC;
    const IN_T* source = x + static_cast<long long>(index) * VEC;
    WORK value[VEC], total[VEC], other[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) total[i] = WORK(0);
    const int low = max(-BEFORE, -channel), high = min(SIZE - BEFORE, size - channel);
    for (int k = low; k < high; ++k) {
        fx::load<VEC>(other, source + k * step);
#pragma unroll
        for (int i = 0; i < VEC; ++i) total[i] += other[i] * other[i];
    }
    fx::load<VEC>(value, source);
#pragma unroll
    for (int i = 0; i < VEC; ++i) value[i] = normalized(value[i], total[i], bias, scale);
    fx::store<VEC>(out + static_cast<long long>(index) * VEC, value);
}
#endif
