// Windowed pooling in up to three dimensions. The prelude defines WORK, prologue and, maybe, finish. With HAS_PROLOGUE, which goes with channels last,
// before::finish (docs/kernels.md, Prologues) takes the place of prologue; it reads tensors beside x.
// KIND 0: maximum, 1: average, 2: the P-norm. One thread computes VEC neighbouring channels (channels last: innermost is C)
// or one output (channels first: `plane` = 1 element, C folded into the batch) of one output position.
// Positions outside the input never count and do not go through the prologue, but an average with COUNT_PAD divides by the window cut to input and padding.
#include "division.cuh"
#include "finish.cuh"
#include "functions.cuh"
#include "pdl.cuh"

// Sizes of D, H, W (outermost first; missing ones are 1).
struct Window {
    Divider out[3];
    Divider vectors;  // channel vectors per position
    int in[3], size[3], stride[3], pre[3], post[3], dilation[3];
};

__device__ __forceinline__ WORK start() { return LOWEST; }
__device__ __forceinline__ WORK merge(WORK total, WORK x) {
#if KIND == 0
    return fx::max(total, x);
#elif KIND == 1
    return total + x;
#elif P == 1
    return total + fx::abs(x);
#elif P == 2
    return total + x * x;
#else
    return total + fx::pow(fx::abs(x), static_cast<WORK>(P));
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS)
    pool(const IN_T* __restrict__ x, OUT_T* __restrict__ out, unsigned count, int channels, int last, const Window window,
         const EpilogueArgs args
#ifdef HAS_PROLOGUE
         , const before::EpilogueArgs before_args
#endif
    ) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned rest = index;
    const int column = window.vectors.split(rest) * VEC;
    int begin[3];
#pragma unroll
    for (int a = 2; a >= 0; --a) {
        const int position = AXES > 2 - a ? window.out[a].split(rest) : 0;
        begin[a] = position * window.stride[a] - window.pre[a];
    }
    const long long image = static_cast<long long>(rest) * window.in[0] * window.in[1] * window.in[2];
    WORK total[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) total[i] = start();
    for (int a = 0; a < (AXES > 2 ? window.size[0] : 1); ++a) {
        const int d = begin[0] + a * window.dilation[0];
        if (d < 0 || d >= window.in[0]) continue;
        for (int b = 0; b < (AXES > 1 ? window.size[1] : 1); ++b) {
            const int h = begin[1] + b * window.dilation[1];
            if (h < 0 || h >= window.in[1]) continue;
            const long long line = image + (static_cast<long long>(d) * window.in[1] + h) * window.in[2];
#pragma unroll 4
            for (int c = 0; c < window.size[2]; ++c) {
                const int w = begin[2] + c * window.dilation[2];
                if (w < 0 || w >= window.in[2]) continue;
                fx::Compute<IN_T> value[VEC];
                fx::load<VEC>(value, x + (line + w) * channels + column);
#ifdef HAS_PROLOGUE
                WORK changed[VEC];
                before::finish<VEC>(value, changed, before_args, line + w, column, last);
#pragma unroll
                for (int i = 0; i < VEC; ++i) total[i] = merge(total[i], changed[i]);
#else
#pragma unroll
                for (int i = 0; i < VEC; ++i) total[i] = merge(total[i], prologue(value[i]));
#endif
            }
        }
    }
#if KIND == 1
    int divisor = 1;
#pragma unroll
    for (int a = 3 - AXES; a < 3; ++a) {
        const int low = COUNT_PAD ? -window.pre[a] : 0, high = window.in[a] + (COUNT_PAD ? window.post[a] : 0);
        int inside = 0;
        for (int k = 0; k < window.size[a]; ++k) {
            const int place = begin[a] + k * window.dilation[a];
            inside += place >= low && place < high;
        }
        divisor *= inside;
    }
    const WORK scale = static_cast<WORK>(divisor > 0 ? divisor : 1);
#pragma unroll
    for (int i = 0; i < VEC; ++i) total[i] = total[i] / scale;
#elif KIND == 2
#pragma unroll
    for (int i = 0; i < VEC; ++i) total[i] = P == 1 ? total[i] : P == 2 ? fx::sqrt(total[i]) : fx::pow(total[i], WORK(1) / WORK(P));
#endif
    finish_store_flat<VEC>(out, total, args, static_cast<long long>(index) * VEC, last);
}
