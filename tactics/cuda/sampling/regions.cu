// Pooled regions of interest, one thread per output element [R, C, rows, columns]. KIND 0: RoiAlign, 1: RoiPool.
#include "division.cuh"
#include "functions.cuh"
#include "pdl.cuh"

__device__ __forceinline__ int clamped(long long value, int size) {
    return static_cast<int>(value < 0 ? 0 : value >= size ? size - 1 : value);
}

#if KIND == 0
// Two neighbours of a sample along an axis of `size`, their weights 0 when it lies more than one element outside.
__device__ __forceinline__ void around(POS place, int size, int& low, int& high, POS& left, POS& right) {
    const bool inside = place >= POS(-1) && place <= POS(size);
    place = !inside || place < POS(0) ? POS(0) : place > POS(size - 1) ? POS(size - 1) : place;
    low = static_cast<int>(place);
    high = low + 1 < size ? low + 1 : size - 1;
    const POS part = low >= size - 1 ? POS(0) : place - POS(low);
    left = inside ? POS(1) - part : POS(0);
    right = inside ? part : POS(0);
}

// `samples` along each axis of a cell, or as many as it has elements (0). HALF shifts coordinates by half an element.
extern "C" __global__ void __launch_bounds__(THREADS)
    roi_align(const IN_T* __restrict__ x, const ROI_T* __restrict__ regions, const INDEX_T* __restrict__ images, IN_T* __restrict__ out,
              unsigned count, int batch, int height, int width, int samples, POS scale, const Divider columns, const Divider rows,
              const Divider channels) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned region = index;
    const unsigned column = columns.split(region), row = rows.split(region), channel = channels.split(region);
    const ROI_T* box = regions + static_cast<long long>(region) * 4;
    const POS shift = POS(0.5 * HALF);
    const POS left = fx::widen(box[0]) * scale - shift, top = fx::widen(box[1]) * scale - shift;
    POS wide = fx::widen(box[2]) * scale - shift - left, high = fx::widen(box[3]) * scale - shift - top;
#if !HALF
    wide = wide > POS(1) ? wide : POS(1);
    high = high > POS(1) ? high : POS(1);
#endif
    const POS cell_w = wide / POS(columns.divisor), cell_h = high / POS(rows.divisor);
    const int nx = samples > 0 ? samples : max(0, static_cast<int>(fx::ceil(cell_w)));
    const int ny = samples > 0 ? samples : max(0, static_cast<int>(fx::ceil(cell_h)));
    const long long image = clamped(static_cast<long long>(images[region]), batch);
    const IN_T* plane = x + (image * channels.divisor + channel) * static_cast<long long>(height) * width;
    WORK total = WORK(0);
    bool empty = true;
    for (int iy = 0; iy < ny; ++iy) {
        int y0, y1;
        POS up, down;
        around(top + POS(row) * cell_h + (POS(iy) + POS(0.5)) * cell_h / POS(ny), height, y0, y1, up, down);
        for (int ix = 0; ix < nx; ++ix) {
            int x0, x1;
            POS before, after;
            around(left + POS(column) * cell_w + (POS(ix) + POS(0.5)) * cell_w / POS(nx), width, x0, x1, before, after);
            const WORK a = fx::widen(plane[y0 * width + x0]) * static_cast<WORK>(up * before);
            const WORK b = fx::widen(plane[y0 * width + x1]) * static_cast<WORK>(up * after);
            const WORK c = fx::widen(plane[y1 * width + x0]) * static_cast<WORK>(down * before);
            const WORK d = fx::widen(plane[y1 * width + x1]) * static_cast<WORK>(down * after);
#if MAXIMUM
            const WORK largest = fx::max(fx::max(a, b), fx::max(c, d));
            total = empty ? largest : fx::max(total, largest);
#else
            total += a + b + c + d;
#endif
            empty = false;
        }
    }
#if !MAXIMUM
    if (!empty) total /= static_cast<WORK>(nx * ny);
#endif
    out[index] = fx::narrow<IN_T>(total);
}
#else
__device__ __forceinline__ int rounded(POS value) {
    return static_cast<int>(value < POS(0) ? -fx::floor(-value + POS(0.5)) : fx::floor(value + POS(0.5)));
}

// Borders of cell `number` of `cells` in a region from `first` to `last`, cut to an axis of `size`.
__device__ __forceinline__ void borders(int first, int last, int number, int cells, int size, int& begin, int& end) {
    const int extent = last - first + 1 > 1 ? last - first + 1 : 1;
    const POS cell = POS(extent) / POS(cells);
    begin = static_cast<int>(fx::floor(POS(number) * cell)) + first;
    end = static_cast<int>(fx::ceil(POS(number + 1) * cell)) + first;
    begin = begin < 0 ? 0 : begin > size ? size : begin;
    end = end < 0 ? 0 : end > size ? size : end;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    roi_pool(const IN_T* __restrict__ x, const ROI_T* __restrict__ regions, IN_T* __restrict__ out, unsigned count, int batch, int height,
             int width, POS scale, const Divider columns, const Divider rows, const Divider channels) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned region = index;
    const int column = static_cast<int>(columns.split(region)), row = static_cast<int>(rows.split(region));
    const unsigned channel = channels.split(region);
    const ROI_T* box = regions + static_cast<long long>(region) * 5;
    const long long image = clamped(static_cast<long long>(fx::widen(box[0])), batch);
    int y0, y1, x0, x1;
    borders(rounded(fx::widen(box[2]) * scale), rounded(fx::widen(box[4]) * scale), row, static_cast<int>(rows.divisor), height, y0, y1);
    borders(rounded(fx::widen(box[1]) * scale), rounded(fx::widen(box[3]) * scale), column, static_cast<int>(columns.divisor), width, x0, x1);
    const IN_T* plane = x + (image * channels.divisor + channel) * static_cast<long long>(height) * width;
    WORK largest = WORK(0);
    bool empty = true;
    for (int i = y0; i < y1; ++i)
        for (int j = x0; j < x1; ++j) {
            const WORK value = fx::widen(plane[i * width + j]);
            largest = empty ? value : fx::max(largest, value);
            empty = false;
        }
    out[index] = fx::narrow<IN_T>(largest);
}
#endif
