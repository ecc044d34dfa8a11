// From wgmma's accumulators to memory: a warp turns its 16 x CHUNK results through its own shared memory, so that the epilogue and
// the stores see eight neighbouring columns of a row, 16 bytes of a two-byte type. With DIRECT a thread has them from the start.
//
// Defines: BN, OUT_T; CHUNK (columns a warp writes at a time: 32 or 64; with SWAP 8, 16 or 32, dividing BN); VEC (the largest of 8, 4,
// 2, 1 that divides the output's row length); SWAP = 1: accumulator rows are output columns; DIRECT = 1: row 8 j + 2 c + e of each 32 of B
// (j, c < 4, e < 2) is output column 8 c + 2 j + e.
#pragma once

#define WGMMA_N BN
#include "sums.cuh"

#ifndef SWAP
#define SWAP 0
#endif
#ifndef CHUNK
#define CHUNK 32
#endif
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 1
#endif
#ifndef DIRECT
#define DIRECT 0
#endif
#ifndef GROUPS_AT_ONCE
#define GROUPS_AT_ONCE 2
#endif

// The output's row for row m of a tile's batch: they lie one after the other, unless a kernel says otherwise (ROWS_APART 1, and a RowMap of its own).
#ifndef ROWS_APART
#define ROWS_APART 0
struct RowMap {
  long long first;
  __device__ __forceinline__ long long operator()(int m) const { return first + m; }
};
#endif

constexpr int STAGING_ROW = SWAP ? 16 + 4 : CHUNK;  // floats
constexpr int STAGING_WARP = (SWAP ? CHUNK : 16) * STAGING_ROW;
static_assert(SWAP ? BN % CHUNK == 0 && CHUNK % 8 == 0 : CHUNK == 32 || CHUNK == 64, "CHUNK divides BN with SWAP; else it is 32 or 64");

// Where 16 bytes (four columns) `at` of a staged row lie in it: no bank conflicts when 8 lanes write pairs of four rows, nor when they
// read every other one of one or two rows; at ^ 1 lies beside.
__device__ __forceinline__ int staged(int row, int at) { return at ^ (2 * (row & 3)) ^ (row & 1) ^ ((at >> 3) & 1); }

// Eight neighbouring results of row m from column n on: epilogue and store what lies inside rows x columns.
__device__ __forceinline__ void finish(const SUM_T (&v)[8], OUT_T* out, const EpilogueArgs& args, int m, int n, int rows, int columns,
                                       const RowMap& row_of) {
  if (m >= rows) return;
  long long row = row_of(m);
  OUT_T* target = out + row * OUT_ROW(columns) + n;
#pragma unroll
  for (int i = 0; i < 8; i += VEC)
    if (n + i < columns) {
      SUM_T part[VEC];
#pragma unroll
      for (int k = 0; k < VEC; ++k) part[k] = v[i + k];
      store_sums<VEC>(target + i, part, args, row, n + i, columns);
    }
}

// Eight sums of shared memory. Every other group of four lanes reads its halves in the other order: no bank conflicts.
__device__ __forceinline__ void read_eight(SUM_T (&v)[8], const SUM_T* from, int lane) {
  int late = (lane >> 2) & 1;
  Sum4 a = *(const Sum4*)(from + 4 * late), b = *(const Sum4*)(from + 4 * (late ^ 1));
  Sum4 low = late ? b : a, high = late ? a : b;
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w, v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

// Rounds and stores eight finished results at `target` (aligned to them), where they are there: a predicate, not a branch around each store.
__device__ __forceinline__ void store_eight(bool there, OUT_T* target, const Finished (&value)[8]) {
  constexpr int WORDS = 8 * (int)sizeof(OUT_T) / 4;
  union {
    Pack<OUT_T, 8> pack;
    unsigned word[WORDS];
  } stored;
  store_finished<8>(stored.pack.value, value);
  if constexpr (WORDS == 2)
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v2.b32 [%1], {%2, %3}; }" ::"r"((int)there), "l"(target),
                 "r"(stored.word[0]), "r"(stored.word[1])
                 : "memory");
  else
#pragma unroll
    for (int i = 0; i < WORDS; i += 4)
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v4.b32 [%1], {%2, %3, %4, %5}; }" ::"r"((int)there),
                   "l"((char*)target + 4 * i), "r"(stored.word[i]), "r"(stored.word[i + 1]), "r"(stored.word[i + 2]), "r"(stored.word[i + 3])
                   : "memory");
}

