// Non-maximum suppression, a line per (batch, class). Candidates above the least score are gathered and sorted by falling score (sort.cu); then a
// block takes THREADS of them at a time, each thread one: those that overlap a box taken before are dropped, the others settle among themselves by
// bit masks of whom they overlap: who overlaps one that is taken drops out, who overlaps none that is still open is taken, until all are settled.
// Products, sums and quotients round as in the host's float32 arithmetic, so that a box at the limit falls on the same side.
#include "entry.cuh"
#include "pdl.cuh"

struct Box {
    float low_y, low_x, high_y, high_x;
};

__device__ __forceinline__ Box load_box(const float* __restrict__ boxes, long long index) {
    const float a = boxes[index * 4], b = boxes[index * 4 + 1], c = boxes[index * 4 + 2], d = boxes[index * 4 + 3];
    if (CENTER) {
        const float width = __fmul_rn(c, 0.5f), height = __fmul_rn(d, 0.5f);
        return {__fadd_rn(b, -height), __fadd_rn(a, -width), __fadd_rn(b, height), __fadd_rn(a, width)};
    }
    return {fminf(a, c), fminf(b, d), fmaxf(a, c), fmaxf(b, d)};
}

__device__ __forceinline__ bool overlap(const Box& a, const Box& b, float most) {
    const float height = fmaxf(__fadd_rn(fminf(a.high_y, b.high_y), -fmaxf(a.low_y, b.low_y)), 0.0f);
    const float width = fmaxf(__fadd_rn(fminf(a.high_x, b.high_x), -fmaxf(a.low_x, b.low_x)), 0.0f);
    const float shared = __fmul_rn(height, width);
    const float area_a = __fmul_rn(__fadd_rn(a.high_y, -a.low_y), __fadd_rn(a.high_x, -a.low_x));
    const float area_b = __fmul_rn(__fadd_rn(b.high_y, -b.low_y), __fadd_rn(b.high_x, -b.low_x));
    const float all = __fadd_rn(__fadd_rn(area_a, area_b), -shared);
    const bool some = area_a > 0.0f && area_b > 0.0f && all > 0.0f;
    return (some ? __fdiv_rn(shared, all) : 0.0f) > most;
}

