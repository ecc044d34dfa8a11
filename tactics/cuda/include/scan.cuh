// Sums of one number per thread over the threads before it. Plain CUDA C++, so that it also compiles for the CPU harness.
#pragma once

namespace fx {

// The sum of `value` over the threads of the block before this one; `total` becomes that over all of them. All N threads must call it.
template <int N>
__device__ __forceinline__ unsigned sum_before(unsigned value, unsigned& total) {
    __shared__ unsigned of_warp[N / 32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned running = value;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const unsigned before = __shfl_up_sync(0xffffffffu, running, lanes);
        if (lane >= lanes) running += before;
    }
    __syncthreads();  // an earlier call may still be reading
    if (lane == 31) of_warp[warp] = running;
    __syncthreads();
    unsigned ahead = 0;
    total = 0;
#pragma unroll
    for (unsigned other = 0; other < N / 32; ++other) {
        if (other < warp) ahead += of_warp[other];
        total += of_warp[other];
    }
    return ahead + running - value;
}

}  // namespace fx
