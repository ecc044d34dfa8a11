// Tensors without inputs. The number of elements is an argument; values come as the bits of an element, or as start and step.
#include "functions.cuh"
#include "pdl.cuh"

#if KIND == 0
// out[i] = value. MOVE_T is raw. Grid: ceil(count / (256 * 4)).
extern "C" __global__ void __launch_bounds__(256) fill(MOVE_T* __restrict__ out, long long count, unsigned long long value) {
    pdl_start();
    const long long first = static_cast<long long>(blockIdx.x) * 1024 + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (first + i * 256 < count) out[first + i * 256] = static_cast<MOVE_T>(value);
}
#elif KIND == 1
// out[i] = start + delta * i, computed in WORK. Grid: ceil(count / 256).
extern "C" __global__ void __launch_bounds__(256) range(OUT_T* __restrict__ out, long long count, ARG_T start, ARG_T delta) {
    pdl_start();
    using WORK = fx::Compute<OUT_T>;
    const long long i = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
    if (i < count) {
        const WORK step = static_cast<WORK>(static_cast<WORK>(delta) * static_cast<WORK>(i));
        out[i] = fx::narrow<OUT_T>(static_cast<WORK>(static_cast<WORK>(start) + step));
    }
}
#elif KIND == 3
// Random numbers (see fusion/ops/random.py): a thread makes one block of Philox 4x32-10, four numbers (two doubles). REAL is float or double;
// products and sums stay apart, so that uniform numbers are the same on every device. Grid: ceil(blocks / 256).
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
extern "C" __global__ void __launch_bounds__(256) random_numbers(OUT_T* __restrict__ out, long long count, REAL first, REAL second, unsigned key0, unsigned key1) {
    pdl_start();
    constexpr int NUMBERS = sizeof(REAL) == 8 ? 2 : 4;
    const long long block = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
    if (block * NUMBERS >= count) return;
    unsigned c[4] = {static_cast<unsigned>(block), static_cast<unsigned>(block >> 32), 0, 0};
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const fx::u64 a = static_cast<fx::u64>(c[0]) * 0xD2511F53u, b = static_cast<fx::u64>(c[2]) * 0xCD9E8D57u;
        const unsigned c1 = c[1], c3 = c[3];
        c[0] = static_cast<unsigned>(b >> 32) ^ c1 ^ key0;
        c[1] = static_cast<unsigned>(b);
        c[2] = static_cast<unsigned>(a >> 32) ^ c3 ^ key1;
        c[3] = static_cast<unsigned>(a);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    REAL uniform[NUMBERS];
    constexpr REAL unit = sizeof(REAL) == 8 ? REAL(1.1102230246251565e-16) : REAL(5.9604644775390625e-8);
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) {
        if (sizeof(REAL) == 8) uniform[i] = static_cast<REAL>((static_cast<fx::u64>(c[2 * i % 4]) << 32 | c[(2 * i + 1) % 4]) >> 11) * unit;
        else uniform[i] = static_cast<REAL>(c[i] >> 8) * unit;
    }
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) {
        REAL value = product(second - first, uniform[i]);
#if NORMAL
        const REAL radius = fx::sqrt(product(REAL(-2), fx::log(uniform[i & ~1] + unit))), angle = product(REAL(6.283185307179586477), uniform[i | 1]);
        value = product(second, product(radius, i & 1 ? fx::sin(angle) : fx::cos(angle)));
#endif
        if (block * NUMBERS + i < count) out[block * NUMBERS + i] = fx::narrow<OUT_T>(first + value);
    }
}
#else
// out[i] = values[i] for up to 32 values. One block of 32 threads.
struct Values {
    long long value[32];
};
extern "C" __global__ void __launch_bounds__(32) dimensions(OUT_T* __restrict__ out, int count, const Values values) {
    pdl_start();
#pragma unroll
    for (int i = 0; i < 32; ++i)
        if (i == static_cast<int>(threadIdx.x) && i < count) out[i] = fx::narrow<OUT_T>(values.value[i]);
}
#endif
