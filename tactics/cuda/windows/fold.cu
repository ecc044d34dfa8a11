// Fold (Col2Im): out[row][place] is the sum of the elements of the columns [row, taps, positions] that cover the place, in the
// order of the taps. One thread per output element, so nothing is added twice and results never change from run to run.
// Grid: ceil(count / THREADS).
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

struct Axis {
    Divider size;
    int window, stride, padding, dilation, positions;
};
struct Axes {
    Axis axis[RANK];
};

extern "C" __global__ void __launch_bounds__(THREADS)
    fold(const IN_T* __restrict__ columns, IN_T* __restrict__ out, unsigned count, int taps, long long positions, const Axes axes) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned row = index;
    int place[RANK];
#pragma unroll
    for (int r = RANK - 1; r >= 0; --r) place[r] = static_cast<int>(axes.axis[r].size.split(row)) + axes.axis[r].padding;
    const IN_T* source = columns + row * (taps * positions);
    WORK total = WORK(0);
    for (int tap = 0; tap < taps; ++tap) {
        int rest = tap;
        long long position = 0, step = 1;
        bool covers = true;
#pragma unroll
        for (int r = RANK - 1; r >= 0; --r) {
            const Axis& axis = axes.axis[r];
            const int k = rest % axis.window, start = place[r] - k * axis.dilation, number = start / axis.stride;
            rest /= axis.window;
            covers = covers && start >= 0 && number * axis.stride == start && number < axis.positions;
            position += number * step;
            step *= axis.positions;
        }
        if (covers) total = fx::add(total, fx::widen(source[tap * positions + position]));
    }
    out[index] = fx::narrow<IN_T>(total);
}
