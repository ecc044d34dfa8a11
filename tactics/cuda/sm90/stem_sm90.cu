// Convolution of an image with few channels (CHANNELS <= 4) for sm_90a, with fused epilogue: the first layer of a network.
//   out[n, p, q, o] = epilogue(sum over r, s, c of in[n, p * STRIDE_H - PAD_H + r, q * STRIDE_W - PAD_W + s, c] * weight[o, r, s, c])
//
// Tile: 4 * WARPGROUPS output rows x 16 output columns x BN channels. A block copies the patch of the image that its tile needs into
// shared memory as four channels of IN_T a pixel; a wgmma multiplies four taps of a filter row (16 values of K) whose X fragment a
// thread reads as one pixel a row, straight from the patch; the weights stay in shared memory while the block walks its tiles.
// The next tile's pixels are read while this one multiplies.
//
// Defines: those of include/sm90_epilogue.cuh; IN_T (half or __nv_bfloat16), IMAGE_T (type of the image in memory, also float), NCHW
// (1: the image is [n, c, h, w]), CHANNELS, FILTER_H, FILTER_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, WARPGROUPS, MIN_BLOCKS, PDL.
// Arguments: `weight` is packed [tile of BN outputs][r][ceil(FILTER_W / 4)][c / 2][BN / 8][8 outputs][4 taps][c % 2], absent taps, channels and
// outputs zero (wgmma's layout without swizzle). Limits: h, w, pixels < 2^31; an infinite pixel also spoils its neighbours to the left,
// within ceil(FILTER_W / 4) * 4 - FILTER_W columns (an absent tap multiplies it by zero).
// Source: PTX ISA, "wgmma, register fragments" and "matrix descriptor".
#include "pdl.cuh"
#include "sm90.cuh"
#include "sm90_epilogue.cuh"
#include "sm90_wgmma.cuh"

#ifndef NCHW
#define NCHW 0
#endif
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 1
#endif

constexpr int THREADS = WARPGROUPS * 128;
constexpr int TILE_H = 4 * WARPGROUPS, TILE_W = 16;
constexpr int TAPS = (FILTER_W + 3) / 4;  // groups of four taps in a filter row
constexpr int STEPS = FILTER_H * TAPS;
constexpr int AT_ONCE = 8;  // steps whose X fragments are in registers together
constexpr int PATCH_H = (TILE_H - 1) * STRIDE_H + FILTER_H, PATCH_W = (TILE_W - 1) * STRIDE_W + TAPS * 4;
constexpr int PATCH = PATCH_H * PATCH_W;
constexpr int PIXELS = (PATCH + THREADS - 1) / THREADS;  // of a thread
constexpr int STEP_BYTES = BN * 32;
constexpr int WEIGHT_BYTES = STEPS * STEP_BYTES;
constexpr int SHARED_BYTES = WEIGHT_BYTES + (PATCH * 8 + 15) / 16 * 16 + WARPGROUPS * 4 * STAGING_WARP * 4 + 16;
static_assert(CHANNELS >= 1 && CHANNELS <= 4 && SHARED_BYTES <= 227 * 1024, "few channels, and a patch that fits");

struct Pixel {
  IN_T channel[4];
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
convolution_stem(const IMAGE_T* __restrict__ image, const IN_T* __restrict__ weight, OUT_T* out, int batch, int in_h, int in_w,
                 int out_h, int out_w, int outputs, const EpilogueArgs epilogue_args) {
  extern __shared__ __align__(1024) char shared[];
  uint2* patch = (uint2*)(shared + WEIGHT_BYTES);
  float* staging = (float*)(shared + WEIGHT_BYTES + (PATCH * 8 + 15) / 16 * 16);
  const u32 weights = shared_address(shared), ready = weights + SHARED_BYTES - 16;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int across = (out_w + TILE_W - 1) / TILE_W, down = (out_h + TILE_H - 1) / TILE_H;
  const int tiles = across * down * batch;  // of one range of BN outputs; blockIdx.y is the range
  const int o0 = blockIdx.y * BN;

  if (threadIdx.x == 0) {
    barrier_init(ready, 1);
    barrier_init_fence();
    barrier_expect(ready, WEIGHT_BYTES);
    bulk_load(weights, (const char*)weight + (long long)blockIdx.y * WEIGHT_BYTES, WEIGHT_BYTES, ready);
  }
  pdl_prefetch_constants(epilogue_args, outputs);
  dependency_wait();

  Pixel next[PIXELS];
  auto read = [&](int tile) {  // this thread's pixels of a tile's patch
    const int n = tile / (across * down), rest = tile - n * across * down;
    const int h0 = rest / across * TILE_H * STRIDE_H - PAD_H, w0 = rest % across * TILE_W * STRIDE_W - PAD_W;
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      const int index = i * THREADS + threadIdx.x, h = h0 + index / PATCH_W, w = w0 + index % PATCH_W;
      const bool inside = h >= 0 && h < in_h && w >= 0 && w < in_w && index < PATCH;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float value = 0.f;
        if (c < CHANNELS && inside) {
          const long long at = NCHW ? (((long long)n * CHANNELS + c) * in_h + h) * in_w + w : (((long long)n * in_h + h) * in_w + w) * CHANNELS + c;
          value = to_float(image[at]);
        }
        next[i].channel[c] = from_float<IN_T>(value);
      }
    }
  };
  if (blockIdx.x < tiles) read(blockIdx.x);
  dependents_launch();
  __syncthreads();  // the barrier is initialised
  barrier_wait(ready, 0);

  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      const int index = i * THREADS + threadIdx.x;
      if (index < PATCH) patch[index] = *(const uint2*)&next[i];
    }
    __syncthreads();
    if (tile + gridDim.x < tiles) read(tile + gridDim.x);

    float sum[1][BN / 2];
    const uint2* mine = patch + warp * STRIDE_H * PATCH_W + lane / 4 * STRIDE_W + lane % 4;
#pragma unroll
    for (int from = 0; from < STEPS; from += AT_ONCE) {
      u32 x[AT_ONCE][4];
#pragma unroll
      for (int i = 0; i < AT_ONCE && from + i < STEPS; ++i) {
        const uint2* at = mine + (from + i) / TAPS * PATCH_W + (from + i) % TAPS * 4;
        const uint2 a = at[0], b = at[8 * STRIDE_W];
        x[i][0] = a.x, x[i][1] = b.x, x[i][2] = a.y, x[i][3] = b.y;
      }
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < AT_ONCE && from + i < STEPS; ++i)
        Mma<IN_T>::step_registers(sum[0], x[i], plain_descriptor(BN * 16, 128) | descriptor_start(weights + (from + i) * STEP_BYTES),
                                  from + i > 0);
      wgmma_commit();
      wgmma_wait<0>();
    }
#pragma unroll
    for (int k = 0; k < BN / 2; ++k) asm volatile("" : "+f"(sum[0][k])::"memory");
    __syncthreads();  // the patch has been read

    const int n = tile / (across * down), rest = tile - n * across * down;
    const int p = rest / across * TILE_H + warp, q0 = rest % across * TILE_W;
    const int line = (n * out_h + p) * out_w;  // the first pixel of this warp's output row
    write_slices(sum, staging + warp * STAGING_WARP, out, epilogue_args, line + q0, o0, p < out_h ? line + out_w : 0, outputs, RowMap{0});
  }
}
