// From wgmma's accumulators to memory: a warp turns its 16 x CHUNK results through its own shared memory, so that the epilogue and
// the stores see eight neighbouring columns of a row, 16 bytes of a two-byte type.
//
// Defines: BN, OUT_T; CHUNK (columns a warp writes at a time, divides BN); VEC (the largest of 8, 4, 2, 1 that divides the output's row
// length); SWAP = 1: accumulator rows are output columns.
#pragma once

#define WGMMA_N BN
#include "epilogue.cuh"

#ifndef SWAP
#define SWAP 0
#endif
#ifndef CHUNK
#define CHUNK (BN % 64 == 0 ? 64 : BN % 32 == 0 ? 32 : BN % 16 == 0 ? 16 : 8)
#endif

constexpr int STAGING_ROW = SWAP ? 16 + 4 : CHUNK + 8;  // floats; the pads keep the banks apart
constexpr int STAGING_WARP = (SWAP ? CHUNK : 16) * STAGING_ROW;
static_assert(BN % CHUNK == 0 && CHUNK % 8 == 0, "CHUNK divides BN");

// Eight neighbouring results of row m from column n on: epilogue and store what lies inside rows x columns.
__device__ __forceinline__ void finish(float (&v)[8], OUT_T* out, const EpilogueArgs& args, int m, int n, int rows, int columns,
                                       long long first_row) {
  if (m >= rows) return;
  long long row = first_row + m;
  OUT_T* target = out + row * columns + n;
#pragma unroll
  for (int i = 0; i < 8; i += VEC)
    if (n + i < columns) {
      float part[VEC];
#pragma unroll
      for (int k = 0; k < VEC; ++k) part[k] = v[i + k];
      epilogue<VEC>(part, args, row, n + i, columns);
      store_vector<VEC>(target + i, part);
    }
}

// Eight floats of shared memory. Every other group of four lanes reads its halves in the other order: no bank conflicts.
__device__ __forceinline__ void read_eight(float (&v)[8], const float* from, int lane) {
  int late = (lane >> 2) & 1;
  float4 a = *(const float4*)(from + 4 * late), b = *(const float4*)(from + 4 * (late ^ 1));
  float4 low = late ? b : a, high = late ? a : b;
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w, v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

// Writes a warp's 16-row slice of one 64-row block: x0 its first row of X, y0 the tile's first row of Y.
__device__ __forceinline__ void write_slice(const float (&sum)[BN / 2], float* staging, OUT_T* out, const EpilogueArgs& args, int x0,
                                            int y0, int rows, int columns, long long first_row) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
#pragma unroll
  for (int from = 0; from < BN; from += CHUNK) {
    if ((SWAP ? rows : columns) <= y0 + from) break;
#pragma unroll
    for (int j = 0; j < CHUNK / 8; ++j) {
      const float* d = sum + (from / 8 + j) * 4;
      if constexpr (SWAP) {
        float* target = staging + (8 * j + c) * STAGING_ROW + g;
        target[0] = d[0], target[STAGING_ROW] = d[1], target[8] = d[2], target[STAGING_ROW + 8] = d[3];
      } else {
        *(float2*)(staging + g * STAGING_ROW + 8 * j + c) = make_float2(d[0], d[1]);
        *(float2*)(staging + (g + 8) * STAGING_ROW + 8 * j + c) = make_float2(d[2], d[3]);
      }
    }
    __syncwarp();
    constexpr int WIDE = SWAP ? 2 : CHUNK / 8;  // vectors of eight in a staged row
#pragma unroll
    for (int i = 0; i < (2 * CHUNK + 31) / 32; ++i) {
      int vector = i * 32 + lane;
      if (2 * CHUNK % 32 == 0 || vector < 2 * CHUNK) {
        int row = vector / WIDE, column = vector % WIDE * 8;
        float v[8];
        read_eight(v, staging + row * STAGING_ROW + column, lane);
        if constexpr (SWAP) finish(v, out, args, y0 + from + row, x0 + column, rows, columns, first_row);
        else finish(v, out, args, x0 + row, y0 + from + column, rows, columns, first_row);
      }
    }
    __syncwarp();
  }
}
