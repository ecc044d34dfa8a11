// Rows that end with a constant: out[row][c] = in[row][c] for c < WIDTH, else `value`, c < HELD. ELEMENT is a raw element; a thread stores a vector of VEC of
// them, which divides HELD, and reads them one by one: rows of the input begin anywhere. Grid: ceil(count / THREADS) for count vectors, fewer than 2^31.
#include "pdl.cuh"
#include "pitch.cuh"
#include "vector.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    pad_rows(const ELEMENT* __restrict__ in, ELEMENT* __restrict__ out, unsigned count, unsigned long long value) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    constexpr unsigned ACROSS = HELD / VEC;
    const unsigned row = index / ACROSS, first = (index - row * ACROSS) * VEC;
    const ELEMENT* source = in + static_cast<long long>(row) * X_ROW(WIDTH) + first;
    using Vector = fx::Vec<ELEMENT, VEC>;
    Vector result;
#pragma unroll
    for (int i = 0; i < VEC; ++i) result.value[i] = first + i < WIDTH ? source[i] : static_cast<ELEMENT>(value);
    reinterpret_cast<Vector*>(out)[index] = result;
}
