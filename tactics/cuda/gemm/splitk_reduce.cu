// The second half of a deterministic split-K product or convolution.
#include "mma.cuh"

// Adds the `splits` partial sums of mma_gemm or mma_conv in order, applies the epilogue and stores out[rows][ld].
//   partial: [splits][rows][ld]. One thread per VEC_C columns (VEC_C divides ld); grid: ceil(rows * ld / VEC_C / 256), block 256.
extern "C" __global__ void __launch_bounds__(256)
    splitk_reduce(const SUM_T* __restrict__ partial, OUT_T* __restrict__ out, long long rows, int ld, int splits, EpilogueArgs args) {
    pdl_prefetch_constants(args, ld);
    pdl_start();
    const long long index = (static_cast<long long>(blockIdx.x) * 256 + threadIdx.x) * VEC_C;
    if (index >= rows * ld) return;
    SUM_T sum[VEC_C] = {};
#pragma unroll 4
    for (int split = 0; split < splits; ++split) {
        SUM_T part[VEC_C];
        fx::load<VEC_C>(part, partial + split * rows * ld + index);
#pragma unroll
        for (int v = 0; v < VEC_C; ++v) sum[v] += part[v];
    }
    const long long m = index / ld;
    store_sums(out + out_place(index), sum, args, m, static_cast<int>(index - m * ld), ld);
}
