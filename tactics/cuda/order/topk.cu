// The k best elements of every line along the middle axis of x, seen as [outer, n, inner], best first; of equal elements the
// lower index first. LARGEST=1: the largest are best, NaN before all; else the smallest, NaN after all (as NumPy sorts).
//
// SOFTMAX=1 writes the softmax of the line at these elements, SOFTMAX=2 its logarithm, in place of the elements; only with LARGEST=1.
//
// An element becomes an Entry, its key (include/order.cuh; the lower the better) above its index, so all entries differ.
#include "division.cuh"
#include "functions.cuh"
#include "group.cuh"
#include "order.cuh"
#include "pdl.cuh"

#if KEY_BYTES == 4
using Entry = fx::u64;
constexpr int DIGITS = 8;
__device__ __forceinline__ Entry entry_of(fx::u32 key, unsigned index) { return static_cast<fx::u64>(key) << 32 | index; }
__device__ __forceinline__ Entry worst() { return ~0ull; }
__device__ __forceinline__ unsigned index_of(Entry e) { return static_cast<unsigned>(e); }
__device__ __forceinline__ bool before(Entry a, Entry b) { return a < b; }
// Digits of 8 bits, 0 the lowest.
__device__ __forceinline__ unsigned digit(Entry e, int d) { return static_cast<unsigned>(e >> 8 * d) & 255u; }
__device__ __forceinline__ void set_digit(Entry& e, int d, unsigned value) { e |= static_cast<fx::u64>(value) << 8 * d; }
// Compares the digits from d up: -1, 0 or 1.
__device__ __forceinline__ int compare(Entry a, Entry b, int d) {
    const fx::u64 left = d < DIGITS ? a >> 8 * d : 0, right = d < DIGITS ? b >> 8 * d : 0;
    return left < right ? -1 : left > right;
}
__device__ __forceinline__ Entry zero() { return 0; }
#else
struct alignas(16) Entry {
    fx::u64 key;
    fx::u64 index;  // 32 bits are used
};
constexpr int DIGITS = 12;
__device__ __forceinline__ Entry entry_of(fx::u64 key, unsigned index) { return {key, index}; }
__device__ __forceinline__ Entry worst() { return {~0ull, 0xffffffffull}; }
__device__ __forceinline__ unsigned index_of(Entry e) { return static_cast<unsigned>(e.index); }
__device__ __forceinline__ bool before(Entry a, Entry b) { return a.key < b.key || (a.key == b.key && a.index < b.index); }
__device__ __forceinline__ unsigned digit(Entry e, int d) {
    return static_cast<unsigned>(d < 4 ? e.index >> 8 * d : e.key >> 8 * (d - 4)) & 255u;
}
__device__ __forceinline__ void set_digit(Entry& e, int d, unsigned value) {
    if (d < 4) e.index |= static_cast<fx::u64>(value) << 8 * d;
    else e.key |= static_cast<fx::u64>(value) << 8 * (d - 4);
}
__device__ __forceinline__ int compare(Entry a, Entry b, int d) {
    if (d >= DIGITS) return 0;
    const int drop = d > 4 ? 8 * (d - 4) : 0;
    const fx::u64 left = a.key >> drop, right = b.key >> drop;
    if (left != right) return left < right ? -1 : 1;
    if (d >= 4) return 0;
    const fx::u64 low = a.index >> 8 * d, high = b.index >> 8 * d;
    return low < high ? -1 : low > high;
}
__device__ __forceinline__ Entry zero() { return {0, 0}; }
#endif

__device__ __forceinline__ Entry entry_at(const IN_T* x, long long base, unsigned i, unsigned inner) {
    const auto key = fx::order_key(x[base + static_cast<long long>(i) * inner]);
    return entry_of(LARGEST ? ~key : key, i);
}

// Sorts `padded` entries (a power of two), best first: a bitonic network (Batcher, 1968). All threads of the block.
__device__ __forceinline__ void sort(Entry* entries, unsigned padded) {
    for (unsigned size = 2; size <= padded; size *= 2)
        for (unsigned stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (unsigned i = threadIdx.x; i < padded / 2; i += THREADS) {
                const unsigned low = 2 * i - (i & (stride - 1)), high = low + stride;
                const Entry a = entries[low], b = entries[high];
                if (before(b, a) == ((low & size) == 0)) {
                    entries[low] = b;
                    entries[high] = a;
                }
            }
        }
    __syncthreads();
}

