// Caches with new rows behind them: out [batch, heads, total, size] of past [batch, heads, length, size] and of heads of a tensor whose
// rows of `size` elements lie at strides of batch and position. The new rows start at `length`; PLACED=1: at starts[batch], and what neither
// they nor the past fill is 0. MOVE_T is a raw vector, `size` and strides count these. Grid: x = ceil(elements
// of the largest output / (THREADS * ITEMS)), y = caches.
#include "division.cuh"
#include "pdl.cuh"
#include "vector.cuh"

struct Cache {
    const MOVE_T* past;
    const MOVE_T* rows;  // of the first head
    MOVE_T* out;
    unsigned count, length, steps, batch_stride, step_stride;
    Divider size, total, heads;
};

struct Caches {
    Cache of[CACHES];
};

extern "C" __global__ void __launch_bounds__(THREADS) append(const __grid_constant__ Caches caches, const long long* __restrict__ starts) {
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
        unsigned batch = head;
        const unsigned number = cache.heads.split(batch);
        const long long step = static_cast<long long>(position) - (PLACED ? starts[batch] : static_cast<long long>(cache.length));
        if (step >= 0 && step < cache.steps)
            value[i] = cache.rows[batch * cache.batch_stride + static_cast<unsigned>(step) * cache.step_stride + number * cache.size.divisor + column];
        else if (!PLACED || position < cache.length)
            value[i] = cache.past[(head * cache.length + position) * cache.size.divisor + column];
        else
            value[i] = MOVE_T{};
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
        if (first + i * THREADS < cache.count) cache.out[first + i * THREADS] = value[i];
}
