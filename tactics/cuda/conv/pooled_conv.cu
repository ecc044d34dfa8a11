// Convolution and the pooling of its result in one kernel, on the ordinary cores. Plain CUDA C++, any GPU.
#include "simt.cuh"
#include "pooled.cuh"

// One block: TILE_Y x TILE_X pooled positions of one image, for 64 output channels of one group. The convolution's results that they read
// are computed as implicit GEMMs with 64 rows each, go through the epilogue, are rounded to IN_T, and wait in shared memory,
// [position][64 channels], for the pooling.
//   x is addressed by strides in elements; w is [O][depth] with rows of w_row, depth being (tap, channel of the group) or, with PLANES,
//   (channel, tap); out is [batch][y][x][channels], dense.
//   Sizes of windows, strides, paddings, dilations and of a group are macros; sizes of images are arguments.
//   Grid: x = images * tiles of positions * tiles of channels, z = groups. Fewer than 2^31 results of the convolution.
extern __shared__ __align__(16) char memory[];

extern "C" __global__ void __launch_bounds__(SIMT_THREADS, 2)
    pooled_conv(const IN_T* __restrict__ x, const IN_T* __restrict__ w, IN_T* __restrict__ out, int in_y, int in_x, int conv_y, int conv_x,
                int out_y, int out_x, long long x_n, int x_y, int x_x, int x_c, int w_row, int channels, EpilogueArgs args) {
    IN_T* held = reinterpret_cast<IN_T*>(memory);
    const int tiles_n = (GROUP_OUT + SIMT_N - 1) / SIMT_N;
    const Pooled tile(blockIdx.x / tiles_n, conv_y, conv_x, out_y, out_x);
    const int n0 = blockIdx.x % tiles_n * SIMT_N, column0 = blockIdx.z * GROUP_OUT + n0;
    x += tile.image * x_n + static_cast<long long>(blockIdx.z) * GROUP_IN * x_c;
    w += static_cast<long long>(column0) * w_row;

    constexpr int depth = TAPS_Y * TAPS_X * GROUP_IN;
    for (int row0 = 0; row0 < HELD; row0 += SIMT_M) {
        int start_y[SIMT_LOADS], start_x[SIMT_LOADS];  // where each row's window starts; beyond the image where there is no such result
#pragma unroll
        for (int i = 0; i < SIMT_LOADS; ++i) {
            int cy, cx;
            const bool inside = tile.at(row0 + threadIdx.x / SIMT_K + i * (SIMT_THREADS / SIMT_K), cy, cx);
            start_y[i] = inside ? cy * STRIDE_Y - PAD_Y : in_y;
            start_x[i] = cx * STRIDE_X - PAD_X;
        }
        auto load_a = [&](int i, int k0) {
            const int k = k0 + threadIdx.x % SIMT_K;
            const int c = PLANES ? k / (TAPS_Y * TAPS_X) : k % GROUP_IN, tap = PLANES ? k % (TAPS_Y * TAPS_X) : k / GROUP_IN;
            const int iy = start_y[i] + tap / TAPS_X * DILATION_Y, ix = start_x[i] + tap % TAPS_X * DILATION_X;
            if (k >= depth || iy < 0 || iy >= in_y || ix < 0 || ix >= in_x) return 0.0f;
            return to_float(x[iy * x_y + ix * x_x + c * x_c]);
        };
        auto load_b = [&](int column, int k) {
            if (k >= depth || n0 + column >= GROUP_OUT) return 0.0f;
            return to_float(w[column * w_row + k]);
        };
        float sum[8][4];
        simt_tile<false>(depth, load_a, load_b, sum);
        const int column = threadIdx.x % 16 * 4;
        for (int i = 0; i < 8; ++i) {
            int cy, cx;
            const int row = row0 + threadIdx.x / 16 * 8 + i;
            if (!tile.at(row, cy, cx)) continue;
            const long long m = tile.pixel(cy, cx);
            IN_T* target = held + row * SIMT_N + column;
            if (GROUP_OUT % 4 == 0) {  // so is the number of channels
                if (n0 + column < GROUP_OUT) store_sums(target, sum[i], args, m, column0 + column, channels);
            } else {
                for (int j = 0; j < 4 && n0 + column + j < GROUP_OUT; ++j) {
                    float one[1] = {sum[i][j]};
                    store_sums(target + j, one, args, m, column0 + column + j, channels);
                }
            }
        }
    }
    __syncthreads();
    tile.pool<SIMT_N, SIMT_THREADS>(held, out, n0, column0, channels);
}
