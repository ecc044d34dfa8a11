// Interpolation of any axes. Tables say what every coordinate of a resized axis reads: `taps` positions and weights per
// coordinate, made on the host for fixed sizes, by resize_taps otherwise. A negative first position marks a coordinate
// outside of the input (CROP), which takes the extrapolation value.
//
// The output is RANK merged axes, innermost first; RESIZED of them are resized, `number` in the order of the axes.
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"
#include "pitch.cuh"

#if KIND == 2
// --- tables of axes whose sizes vary. Grid: x = ceil(longest axis / THREADS), y = axes.
// Computed in double, operation by operation as fusion/ops/interpolation.py does, so that nearest picks the same element.
struct Tables {
    int* index[AXES];
    WORK* weight[AXES];
    double scale[AXES], base[AXES], first[AXES], second[AXES], over[AXES];
    int size[AXES], out[AXES], fixed[AXES], identity[AXES];  // fixed: all coordinates are `base`
};

__device__ __forceinline__ double source(const Tables& t, int a, double y) {
    if (t.fixed[a]) return t.base[a];
#if COORDINATES == 0
    return t.base[a] + (y + 0.5) / t.scale[a] - 0.5;
#elif COORDINATES == 1
    return t.base[a] + y * t.first[a] * t.second[a] / t.over[a];
#elif COORDINATES == 2
    return y / t.scale[a];
#else
    return (y + 0.5) / t.scale[a];
#endif
}

__device__ __forceinline__ double kernel_value(double t, double a) {
#if MODE == 1
    return t < 1.0 ? 1.0 - t : 0.0;
#else
    if (t <= 1.0) return ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
    return t < 2.0 ? ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a : 0.0;
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS) resize_taps(const Tables t, double cubic_a) {
    pdl_start();
    const int y = blockIdx.x * THREADS + threadIdx.x, a = blockIdx.y, last = t.size[a] - 1;
    if (y >= t.out[a]) return;
    if (t.identity[a]) {
        t.index[a][y] = y;
        if (MODE) t.weight[a][y] = WORK(1);
        return;
    }
    const double x = source(t, a, y);
    const int outside = CROP && (x < 0.0 || x > last) ? -1 : 0;
#if MODE == 0
#if ROUNDING == 0
    const double rounded = ::ceil(x - 0.5);
#elif ROUNDING == 1
    const double rounded = ::floor(x + 0.5);
#elif ROUNDING == 2
    const double rounded = ::floor(x);
#else
    const double rounded = ::ceil(x);
#endif
    t.index[a][y] = outside ? -1 : static_cast<int>(rounded < 0.0 ? 0.0 : rounded > last ? static_cast<double>(last) : rounded);
#else
    constexpr int TAPS = MODE == 1 ? 2 : 4, FIRST = MODE == 1 ? 0 : -1;
    const double base = ::ceil(x) - 1.0;
    double weight[TAPS], total = 0.0;
#pragma unroll
    for (int k = 0; k < TAPS; ++k) {
        const double position = base + (FIRST + k);
        weight[k] = kernel_value(::fabs(FIRST + k - (x - base)), cubic_a);
        if (EXCLUDE_OUTSIDE && (position < 0.0 || position > last)) weight[k] = 0.0;
        total += weight[k];
        t.index[a][y * TAPS + k] = outside ? -1 : static_cast<int>(position < 0.0 ? 0.0 : position > last ? static_cast<double>(last) : position);
    }
    if (total == 0.0) total = 1.0;
#pragma unroll
    for (int k = 0; k < TAPS; ++k) t.weight[a][y * TAPS + k] = static_cast<WORK>(EXCLUDE_OUTSIDE ? weight[k] / total : weight[k]);
#endif
}
#else
struct Layout {
    Divider size[RANK];       // the output's; size[0] counts accesses of VEC
    unsigned step[RANK];      // the input's, in elements (MOVE_T for nearest with the last axis kept)
    const int* index[RESIZED];
    const WORK* weight[RESIZED];
    int taps[RESIZED];
};
constexpr int NUMBER[RANK] = {NUMBERS};      // per merged axis: which resized axis it is, or -1
constexpr int TAPS[RESIZED] = {TAPS_OF};     // 0: it varies, see Layout::taps
constexpr bool INNER_KEPT = NUMBER[0] < 0;

// Splits access `index` into the offset of the kept axes and the coordinates of the resized ones.
__device__ __forceinline__ unsigned place(const Layout& layout, unsigned index, unsigned (&at)[RESIZED], unsigned (&step)[RESIZED]) {
    unsigned offset = 0;
#pragma unroll
    for (int r = 0; r < RANK; ++r) {
        const unsigned c = r == RANK - 1 ? index : layout.size[r].split(index);
        if (NUMBER[r] < 0) {
            offset += c * layout.step[r];
        } else {
            at[NUMBER[r]] = c;
            step[NUMBER[r]] = layout.step[r];
        }
    }
    return offset;
}