// write_slices writes a warp's 16-row slices of 64-row blocks: x0 the first row of its first slice, y0 the tile's first row of Y.
#if DIRECT
static_assert(!SWAP && BN % 32 == 0 && VEC == 8, "rows of B are permuted within whole groups of 32");
// The results of a thread's rows m, two of each block, where they are there (else m is any row), at columns y0 and on.
template <int BLOCKS>
__device__ __forceinline__ void write_rows(const SUM_T (&sum)[BLOCKS][BN / 2], OUT_T* out, const EpilogueArgs& args, const int (&m)[BLOCKS][2],
                                           const bool (&there)[BLOCKS][2], int y0, int columns, const RowMap& row_of) {
#ifdef EPILOGUE_ROWS
  constexpr int TOGETHER = BLOCKS * BN > 320 ? 1 : BLOCKS;  // the operands of one row block are all that registers hold beside so many sums
#else
  constexpr int TOGETHER = BLOCKS;  // a column's operands are read once
#endif
  constexpr int GROUPS = BN / 32, BATCH = GROUPS_AT_ONCE;
  const int c = threadIdx.x % 4 * 8;
  auto row = [&](int b, int h) { return row_of(m[b][h]); };  // a place to work out again costs less than registers for it
  constexpr bool KEPT = BLOCKS * BN <= 320;  // a thread has registers for the places of its rows beside its sums
  OUT_T* kept[BLOCKS][2];
#pragma unroll
  for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) kept[b][h] = KEPT ? out + row(b, h) * OUT_ROW(columns) + y0 + c : nullptr;
#pragma unroll
  for (int first = 0; first < BLOCKS; first += TOGETHER)
#pragma unroll
    for (int from = 0; from < GROUPS; from += BATCH) {  // groups whose loads all come before the first store, which might alias them
      if ((from > 0 || MIN_BLOCKS > 1) && columns <= y0 + 32 * from) break;
      Finished v[BATCH][TOGETHER][2][8];
#pragma unroll
      for (int t = 0; t < BATCH && from + t < GROUPS; ++t)
#pragma unroll
        for (int b = 0; b < TOGETHER; ++b)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            SUM_T own[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) own[i] = sum[first + b][16 * (from + t) + i / 2 * 4 + 2 * h + i % 2];
            const int n = y0 + 32 * (from + t), at = (n < columns ? n : 0) + c;
            finish_sums<8>(own, v[t][b][h], args, row(first + b, h), at, columns);
          }
#pragma unroll
      for (int t = 0; t < BATCH && from + t < GROUPS; ++t)
#pragma unroll
        for (int b = 0; b < TOGETHER; ++b)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int n = y0 + 32 * (from + t);
            OUT_T* const target = KEPT ? kept[first + b][h] + 32 * (from + t) : out + row(first + b, h) * OUT_ROW(columns) + n + c;
            store_eight(there[first + b][h] && n < columns, target, v[t][b][h]);
          }
    }
}
template <int BLOCKS>
__device__ __forceinline__ void write_slices(const SUM_T (&sum)[BLOCKS][BN / 2], SUM_T*, OUT_T* out, const EpilogueArgs& args, int x0, int y0,
                                             int rows, int columns, const RowMap& row_of) {
  if (x0 >= rows) return;
  int m[BLOCKS][2];
  bool there[BLOCKS][2];
#pragma unroll
  for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {  // rows past the end are computed as the last one and not stored
      const int row = x0 + 64 * b + threadIdx.x % 32 / 4 + 8 * h;
      m[b][h] = min(row, rows - 1), there[b][h] = row < rows;
    }
  write_rows(sum, out, args, m, there, y0, columns, row_of);
}
#elif SWAP
__device__ __forceinline__ void write_slice(const SUM_T (&sum)[BN / 2], SUM_T* staging, OUT_T* out, const EpilogueArgs& args, int x0,
                                            int y0, int rows, int columns, const RowMap& row_of) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
