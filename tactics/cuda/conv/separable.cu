// A depthwise and a pointwise convolution in one kernel, on the ordinary cores. Plain CUDA C++, any GPU.
#include "simt.cuh"
#include "separable.cuh"

// One block: 64 output pixels x 64 output channels, as simt_gemm.cu; an element of the left operand is a depthwise result, computed when it
// is needed and rounded to IN_T, so once for every 64 output channels.
//   x: [batch][in_y][in_x] pixels x_row elements apart; filters: [channels][TAPS_Y * TAPS_X]; w: [out_channels][channels]; out: [pixels][out_channels].
//   Windows, strides and dilations are macros. Grid: x = tiles of pixels, y = tiles of output channels; fewer than 2^31 elements of x.
extern "C" __global__ void __launch_bounds__(SIMT_THREADS, 3)
    separable(const X_T* __restrict__ x, const B_T* __restrict__ filters, const B_T* __restrict__ w, OUT_T* __restrict__ out, int pixels, int in_y, int in_x,
              int x_row, int out_y, int out_x, int pad_y, int pad_x, int channels, int out_channels, InnerArgs inner_args, EpilogueArgs args) {
    const int row0 = blockIdx.x * SIMT_M, n0 = blockIdx.y * SIMT_N;
    int first[SIMT_LOADS], y0[SIMT_LOADS], x0[SIMT_LOADS];  // of each row: the image's first pixel, and where its window starts
#pragma unroll
    for (int i = 0; i < SIMT_LOADS; ++i) {
        const int row = min(row0 + static_cast<int>(threadIdx.x) / SIMT_K + i * (SIMT_THREADS / SIMT_K), pixels - 1);
        const int line = row / out_x, image = line / out_y;
        first[i] = image * in_y * in_x;
        y0[i] = (line - image * out_y) * STRIDE_Y - pad_y;
        x0[i] = (row - line * out_x) * STRIDE_X - pad_x;
    }
    auto load_a = [&](int i, int k0) {
        const int c = k0 + threadIdx.x % SIMT_K;
        if (c >= channels) return SUM_T(0);
        SUM_T sum[1] = {SUM_T(0)};
#pragma unroll 1  // with all taps at once their loads take more registers than there are
        for (int row = 0; row < TAPS_Y; ++row) {
            const int iy = y0[i] + row * DILATION_Y;
            if (iy < 0 || iy >= in_y) continue;
#pragma unroll
            for (int column = 0; column < TAPS_X; ++column) {
                const int ix = x0[i] + column * DILATION_X;
                if (ix >= 0 && ix < in_x)
                    sum[0] += to_sum(x[(first[i] + iy * in_x + ix) * x_row + c]) * to_sum(filters[(c * TAPS_Y + row) * TAPS_X + column]);
            }
        }
        fx::Vec<IN_T, 1> result;
        const int row = row0 + threadIdx.x / SIMT_K + i * (SIMT_THREADS / SIMT_K);
        const float real[1] = {static_cast<float>(sum[0])};
        finish_depthwise(real, result, inner_args, min(row, pixels - 1), c, channels);
        return to_sum(result.value[0]);
    };
    auto load_b = [&](int column, int k) {
        if (k >= channels || n0 + column >= out_channels) return SUM_T(0);
        return to_sum(w[static_cast<long long>(n0 + column) * channels + k]);
    };
    SUM_T sum[8][4];
    simt_tile<false>(channels, load_a, load_b, sum);
    simt_store(out, args, sum, 0, row0, pixels, n0, out_channels, 0, out_channels);
}
