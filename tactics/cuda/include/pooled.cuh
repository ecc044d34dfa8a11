// The pooling of a convolution's results that a block holds in shared memory; what pooled_conv.cu and pooled_mma.cu share.
//
// A block computes TILE_Y x TILE_X pooled positions; HELD_Y x HELD_X results are what they read, the first of them at (first_y, first_x) of the
// convolution's conv_y x conv_x. What lies outside of these never counts. Macros: POOL_*, AVERAGE, COUNT_PAD, GROUP_OUT.
#pragma once
#include "functions.cuh"
#include "pitch.cuh"

constexpr int HELD_Y = (TILE_Y - 1) * POOL_STRIDE_Y + (POOL_Y - 1) * POOL_DILATION_Y + 1;
constexpr int HELD_X = (TILE_X - 1) * POOL_STRIDE_X + (POOL_X - 1) * POOL_DILATION_X + 1;
constexpr int HELD = HELD_Y * HELD_X;

struct Pooled {
    int image, pool_y, pool_x;    // the tile's first pooled position
    int first_y, first_x;         // the first result that it reads; may be outside
    int conv_y, conv_x, out_y, out_x;

    __device__ __forceinline__ Pooled(int tile, int conv_y, int conv_x, int out_y, int out_x) : conv_y(conv_y), conv_x(conv_x), out_y(out_y), out_x(out_x) {
        const int tiles_x = (out_x + TILE_X - 1) / TILE_X, tiles_y = (out_y + TILE_Y - 1) / TILE_Y;
        pool_x = tile % tiles_x * TILE_X, pool_y = tile / tiles_x % tiles_y * TILE_Y, image = tile / tiles_x / tiles_y;
        first_y = pool_y * POOL_STRIDE_Y - POOL_PAD_Y, first_x = pool_x * POOL_STRIDE_X - POOL_PAD_X;
    }

    // Whether held position `row` is a result of the convolution, at (cy, cx) of its image.
    __device__ __forceinline__ bool at(int row, int& cy, int& cx) const {
        cy = first_y + row / HELD_X, cx = first_x + row % HELD_X;
        return row < HELD && cy >= 0 && cy < conv_y && cx >= 0 && cx < conv_x;
    }

    __device__ __forceinline__ long long pixel(int cy, int cx) const { return (static_cast<long long>(image) * conv_y + cy) * conv_x + cx; }

    // Pools held[position][COLUMNS], whose first column is n0 of its group and column0 of the output [batch][y][x][channels].
    template <int COLUMNS, int THREADS_, typename S>
    __device__ __forceinline__ void pool(const S* held, S* out, int n0, int column0, int channels) const {
        for (int element = threadIdx.x; element < TILE_Y * TILE_X * COLUMNS; element += THREADS_) {
            const int column = element % COLUMNS, ty = element / COLUMNS / TILE_X, tx = element / COLUMNS % TILE_X;
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
                    const float value = to_float(held[(hy * HELD_X + hx) * COLUMNS + column]);
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
            out[position * OUT_ROW(channels) + column0 + column] = from_float<S>(total);
        }
    }
};
