// Local response normalisation of [outer, channels, inner]: x / (bias + scale * (sum of squares over the channels from
// c - before to c + after)) ^ beta. One thread per element; the neighbours come from L1. Grid: ceil(count / THREADS).
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    local_response(const ELEM_T* __restrict__ x, ELEM_T* __restrict__ out, unsigned count, int channels, const Divider inner,
                   const Divider channel, int before, int after, float scale, float beta, float bias) {
    pdl_wait();
    pdl_launch_next();
    using WORK = fx::Compute<ELEM_T>;
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    const unsigned row = inner.quotient(index);
    const int c = row - channel.quotient(row) * channels;
    WORK sum = 0;
    for (int k = max(0, c - before); k <= min(channels - 1, c + after); ++k) {
        const WORK value = fx::widen(x[index + static_cast<long long>(k - c) * inner.divisor]);
        sum += value * value;
    }
    const WORK base = static_cast<WORK>(bias) + static_cast<WORK>(scale) * sum;
    out[index] = fx::narrow<ELEM_T>(fx::widen(x[index]) / fx::pow(base, static_cast<WORK>(beta)));
}
