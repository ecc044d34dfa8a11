// Depthwise convolution with stride 1, channels last, on tensor cores (mma.sync): fp16 / bf16 with fp32 sums, which may leave as 8 bits.
//
// Of one channel, a row of outputs is a banded matrix (the taps of a row of the window on its diagonals) times a row of inputs. The left operand
// is the band, 16 outputs x 16 inputs; the columns of the right one are eight neighbouring rows. So one mma does for TAPS_X products of 128
// outputs what takes 4 * TAPS_X FFMA. A block keeps its bands and walks the images: the inputs of the next STAGES tiles come (cp.async) while one is
// computed; they are transposed in shared memory, a plane for each channel, where ldmatrix reads the right operands of two channels at once.
#include "mma.cuh"

constexpr int THREADS = 32 * WARPS, BLOCK_C = EACH * WARPS;   // each warp has EACH channels
constexpr int CHUNKS = BLOCK_C / 8;                           // of 16 bytes, of a pixel
constexpr int OUT_ROWS = GROUPS * ROWS;                       // of an image: GROUPS groups of ROWS (at most 8) rows
constexpr int IN_ROWS = OUT_ROWS + TAPS_Y - 1;
constexpr int SPAN = (IN_ROWS + 8 - ROWS + 5) / 8 * 8 + 2;    // rows of an image in a plane: 2 modulo 8, for the banks
constexpr int HALF = SPAN * 16;                               // eight columns of a channel: 16 bytes a row
constexpr int PLANE = 2 * HALF;
constexpr int OCTET = 8 * PLANE + 64;                         // neighbouring octets of channels in different banks
constexpr int OUT_LINE = 16 * 8 + 16;                         // results of four channels, 16 columns
constexpr int OUT_PLANE = (OUT_ROWS * OUT_LINE + 127) / 128 * 128 + 32;  // twice that: 64 bytes modulo 128
constexpr int RESULTS = CHUNKS * OCTET, RAW = RESULTS + 2 * CHUNKS * OUT_PLANE;  // what lies where: planes, results, inputs as they come
constexpr int RAW_LINE = 16 * CHUNKS * 16, RAW_BYTES = IN_ROWS * RAW_LINE;
constexpr int STEP_X = 17 - TAPS_X;                           // outputs of a segment that needs no padding
constexpr int BAND = (TAPS_X + 1) * TAPS_Y * 4;               // words of four channels
static_assert(sizeof(IN_T) == 2 && sizeof(OUT_T) <= 2 && CHANNELS % 8 == 0 && TAPS_X <= 9 && ROWS <= 8 && (EACH == 2 || EACH == 4) && (CHUNKS == 2 || CHUNKS == 4),
              "see tactics/cuda/conv/depthwise_mma.py");

