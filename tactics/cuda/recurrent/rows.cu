// A whole recurrence in one block per row of the batch and direction: any cell, size and type. A warp takes a gate's dot product with
// the state, which stays in shared memory (HIDDEN values, twice); the weights are read again at every step.
// `gates` is [D, B, GATES * HIDDEN] scratch memory, `cells` [D, B, HIDDEN]. Grid: (batch, directions).
#include "pdl.cuh"
#include "recurrent.cuh"

extern __shared__ __align__(16) WORK state[];

__device__ __forceinline__ void products(const IN_T* weights, const WORK* with, WORK* result, int begin, int end) {
    for (int row = begin + static_cast<int>(threadIdx.x) / 32; row < end; row += THREADS / 32) {
        WORK total = WORK(0);
        for (int k = threadIdx.x % 32; k < HIDDEN; k += 32) total += fx::widen(weights[static_cast<long long>(row) * HIDDEN + k]) * with[k];
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_xor_sync(0xffffffffu, total, lanes);
        if (threadIdx.x % 32 == 0) result[row] = total;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    recurrence_rows(const Tensors tensors, const Strides strides, WORK* gates, WORK* cells, int time, int batch) {
    pdl_start();
    const int row = blockIdx.x, direction = blockIdx.y, length = length_of(tensors, row, time);
    const IN_T* weights = tensors.weights + static_cast<long long>(direction) * GATES * HIDDEN * HIDDEN;
    const IN_T* x = tensors.x + row * strides.x_batch + direction * GATES * HIDDEN;
    IN_T* y = tensors.y + row * strides.y_batch + direction * strides.y_direction;
    const long long in_state = row * strides.state_batch + direction * strides.state_direction;
    gates += (static_cast<long long>(direction) * batch + row) * GATES * HIDDEN;
    cells += (static_cast<long long>(direction) * batch + row) * HIDDEN;
    WORK* h = state;
    WORK* gated = state + HIDDEN;  // reset gate times h, where that comes before the product
    for (int unit = threadIdx.x; unit < HIDDEN; unit += THREADS) {
        h[unit] = HAS_H ? fx::widen(tensors.h0[in_state + unit]) : WORK(0);
        cells[unit] = HAS_C ? fx::widen(tensors.c0[in_state + unit]) : WORK(0);
    }
    for (int step = 0; step < time; ++step) {
        if (step >= length) {
            for (int unit = threadIdx.x; unit < HIDDEN; unit += THREADS) y[step * strides.y_time + unit] = fx::narrow<IN_T>(WORK(0));
            continue;
        }
        const int place = place_of(step, length, direction);
        const IN_T* now = x + place * strides.x_time;
        __syncthreads();
        products(weights, h, gates, 0, CELL == 1 && !RESET_AFTER ? 2 * HIDDEN : GATES * HIDDEN);
        __syncthreads();
#if CELL == 1 && !RESET_AFTER
        for (int unit = threadIdx.x; unit < HIDDEN; unit += THREADS)
            gated[unit] = h[unit] * activation0(fx::widen(now[HIDDEN + unit]) + gates[HIDDEN + unit], direction);
        __syncthreads();
        products(weights, gated, gates, 2 * HIDDEN, 3 * HIDDEN);
        __syncthreads();
#endif
        for (int unit = threadIdx.x; unit < HIDDEN; unit += THREADS) {
            WORK from_input[GATES], from_state[GATES];
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate) {
                from_input[gate] = fx::widen(now[gate * HIDDEN + unit]);
                from_state[gate] = gates[gate * HIDDEN + unit];
            }
            const State after = cell(from_input, from_state, h[unit], cells[unit], tensors, direction, unit);
            const IN_T rounded = fx::narrow<IN_T>(after.h);
            y[place * strides.y_time + unit] = rounded;
            h[unit] = fx::widen(rounded);
            cells[unit] = after.c;
        }
    }
    for (int unit = threadIdx.x; unit < HIDDEN; unit += THREADS) {  // each thread reads what it wrote itself
        tensors.last_h[in_state + unit] = fx::narrow<IN_T>(h[unit]);
        if (CELL == 2) tensors.last_c[in_state + unit] = fx::narrow<IN_T>(cells[unit]);
    }
}
