// Depthwise convolution, channels last: memory-bound, so a thread reads every input once, as vectors, some rows ahead of its use.
#include "pdl.cuh"
#include "sums.cuh"

constexpr int SPAN_X = (TILE_X - 1) * STRIDE_X + (TAPS_X - 1) * DILATION_X + 1;  // input columns that a thread touches
constexpr int SPAN_Y = (TILE_Y - 1) * STRIDE_Y + (TAPS_Y - 1) * DILATION_Y + 1;
constexpr unsigned EVERY_COLUMN = 0xffffffffu >> (32 - SPAN_X);
constexpr int ROWS = AHEAD < SPAN_Y ? AHEAD : SPAN_Y;  // input rows in flight

// VECTOR channels of one input pixel as they lie in memory: one load.
struct alignas(VECTOR * sizeof(IN_T) < 4 ? 4 : VECTOR * sizeof(IN_T)) Vector {
    static constexpr int PAIRS = VECTOR * sizeof(IN_T) / 4;
    unsigned word[PAIRS > 0 ? PAIRS : 1];
};

// Two narrow values of a word as floats, without extracting the halves first.
__device__ __forceinline__ float2 unpack_pair(unsigned bits, __half) {
    __half2 pair;
    memcpy(&pair, &bits, 4);
    return __half22float2(pair);
}
__device__ __forceinline__ float2 unpack_pair(unsigned bits, __nv_bfloat16) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// Byte `e` of a word as a float, by way of the number 2^23 + byte: cheaper than a conversion. Signed bytes are shifted by 128.
template <typename T>
__device__ __forceinline__ float unpack_byte(unsigned bits, int e) {
    if constexpr (fx::Same<T, fx::u8>::value) return __uint_as_float(0x4b000000u | (bits >> 8 * e & 0xffu)) - 8388608.0f;
    else if constexpr (fx::Same<T, fx::i8>::value) return __uint_as_float(0x4b000000u | ((bits >> 8 * e & 0xffu) ^ 0x80u)) - 8388736.0f;
    else return fx::widen(T{static_cast<unsigned char>(bits >> 8 * e)});
}

template <typename T>
__device__ __forceinline__ void unpack(float (&value)[VECTOR], const Vector& vector) {
    if constexpr (sizeof(T) == 1) {
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) value[e] = unpack_byte<T>(vector.word[e / 4], e % 4);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) value[e] = __uint_as_float(vector.word[e]);
    } else {
#pragma unroll
        for (int e = 0; e < VECTOR; e += 2) {
            const float2 pair = unpack_pair(vector.word[e / 2], T());
            value[e] = pair.x;
            if (e + 1 < VECTOR) value[e + 1] = pair.y;
        }
    }
}

