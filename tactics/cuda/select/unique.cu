// Distinct slices of x [outer, n, inner] along the middle axis, from their sorted entries (sort.cu). Equal slices stand side by side, the lowest
// index first: a group. Groups are numbered in ascending order, or (SORTED=0) in that of their first indices.
// Grid: a block per THREADS slices, in the order of x or of the sorted entries.
#include "pdl.cuh"
#include "scan.cuh"
#if STEP <= 2
#include "entry.cuh"
#include "slices.cuh"
#endif

#if STEP == 0
extern "C" __global__ void __launch_bounds__(THREADS) make_entries(const IN_T* __restrict__ x, Entry* __restrict__ entries, const Slices slices) {
    pdl_start();
    const unsigned k = blockIdx.x * THREADS + threadIdx.x;
    const bool some = slices.outer && slices.inner;
    if (k < slices.n) entries[k] = entry_of(some ? static_cast<Key>(fx::order_key(x[static_cast<long long>(k) * slices.inner])) : 0, k);
}
#elif STEP == 1 || STEP == 2
__device__ __forceinline__ bool begins_group(const IN_T* __restrict__ x, const Entry* __restrict__ sorted, const Slices& slices, unsigned k) {
    if (k >= slices.n) return false;
    if (k == 0) return true;
    const Entry before = sorted[k - 1], own = sorted[k];
    return before.key != own.key || (SLICES && compare_slices(x, slices, before.index, own.index) != 0);
}
#if STEP == 1
// counts[block] = the groups that begin there.
extern "C" __global__ void __launch_bounds__(THREADS)
    count_groups(const IN_T* __restrict__ x, const Entry* __restrict__ sorted, unsigned* __restrict__ counts, const Slices slices) {
    pdl_start();
    unsigned total;
    fx::sum_before<THREADS>(begins_group(x, sorted, slices, blockIdx.x * THREADS + threadIdx.x), total);
    if (threadIdx.x == 0) counts[blockIdx.x] = total;
}
#else
// Of every slice its group; of every group its first index, and where it begins among the sorted entries.
extern "C" __global__ void __launch_bounds__(THREADS)
    write_groups(const IN_T* __restrict__ x, const Entry* __restrict__ sorted, const unsigned* __restrict__ before_block, unsigned* __restrict__ groups,
                 unsigned* __restrict__ firsts, unsigned* __restrict__ begins, const Slices slices) {
    pdl_start();
    const unsigned k = blockIdx.x * THREADS + threadIdx.x;
    const bool begin = begins_group(x, sorted, slices, k);
    unsigned total;
    const unsigned group = before_block[blockIdx.x] + fx::sum_before<THREADS>(begin, total) + begin - 1;
    if (k >= slices.n) return;
    const unsigned index = sorted[k].index;
    groups[index] = group;
    if (begin) firsts[group] = index, begins[group] = k;
}
#endif
#elif STEP == 3
// counts[block] = the slices there that are the first of their group.
extern "C" __global__ void __launch_bounds__(THREADS)
    count_firsts(const unsigned* __restrict__ groups, const unsigned* __restrict__ firsts, unsigned* __restrict__ counts, unsigned n) {
    pdl_start();
    const unsigned k = blockIdx.x * THREADS + threadIdx.x;
    unsigned total;
    fx::sum_before<THREADS>(k < n && firsts[groups[k]] == k, total);
    if (threadIdx.x == 0) counts[blockIdx.x] = total;
}
#elif STEP == 4
// The numbers of the groups, and what is told of each: its first index and its size.
extern "C" __global__ void __launch_bounds__(THREADS)
    write_numbers(const unsigned* __restrict__ groups, const unsigned* __restrict__ firsts, const unsigned* __restrict__ begins,
                  const unsigned* __restrict__ before_block, unsigned* __restrict__ numbers, long long* __restrict__ indices,
                  long long* __restrict__ sizes, const long long* __restrict__ found, unsigned n) {
    pdl_start();
    const unsigned k = blockIdx.x * THREADS + threadIdx.x;
    const unsigned count = static_cast<unsigned>(*found);
#if SORTED
    const bool one = k < count;
    const unsigned group = k, number = k;
#else
    const unsigned group = k < n ? groups[k] : 0;
    const bool one = k < n && firsts[group] == k;
    unsigned total;
    const unsigned number = before_block[blockIdx.x] + fx::sum_before<THREADS>(one, total);
#endif
    if (!one) return;
    numbers[group] = number;
    indices[number] = firsts[group];
    sizes[number] = (group + 1 < count ? begins[group + 1] : n) - begins[group];
}
#else
extern "C" __global__ void __launch_bounds__(THREADS)
    write_inverse(const unsigned* __restrict__ groups, const unsigned* __restrict__ numbers, long long* __restrict__ inverse, unsigned n) {
    pdl_start();
    const unsigned k = blockIdx.x * THREADS + threadIdx.x;
    if (k < n) inverse[k] = numbers[groups[k]];
}
#endif