#if STEP == 0
// Candidates of a line in any order, and how many. The key falls with the score; NaN comes last.
extern "C" __global__ void __launch_bounds__(THREADS)
    gather_candidates(const float* __restrict__ scores, const float* __restrict__ least, Entry* __restrict__ candidates,
                      unsigned* __restrict__ counts, unsigned n) {
    __shared__ unsigned gathered;
    pdl_start();
    const long long line = static_cast<long long>(blockIdx.x) * n;
    if (threadIdx.x == 0) gathered = 0;
    __syncthreads();
    const float limit = LIMITED ? *least : 0.0f;
    for (unsigned box = threadIdx.x; box < n; box += THREADS) {
        const float score = scores[line + box];
        if (LIMITED && !(score > limit)) continue;
        candidates[line + atomicAdd(&gathered, 1u)] = entry_of(fx::order_key(-score), box);
    }
    __syncthreads();
    if (threadIdx.x == 0) counts[blockIdx.x] = gathered;
}
#elif STEP == 1
// `counts` holds the candidates of each line and gets how many are taken. Sorted lines are in `first`, or after an odd number of merges in `second`.
extern "C" __global__ void __launch_bounds__(THREADS)
    take_boxes(const float* __restrict__ boxes, const long long* __restrict__ most, const float* __restrict__ overlaps,
               const Entry* __restrict__ first, const Entry* __restrict__ second, int* __restrict__ taken, unsigned* __restrict__ counts, unsigned n,
               unsigned classes, unsigned room) {
    constexpr unsigned WARPS = THREADS / 32;
    __shared__ Box own[THREADS], kept[KEPT];  // kept: the first that are taken; those after them are read again
    __shared__ unsigned open[WARPS], chosen[WARPS];
    pdl_start();
    const unsigned count = counts[blockIdx.x], lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long first_box = static_cast<long long>(blockIdx.x / classes) * n, row = static_cast<long long>(blockIdx.x) * room;
    const Entry* candidates = first + static_cast<long long>(blockIdx.x) * n;
    for (unsigned run = TILE, other = 1; run < count; run *= 2, other ^= 1)
        candidates = (other ? second : first) + static_cast<long long>(blockIdx.x) * n;
    const float allowed = *overlaps;
    const long long limit = *most < room ? *most : room;
    const unsigned wanted = limit > 0 ? static_cast<unsigned>(limit) : 0;
    unsigned done = 0;
    for (unsigned start = 0; start < count && done < wanted; start += THREADS) {
        bool undecided = start + threadIdx.x < count;
        const unsigned index = undecided ? candidates[start + threadIdx.x].index : 0;
        const Box box = load_box(boxes, first_box + index);
        for (unsigned k = 0; undecided && k < done; ++k)
            undecided = !overlap(k < KEPT ? kept[k] : load_box(boxes, first_box + taken[row + k]), box, allowed);
        own[threadIdx.x] = box;
        const unsigned left = __ballot_sync(0xffffffffu, undecided);
        if (lane == 0) open[warp] = left, chosen[warp] = 0;
        __syncthreads();
        unsigned conflicts[WARPS];
#pragma unroll
        for (unsigned w = 0; w < WARPS; ++w) {
            conflicts[w] = 0;
            if (!undecided || w > warp) continue;
            unsigned others = open[w] & (w < warp ? 0xffffffffu : (1u << lane) - 1);
            for (; others; others &= others - 1) {
                const unsigned bit = __ffs(others) - 1;
                if (overlap(own[w * 32 + bit], box, allowed)) conflicts[w] |= 1u << bit;
            }
        }
        bool take = false;
        while (__syncthreads_or(undecided)) {
            unsigned with_taken = 0, with_open = 0;
#pragma unroll
            for (unsigned w = 0; w < WARPS; ++w) with_taken |= conflicts[w] & chosen[w], with_open |= conflicts[w] & open[w];
            const bool now = undecided && !with_taken && !with_open;
            take |= now;
            undecided = undecided && !with_taken && with_open;
            const unsigned more = __ballot_sync(0xffffffffu, now), still = __ballot_sync(0xffffffffu, undecided);
            __syncthreads();  // all have read
            if (lane == 0) chosen[warp] |= more, open[warp] = still;
        }
        unsigned place = done + __popc(chosen[warp] & ((1u << lane) - 1)), total = 0;
#pragma unroll
        for (unsigned w = 0; w < WARPS; ++w) {
            if (w < warp) place += __popc(chosen[w]);
            total += __popc(chosen[w]);
        }
        if (take && place < wanted) {
            taken[row + place] = index;
            if (place < KEPT) kept[place] = box;
        }
        done = done + total < wanted ? done + total : wanted;
        __syncthreads();
    }
    if (threadIdx.x == 0) counts[blockIdx.x] = done;
}
#else
// Grid: a block per (batch, class), whose rows follow those of the blocks before it.
extern "C" __global__ void __launch_bounds__(THREADS)
    write_rows(const int* __restrict__ taken, const unsigned* __restrict__ counts, long long* __restrict__ rows, long long* __restrict__ found,
               unsigned classes, unsigned room) {
    __shared__ unsigned before;
    pdl_start();
    if (threadIdx.x == 0) before = 0;
    __syncthreads();
    unsigned own = 0;
    for (unsigned block = threadIdx.x; block < blockIdx.x; block += THREADS) own += counts[block];
    if (own) atomicAdd(&before, own);
    __syncthreads();
    const unsigned count = counts[blockIdx.x];
    for (unsigned k = threadIdx.x; k < count; k += THREADS) {
        long long* row = rows + static_cast<long long>(before + k) * 3;
        row[0] = blockIdx.x / classes;
        row[1] = blockIdx.x % classes;
        row[2] = taken[static_cast<long long>(blockIdx.x) * room + k];
    }
    if (threadIdx.x == 0 && blockIdx.x == gridDim.x - 1) *found = before + count;
}
#endif
