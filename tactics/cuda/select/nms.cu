// Non-maximum suppression. A block per (batch, class): candidates above the least score are gathered, then the best one is taken and in the
// same pass over the rest those are dropped that overlap it and the next best is found, until none is left or enough are taken.
// Products, sums and quotients round as in the host's float32 arithmetic, so that a box at the limit falls on the same side.
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
extern "C" __global__ void __launch_bounds__(THREADS)
    take_boxes(const float* __restrict__ boxes, const float* __restrict__ scores, const long long* __restrict__ most,
               const float* __restrict__ overlaps, const float* __restrict__ least, float* __restrict__ candidate_scores,
               int* __restrict__ candidates, int* __restrict__ taken, unsigned* __restrict__ counts, unsigned n, unsigned classes, unsigned room) {
    __shared__ unsigned gathered;
    __shared__ float warp_score[THREADS / 32];
    __shared__ int warp_box[THREADS / 32], warp_place[THREADS / 32];
    pdl_wait();
    pdl_launch_next();
    const long long line = static_cast<long long>(blockIdx.x) * n;
    const long long first_box = static_cast<long long>(blockIdx.x / classes) * n;
    if (threadIdx.x == 0) gathered = 0;
    __syncthreads();
    const float limit = LIMITED ? *least : 0.0f, allowed = *overlaps;
    for (unsigned box = threadIdx.x; box < n; box += THREADS) {
        const float score = scores[line + box];
        if (LIMITED && !(score > limit)) continue;
        const unsigned place = atomicAdd(&gathered, 1u);
        candidate_scores[line + place] = score;
        candidates[line + place] = box;
    }
    __syncthreads();
    const unsigned count = gathered;
    const long long wanted = *most < room ? *most : room;
    unsigned done = 0;
    Box last = {};
    while (done < wanted) {
        float best = 0.0f;
        int box = -1, place = -1;
        for (unsigned k = threadIdx.x; k < count; k += THREADS) {
            const int other = candidates[line + k];
            if (other < 0) continue;
            if (done && overlap(last, load_box(boxes, first_box + other), allowed)) {
                candidates[line + k] = -1;
                continue;
            }
            const float score = candidate_scores[line + k];
            if (box < 0 || score > best || (score == best && other < box)) best = score, box = other, place = k;
        }
#pragma unroll
        for (int lanes = 16; lanes; lanes /= 2) {
            const float score = __shfl_xor_sync(0xffffffffu, best, lanes);
            const int other = __shfl_xor_sync(0xffffffffu, box, lanes), at = __shfl_xor_sync(0xffffffffu, place, lanes);
            if (other >= 0 && (box < 0 || score > best || (score == best && other < box))) best = score, box = other, place = at;
        }
        __syncthreads();  // the pass before may still be reading
        if (threadIdx.x % 32 == 0) warp_score[threadIdx.x / 32] = best, warp_box[threadIdx.x / 32] = box, warp_place[threadIdx.x / 32] = place;
        __syncthreads();
        box = -1;
#pragma unroll
        for (int warp = 0; warp < THREADS / 32; ++warp) {
            const int other = warp_box[warp];
            if (other >= 0 && (box < 0 || warp_score[warp] > best || (warp_score[warp] == best && other < box)))
                best = warp_score[warp], box = other, place = warp_place[warp];
        }
        if (box < 0) break;
        if (threadIdx.x == 0) {
            taken[static_cast<long long>(blockIdx.x) * room + done] = box;
            candidates[line + place] = -1;
        }
        last = load_box(boxes, first_box + box);
        ++done;
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
    pdl_wait();
    pdl_launch_next();
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
