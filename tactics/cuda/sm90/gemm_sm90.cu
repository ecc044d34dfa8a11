// Matrix product with fused epilogue for sm_90a: out[b, m, n] = epilogue(sum over k of A[b, m, k] * B[b, n, k]  or  B[b, k, n]).
//
// Tile: BM x BN x SWIZZLE bytes of K, from TMA and wgmma; see include/sm90_pipeline.cuh for the schedule and every define.
// B_KN = 0: B is stored [N, K] (weights are packed so); B_KN = 1: [K, N]. A_KM = 1: A is stored [K, M].
// Arguments: `a` and `b` are tiled 3-D maps (contiguous dimension, rows, batch; batch 1 and step 0 for a shared operand) whose box
// is the K of a stage by the rows a block loads, K contiguous, or 64 rows (SWIZZLE of Y for B) by the K of a stage, rows contiguous.
// With HAS_PROLOGUE (16-bit types, A_KM = SWAP = 0) a warpgroup applies a function to its rows of A (prologue.cuh) before it multiplies them.
// ROWS_APART = 1: a deconvolution whose windows do not overlap, one product for each of the stride_y * stride_x phases (batches, phase x first):
// row m is a pixel of the input, `width` to a line, and its results are the phase's pixel of the output.
// Limits: contiguous dimensions a multiple of 16 bytes (TMA strides), m, n, k < 2^31, the output dense [batches, m, n].

#ifndef B_KN
#define B_KN 0
#endif
#ifndef A_KM
#define A_KM 0
#endif
#ifndef SWAP
#define SWAP 0
#endif
#define X_MN (SWAP ? B_KN : A_KM)
#define Y_MN (SWAP ? A_KM : B_KN)
#if ROWS_APART
// Batches are the phases of a deconvolution whose windows do not overlap, rows its input pixels: where each writes its pixel.
struct RowMap {
  int width, stride_x, phase_x, stride_y, phase_y;  // width: of the input
  __device__ __forceinline__ long long operator()(int m) const {
    const int line = m / width;
    return (static_cast<long long>(line) * stride_y + phase_y) * (width * stride_x) + (m - line * width) * stride_x + phase_x;
  }
};
#endif
#include "prologue.cuh"
#include "sm90_pipeline.cuh"
#include "swizzle.cuh"

struct Gemm {
  struct Cursor {
    int k;
  };
  const TensorMap *x_map, *y_map;
  int rows, columns, batches, iterations, x_batch, y_batch;
  int x_row, x_z, y_row, y_z;
  Share share;
#if ROWS_APART
  int width, stride_y, stride_x;
  __device__ __forceinline__ RowMap row_map(int batch) const { return {width, stride_x, batch % stride_x, stride_y, batch / stride_x}; }
#endif

  __device__ __forceinline__ void prefetch() {
    tensormap_prefetch(x_map);
    tensormap_prefetch(y_map);
  }
  __device__ __forceinline__ void start(Tile tile, Share own) {
    x_row = tile.x * BM, x_z = tile.batch * x_batch, y_row = tile.y * BN, y_z = tile.batch * y_batch, share = own;
  }
  __device__ __forceinline__ Cursor at(int i) { return {i * BK}; }
  __device__ __forceinline__ void next(Cursor& cursor) { cursor.k += BK; }

