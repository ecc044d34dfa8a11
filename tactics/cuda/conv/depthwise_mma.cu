// Depthwise convolution with stride 1, channels last, on tensor cores (mma.sync): fp16 / bf16 with fp32 sums, which may leave as 8 bits.
//
// Of one channel, a row of outputs is a banded matrix (the taps of a row of the window on its diagonals) times a row of inputs. The left operand is
// the band, 16 outputs x 16 inputs; the columns of the right one are that row of eight strips, which are bands of an image's rows or several
// images. So one mma does for TAPS_X products of 128 outputs what takes 4 * TAPS_X FFMA. Each row of inputs is read once for all rows of outputs.
#include "mma.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;
constexpr int BLOCK_C = 4 * WARPS;            // channels of a block: each warp has four
constexpr int PIXEL = BLOCK_C * 2;            // bytes in shared memory
constexpr int ROW = 16 * PIXEL + 16;          // with ROWS odd, neighbouring strips fall into different banks
constexpr int IMAGES = 8 / BANDS;             // strips: IMAGES x BANDS of ROWS rows of outputs
constexpr int SPAN_Y = BANDS * ROWS + TAPS_Y - 1;  // input rows of an image
constexpr int STEP_X = 17 - TAPS_X;           // outputs of a segment that needs no padding
constexpr int IN_BYTES = IMAGES * SPAN_Y * ROW;
static_assert(sizeof(IN_T) == 2 && sizeof(OUT_T) <= 2 && CHANNELS % 8 == 0 && TAPS_X <= 9 && 8 % BANDS == 0 && ROWS % 2 == 1, "see tactics/cuda/conv/depthwise_mma.py");

// Byte offset of 16-byte chunk `chunk` of column `x`, row `row`: columns 0, 2, 4, 6 lie side by side, which the lanes of a warp read at once.
__device__ __forceinline__ int place(int row, int x, int chunk) {
    return row * ROW + ((x & 8) | (x & 1) << 2 | (x >> 1 & 3)) * PIXEL + chunk * 16;
}

// One block: BLOCK_C channels of one segment of columns (up to 16 outputs) of eight strips.
//   x: [batch][in_y][in_x] pixels of CHANNELS elements, X_ROW apart; out: [batch][out_y][out_x] pixels, OUT_ROW apart;
//   w: [channels, padded to BLOCK_C][TAPS_Y][TAPS_X + 1] words, of taps d - 1 and d (0 outside of the window).
//   The first segment has min(16, STEP_X + pad_x) outputs (its padding takes no place), those between STEP_X, the last one the rest.
//   Grid: channels / BLOCK_C * segments * ceil(out_y / (BANDS * ROWS)) * ceil(batch / IMAGES). Dynamic shared memory: IN_BYTES + 16 * ROW.
//   A value that is not finite spoils its row's other outputs in the same segment, too. pad_x < TAPS_X. Fewer than 2^31 elements of x.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    depthwise_mma(const IN_T* __restrict__ x, const unsigned* __restrict__ w, OUT_T* __restrict__ out, int batch, int in_y, int in_x, int out_y,
                  int out_x, int pad_y, int pad_x, int segments, EpilogueArgs args) {
    extern __shared__ __align__(1024) char memory[];
    constexpr int channels = CHANNELS, groups = (CHANNELS + BLOCK_C - 1) / BLOCK_C, x_row = X_ROW(CHANNELS), out_row = OUT_ROW(CHANNELS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int rest = blockIdx.x / groups, c0 = (blockIdx.x - rest * groups) * BLOCK_C;
    const int line = rest / segments, segment = rest - line * segments;
    const int tiles_y = (out_y + BANDS * ROWS - 1) / (BANDS * ROWS);
    const int image0 = line / tiles_y * IMAGES, y0 = line % tiles_y * (BANDS * ROWS);
    const int x0 = segment == 0 ? 0 : min(16, STEP_X + pad_x) + (segment - 1) * STEP_X;
    const int columns = segment == segments - 1 ? out_x - x0 : segment == 0 ? min(16, STEP_X + pad_x) : STEP_X;
    const int from_x = max(0, x0 - pad_x);

    // The band of each channel and row of the window. A lane holds outputs lane / 4 and 8 more, inputs lane % 4 * 2 and the next, and 8 more.
    const int c = c0 + 4 * warp;
    const bool works = c < channels;
    unsigned band[4][TAPS_Y][3];
    {
        const int d = lane % 4 * 2 - lane / 4 + from_x - x0 + pad_x + 1;  // tap of the first input for the first output, + 1
        const unsigned* words = w + c * (TAPS_Y * (TAPS_X + 1));
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
            for (int ky = 0; ky < TAPS_Y; ++ky)
#pragma unroll
                for (int part = 0; part < 3; ++part) {
                    const int word = d + (part == 1 ? -8 : part == 2 ? 8 : 0);
                    band[e][ky][part] = 0u;
                    if (static_cast<unsigned>(word) <= TAPS_X) band[e][ky][part] = words[(e * TAPS_Y + ky) * (TAPS_X + 1) + word];
                }
    }
    pdl_prefetch_constants(args, channels);
    pdl_start();

    // --- copies: each warp brings and stores rows of two strips, a lane 16 bytes of a pixel. A step's rows are a group; AHEAD groups are under way.
    constexpr int STEPS = ROWS + TAPS_Y - 1, AHEAD = STEPS < TAPS_Y + 4 ? STEPS : TAPS_Y + 4;
    const int column = lane / 2, chunk = lane % 2, ix = from_x + column;
    const bool exists = c0 + chunk * 8 < channels;
    int source[2], line_y[2], target[2], left[2];  // first elements, input row (far outside for none), rows to store
    unsigned shared[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
        const int strip = 2 * warp + s, image = image0 + strip / BANDS, y = y0 + strip % BANDS * ROWS;
        source[s] = ((image * in_y + y - pad_y) * in_x + ix) * x_row + c0 + chunk * 8;
        line_y[s] = exists && ix < in_x && image < batch ? y - pad_y : -0x40000000;
        target[s] = ((image * out_y + y) * out_x + x0 + column) * out_row + c0 + chunk * 8;
        left[s] = exists && column < columns && image < batch ? out_y - y : 0;
        shared[s] = shared_address(memory + place(strip / BANDS * SPAN_Y + strip % BANDS * ROWS, column, chunk));
    }
    auto load = [&](int step) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            const bool valid = static_cast<unsigned>(line_y[s] + step) < in_y;
            // Rows below a band are those of the next one, except for the last.
            if (step < ROWS || (step < STEPS && (2 * warp + s) % BANDS == BANDS - 1))
                copy_async<16>(shared[s] + step * ROW, valid ? x + (source[s] + step * in_x * x_row) : x, valid);
        }
        copy_async_commit();
    };
