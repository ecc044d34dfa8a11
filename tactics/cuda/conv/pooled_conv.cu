// Convolution and the pooling of its result in one kernel, on the ordinary cores. Plain CUDA C++, any GPU.
#include "functions.cuh"
#include "simt.cuh"

// One block: TILE_Y x TILE_X pooled positions of one image, for 64 output channels of one group. The convolution's results that they read
// (the tile and its halo, HELD_Y x HELD_X of them) are computed as implicit GEMMs with 64 rows each, go through the epilogue, are rounded
// to IN_T, and wait in shared memory, [position][64 channels], for the pooling. What lies outside of the convolution's result never counts.
//   x is addressed by strides in elements; w is [O][tap, C / groups] with rows of w_row; out is [batch][y][x][channels], dense.
//   Sizes of windows, strides, paddings, dilations and of a group are macros; sizes of images are arguments.
//   Grid: x = images * tiles of positions * tiles of channels, z = groups. Fewer than 2^31 results of the convolution.
constexpr int HELD_Y = (TILE_Y - 1) * POOL_STRIDE_Y + (POOL_Y - 1) * POOL_DILATION_Y + 1;
constexpr int HELD_X = (TILE_X - 1) * POOL_STRIDE_X + (POOL_X - 1) * POOL_DILATION_X + 1;

extern __shared__ __align__(16) char memory[];

extern "C" __global__ void __launch_bounds__(SIMT_THREADS, 2)
    pooled_conv(const IN_T* __restrict__ x, const IN_T* __restrict__ w, IN_T* __restrict__ out, int in_y, int in_x, int conv_y, int conv_x, int out_y,
                int out_x, long long x_n, long long x_y, long long x_x, long long x_c, int w_row, int channels, EpilogueArgs args) {
    IN_T* held = reinterpret_cast<IN_T*>(memory);
    const int tiles_n = (GROUP_OUT + SIMT_N - 1) / SIMT_N;
    const int tiles_x = (out_x + TILE_X - 1) / TILE_X, tiles_y = (out_y + TILE_Y - 1) / TILE_Y;
    const int tile = blockIdx.x / tiles_n, n0 = blockIdx.x % tiles_n * SIMT_N;
    const int pool_x = tile % tiles_x * TILE_X, pool_y = tile / tiles_x % tiles_y * TILE_Y, image = tile / tiles_x / tiles_y;
    const int group = blockIdx.z, column0 = group * GROUP_OUT + n0;
    const int first_y = pool_y * POOL_STRIDE_Y - POOL_PAD_Y, first_x = pool_x * POOL_STRIDE_X - POOL_PAD_X;  // of what is held
    x += image * x_n + group * GROUP_IN * x_c;
    w += static_cast<long long>(column0) * w_row;

    constexpr int depth = TAPS_Y * TAPS_X * GROUP_IN;
    for (int row0 = 0; row0 < HELD_Y * HELD_X; row0 += SIMT_M) {
        int start_y[SIMT_LOADS], start_x[SIMT_LOADS];  // where each row's window starts; beyond the image where there is no such result
#pragma unroll
        for (int i = 0; i < SIMT_LOADS; ++i) {
            const int row = row0 + threadIdx.x / SIMT_K + i * (SIMT_THREADS / SIMT_K);
            const int cy = first_y + row / HELD_X, cx = first_x + row % HELD_X;
            const bool inside = row < HELD_Y * HELD_X && cy >= 0 && cy < conv_y && cx >= 0 && cx < conv_x;
            start_y[i] = inside ? cy * STRIDE_Y - PAD_Y : in_y;
            start_x[i] = cx * STRIDE_X - PAD_X;
        }
        auto load_a = [&](int i, int k0) {
            const int k = k0 + threadIdx.x % SIMT_K;
            const int c = k % GROUP_IN, tap = k / GROUP_IN;
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
            const int row = row0 + threadIdx.x / 16 * 8 + i;
            const int cy = first_y + row / HELD_X, cx = first_x + row % HELD_X;
            if (row >= HELD_Y * HELD_X || cy < 0 || cy >= conv_y || cx < 0 || cx >= conv_x) continue;
            const long long m = (static_cast<long long>(image) * conv_y + cy) * conv_x + cx;
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

    for (int element = threadIdx.x; element < TILE_Y * TILE_X * SIMT_N; element += SIMT_THREADS) {
        const int column = element % SIMT_N, ty = element / SIMT_N / TILE_X, tx = element / SIMT_N % TILE_X;
        const int oy = pool_y + ty, ox = pool_x + tx;
        if (n0 + column >= GROUP_OUT || oy >= out_y || ox >= out_x) continue;
        float total = AVERAGE ? 0.0f : -INFINITY;
        int divisor_y = 0, divisor_x = 0;
#pragma unroll
        for (int a = 0; a < POOL_Y; ++a) {
            const int hy = ty * POOL_STRIDE_Y + a * POOL_DILATION_Y, cy = first_y + hy;
            divisor_y += COUNT_PAD ? cy < conv_y + POOL_POST_Y : cy >= 0 && cy < conv_y;
            if (cy < 0 || cy >= conv_y) continue;
#pragma unroll
            for (int b = 0; b < POOL_X; ++b) {
                const int hx = tx * POOL_STRIDE_X + b * POOL_DILATION_X, cx = first_x + hx;
                if (cx < 0 || cx >= conv_x) continue;
                const float value = to_float(held[(hy * HELD_X + hx) * SIMT_N + column]);
                total = AVERAGE ? total + value : fx::max(total, value);
            }
        }
        if (AVERAGE) {
#pragma unroll
            for (int b = 0; b < POOL_X; ++b) {
                const int cx = first_x + tx * POOL_STRIDE_X + b * POOL_DILATION_X;
                divisor_x += COUNT_PAD ? cx < conv_x + POOL_POST_X : cx >= 0 && cx < conv_x;
            }
            const int divisor = divisor_y * divisor_x;
            total /= static_cast<float>(divisor > 0 ? divisor : 1);
        }
        const long long position = (static_cast<long long>(image) * out_y + oy) * out_x + ox;
        out[position * channels + column0 + column] = from_float<IN_T>(total);
    }
}
