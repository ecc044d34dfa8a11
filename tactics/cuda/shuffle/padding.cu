// Padding by a constant (MODE 0), reflection (1), the edge (2) or repetition (3). `in` points at what is left of the input
// after negative padding was cut, RANK axes innermost first; pre[r] elements stand before it along axis r. The innermost
// axis may consist of vectors of raw elements, when it is not padded. Grid: ceil(count / THREADS); count < 2^31.
#include "division.cuh"
#include "pdl.cuh"
#include "vector.cuh"

struct Padded {
    Divider out_size[RANK];
    int in_size[RANK];
    int pre[RANK];
    long long in_step[RANK];
};

// The input's coordinate for output coordinate c - pre, or -1 for the constant.
__device__ __forceinline__ int source_of(int c, int size) {
    if (c >= 0 && c < size) return c;
#if MODE == 0
    return -1;
#elif MODE == 1
    if (size == 1) return 0;
    const int period = 2 * (size - 1);
    c = (c % period + period) % period;
    return c < size ? c : period - c;
#elif MODE == 2
    return c < 0 ? 0 : size - 1;
#else
    return (c % size + size) % size;
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS)
    pad(const MOVE_T* __restrict__ in, MOVE_T* __restrict__ out, unsigned count, long long base, unsigned long long value, const Padded axes) {
    pdl_start();
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= count) return;
    unsigned rest = index;
    long long offset = base;
    bool inside = true;
#pragma unroll
    for (int r = 0; r < RANK; ++r) {
        const int c = r == RANK - 1 ? rest : axes.out_size[r].split(rest);
        const int source = source_of(c - axes.pre[r], axes.in_size[r]);
        inside = inside && source >= 0;
        offset += source * axes.in_step[r];
    }
    MOVE_T result;
    if (inside) {
        result = in[offset];
    } else {
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(MOVE_T) / sizeof(ELEMENT)); ++i)
            reinterpret_cast<ELEMENT*>(&result)[i] = static_cast<ELEMENT>(value);
    }
    out[index] = result;
}