#pragma unroll 1
    for (int step = 0; step < AHEAD; ++step) load(step);
    using Eight = Pack<unsigned, 2 * sizeof(OUT_T)>;  // channels of a pixel; of 8 bits they fill half of their 16 bytes in shared memory
    char* results = memory + IN_BYTES;
    auto store = [&](int r) {
#pragma unroll
        for (int s = 0; s < 2; ++s)
            if (r < left[s])
                *reinterpret_cast<Eight*>(out + (target[s] + r * out_x * out_row)) =
                    *reinterpret_cast<const Eight*>(results + (r % 2 * 8 + 2 * warp + s) * ROW + column * PIXEL + (chunk ^ (warp & 1)) * 16);
    };

    // --- the sums of four channels; strips of this lane: lane / 4 to read, lane % 4 * 2 and the next to write
    {
        const int strip = lane / 4, t = lane % 4;
        const char* line = memory + place(strip / BANDS * SPAN_Y + strip % BANDS * ROWS, 2 * t, warp / 2) + warp % 2 * 8;
        unsigned input[TAPS_Y][4][2];  // right operands of the rows that the next outputs need: channels, halves of the depth
        auto read = [&](unsigned (&to)[4][2]) {
            uint2 pixel[4];  // columns 2t, 2t + 1, and 8 more
#pragma unroll
            for (int k = 0; k < 4; ++k) pixel[k] = *reinterpret_cast<const uint2*>(line + (k % 2 * 4 + k / 2 * 8) * PIXEL);
#pragma unroll
            for (int e = 0; e < 4; ++e)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    to[e][half] = __byte_perm(e < 2 ? pixel[half * 2].x : pixel[half * 2].y, e < 2 ? pixel[half * 2 + 1].x : pixel[half * 2 + 1].y, e % 2 ? 0x7632 : 0x5410);
            line += ROW;
        };
        copy_async_wait<AHEAD - TAPS_Y + 1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < TAPS_Y - 1; ++i) read(input[i]);
#pragma unroll 1  // straight code for all rows would wait for instructions
        for (int r = 0; r < ROWS; ++r) {
            copy_async_wait<AHEAD - TAPS_Y>();
            __syncthreads();
            load(r + AHEAD);
            if (r > 0) store(r - 1);
            if (!works) continue;
            read(input[TAPS_Y - 1]);
            float sum[4][4] = {};  // channels, (outputs lane / 4 and 8 more) x two strips
#pragma unroll
            for (int ky = 0; ky < TAPS_Y; ++ky)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const unsigned (&one)[3] = band[e][ky];
                    const unsigned a[4] = {one[0], one[1], one[2], one[0]};
                    mma_16x8<IN_T>(sum[e], a, input[ky][e][0], input[ky][e][1]);
                }
#pragma unroll
            for (int i = 0; i + 1 < TAPS_Y; ++i)
#pragma unroll
                for (int e = 0; e < 8; ++e) input[i][e / 2][e % 2] = input[i + 1][e / 2][e % 2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int place_x = lane / 4 + half * 8;
                if (half == 1 && columns <= 8) break;
#pragma unroll
                for (int s = 0; s < 2; ++s) {
                    const int to = 2 * t + s, image = min(image0 + to / BANDS, batch - 1), y = min(y0 + to % BANDS * ROWS + r, out_y - 1);
                    float value[4];
#pragma unroll
                    for (int e = 0; e < 4; ++e) value[e] = sum[e][half * 2 + s];
                    char* at = results + (r % 2 * 8 + to) * ROW + place_x * PIXEL + ((warp / 2) ^ (t & 1)) * 16;
                    store_sums(reinterpret_cast<OUT_T*>(at) + warp % 2 * 4, value, args, (image * out_y + y) * out_x + x0 + min(place_x, columns - 1), c, channels);
                }
            }
        }
    }
    __syncthreads();
    store(ROWS - 1);
}
