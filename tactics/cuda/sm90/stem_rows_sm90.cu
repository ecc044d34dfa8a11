// Convolution of an image with few channels for sm_90a, with fused epilogue: as stem_sm90.cu, where TMA can read the image's rows.
//   out[n, p, q, o] = epilogue(sum over r, s, c of in[n, p * STRIDE_H - PAD_H + r, q * STRIDE_W - PAD_W + s, c] * weight[o, r, s, c])
//
// Tile: 4 * WARPGROUPS output rows x 16 output columns x BN channels, one warp an output row. TMA copies the image's rows that a tile needs
// as they lie in memory, zeros around them, PATCHES tiles deep; no thread touches a pixel before it is a factor. K runs over the values that
// a window takes from each row of the image (of each plane with NCHW), LEAD values before it and up to a multiple of 8 behind it, whose
// weights are zero: so a thread's pairs of K are whole words, and their addresses beside the pixel's are constants. The weights stay in
// shared memory while the block walks its tiles.
//
// Defines: those of include/sm90_epilogue.cuh; IN_T (half or __nv_bfloat16), NCHW (1: the image is [n, c, h, w]), CHANNELS, FILTER_H,
// FILTER_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, WARPGROUPS, PATCHES, MIN_BLOCKS, PDL.
// Arguments: `image` is a tiled map without swizzle, of (w * c, h, n), its box WIDTH x PATCH_H x 1, or with NCHW of (w, h, c, n), its box
// WIDTH x PATCH_H x CHANNELS x 1; `weight` is packed [tile of BN outputs][HALVES, even][BN / 8][8 outputs][8 values of K].
// Limits: rows of the image a multiple of 16 bytes, STRIDE_W * c even, pixels < 2^31; an infinite pixel also spoils its neighbours in the
// row, as far as the zero weights reach.
// Source: PTX ISA, "wgmma, register fragments", "matrix descriptor" and "cp.async.bulk.tensor".
#include "pdl.cuh"
#include "sm90.cuh"
#include "sm90_epilogue.cuh"
#include "sm90_wgmma.cuh"

#ifndef MIN_BLOCKS
#define MIN_BLOCKS 1
#endif

constexpr int THREADS = WARPGROUPS * 128;
constexpr int TILE_H = 4 * WARPGROUPS, TILE_W = 16;
constexpr int TOGETHER = NCHW ? 1 : CHANNELS;             // values of a pixel that lie together
constexpr int START = -((PAD_W * TOGETHER + 7) / 8 * 8);    // where the first column's patch begins in a row of the image: 16-byte steps
constexpr int SHIFT = -PAD_W * TOGETHER - START;            // from there to its window
constexpr int LEAD = SHIFT % 2;                             // values before the window, so that pairs are whole words
constexpr int ROW_K = (LEAD + FILTER_W * TOGETHER + 7) / 8 * 8;
constexpr int IMAGE_ROWS = FILTER_H * (NCHW ? CHANNELS : 1);
constexpr int USED = IMAGE_ROWS * (ROW_K / 8), HALVES = (USED + 1) / 2 * 2, STEPS = HALVES / 2;  // eights of K; wgmma instructions
constexpr int WIDTH = (SHIFT - LEAD + (TILE_W - 1) * STRIDE_W * TOGETHER + ROW_K + 7) / 8 * 8;
constexpr int PATCH_H = (TILE_H - 1) * STRIDE_H + FILTER_H;
constexpr int BOX_BYTES = WIDTH * 2 * PATCH_H * (NCHW ? CHANNELS : 1);
constexpr int PATCH_BYTES = (BOX_BYTES + 127) / 128 * 128;
constexpr int AT_ONCE = BN > 64 ? 8 : MIN_BLOCKS * WARPGROUPS > 4 ? 6 : 12;  // steps whose X fragments are in registers together
constexpr int WEIGHT_BYTES = HALVES * BN * 16;
constexpr int STAGING_BYTES = DIRECT ? 0 : WARPGROUPS * 4 * STAGING_WARP * 4;
constexpr int SHARED_BYTES = PATCHES * PATCH_BYTES + WEIGHT_BYTES + STAGING_BYTES + (PATCHES + 1) * 8;
static_assert(STRIDE_W * TOGETHER % 2 == 0 && WIDTH <= 256 && PATCH_H <= 256, "pairs of pixels' values are words, a box has 256 rows");
static_assert(CHANNELS >= 1 && CHANNELS <= 4 && PATCHES >= 2 && SHARED_BYTES <= 227 * 1024, "few channels, and patches that fit");

// A tile's place: its image, and its row and column among the image's tiles. Steps add up with carries: no divisions.
struct Place {
  int n, i, j;
  __device__ __forceinline__ Place(int tile, int across, int down) {
    n = tile / (across * down);
    const int rest = tile - n * across * down;
    i = rest / across, j = rest - i * across;
  }
  __device__ __forceinline__ void step(const Place& by, int across, int down) {
    n += by.n, i += by.i, j += by.j;
    if (j >= across) j -= across, ++i;
    if (i >= down) i -= down, ++n;
  }
};

