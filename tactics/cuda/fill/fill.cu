// Tensors without inputs. The number of elements is an argument; values come as the bits of an element, or as start and step.
#include "functions.cuh"
#include "pdl.cuh"

#if KIND == 0
// out[i] = value. MOVE_T is raw. Grid: ceil(count / (256 * 4)).
extern "C" __global__ void __launch_bounds__(256) fill(MOVE_T* __restrict__ out, long long count, unsigned long long value) {
    pdl_wait();
    pdl_launch_next();
    const long long first = static_cast<long long>(blockIdx.x) * 1024 + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (first + i * 256 < count) out[first + i * 256] = static_cast<MOVE_T>(value);
}
#elif KIND == 1
// out[i] = start + delta * i, computed in WORK. Grid: ceil(count / 256).
extern "C" __global__ void __launch_bounds__(256) range(OUT_T* __restrict__ out, long long count, ARG_T start, ARG_T delta) {
    pdl_wait();
    pdl_launch_next();
    using WORK = fx::Compute<OUT_T>;
    const long long i = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
    if (i < count) {
        const WORK step = static_cast<WORK>(static_cast<WORK>(delta) * static_cast<WORK>(i));
        out[i] = fx::narrow<OUT_T>(static_cast<WORK>(static_cast<WORK>(start) + step));
    }
}
#else
// out[i] = values[i] for up to 32 values. One block of 32 threads.
struct Values {
    long long value[32];
};
extern "C" __global__ void __launch_bounds__(32) dimensions(OUT_T* __restrict__ out, int count, const Values values) {
    pdl_wait();
    pdl_launch_next();
#pragma unroll
    for (int i = 0; i < 32; ++i)
        if (i == static_cast<int>(threadIdx.x) && i < count) out[i] = fx::narrow<OUT_T>(values.value[i]);
}
#endif