// Each thread computes TILE_Y x TILE_X output pixels of VECTOR channels: it walks the input rows of its tile once, each row
// converted to fp32 once and added to all outputs that it reaches; a row of outputs leaves as soon as its last input has come.
//   x: [batch][in_y][in_x][channels], w: fp32 [TAPS_Y][TAPS_X][channels], out: [batch][out_y][out_x][channels],
//   channels = CHANNELS, a multiple of VECTOR, VECTOR * sizeof(IN_T) is 1, 2, 4, 8 or 16. Neighbouring threads hold neighbouring channels.
//   Grid: ceil(threads / BLOCK), block BLOCK, with threads = batch * ceil(out_y / TILE_Y) * ceil(out_x / TILE_X) * channels / VECTOR < 2^31.
//   Window, stride and dilation are compile-time: TAPS_*, STRIDE_*, DILATION_*. 1-D: the y sizes are 1. SPAN_X <= 32.
//   AHEAD input rows are in flight; HOLD=1 keeps all weights in registers, else they are read from L1 row by row.
// MIN_BLOCKS: blocks per multiprocessor that registers must allow. Any GPU; fp32 accumulation, which is exact for 8-bit integers (81 taps); fewer than 2^31 elements of x.
extern "C" __global__ void __launch_bounds__(BLOCK, MIN_BLOCKS)
    depthwise(const IN_T* __restrict__ x, const float* __restrict__ w, OUT_T* __restrict__ out, int batch, int in_y, int in_x, int out_y,
              int out_x, int pad_y, int pad_x, EpilogueArgs args) {
    constexpr int channels = CHANNELS, vectors = CHANNELS / VECTOR, x_row = X_ROW(CHANNELS), out_row = OUT_ROW(CHANNELS);
    const int tiles_x = (out_x + TILE_X - 1) / TILE_X, tiles_y = (out_y + TILE_Y - 1) / TILE_Y;
    const int index = blockIdx.x * BLOCK + threadIdx.x;
    const int rest = index / vectors, c = (index - rest * vectors) * VECTOR;
    const int rest_y = rest / tiles_x, x0 = (rest - rest_y * tiles_x) * TILE_X;
    const int image = rest_y / tiles_y, y0 = (rest_y - image * tiles_y) * TILE_Y;
    if (image >= batch) return;
    w += c;

    float held[HOLD ? TAPS_Y : 1][TAPS_X][VECTOR];
    auto load_weights = [&](int tap, float (&row)[TAPS_X][VECTOR]) {
#pragma unroll
        for (int i = 0; i < TAPS_X; ++i) load_vector(row[i], w + (tap * TAPS_X + i) * channels);
    };
    if (HOLD) {
#pragma unroll
        for (int tap = 0; tap < TAPS_Y; ++tap) load_weights(tap, held[HOLD ? tap : 0]);
    }
    pdl_prefetch_constants(args, channels);
    pdl_start();

    const int first_y = y0 * STRIDE_Y - pad_y, first_x = x0 * STRIDE_X - pad_x;
    unsigned columns = 0;
#pragma unroll
    for (int ix = 0; ix < SPAN_X; ++ix) columns |= (static_cast<unsigned>(first_x + ix) < in_x ? 1u : 0u) << ix;
    const IN_T* source = x + ((image * in_y + first_y) * in_x + first_x) * x_row + c;
    const int line_step = in_x * x_row;
    auto read = [](const IN_T* at) {
        if constexpr (Vector::PAIRS > 0) return *reinterpret_cast<const Vector*>(at);
        else if constexpr (VECTOR * sizeof(IN_T) == 2) return Vector{*reinterpret_cast<const unsigned short*>(at)};
        else return Vector{*reinterpret_cast<const unsigned char*>(at)};
    };
    Vector raw[ROWS][SPAN_X];
    auto load_line = [&](int iy, Vector (&line)[SPAN_X]) {
        const unsigned inside = static_cast<unsigned>(first_y + iy) < in_y ? columns : 0u;
        if (inside == EVERY_COLUMN) {
#pragma unroll
            for (int ix = 0; ix < SPAN_X; ++ix) line[ix] = read(source + ix * x_row);
        } else {
#pragma unroll
            for (int ix = 0; ix < SPAN_X; ++ix) {
                line[ix] = Vector{};
                if (inside & 1u << ix) line[ix] = read(source + ix * x_row);
            }
        }
        source += line_step;
    };
#pragma unroll
    for (int iy = 0; iy < ROWS; ++iy) load_line(iy, raw[iy]);

    float sum[TILE_Y][TILE_X][VECTOR] = {};
#pragma unroll
    for (int iy = 0; iy < SPAN_Y; ++iy) {
        float line[SPAN_X][VECTOR];
#pragma unroll
        for (int ix = 0; ix < SPAN_X; ++ix) {
            unpack<IN_T>(line[ix], raw[iy % ROWS][ix]);
        }
        if (iy + ROWS < SPAN_Y) load_line(iy + ROWS, raw[iy % ROWS]);
#pragma unroll
        for (int ty = 0; ty < TILE_Y; ++ty) {
            const int distance = iy - ty * STRIDE_Y;
            if (distance < 0 || distance % DILATION_Y != 0 || distance / DILATION_Y >= TAPS_Y) continue;
            const int tap = distance / DILATION_Y;
            if (!HOLD) load_weights(tap, held[0]);
#pragma unroll
            for (int i = 0; i < TAPS_X; ++i)
#pragma unroll
                for (int tx = 0; tx < TILE_X; ++tx)
#pragma unroll
                    for (int e = 0; e < VECTOR; ++e)
                        sum[ty][tx][e] += held[HOLD ? tap : 0][i][e] * line[tx * STRIDE_X + i * DILATION_X][e];
            if (tap != TAPS_Y - 1 || y0 + ty >= out_y) continue;
            const int m = (image * out_y + y0 + ty) * out_x + x0;
            OUT_T* to = out + (m * out_row + c);
            Finished done[TILE_X][VECTOR];
#pragma unroll
            for (int tx = 0; tx < TILE_X; ++tx)  // all before the first store, so that a bias is read once
                finish_sums(sum[ty][tx], done[tx], args, m + min(tx, out_x - 1 - x0), c, channels);
#pragma unroll
            for (int tx = 0; tx < TILE_X; ++tx)
                if (x0 + tx < out_x) store_finished(to + tx * out_row, done[tx]);
        }
    }
}
