// Depthwise convolution, channels last: memory-bound, so inputs move as 16-byte vectors and stay in registers.
#include "mma.cuh"

constexpr int CHUNK = VECTOR;                                        // channels per thread
constexpr int SPAN_X = (TILE_X - 1) * STRIDE_X + (TAPS_X - 1) * DILATION_X + 1;  // input columns that a thread touches
constexpr int SPAN_Y = (TILE_Y - 1) * STRIDE_Y + (TAPS_Y - 1) * DILATION_Y + 1;

// Each thread computes TILE_Y x TILE_X output pixels of VECTOR channels: it walks the input rows of its tile once, keeps one
// row's SPAN_X vectors in registers and adds each to all outputs that it reaches.
//   x: [batch][in_y][in_x][channels], w: [TAPS_Y][TAPS_X][channels], out: [batch][out_y][out_x][channels], channels % VECTOR == 0,
//   VECTOR * sizeof(IN_T) <= 16. Neighbouring threads hold neighbouring channels. Grid: ceil(threads / 256), block 256, with
//   threads = batch * ceil(out_y / TILE_Y) * ceil(out_x / TILE_X) * channels / VECTOR < 2^31.
//   Window, stride and dilation are compile-time: TAPS_*, STRIDE_*, DILATION_*. 1-D: the y sizes are 1.
// MIN_BLOCKS: blocks per multiprocessor that registers must allow. Any GPU; fp32 accumulation.
extern "C" __global__ void __launch_bounds__(256, MIN_BLOCKS)
    depthwise(const IN_T* __restrict__ x, const IN_T* __restrict__ w, OUT_T* __restrict__ out, int batch, int in_y, int in_x, int out_y,
              int out_x, int channels, int pad_y, int pad_x, EpilogueArgs args) {
    const int vectors = channels / CHUNK;
    const int tiles_x = (out_x + TILE_X - 1) / TILE_X, tiles_y = (out_y + TILE_Y - 1) / TILE_Y;
    const int index = blockIdx.x * 256 + threadIdx.x;
    const int rest = index / vectors, c = (index - rest * vectors) * CHUNK;
    const int rest_y = rest / tiles_x, x0 = (rest - rest_y * tiles_x) * TILE_X;
    const int image = rest_y / tiles_y, y0 = (rest_y - image * tiles_y) * TILE_Y;
    pdl_wait();
    pdl_launch_next();
    if (image >= batch) return;

    using Vector = Pack<IN_T, CHUNK>;
    float sum[TILE_Y][TILE_X][CHUNK] = {};
    const int first_y = y0 * STRIDE_Y - pad_y, first_x = x0 * STRIDE_X - pad_x;
    const IN_T* corner = x + ((static_cast<long long>(image) * in_y + first_y) * in_x + first_x) * channels + c;
#pragma unroll
    for (int iy = 0; iy < SPAN_Y; ++iy) {
        Vector line[SPAN_X];
        const bool row_inside = static_cast<unsigned>(first_y + iy) < in_y;
#pragma unroll
        for (int ix = 0; ix < SPAN_X; ++ix) {
            if (row_inside && static_cast<unsigned>(first_x + ix) < in_x)
                line[ix] = *reinterpret_cast<const Vector*>(corner + (static_cast<long long>(iy) * in_x + ix) * channels);
            else
#pragma unroll
                for (int e = 0; e < CHUNK; ++e) line[ix].value[e] = from_float<IN_T>(0.0f);
        }
#pragma unroll
        for (int ty = 0; ty < TILE_Y; ++ty) {
            const int distance = iy - ty * STRIDE_Y;
            if (distance < 0 || distance % DILATION_Y != 0 || distance / DILATION_Y >= TAPS_Y) continue;
#pragma unroll
            for (int tap = 0; tap < TAPS_X; ++tap) {
                float weight[CHUNK];
                load_vector(weight, w + (distance / DILATION_Y * TAPS_X + tap) * channels + c);
#pragma unroll
                for (int tx = 0; tx < TILE_X; ++tx)
#pragma unroll
                    for (int e = 0; e < CHUNK; ++e)
                        sum[ty][tx][e] += weight[e] * to_float(line[tx * STRIDE_X + tap * DILATION_X].value[e]);
            }
        }
    }
#pragma unroll
    for (int ty = 0; ty < TILE_Y; ++ty)
#pragma unroll
        for (int tx = 0; tx < TILE_X; ++tx)
            if (y0 + ty < out_y && x0 + tx < out_x) {
                const long long m = (static_cast<long long>(image) * out_y + y0 + ty) * out_x + x0 + tx;
                epilogue(sum[ty][tx], args, m, c, channels);
                store_vector(out + m * channels + c, sum[ty][tx]);
            }
}
