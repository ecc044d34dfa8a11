// Determinants by Gaussian elimination with partial pivoting, in a copy of the matrix: one block per matrix.
// Source: Golub and Van Loan, "Matrix Computations", section 3.4. Grid: (matrices).
#include "functions.cuh"
#include "pdl.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    determinant(const IN_T* __restrict__ x, IN_T* __restrict__ out, WORK* __restrict__ scratch, int n) {
    pdl_start();
    const long long size = static_cast<long long>(n) * n;
    WORK* a = scratch + blockIdx.x * size;
    for (long long i = threadIdx.x; i < size; i += THREADS) a[i] = fx::widen(x[blockIdx.x * size + i]);
    __syncthreads();
    WORK result = WORK(1);
    for (int k = 0; k < n; ++k) {
        int pivot = k;  // every thread looks for itself: reads of one address are one access
        for (int i = k + 1; i < n; ++i)
            if (fx::abs(a[static_cast<long long>(i) * n + k]) > fx::abs(a[static_cast<long long>(pivot) * n + k])) pivot = i;
        const WORK value = a[static_cast<long long>(pivot) * n + k];
        result *= pivot == k ? value : -value;
        if (value == WORK(0)) break;  // the same in all threads
        __syncthreads();
        if (pivot != k)
            for (int j = k + threadIdx.x; j < n; j += THREADS) {
                const WORK held = a[static_cast<long long>(k) * n + j];
                a[static_cast<long long>(k) * n + j] = a[static_cast<long long>(pivot) * n + j];
                a[static_cast<long long>(pivot) * n + j] = held;
            }
        __syncthreads();
        const int rest = n - k - 1;
        for (long long e = threadIdx.x; e < static_cast<long long>(rest) * rest; e += THREADS) {
            const long long i = k + 1 + e / rest, j = k + 1 + e % rest;
            a[i * n + j] -= a[i * n + k] / value * a[static_cast<long long>(k) * n + j];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = fx::narrow<IN_T>(result);
}