// All threads of the block.
__device__ __forceinline__ void write(const Entry* sorted, const IN_T* x, IN_T* values, long long* indices, long long source, long long target,
                                      unsigned n, unsigned k, unsigned inner) {
#if SOFTMAX
    const auto at = [&](unsigned i) { return fx::widen(x[source + static_cast<long long>(i) * inner]); };
    const auto top = at(index_of(sorted[0]));
    auto total = top - top;  // 0, or NaN where the line has no finite largest element
    for (unsigned i = threadIdx.x; i < n; i += THREADS) total += fx::exp(at(i) - top);
    total = fx::group_reduce<THREADS>(total, [](auto a, auto b) { return a + b; });
#endif
    for (unsigned i = threadIdx.x; i < k; i += THREADS) {
        const unsigned index = index_of(sorted[i]);
        const long long place = source + static_cast<long long>(index) * inner, put = target + static_cast<long long>(i) * inner;
#if SOFTMAX == 1
        values[put] = fx::narrow<IN_T>(fx::exp(fx::widen(x[place]) - top) / total);
#elif SOFTMAX == 2
        values[put] = fx::narrow<IN_T>(fx::widen(x[place]) - top - fx::log(total));
#else
        values[put] = x[place];
#endif
        indices[put] = index;
    }
}

extern __shared__ __align__(16) fx::u64 shared_bytes[];

#if KIND == 0
// Sorts whole lines in shared memory: `padded` entries, the power of two from n up. Grid: lines.
extern "C" __global__ void __launch_bounds__(THREADS)
    topk_sort(const IN_T* __restrict__ x, IN_T* __restrict__ values, long long* __restrict__ indices, unsigned n, unsigned k, unsigned padded,
              const Divider inner) {
    Entry* entries = reinterpret_cast<Entry*>(shared_bytes);
    pdl_start();
    unsigned outer = blockIdx.x;
    const unsigned column = inner.split(outer);
    const long long source = static_cast<long long>(outer) * n * inner.divisor + column;
    for (unsigned i = threadIdx.x; i < padded; i += THREADS) entries[i] = i < n ? entry_at(x, source, i, inner.divisor) : worst();
    sort(entries, padded);
    write(entries, x, values, indices, source, static_cast<long long>(outer) * k * inner.divisor + column, n, k, inner.divisor);
}
#else
// Finds the k best by their digits: the counts of a digit's values among the entries that still compete say which value the k-th best
// has, until all that compete are taken (radix selection; Alabi et al., "Fast k-selection algorithms", 2012).
// FINAL=0: the best k of one part of each line, unsorted, into `parts` [lines, splits, k]; grid (lines, splits).
// FINAL=1: the best of the line (FROM_PARTS=0) or of its parts (1), sorted in shared memory or (SHARED=0) in `scratch`, which
// has `padded` entries per line, the power of two from k up; grid lines.
extern "C" __global__ void __launch_bounds__(THREADS)
    topk_select(const IN_T* __restrict__ x, IN_T* __restrict__ values, long long* __restrict__ indices, Entry* parts, Entry* scratch,
                unsigned n, unsigned k, unsigned splits, unsigned padded, const Divider inner) {
    __shared__ unsigned counts[256];
    __shared__ unsigned chosen, left, taken, finished;
    pdl_start();
    const unsigned line = blockIdx.x;
    unsigned outer = line;
    const unsigned column = inner.split(outer);
    const long long source = static_cast<long long>(outer) * n * inner.divisor + column;
#if FINAL
    const unsigned begin = 0, end = FROM_PARTS ? splits * k : n;
    const Entry* given = parts + static_cast<long long>(line) * splits * k;
    Entry* target = SHARED ? reinterpret_cast<Entry*>(shared_bytes) : scratch + static_cast<long long>(line) * padded;
#else
    const unsigned share = (n + splits - 1) / splits, begin = min(n, blockIdx.y * share), end = min(n, begin + share);
    Entry* target = parts + (static_cast<long long>(line) * splits + blockIdx.y) * k;
#endif
    const auto entry = [&](unsigned i) {
#if FINAL && FROM_PARTS
        return given[i];
#else
        return entry_at(x, source, i, inner.divisor);
#endif
    };
    const unsigned wanted = min(k, end - begin);
    Entry prefix = zero();
    int d = DIGITS;
    if (threadIdx.x == 0) left = wanted, taken = 0, finished = wanted == end - begin;
    __syncthreads();
    while (!finished) {
        --d;
        for (int i = threadIdx.x; i < 256; i += THREADS) counts[i] = 0;
        __syncthreads();
        for (unsigned i = begin + threadIdx.x; i < end; i += THREADS) {
            const Entry e = entry(i);
            if (compare(e, prefix, d + 1) == 0) atomicAdd(&counts[digit(e, d)], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned value = 0, need = left;
            while (counts[value] < need) need -= counts[value++];
            chosen = value;
            left = need;
            finished = counts[value] == need || d == 0;
        }
        __syncthreads();
        set_digit(prefix, d, chosen);
        __syncthreads();  // before `finished` and `chosen` change again
    }
    for (unsigned i = begin + threadIdx.x; i < end; i += THREADS) {
        const Entry e = entry(i);
        if (compare(e, prefix, d) <= 0) target[atomicAdd(&taken, 1u)] = e;
    }
    for (unsigned i = wanted + threadIdx.x; i < (FINAL ? padded : k); i += THREADS) target[i] = worst();
#if FINAL
    sort(target, padded);
    write(target, x, values, indices, source, static_cast<long long>(outer) * k * inner.divisor + column, n, k, inner.divisor);
#endif
}
#endif
