// How 16-byte chunks lie in a row of shared memory: what ldmatrix reads without bank conflicts, and what TMA writes in its swizzled modes.
#pragma once

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile of CHUNKS chunks a row, permuted so that eight rows at one
// chunk, which is what ldmatrix reads, fall into eight different groups of four banks.
template <int CHUNKS>
__device__ __forceinline__ int swizzled(int row, int chunk) {
    static_assert(CHUNKS % 4 == 0 || CHUNKS == 2, "rows of 32 bytes, or of a multiple of 64");
    const int mixed = CHUNKS % 8 == 0 ? chunk ^ (row & 7) : CHUNKS % 4 == 0 ? chunk ^ (row >> 1 & 3) : chunk ^ (row >> 2 & 1);
    return (row * CHUNKS + mixed) * 16;
}