#if KIND == 0
// Nearest: out[c] = in[table(c)], MOVE_T raw. With the last axis kept MOVE_T is a vector of neighbours and VEC is 1; with it resized a
// thread stores VEC neighbouring elements that it reads one by one, or, if the axis repeats each element REPEAT times (2 or more, a divisor of
// VEC), as one vector. Grid: ceil(count / (THREADS * ITEMS)).
extern "C" __global__ void __launch_bounds__(THREADS)
    resize_nearest(const MOVE_T* __restrict__ in, MOVE_T* __restrict__ out, unsigned count, unsigned long long extrapolation, const Layout layout) {
    pdl_start();
    const unsigned first = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
    fx::Vec<MOVE_T, VEC> value[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (first + i * THREADS >= count) break;
        unsigned at[RESIZED], step[RESIZED];
        unsigned offset = place(layout, first + i * THREADS, at, step);
        bool outside = false;
        constexpr int LAST = INNER_KEPT ? RESIZED : RESIZED - 1;  // the resized last axis has the highest number
#pragma unroll
        for (int a = 0; a < LAST; ++a) {
            const int c = layout.index[a][at[a]];
            outside |= c < 0;
            offset += static_cast<unsigned>(c) * step[a];
        }
#if REPEAT > 1
        const auto source = *reinterpret_cast<const fx::Vec<MOVE_T, VEC / REPEAT>*>(in + offset + at[RESIZED - 1] * (VEC / REPEAT));
#pragma unroll
        for (int v = 0; v < VEC; ++v) value[i].value[v] = source.value[v / REPEAT];
#else
        fx::Vec<int, VEC> table{};
        if (!INNER_KEPT) table = *reinterpret_cast<const fx::Vec<int, VEC>*>(layout.index[RESIZED - 1] + at[RESIZED - 1] * VEC);
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
            const int c = table.value[v];
#if CROP
            if (outside || c < 0) value[i].value[v] = static_cast<MOVE_T>(extrapolation);
            else
#endif
            value[i].value[v] = in[offset + static_cast<unsigned>(c)];
        }
#endif
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
        if (first + i * THREADS < count) reinterpret_cast<fx::Vec<MOVE_T, VEC>*>(out)[out_place(first + i * THREADS)] = value[i];
}
#else
// Linear and cubic: the sum over the taps of all resized axes, the first axis innermost and every product and sum rounded by
// itself, as NumPy does it axis by axis. Grid: ceil(count / THREADS).
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float sum(float a, float b) { return __fadd_rn(a, b); }
#ifdef __CUDA_ARCH__
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double sum(double a, double b) { return __dadd_rn(a, b); }
#else
__device__ __forceinline__ double product(double a, double b) { return a * b; }
__device__ __forceinline__ double sum(double a, double b) { return a + b; }
#endif

template <int A, int W>
__device__ __forceinline__ void interpolate(WORK (&result)[W], const IN_T* in, unsigned offset, const unsigned (&at)[RESIZED],
                                            const unsigned (&step)[RESIZED], const Layout& layout) {
    if constexpr (A < 0) {
        const fx::Vec<IN_T, W> raw = *reinterpret_cast<const fx::Vec<IN_T, W>*>(in + offset);
#pragma unroll
        for (int i = 0; i < W; ++i) result[i] = static_cast<WORK>(fx::widen(raw.value[i]));
    } else {
        constexpr int KNOWN = TAPS[A] == 2 || TAPS[A] == 4 ? TAPS[A] : 1;  // what one access reads of the tables
        const int taps = TAPS[A] ? TAPS[A] : layout.taps[A];
#pragma unroll
        for (int first = 0; first < taps; first += KNOWN) {
            const unsigned entry = at[A] * taps + first;
            const auto weights = *reinterpret_cast<const fx::Vec<WORK, KNOWN>*>(layout.weight[A] + entry);
            const auto indices = *reinterpret_cast<const fx::Vec<int, KNOWN>*>(layout.index[A] + entry);
#pragma unroll
            for (int k = 0; k < KNOWN; ++k) {
                WORK part[W];
                interpolate<A - 1, W>(part, in, offset + static_cast<unsigned>(indices.value[k]) * step[A], at, step, layout);
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    const WORK added = product(part[i], weights.value[k]);
                    result[i] = first + k == 0 ? added : sum(result[i], added);
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    resize_taps_sum(const IN_T* __restrict__ in, IN_T* __restrict__ out, unsigned count, WORK extrapolation, const Layout layout) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned at[RESIZED], step[RESIZED];
    unsigned offset = place(layout, index, at, step);
    WORK result[VEC];
    constexpr int W = INNER_KEPT ? VEC : 1;
    const unsigned inner = at[RESIZED - 1];
#pragma unroll
    for (int v = 0; v < VEC; v += W) {
        if (!INNER_KEPT) at[RESIZED - 1] = inner * VEC + v;
#if CROP
        bool outside = false;
#pragma unroll
        for (int a = 0; a < RESIZED; ++a) outside |= layout.index[a][at[a] * (TAPS[a] ? TAPS[a] : layout.taps[a])] < 0;
        if (outside) {
#pragma unroll
            for (int i = 0; i < W; ++i) result[v + i] = extrapolation;
            continue;
        }
#endif
        WORK part[W];
        interpolate<RESIZED - 1, W>(part, in, offset, at, step, layout);
#pragma unroll
        for (int i = 0; i < W; ++i) result[v + i] = part[i];
    }
    fx::store<VEC>(out + out_place(static_cast<long long>(index) * VEC), result);
}
#endif
#endif