#pragma unroll
  for (int from = 0; from < BN; from += CHUNK) {
    if (rows <= y0 + from) break;
#pragma unroll
    for (int j = 0; j < CHUNK / 8; ++j) {
      const SUM_T* d = sum + (from / 8 + j) * 4;
      SUM_T* target = staging + (8 * j + c) * STAGING_ROW + g;
      target[0] = d[0], target[STAGING_ROW] = d[1], target[8] = d[2], target[STAGING_ROW + 8] = d[3];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < (2 * CHUNK + 31) / 32; ++i) {
      int vector = i * 32 + lane;
      if (2 * CHUNK % 32 == 0 || vector < 2 * CHUNK) {
        int row = vector / 2, column = vector % 2 * 8;
        SUM_T v[8];
        read_eight(v, staging + row * STAGING_ROW + column, lane);
        finish(v, out, args, y0 + from + row, x0 + column, rows, columns, row_of);
      }
    }
    __syncwarp();
  }
}
#else
__device__ __forceinline__ void write_slice(const SUM_T (&sum)[BN / 2], SUM_T* staging, OUT_T* out, const EpilogueArgs& args, int x0,
                                            int y0, int rows, int columns, const RowMap& row_of) {
  constexpr int WIDE = CHUNK / 8, AT_ONCE = 32 / WIDE, PASSES = 16 / AT_ONCE;  // vectors of a row, rows of a pass, passes
  // Passes whose loads all come before the first store, which might alias them; one where registers are short.
  constexpr int BATCH = MIN_BLOCKS > 1 && BN > 96 ? 1 : PASSES;
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int r = lane / WIDE, column = lane % WIDE * 8;
  SUM_T* to = staging + g * CHUNK + (c & 1) * 2;
  const SUM_T *low = staging + r * CHUNK + 4 * staged(r, column / 4), *high = staging + r * CHUNK + 4 * (staged(r, column / 4) ^ 1);
  const bool whole = x0 + 16 <= rows;
  const long long row = row_of(x0) + r;  // where rows follow each other
  OUT_T* target = out + row * OUT_ROW(columns) + y0 + column;
#pragma unroll
  for (int from = 0; from < BN; from += CHUNK) {
    if (columns <= y0 + from) break;
#pragma unroll
    for (int j = 0; j < CHUNK / 8; ++j)
      if (from + 8 * j < BN) {
        const SUM_T* d = sum + (from / 8 + j) * 4;
        SUM_T* place = to + 4 * staged(g, 2 * j + (c >> 1));
        *(Sum2*)place = Sum2{d[0], d[1]};
        *(Sum2*)(place + 8 * CHUNK) = Sum2{d[2], d[3]};
      }
    __syncwarp();
    if (from + column < BN && y0 + from + column < columns) {
      auto read = [&](SUM_T(&v)[8], int i) {
        const Sum4 a = *(const Sum4*)(low + i * AT_ONCE * CHUNK), b = *(const Sum4*)(high + i * AT_ONCE * CHUNK);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
      };
      if (VEC == 8 && whole && !ROWS_APART) {
#pragma unroll
        for (int from_pass = 0; from_pass < PASSES; from_pass += BATCH) {
          SUM_T own[BATCH][8];
          Finished v[BATCH][8];
#pragma unroll
          for (int i = 0; i < BATCH; ++i) read(own[i], from_pass + i);
#pragma unroll
          for (int i = 0; i < BATCH; ++i) finish_sums<8>(own[i], v[i], args, row + (from_pass + i) * AT_ONCE, y0 + from + column, columns);
#pragma unroll
          for (int i = 0; i < BATCH; ++i) store_finished<8>(target + (long long)((from_pass + i) * AT_ONCE) * OUT_ROW(columns) + from, v[i]);
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < PASSES; ++i) {
          SUM_T v[8];
          read(v, i);
          finish(v, out, args, x0 + r + i * AT_ONCE, y0 + from + column, rows, columns, row_of);
        }
      }
    }
    __syncwarp();
  }
}
#endif
#if !DIRECT
template <int BLOCKS>
__device__ __forceinline__ void write_slices(const SUM_T (&sum)[BLOCKS][BN / 2], SUM_T* staging, OUT_T* out, const EpilogueArgs& args, int x0,
                                             int y0, int rows, int columns, const RowMap& row_of) {
#pragma unroll
  for (int b = 0; b < BLOCKS; ++b) write_slice(sum[b], staging, out, args, x0 + 64 * b, y0, rows, columns, row_of);
}
#endif
