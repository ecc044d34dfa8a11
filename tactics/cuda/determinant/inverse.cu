// Inverses by Gauss-Jordan elimination with partial pivoting of [matrix, identity], in scratch memory: one block per matrix.
// Source: Golub and Van Loan, "Matrix Computations", section 3.4. Grid: (matrices).
#include "functions.cuh"
#include "pdl.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 8)
    inverse(const IN_T* __restrict__ x, IN_T* __restrict__ out, WORK* __restrict__ scratch, int n) {
    pdl_start();
    const long long size = static_cast<long long>(n) * n, width = 2LL * n;
    WORK* a = scratch + blockIdx.x * 2 * size;
    for (long long e = threadIdx.x; e < size; e += THREADS) {
        const long long i = e / n, j = e % n;
        a[i * width + j] = fx::widen(x[blockIdx.x * size + e]);
        a[i * width + n + j] = i == j ? WORK(1) : WORK(0);
    }
    __syncthreads();
    for (int k = 0; k < n; ++k) {
        int pivot = k;  // every thread looks for itself: reads of one address are one access
        for (int i = k + 1; i < n; ++i)
            if (fx::abs(a[i * width + k]) > fx::abs(a[pivot * width + k])) pivot = i;
        const WORK value = a[pivot * width + k];
        __syncthreads();
        if (pivot != k)
            for (long long j = k + threadIdx.x; j < width; j += THREADS) {
                const WORK held = a[k * width + j];
                a[k * width + j] = a[pivot * width + j];
                a[pivot * width + j] = held;
            }
        __syncthreads();
        // Column k itself is not read again, so the factors in it stay.
        const long long rest = width - k - 1;
        for (long long e = threadIdx.x; e < n * rest; e += THREADS) {
            const long long i = e / rest, j = k + 1 + e % rest;
            if (i != k) a[i * width + j] -= a[i * width + k] / value * a[k * width + j];
        }
        __syncthreads();
    }
    for (long long e = threadIdx.x; e < size; e += THREADS) {
        const long long i = e / n, j = e % n;
        out[blockIdx.x * size + e] = fx::narrow<IN_T>(a[i * width + n + j] / a[i * width + i]);
    }
}
