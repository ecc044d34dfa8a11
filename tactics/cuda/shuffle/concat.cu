// Concatenation of up to PARTS inputs, seen as [outer, length_p] side by side in [outer, total]. MOVE_T is a raw element or vector.
// Grid: x = ceil(longest part's outer * length / (THREADS * ITEMS)), y = parts.
#include "division.cuh"
#include "pdl.cuh"
#include "vector.cuh"

struct Parts {
    const MOVE_T* source[PARTS];
#ifdef X_PITCHES
    unsigned pitch[PARTS];  // elements between rows of a part
#endif
    Divider length[PARTS];
    unsigned start[PARTS];  // in the output's rows
};

extern "C" __global__ void __launch_bounds__(THREADS)
    concatenate(MOVE_T* __restrict__ out, unsigned outer, long long total, const __grid_constant__ Parts parts) {
    pdl_start();
    const int part = blockIdx.y;
    const Divider length = parts.length[part];
    const unsigned count = outer * length.divisor;
    const MOVE_T* source = parts.source[part];
    MOVE_T* target = out + parts.start[part];
    MOVE_T value[ITEMS];
    const unsigned first = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
        if (first + i * THREADS < count) {
#ifdef X_PITCHES
            unsigned row = first + i * THREADS;
            const unsigned column = length.split(row);
            value[i] = source[row * parts.pitch[part] + column];
#else
            value[i] = source[first + i * THREADS];
#endif
        }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        unsigned row = first + i * THREADS;
        if (row >= count) break;
        const unsigned column = length.split(row);
        target[row * total + column] = value[i];
    }
}
