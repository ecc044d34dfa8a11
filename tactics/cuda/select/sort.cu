// Sorts the entries of every line [lines, n], ascending by key, of equal keys the lower index first. COUNTED=1: a line's first counts[line]
// entries only. SLICES=1: keys are those of the slices' first elements, the others (slices.cuh) decide where they are equal.
//
// Tiles are sorted in shared memory, then runs are merged pairwise: an entry's place is its own in its run and the number of entries of the other
// run before it, which it finds by bisection (all entries differ, so places do). Grid: lines * tiles.
#include "entry.cuh"
#include "pdl.cuh"
#if SLICES
#include "slices.cuh"
#define SLICES_PARAMETERS , const IN_T* __restrict__ x, const Slices slices
#define BEFORE(a, b) before(a, b, x, slices)

__device__ __forceinline__ bool before(const Entry& a, const Entry& b, const IN_T* __restrict__ x, const Slices& slices) {
    if (a.key != b.key) return a.key < b.key;
    if (a.index != NO_INDEX && b.index != NO_INDEX) {
        const int order = compare_slices(x, slices, a.index, b.index);
        if (order) return order < 0;
    }
    return a.index < b.index;
}
#else
#define SLICES_PARAMETERS
#define BEFORE(a, b) before(a, b)

__device__ __forceinline__ bool before(const Entry& a, const Entry& b) { return a.key < b.key || (a.key == b.key && a.index < b.index); }
#endif

#if STEP == 0
extern "C" __global__ void __launch_bounds__(THREADS)
    sort_tiles(Entry* entries, const unsigned* __restrict__ counts, unsigned n, unsigned tiles SLICES_PARAMETERS) {
    __shared__ Entry of_tile[TILE];
    pdl_start();
    const unsigned line = blockIdx.x / tiles, begin = blockIdx.x % tiles * TILE;
    const unsigned count = COUNTED ? counts[line] : n;
    if (begin >= count) return;
    const unsigned size = count - begin < TILE ? count - begin : TILE;
    unsigned padded = 1;
    while (padded < size) padded *= 2;
    Entry* own = entries + static_cast<long long>(line) * n + begin;
    for (unsigned i = threadIdx.x; i < padded; i += THREADS) of_tile[i] = i < size ? own[i] : last_entry();
    for (unsigned length = 2; length <= padded; length *= 2)  // a bitonic network (Batcher, 1968)
        for (unsigned stride = length / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (unsigned i = threadIdx.x; i < padded / 2; i += THREADS) {
                const unsigned low = 2 * i - (i & (stride - 1)), high = low + stride;
                const Entry a = of_tile[low], b = of_tile[high];
                if (BEFORE(b, a) == ((low & length) == 0)) of_tile[low] = b, of_tile[high] = a;
            }
        }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < size; i += THREADS) own[i] = of_tile[i];
}
#else
// Runs of `run` sorted entries become runs of twice that. A line that is one run already stays where it is.
extern "C" __global__ void __launch_bounds__(THREADS)
    merge_runs(const Entry* __restrict__ source, Entry* __restrict__ target, const unsigned* __restrict__ counts, unsigned n, unsigned tiles,
               unsigned run SLICES_PARAMETERS) {
    pdl_start();
    const unsigned line = blockIdx.x / tiles, begin = blockIdx.x % tiles * TILE;
    const unsigned count = COUNTED ? counts[line] : n;
    if (count <= run) return;
    const long long base = static_cast<long long>(line) * n;
    const unsigned end = begin + TILE < count ? begin + TILE : count;
    for (unsigned i = begin + threadIdx.x; i < end; i += THREADS) {
        const Entry entry = source[base + i];
        const unsigned own = i / run * run, other = own ^ run;  // where the runs begin; run is a power of two
        unsigned low = other < count ? other : count, high = other + run < count ? other + run : count;
        const unsigned first = low;
        while (low < high) {
            const unsigned middle = low + (high - low) / 2;
            if (BEFORE(source[base + middle], entry)) low = middle + 1;
            else high = middle;
        }
        target[base + (own < other ? own : other) + (i - own) + (low - first)] = entry;
    }
}
#endif