// One block: BLOCK_C channels of one segment of columns (16 slots) of tiles of OUT_ROWS rows of PACK images, one after the other.
//   x: [batch][in_y][in_x] pixels of CHANNELS elements, X_ROW apart; out: [batch][out_y][out_x] pixels, OUT_ROW apart;
//   w: [channels / 4, padded to BLOCK_C][TAPS_X + 1][TAPS_Y][4] words, of taps d - 1 and d (0 outside of the window).
//   With PACK images in a segment, PITCH slots apart (zeros between), there is one segment. Else the first has
//   min(16, STEP_X + pad_x) outputs (its padding takes no place), those between STEP_X, the last one the rest.
//   Grid: channels / BLOCK_C * segments * any number of blocks that share the ceil(out_y / OUT_ROWS) * ceil(batch / PACK) tiles.
//   Dynamic shared memory: RAW + STAGES * RAW_BYTES. `ones` is -1.
//   A value that is not finite spoils its row's other outputs in the same segment, too. pad_x < TAPS_X. Fewer than 2^31 elements of x.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    depthwise_mma(const IN_T* __restrict__ x, const unsigned* __restrict__ w, OUT_T* __restrict__ out, int batch, int in_y, int in_x, int out_y,
                  int out_x, int pad_y, int pad_x, int segments, int ones, EpilogueArgs args) {
    extern __shared__ __align__(1024) char memory[];
    constexpr int channels = CHANNELS, blocks_c = (CHANNELS + BLOCK_C - 1) / BLOCK_C, x_row = X_ROW(CHANNELS), out_row = OUT_ROW(CHANNELS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int rest = blockIdx.x / blocks_c, c0 = (blockIdx.x - rest * blocks_c) * BLOCK_C;
    const int first = rest / segments, segment = rest - first * segments, blocks = gridDim.x / (blocks_c * segments);
    const int tiles_y = (out_y + OUT_ROWS - 1) / OUT_ROWS, tiles = (batch + PACK - 1) / PACK * tiles_y;
    const int x0 = segment == 0 ? 0 : min(16, STEP_X + pad_x) + (segment - 1) * STEP_X, from_x = max(0, x0 - pad_x);
    const int columns = PACK > 1 ? out_x : segment == segments - 1 ? out_x - x0 : segment == 0 ? min(16, STEP_X + pad_x) : STEP_X;

    // The band of each channel and row of the window. A lane holds outputs lane / 4 and 8 more, inputs lane % 4 * 2 and the next, and 8 more.
    // Outputs and inputs that are both 8 more have the same taps, in a register of their own, as mma wants: `ones` keeps the compiler from copying.
    const int c = c0 + EACH * warp;
    unsigned band[TAPS_Y][EACH][4];
    {
        const int d = lane % 4 * 2 - lane / 4 + from_x - x0 + pad_x + 1;
        const unsigned* words = w + c / 4 * BAND + c % 4;
#pragma unroll
        for (int part = 0; part < 3; ++part) {
            const int at = d + (part == 1 ? -8 : part == 2 ? 8 : 0);
            const unsigned mask = static_cast<unsigned>(at) <= TAPS_X ? 0xffffffffu : 0u;
#pragma unroll
            for (int ky = 0; ky < TAPS_Y; ++ky) {
                const auto some = *reinterpret_cast<const Pack<unsigned, EACH>*>(words + (min(max(at, 0), TAPS_X) * TAPS_Y + ky) * 4);
#pragma unroll
                for (int e = 0; e < EACH; ++e) {
                    band[ky][e][part] = some.value[e] & mask;
                    if (part == 0) band[ky][e][3] = some.value[e] & mask & ones;
                }
            }
        }
    }
    pdl_prefetch_constants(args, channels);
    pdl_start();

    // --- inputs, as they lie in memory: a lane has one column of eight channels. Even columns first, so that pairs are read without conflicts.
    const int step_y = blocks % tiles_y * OUT_ROWS, step_image = blocks / tiles_y * PACK;
    int next_image = first / tiles_y * PACK, next_y = first % tiles_y * OUT_ROWS;
    auto load = [&](int stage) {
        constexpr int LANES = 16 * CHUNKS, STEP = THREADS / LANES;
        const int chunk = threadIdx.x % CHUNKS, slot = threadIdx.x / CHUNKS % 16, row0 = threadIdx.x / LANES;
        const int which = slot / PITCH, ix = from_x + slot - which * PITCH, line = in_x * x_row;
        const int images = c0 + chunk * 8 < channels && ix < in_x && which < PACK ? batch - next_image - which : 0;
        const unsigned target = shared_address(memory) + RAW + ((slot % 2 ? 8 + (slot / 2 ^ 4 / CHUNKS) : slot / 2) * CHUNKS + chunk) * 16 + stage * RAW_BYTES + row0 * RAW_LINE;
        const int y0 = next_y - pad_y + row0;
        const IN_T* source = x + (((next_image + which) * in_y + y0) * in_x + ix) * x_row + c0 + chunk * 8;
#pragma unroll
        for (int row = 0; row < IN_ROWS; row += STEP) {
            if (row + STEP <= IN_ROWS || row0 + row < IN_ROWS)
                copy_async<16>(target + row * RAW_LINE, source, images > 0 && static_cast<unsigned>(y0 + row) < in_y);
            source += STEP * line;
        }
        next_image += step_image, next_y += step_y;
        if (next_y >= tiles_y * OUT_ROWS) next_image += PACK, next_y -= tiles_y * OUT_ROWS;
    };
    // --- transposed: a lane has two neighbouring columns of eight channels; pairs of a channel go to its plane
    auto transpose = [&](int stage) {
        constexpr int LANES = 8 * CHUNKS, STEP = THREADS / LANES;
        const int chunk = threadIdx.x % CHUNKS, pair = threadIdx.x / CHUNKS % 8, row0 = threadIdx.x / LANES;
        const char* even = memory + RAW + stage * RAW_BYTES + (pair * CHUNKS + chunk) * 16 + row0 * RAW_LINE;
        const char* odd = memory + RAW + stage * RAW_BYTES + ((8 + (pair ^ 4 / CHUNKS)) * CHUNKS + chunk) * 16 + row0 * RAW_LINE;
        char* target = memory + chunk * OCTET + pair / 4 * HALF + pair % 4 * 4 + row0 * 16;
#pragma unroll
        for (int row = 0; row < IN_ROWS; row += STEP) {
            if (row + STEP > IN_ROWS && row0 + row >= IN_ROWS) continue;
            const auto left = *reinterpret_cast<const Pack<unsigned, 4>*>(even + row * RAW_LINE);
            const auto right = *reinterpret_cast<const Pack<unsigned, 4>*>(odd + row * RAW_LINE);
#pragma unroll
            for (int e = 0; e < 8; ++e)
                *reinterpret_cast<unsigned*>(target + row * 16 + e * PLANE) = __byte_perm(left.value[e / 2], right.value[e / 2], e % 2 ? 0x7632 : 0x5410);
        }
    };
#pragma unroll 1
    for (int stage = 0; stage < STAGES; ++stage) {
        if (first + stage * blocks < tiles) load(stage);
        copy_async_commit();
    }
    copy_async_wait<STAGES - 1>();
    __syncthreads();
    transpose(0);
    int image0 = first / tiles_y * PACK, y0 = first % tiles_y * OUT_ROWS, stage = 0;
#pragma unroll 1
    for (int tile = first; tile < tiles; tile += blocks) {
        __syncthreads();  // planes are complete, results of the tile before have left
        if (tile + STAGES * blocks < tiles) load(stage);
        copy_async_commit();

        // --- products: lane / 4 are columns (and 8 more), lane % 4 * 2 and the next rows of the results
        if (c < channels) {
            const int column = lane / 4, t = lane % 4, channel = EACH * warp;
            const unsigned planes = shared_address(memory) + channel / 8 * OCTET + (channel % 8 + lane / 16) * PLANE + lane / 8 % 2 * HALF + lane % 8 * 16;
            char* mine = memory + RESULTS + channel / 4 * OUT_PLANE + 2 * t * OUT_LINE + column * 8 + channel % 4 * sizeof(OUT_T);
#pragma unroll 1
            for (int group = 0; group < GROUPS; ++group) {
                const int row = group * ROWS;
                float sum[EACH][4] = {};  // (columns lane / 4 and 8 more) x two rows
#pragma unroll
                for (int ky = 0; ky < TAPS_Y; ++ky) {
                    unsigned input[EACH / 2][4];  // of two channels: halves of the depth
#pragma unroll
                    for (int e = 0; e < EACH / 2; ++e) ldmatrix_x4(input[e], planes + 2 * e * PLANE + (row + ky) * 16);
#pragma unroll
                    for (int e = 0; e < EACH; ++e) mma_16x8<IN_T>(sum[e], band[ky][e], input[e / 2][e % 2 * 2], input[e / 2][e % 2 * 2 + 1]);
                }
                Finished done[4][EACH];
#pragma unroll
                for (int i = 0; i < 4; ++i) {  // columns, rows
                    const int slot = column + i / 2 * 8, which = slot / PITCH;
                    const int image = min(image0 + which, batch - 1), y = min(y0 + row + 2 * t + i % 2, out_y - 1), ox = min(x0 + slot - which * PITCH, out_x - 1);
                    float value[EACH];
#pragma unroll
                    for (int e = 0; e < EACH; ++e) value[e] = sum[e][i];
                    finish_sums(value, done[i], args, (image * out_y + y) * out_x + ox, c, channels);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (ROWS == 8 || 2 * t + i % 2 < ROWS)
                        store_finished(reinterpret_cast<OUT_T*>(mine + (row + i % 2) * OUT_LINE + i / 2 * 64), done[i]);
            }
        }
        copy_async_wait<STAGES - 1>();
        __syncthreads();
        stage = stage + 1 < STAGES ? stage + 1 : 0;
        if (tile + blocks < tiles) transpose(stage);

        {  // --- results: a lane has one column of eight channels
            constexpr int LANES = 16 * CHUNKS, STEP = THREADS / LANES;
            using Four = Pack<unsigned, sizeof(OUT_T)>;
            using Eight = Pack<unsigned, 2 * sizeof(OUT_T)>;
            const int chunk = threadIdx.x % CHUNKS, slot = threadIdx.x / CHUNKS % 16, row0 = threadIdx.x / LANES;
            const int which = slot / PITCH, column = slot - which * PITCH, line = out_x * out_row;
            const int images = c0 + chunk * 8 < channels && which < PACK && column < columns ? batch - image0 - which : 0;
            const char* from = memory + RESULTS + 2 * chunk * OUT_PLANE + slot * 8 + row0 * OUT_LINE;
            const int rows = images > 0 ? min(OUT_ROWS, out_y - y0) - row0 : 0;
            OUT_T* target = out + ((((image0 + which) * out_y + y0 + row0) * out_x + x0 + column) * out_row + c0 + chunk * 8);
#pragma unroll
            for (int row = 0; row < OUT_ROWS; row += STEP) {
                if (row < rows) {
                    Eight both;
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const Four four = *reinterpret_cast<const Four*>(from + row * OUT_LINE + e * OUT_PLANE);
#pragma unroll
                        for (int word = 0; word < sizeof(OUT_T); ++word) both.value[e * sizeof(OUT_T) + word] = four.value[word];
                    }
                    *reinterpret_cast<Eight*>(target) = both;
                }
                target += STEP * line;
            }
        }
        image0 += step_image, y0 += step_y;
        if (y0 >= tiles_y * OUT_ROWS) image0 += PACK, y0 -= tiles_y * OUT_ROWS;
    }
}
