// Convolution and deconvolution on the ordinary cores: the reference of their family. Plain CUDA C++, any GPU.
#include "prologue.cuh"
#include "simt.cuh"

// out[pixel][o] = epilogue(sum over window taps and channels of x * w), as an implicit GEMM with 64 x 64 tiles per block of
// 128 threads: rows are output pixels (batch, z, y, x flattened), columns the output channels of one group, depth (tap, c).
//   x is addressed by strides in elements (channels last or first, any dimensionality with missing sizes 1); w likewise,
//   in the model's own layout (w_o, w_c, w_tap), taps flattened; out is [batch][oz][oy][ox][channels], with OUT_PLANES [batch][channels][oz][oy][ox].
//   TRANSPOSED=1 computes the deconvolution: input coordinate (out + pad - tap * dilation) / stride where that divides.
//   Grid: x = tiles of pixels * tiles of channels, z = groups. Any sizes, strides, paddings, dilations, groups;
//   fewer than 2^31 output pixels and depth.
extern "C" __global__ void __launch_bounds__(SIMT_THREADS, 2)
    simt_conv(const A_T* __restrict__ x, const B_T* __restrict__ w, OUT_T* __restrict__ out, int pixels, int in_z, int in_y,
              int in_x, int out_z, int out_y, int out_x, long long x_n, long long x_z, long long x_y, long long x_x, long long x_c,
              long long w_group, long long w_o, long long w_c, int channels, int group_in, int group_out, int taps_z, int taps_y,
              int taps_x, int stride_z, int stride_y, int stride_x, int pad_z, int pad_y, int pad_x, int dilation_z, int dilation_y,
              int dilation_x, EpilogueArgs args PROLOGUE_PARAMETER) {
    const int tiles_n = (group_out + SIMT_N - 1) / SIMT_N;
    const int row0 = blockIdx.x / tiles_n * SIMT_M, n0 = blockIdx.x % tiles_n * SIMT_N;
    const int group = blockIdx.z;
    const int depth = taps_z * taps_y * taps_x * group_in;
    x += group * group_in * x_c;
    w += group * w_group;

    int z0[SIMT_LOADS], y0[SIMT_LOADS], x0[SIMT_LOADS], image[SIMT_LOADS];  // where each row's window starts
#pragma unroll
    for (int i = 0; i < SIMT_LOADS; ++i) {
        const int row = row0 + threadIdx.x / SIMT_K + i * (SIMT_THREADS / SIMT_K);
        const int ox = row % out_x, oy = row / out_x % out_y, rest = row / out_x / out_y;
        const int oz = rest % out_z;
        image[i] = row < pixels ? rest / out_z : -1;
        z0[i] = TRANSPOSED ? oz + pad_z : oz * stride_z - pad_z;
        y0[i] = TRANSPOSED ? oy + pad_y : oy * stride_y - pad_y;
        x0[i] = TRANSPOSED ? ox + pad_x : ox * stride_x - pad_x;
    }
    auto place = [](int start, int tap, int dilation, int stride, int size) {  // the input coordinate, or -1
        if (!TRANSPOSED) {
            const int at = start + tap * dilation;
            return at < size ? at : -1;
        }
        const int at = start - tap * dilation;
        return at >= 0 && at % stride == 0 && at / stride < size ? at / stride : -1;
    };
    auto load_a = [&](int i, int k0) {
        const int k = k0 + threadIdx.x % SIMT_K;
        const int c = k % group_in, tap = k / group_in;
        const int iz = place(z0[i], tap / taps_x / taps_y, dilation_z, stride_z, in_z);
        const int iy = place(y0[i], tap / taps_x % taps_y, dilation_y, stride_y, in_y);
        const int ix = place(x0[i], tap % taps_x, dilation_x, stride_x, in_x);
        if (k >= depth || image[i] < 0 || iz < 0 || iy < 0 || ix < 0) return SUM_T(0);
#ifdef HAS_PROLOGUE  // x is channels last
        float value[1] = {to_float(x[image[i] * x_n + iz * x_z + iy * x_y + ix * x_x + c * x_c])};
        prologue<A_T>(value, before_args, ((static_cast<long long>(image[i]) * in_z + iz) * in_y + iy) * in_x + ix, group * group_in + c, gridDim.z * group_in);
        return value[0];
#else
        return to_sum(x[image[i] * x_n + iz * x_z + iy * x_y + ix * x_x + c * x_c]);
#endif
    };
    auto load_b = [&](int column, int k) {
        if (k >= depth || n0 + column >= group_out) return SUM_T(0);
        return to_sum(w[(n0 + column) * w_o + k % group_in * w_c + k / group_in]);
    };
    SUM_T sum[8][4];
    simt_tile<false>(depth, load_a, load_b, sum);
    simt_store(out, args, sum, 0, row0, pixels, n0, group_out, group * group_out, channels, out_z * out_y * out_x);
}
