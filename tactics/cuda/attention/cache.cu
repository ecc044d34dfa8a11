// Caches with new rows behind them: out [batch, heads, past + steps, size] of past [batch, heads, past, size] and of heads of a tensor whose
// rows of `size` elements lie at strides of batch and position. MOVE_T is a raw vector, `size` and strides count these. Grid: x = ceil(elements
// of the largest output / (THREADS * ITEMS)), y = caches.
#include "division.cuh"
#include "pdl.cuh"
#include "vector.cuh"

struct Cache {
    const MOVE_T* past;
    const MOVE_T* rows;  // of the first head
    MOVE_T* out;
    unsigned count, length, batch_stride, step_stride;
    Divider size, total, heads;
};

struct Caches {
    Cache of[CACHES];
};

extern "C" __global__ void __launch_bounds__(THREADS) append(const __grid_constant__ Caches caches) {
    pdl_start();
    const Cache& cache = caches.of[blockIdx.y];
    const unsigned first = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
    MOVE_T value[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const unsigned place = first + i * THREADS;
        if (place >= cache.count) break;
        unsigned row = place;
        const unsigned column = cache.size.split(row);
        unsigned head = row;
        const unsigned position = cache.total.split(head);
        if (position < cache.length) {
            value[i] = cache.past[(head * cache.length + position) * cache.size.divisor + column];
        } else {
            unsigned batch = head;
            const unsigned number = cache.heads.split(batch);
            value[i] = cache.rows[batch * cache.batch_stride + (position - cache.length) * cache.step_stride + number * cache.size.divisor + column];
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
        if (first + i * THREADS < cache.count) cache.out[first + i * THREADS] = value[i];
}
