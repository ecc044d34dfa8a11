// Transpose through shared memory: out[batch][a][b] = in[batch][b][a], so that both sides are read and written along their
// neighbouring elements. MOVE_T is a raw element of 1 to 16 bytes; axis a has step 1 in the input, axis b step 1 in the output.
// With CONVERT elements change on the way (convert.cuh); the tile holds the narrower ones.
// Tile: TILE x TILE elements, 32 x ROWS threads; a thread reads READ and writes WRITE neighbours at a time, which must divide
// size_a and size_b and all steps on their side. Rows of the tile are padded by a word against bank conflicts.
// Grid: x = tiles_a * tiles_b, y * z = batch (each <= 65535).
#include "convert.cuh"
#include "copy.cuh"
#include "pdl.cuh"

extern "C" __global__ void __launch_bounds__(32 * ROWS)
    transpose_tiled(const MOVE_T* __restrict__ in, OUT_T* __restrict__ out, int size_a, int size_b, long long in_step_b, long long out_step_a,
                    unsigned batches, const Axes<RANK> batch_axes) {
    constexpr int PAD = sizeof(HELD_T) < 4 ? 4 / sizeof(HELD_T) : 1;
    __shared__ HELD_T tile[TILE][TILE + PAD];
    const int tiles_b = (size_b + TILE - 1) / TILE;
    const int a0 = blockIdx.x / tiles_b * TILE, b0 = blockIdx.x % tiles_b * TILE;
    const unsigned batch = blockIdx.z * gridDim.y + blockIdx.y;
    if (batch >= batches) return;
    long long source = 0, target = 0;
    batch_axes.locate(batch, source, target);
    pdl_start();
    using Read = fx::Vec<MOVE_T, READ>;
    using Write = fx::Vec<OUT_T, WRITE>;
    const int lane = threadIdx.y * 32 + threadIdx.x;
    // The threads walk the tile in vectors, along a to read and along b to write.
    constexpr int ACROSS_A = TILE / READ, ACROSS_B = TILE / WRITE, THREADS = 32 * ROWS;
    Read value[ACROSS_A * TILE / THREADS];
#pragma unroll
    for (int i = 0; i < ACROSS_A * TILE / THREADS; ++i) {
        const int a = (lane + i * THREADS) % ACROSS_A * READ, b = (lane + i * THREADS) / ACROSS_A;
        if (a0 + a < size_a && b0 + b < size_b) value[i] = *reinterpret_cast<const Read*>(in + source + (b0 + b) * in_step_b + a0 + a);
    }
#pragma unroll
    for (int i = 0; i < ACROSS_A * TILE / THREADS; ++i) {
        const int a = (lane + i * THREADS) % ACROSS_A * READ, b = (lane + i * THREADS) / ACROSS_A;
#pragma unroll
        for (int k = 0; k < READ; ++k) tile[b][a + k] = converted_if<CONVERTS_EARLY, HELD_T>(value[i].value[k]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ACROSS_B * TILE / THREADS; ++i) {
        const int b = (lane + i * THREADS) % ACROSS_B * WRITE, a = (lane + i * THREADS) / ACROSS_B;
        if (a0 + a >= size_a || b0 + b >= size_b) continue;
        Write result;
#pragma unroll
        for (int k = 0; k < WRITE; ++k) result.value[k] = converted_if<!CONVERTS_EARLY, OUT_T>(tile[b + k][a]);
        *reinterpret_cast<Write*>(out + target + (a0 + a) * out_step_a + b0 + b) = result;
    }
}
