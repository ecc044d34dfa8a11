// One block. counts[tile] becomes the sum of those before it; `found` gets the sum of all.
#include "pdl.cuh"
#include "scan.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) scan_tiles(unsigned* __restrict__ counts, long long* __restrict__ found, unsigned tiles) {
    pdl_start();
    unsigned carry = 0;
    for (unsigned start = 0; start < tiles; start += THREADS) {
        const unsigned tile = start + threadIdx.x;
        const unsigned own = tile < tiles ? counts[tile] : 0;
        unsigned total;
        const unsigned before = fx::sum_before<THREADS>(own, total);
        if (tile < tiles) counts[tile] = carry + before;
        carry += total;
    }
    if (threadIdx.x == 0) *found = carry;
}