  // One operand's stage: ROWS rows, of which PARTS blocks of the cluster load one part each and give it to those of `mask`.
  template <int ROWS, int MN, int WIDTH, int PARTS>
  __device__ __forceinline__ void load(u32 target, const TensorMap* map, u32 barrier, int k, int row, int z, u32 part,
                                       unsigned short mask) {
    constexpr int BOX = MN ? WIDTH / (int)sizeof(IN_T) : ROWS / PARTS;  // rows in one box
    constexpr int BOXES = ROWS / PARTS / BOX;
    constexpr int BYTES = BOX * BK * (int)sizeof(IN_T);
    static_assert(ROWS % (PARTS * BOX) == 0 && BOX <= 256, "parts are whole boxes");
#pragma unroll
    for (int i = 0; i < BOXES; ++i) {
      const int box = (PARTS > 1 ? (int)part * BOXES : 0) + i;
      const int x = MN ? row + box * BOX : k, y = MN ? k : row + box * BOX;
      if constexpr (PARTS > 1) tma_load_multicast(target + box * BYTES, map, barrier, x, y, z, mask);
      else tma_load(target + box * BYTES, map, barrier, x, y, z);
    }
  }
  __device__ __forceinline__ void load_x(u32 target, u32 barrier, Cursor cursor) {
    load<BM, X_MN, 128, CLUSTER_Y>(target, x_map, barrier, cursor.k, x_row, x_z, share.part_x, share.mask_x);
  }
  __device__ __forceinline__ void load_y(u32 target, u32 barrier, Cursor cursor) {
    load<BN, Y_MN, Y_SWIZZLE, CLUSTER_X>(target, y_map, barrier, cursor.k, y_row, y_z, share.part_y, share.mask_y);
  }
#ifdef HAS_PROLOGUE
  before::EpilogueArgs before_args;
  int depth;

  __device__ __forceinline__ void prefetch_change() { prefetch_prologue(before_args, 0, depth); }

  // What TMA filled up with zeros stays zero.
  __device__ __forceinline__ void change_x(char* stage, int row, int batch, int i) {
    constexpr int CHUNKS = SWIZZLE / 16, STEP = 128 / CHUNKS, TOGETHER = MIN_BLOCKS > 1 || STEP > 16 ? 2 : 4;
    const int chunk = threadIdx.x % CHUNKS, first = threadIdx.x % 128 / CHUNKS, k = i * BK + chunk * 8;
    if (k >= depth) return;
    const long long first_row = static_cast<long long>(batch * x_batch) * rows;
#pragma unroll
    for (int from = 0; from < 64 * MI; from += TOGETHER * STEP) {
      uint4 value[TOGETHER];
#pragma unroll
      for (int t = 0; t < TOGETHER; ++t)  // all loads first: operands that the rows share are then read once
        value[t] = *reinterpret_cast<const uint4*>(stage + swizzled<CHUNKS>(from + t * STEP + first, chunk));
#pragma unroll
      for (int t = 0; t < TOGETHER; ++t) {
        const int m = row + from + t * STEP + first;
        if (m < rows) prologue_chunk<IN_T, 8>(value[t], before_args, first_row + m, k, 8, depth);
      }
#pragma unroll
      for (int t = 0; t < TOGETHER; ++t) *reinterpret_cast<uint4*>(stage + swizzled<CHUNKS>(from + t * STEP + first, chunk)) = value[t];
    }
  }
#endif
};

extern "C" __global__ void
#if CLUSTER_X * CLUSTER_Y * SPLIT > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS, MIN_BLOCKS)
gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, OUT_T* out, int m, int n, int k, int batches,
     int a_batch, int b_batch,
#if ROWS_APART
     int width, int stride_y, int stride_x,
#endif
     const TileOrder order, const EpilogueArgs epilogue_args PROLOGUE_PARAMETER) {
  Gemm problem;
  problem.x_map = SWAP ? &b : &a, problem.y_map = SWAP ? &a : &b;
  problem.x_batch = SWAP ? b_batch : a_batch, problem.y_batch = SWAP ? a_batch : b_batch;
  problem.rows = m, problem.columns = n, problem.batches = batches, problem.iterations = (k + BK - 1) / BK;
#if ROWS_APART
  problem.width = width, problem.stride_y = stride_y, problem.stride_x = stride_x;
#endif
#ifdef HAS_PROLOGUE
  problem.before_args = before_args, problem.depth = k;
#endif
  run(problem, order, out, epilogue_args);
}
