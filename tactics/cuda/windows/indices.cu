// Flat index (in the whole input [rows, *size]) of the first maximum of each window; NaN counts as the largest.
// `step` says how far apart neighbours of an axis are numbered. One thread per window. Grid: ceil(count / THREADS).
#include "functions.cuh"
#include "pdl.cuh"
#include "window.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    pooling_indices(const IN_T* __restrict__ x, fx::i64* __restrict__ out, unsigned count, int taps, int plane, const Axes axes) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned row = index;
    int start[RANK];
#pragma unroll
    for (int r = RANK - 1; r >= 0; --r)
        start[r] = static_cast<int>(axes.axis[r].out.split(row)) * axes.axis[r].stride - axes.axis[r].padding;
    const IN_T* source = x + static_cast<long long>(row) * plane;
    WORK best = WORK(0);
    int chosen = -1;
    for (int tap = 0; tap < taps; ++tap) {
        int rest = tap, offset = 0, number = 0, step = 1;
        bool inside = true;
#pragma unroll
        for (int r = RANK - 1; r >= 0; --r) {
            const Axis& axis = axes.axis[r];
            const int at = start[r] + rest % axis.window * axis.dilation;
            rest /= axis.window;
            inside = inside && at >= 0 && at < axis.size;
            offset += at * step;
            number += at * axis.step;
            step *= axis.size;
        }
        if (!inside) continue;
        const WORK value = fx::widen(source[offset]);
        if (chosen < 0 || value > best || (fx::is_nan(value) && !fx::is_nan(best))) {
            best = value;
            chosen = number;
        }
    }
    out[index] = static_cast<fx::i64>(row) * plane + (chosen < 0 ? 0 : chosen);
}
