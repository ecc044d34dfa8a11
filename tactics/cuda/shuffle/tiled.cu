// Transpose through shared memory: out[batch][a][b] = in[batch][b][a], so that both sides are read and written along their
// neighbouring elements. MOVE_T is a raw element of 1 to 8 bytes; axis a has step 1 in the input, axis b step 1 in the output.
// Tile: TILE x TILE elements, 32 x ROWS threads. The row length of the tile is odd in words, against bank conflicts.
// Grid: x = tiles_a * tiles_b, y * z = batch (each <= 65535).
#include "copy.cuh"
#include "pdl.cuh"

extern "C" __global__ void __launch_bounds__(32 * ROWS)
    transpose_tiled(const MOVE_T* __restrict__ in, MOVE_T* __restrict__ out, int size_a, int size_b, long long in_step_b, long long out_step_a,
                    unsigned batches, const Axes<RANK> batch_axes) {
    constexpr int PAD = sizeof(MOVE_T) < 4 ? 4 / sizeof(MOVE_T) : 1;
    __shared__ MOVE_T tile[TILE][TILE + PAD];
    const int tiles_b = (size_b + TILE - 1) / TILE;
    const int a0 = blockIdx.x / tiles_b * TILE, b0 = blockIdx.x % tiles_b * TILE;
    const unsigned batch = blockIdx.z * gridDim.y + blockIdx.y;
    if (batch >= batches) return;
    long long source = 0, target = 0;
    batch_axes.locate(batch, source, target);
    pdl_wait();
    pdl_launch_next();
#pragma unroll
    for (int j = 0; j < TILE; j += ROWS) {
        const int b = j + threadIdx.y;
#pragma unroll
        for (int i = 0; i < TILE; i += 32) {
            const int a = i + threadIdx.x;
            if (a0 + a < size_a && b0 + b < size_b) tile[b][a] = in[source + (b0 + b) * in_step_b + a0 + a];
        }
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < TILE; j += ROWS) {
        const int a = j + threadIdx.y;
#pragma unroll
        for (int i = 0; i < TILE; i += 32) {
            const int b = i + threadIdx.x;
            if (a0 + a < size_a && b0 + b < size_b) out[target + (a0 + a) * out_step_a + b0 + b] = tile[b][a];
        }
    }
}