// The offset in a patch of the eight values `half` of K, in bytes.
__device__ __forceinline__ constexpr int offset_of(int half) {
  const int row = half / (ROW_K / 8), at = half % (ROW_K / 8);
  const int line = NCHW ? row / FILTER_H * PATCH_H + row % FILTER_H : row;
  return half < USED ? line * WIDTH * 2 + at * 16 : 0;
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
convolution_stem_rows(const __grid_constant__ TensorMap image, const IN_T* __restrict__ weight, OUT_T* out, int batch, int out_h, int out_w,
                      int outputs, const EpilogueArgs epilogue_args) {
  extern __shared__ __align__(1024) char shared[];
  float* staging = (float*)(shared + PATCHES * PATCH_BYTES + WEIGHT_BYTES);
  const u32 patches = shared_address(shared), weights = patches + PATCHES * PATCH_BYTES;
  const u32 full = weights + WEIGHT_BYTES + STAGING_BYTES, ready = full + PATCHES * 8;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int across = (out_w + TILE_W - 1) / TILE_W, down = (out_h + TILE_H - 1) / TILE_H;
  const int tiles = across * down * batch;  // of one range of BN outputs; blockIdx.y is the range
  const int o0 = blockIdx.y * BN;
  const Place step(gridDim.x, across, down);
  Place place(blockIdx.x, across, down), ahead = place;

  auto load = [&](int slot) {  // the patch of the tile `ahead`, and on to the next
    const u32 barrier = full + 8 * slot, target = patches + slot * PATCH_BYTES;
    const int x = ahead.j * (TILE_W * STRIDE_W * TOGETHER) + START, y = ahead.i * (TILE_H * STRIDE_H) - PAD_H;
    barrier_expect(barrier, BOX_BYTES);
    if constexpr (NCHW) tma_load(target, &image, barrier, x, y, 0, ahead.n);
    else tma_load(target, &image, barrier, x, y, ahead.n);
    ahead.step(step, across, down);
  };
  if (threadIdx.x == 0) {
    tensormap_prefetch(&image);
    for (int i = 0; i < PATCHES; ++i) barrier_init(full + 8 * i, 1);
    barrier_init(ready, 1);
    barrier_init_fence();
    barrier_expect(ready, WEIGHT_BYTES);
    bulk_load(weights, (const char*)weight + (long long)blockIdx.y * WEIGHT_BYTES, WEIGHT_BYTES, ready);
  }
  pdl_prefetch_constants(epilogue_args, outputs);
  dependency_wait();
  if (threadIdx.x == 0)
    for (int i = 0; i < PATCHES - 1; ++i)
      if ((int)(blockIdx.x + i * gridDim.x) < tiles) load(i);
  dependents_launch();
  __syncthreads();  // the barriers are initialised
  barrier_wait(ready, 0);

  const u32 mine = 2 * (warp * STRIDE_H * WIDTH + lane / 4 * (STRIDE_W * TOGETHER) + SHIFT - LEAD) + 4 * (lane % 4);
  int slot = 0;
  u32 parity = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    barrier_wait(full + 8 * slot, parity);
    __syncthreads();  // all have read the patch of the turn before, which the next load overwrites
    if (threadIdx.x == 0 && tile + (PATCHES - 1) * (long long)gridDim.x < tiles) load(slot == 0 ? PATCHES - 1 : slot - 1);

    float sum[1][BN / 2];
    const char* pixel = shared + slot * PATCH_BYTES + mine;
#pragma unroll
    for (int from = 0; from < STEPS; from += AT_ONCE) {
      u32 x[AT_ONCE][4];
#pragma unroll
      for (int i = 0; i < AT_ONCE && from + i < STEPS; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const char* at = pixel + offset_of(2 * (from + i) + h);
          x[i][2 * h] = *(const u32*)at, x[i][2 * h + 1] = *(const u32*)(at + 16 * STRIDE_W * TOGETHER);
        }
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < AT_ONCE && from + i < STEPS; ++i)
        Mma<IN_T>::step_registers(sum[0], x[i], plain_descriptor(BN * 16, 128) | descriptor_start(weights + (from + i) * BN * 32), from + i > 0);
      wgmma_commit();
      wgmma_wait<0>();
    }
#pragma unroll
    for (int k = 0; k < BN / 2; ++k) asm volatile("" : "+f"(sum[0][k])::"memory");

    const int p = place.i * TILE_H + warp, q0 = place.j * TILE_W;
    const int line = (place.n * out_h + p) * out_w;  // the first pixel of this warp's output row
    write_slices(sum, staging + warp * STAGING_WARP, out, epilogue_args, line + q0, o0, p < out_h ? line + out_w : 0, outputs, RowMap{0});
    place.step(step, across, down);
    if (++slot == PATCHES) slot = 0, parity ^= 1;
  }
}
