// Linear attention: a state [key_size, value_size] per batch and head, carried over the steps. A thread owns one column of the state
// (one element of the value), so steps need no synchronisation: neighbours read neighbouring columns, keys are broadcast.
// Grid: (batch * heads, ceil(value_size / THREADS)). `scratch` holds the states in WORK.
#include "functions.cuh"
#include "pdl.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_attention(const IN_T* __restrict__ query, const IN_T* __restrict__ key, const IN_T* __restrict__ value,
                     const STATE_T* __restrict__ past, const IN_T* __restrict__ decay, const IN_T* __restrict__ beta, IN_T* __restrict__ out,
                     STATE_T* __restrict__ present, WORK* __restrict__ scratch, int steps, int heads, int group, int key_size, int value_size,
                     int decay_size, int beta_heads, WORK scale) {
    pdl_start();
    const int j = blockIdx.y * THREADS + threadIdx.x;
    if (j >= value_size) return;
    const int head = blockIdx.x % heads, batch = blockIdx.x / heads;
    const long long base = static_cast<long long>(blockIdx.x) * key_size * value_size + j;
    WORK* state = scratch + base;
    for (int i = 0; i < key_size; ++i) {
        const long long at = static_cast<long long>(i) * value_size;
#if HAS_PAST
        state[at] = fx::widen(past[base + at]);
#else
        state[at] = WORK(0);
#endif
    }
    for (int step = 0; step < steps; ++step) {
        const long long row = (static_cast<long long>(batch) * steps + step) * heads + head;
        const IN_T* k = key + row * key_size;
        WORK added = fx::widen(value[row * value_size + j]);
#if GATED || DELTA
        WORK found = WORK(0);
        for (int i = 0; i < key_size; ++i) {
            WORK& one = state[static_cast<long long>(i) * value_size];
#if GATED
            one *= fx::exp(fx::widen(decay[row * decay_size + (decay_size > 1 ? i : 0)]));
#endif
#if DELTA
            found += one * fx::widen(k[i]);
#endif
        }
#endif
#if DELTA
        const long long rate = (static_cast<long long>(batch) * steps + step) * beta_heads + (beta_heads > 1 ? head : 0);
        added = fx::widen(beta[rate]) * (added - found);
#endif
        for (int i = 0; i < key_size; ++i) state[static_cast<long long>(i) * value_size] += fx::widen(k[i]) * added;
        for (int g = 0; g < group; ++g) {
            const long long q_row = row * group + g;
            const IN_T* q = query + q_row * key_size;
            WORK total = WORK(0);
            for (int i = 0; i < key_size; ++i) total += fx::widen(q[i]) * state[static_cast<long long>(i) * value_size];
            out[q_row * value_size + j] = fx::narrow<IN_T>(scale * total);
        }
    }
    for (int i = 0; i < key_size; ++i) {
        const long long at = static_cast<long long>(i) * value_size;
        present[base + at] = fx::narrow<STATE_T>(state[at]);
    }
}
