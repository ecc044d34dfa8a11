// Reads at computed positions of [N, C, *size] planes. MODE 0: nearest, 1: linear, 2: cubic. PADDING 0: zeros, 1: border,
// 2: reflection. RANK spatial axes, outermost first. POS is the type of coordinates and weights, WORK that of the sums.
// A thread finds its neighbours once and reads them in `chunk` channels.
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

#define TAPS (MODE == 0 ? 1 : MODE == 1 ? 2 : 4)
#define TOTAL (RANK == 1 ? TAPS : RANK == 2 ? TAPS * TAPS : TAPS * TAPS * TAPS)

struct Taps {
    int offset[TAPS];  // in elements of the plane; -1 reads zero
    POS weight[TAPS];
};

__device__ __forceinline__ POS bounded(POS place, int size) {
    // Farther away nothing changes. NaN goes to the lower bound.
    place = place > POS(-4) ? place : POS(-4);
    return place < POS(size + 3) ? place : POS(size + 3);
}

__device__ __forceinline__ POS mirrored(POS place, POS low, POS high) {
    const POS span = high - low;
    if (!(span > POS(0))) return low;
    if (place >= low && place <= high) return place;
    const bool below = place < low;
    const POS beyond = below ? low - place : place - high;
    const POS turns = fx::floor(beyond / span), rest = beyond - turns * span;
    const bool even = fx::remainder_of(turns, POS(2)) == POS(0);
    return even == below ? low + rest : high - rest;
}

__device__ __forceinline__ int padded(int index, int size, POS low, POS high) {
#if PADDING == 0
    return index >= 0 && index < size ? index : -1;
#else
#if PADDING == 2
    index = static_cast<int>(mirrored(static_cast<POS>(index), low, high));
#endif
    return index < 0 ? 0 : index >= size ? size - 1 : index;
#endif
}

// The neighbours of `place` (already rounded or padded) along an axis of `size` elements that lie `step` apart.
__device__ __forceinline__ void neighbours(Taps& taps, POS place, int size, int step, POS low, POS high) {
    const POS first = fx::floor(place), part = place - first;
    const int start = static_cast<int>(first) - (TAPS / 2 - 1) * (MODE != 0);
#if MODE == 0
    taps.weight[0] = POS(1);
#elif MODE == 1
    taps.weight[0] = POS(1) - part;
    taps.weight[1] = part;
#else
    const POS a = POS(-0.75), far = part + POS(1), rest = POS(1) - part, other = POS(2) - part;
    taps.weight[0] = ((a * far - POS(5) * a) * far + POS(8) * a) * far - POS(4) * a;
    taps.weight[1] = ((a + POS(2)) * part - (a + POS(3))) * part * part + POS(1);
    taps.weight[2] = ((a + POS(2)) * rest - (a + POS(3))) * rest * rest + POS(1);
    taps.weight[3] = ((a * other - POS(5) * a) * other + POS(8) * a) * other - POS(4) * a;
#endif
#pragma unroll
    for (int i = 0; i < TAPS; ++i) {
        const int index = padded(start + i, size, low, high);
        taps.offset[i] = index < 0 ? -1 : index * step;
    }
}

__device__ __forceinline__ IN_T interpolated(const IN_T* plane, const Taps (&taps)[RANK], POS scale) {
#if MODE == 0
    int offset = 0;
    bool inside = true;
#pragma unroll
    for (int r = 0; r < RANK; ++r) {
        inside = inside && taps[r].offset[0] >= 0;
        offset += taps[r].offset[0];
    }
    return inside ? plane[offset] : fx::narrow<IN_T>(WORK(0));
#else
    WORK total = WORK(0);
#pragma unroll
    for (int t = 0; t < TOTAL; ++t) {
        int rest = t, offset = 0;
        bool inside = true;
        POS weight = POS(1);
#pragma unroll
        for (int r = RANK - 1; r >= 0; --r) {
            const int one = rest % TAPS;
            rest /= TAPS;
            inside = inside && taps[r].offset[one] >= 0;
            offset += taps[r].offset[one];
            weight *= taps[r].weight[one];
        }
        if (inside) total += fx::widen(plane[offset]) * static_cast<WORK>(weight);
    }
    return fx::narrow<IN_T>(total * static_cast<WORK>(scale));
#endif
}

#if KIND == 0
// GridSample: grid is [N, places, RANK], its last axis innermost first. Grid: (ceil(count / THREADS), ceil(channels / chunk)).
struct Sizes {
    int size[RANK];
};
extern "C" __global__ void __launch_bounds__(THREADS)
    grid_sample(const IN_T* __restrict__ x, const GRID_T* __restrict__ grid, IN_T* __restrict__ out, unsigned count, int channels, int chunk,
                int plane, const Divider places, const Sizes sizes) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned image = index;
    const unsigned place = places.split(image);
    Taps taps[RANK];
    int step = 1;
#pragma unroll
    for (int r = RANK - 1; r >= 0; --r) {
        const int size = sizes.size[r];
        const POS given = fx::widen(grid[static_cast<long long>(index) * RANK + (RANK - 1 - r)]);
#if ALIGN
        const POS low = POS(0), high = POS(size - 1);
        POS at = (given + POS(1)) / POS(2) * POS(size - 1);
#else
        const POS low = POS(-0.5), high = POS(size) - POS(0.5);
        POS at = ((given + POS(1)) * POS(size) - POS(1)) / POS(2);
#endif
#if MODE == 0
        at = fx::round(at);
#endif
#if PADDING == 1 && MODE != 2  // cubic: each neighbour is clamped, as PyTorch and ONNX Runtime do
        if (at < low || at > high) at = at < POS(0) ? POS(0) : at > POS(size - 1) ? POS(size - 1) : at;
#elif PADDING == 2
        at = mirrored(at, low, high);
#endif
        neighbours(taps[r], bounded(at, size), size, step, low, high);
        step *= size;
    }
    const int first = blockIdx.y * chunk, last = first + chunk < channels ? first + chunk : channels;
    for (int c = first; c < last; ++c) {
        const long long row = static_cast<long long>(image) * channels + c;
        out[row * places.divisor + place] = interpolated(x + row * plane, taps, POS(1));
    }
}
#else
// Columns of a deformable convolution: offset [N, groups, taps, RANK, places], mask [N, groups, taps, places] (MASKED), out
// [N, groups, each, taps, places]. `count` = N * groups * taps * places. Grid: (ceil(count / THREADS), ceil(each / chunk)).
struct Axis {
    int size;
    Divider out, window;
    int stride, padding, dilation;
};
struct Axes {
    Axis axis[RANK];
};
extern "C" __global__ void __launch_bounds__(THREADS)
    deformable_columns(const IN_T* __restrict__ x, const GRID_T* __restrict__ offset, const GRID_T* __restrict__ mask, IN_T* __restrict__ out,
                       unsigned count, int each, int chunk, int plane, const Divider places, const Divider taps_count, const Axes axes) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned row = index;
    const unsigned place = places.split(row);  // row: (image, group, tap)
    unsigned group = row;
    const unsigned tap = taps_count.split(group);  // group: (image, group)
    Taps taps[RANK];
    unsigned rest_place = place, rest_tap = tap;
    int step = 1;
#pragma unroll
    for (int r = RANK - 1; r >= 0; --r) {
        const Axis axis = axes.axis[r];
        const int at = static_cast<int>(axis.out.split(rest_place)), k = static_cast<int>(axis.window.split(rest_tap));
        const POS shift = fx::widen(offset[(static_cast<long long>(row) * RANK + r) * places.divisor + place]);
        const POS position = static_cast<POS>(at * axis.stride - axis.padding + k * axis.dilation) + shift;
        neighbours(taps[r], bounded(position, axis.size), axis.size, step, POS(0), POS(axis.size - 1));
        step *= axis.size;
    }
#if MASKED
    const POS scale = fx::widen(mask[index]);
#else
    const POS scale = POS(1);
#endif
    const int first = blockIdx.y * chunk, last = first + chunk < each ? first + chunk : each;
    for (int c = first; c < last; ++c) {
        const long long channel = static_cast<long long>(group) * each + c;
        out[(channel * taps_count.divisor + tap) * places.divisor + place] = interpolated(x + channel * plane, taps, scale);
    }
}
#endif
