// Convolution with fused epilogue for sm_90a, channels last, stride 1, weights that stay in shared memory:
//   out[n, p, q, o] = epilogue(sum over r, s, c of in[n, p - pad_h + r, q - pad_w + s, c] * weight[o, r, s, c])
//
// For windows of several taps over few channels: as a plain implicit product (conv_sm90.cu) such a layer waits for shared memory to fill,
// since every pixel is fetched once a tap. Here TMA fetches a tile's patch of the image once, zeros around it, and every tap multiplies the
// same patch from another row on: rows of SWIZZLE bytes of channels follow one another pixel by pixel, and the swizzle hangs on the address.
// Tile: 128 positions of a patch `pitch` = tile_w + FILTER_W - 1 pixels wide, of which tile_h x tile_w are outputs, by BN channels, by one
// warpgroup; the block's two warpgroups take turns, so that one writes while the other multiplies. One producer warp; PATCHES patches ahead.
//
// Defines: those of include/sm90_epilogue.cuh with DIRECT = 1; IN_T (half or __nv_bfloat16), SLABS (64 channels each), FILTER_H, FILTER_W,
// PATCHES (even), EARLY (taps before its last that a warpgroup lets the other begin: tensor cores idle while the turn passes), MIN_BLOCKS, PDL.
// Arguments: `image` is a tiled 4-D map (c, w, h, n), its box 64 x pitch x (tile_h + FILTER_H - 1) x 1; `weight` is a tiled 3-D map
// (c, r * s, o), its box 64 x 1 x BN; `patch_bytes` a multiple of 1024 that holds the rows that 128 positions and all taps reach.
// Limits: channels a multiple of 64, outputs a multiple of 32, tile_h * pitch <= 128, pixels < 2^31.
// Source: PTX ISA, "matrix descriptor" and "cp.async.bulk.tensor".
#define WARPGROUPS 2
#include "division.cuh"
#include "pdl.cuh"
#include "sm90.cuh"
#include "sm90_epilogue.cuh"
#include "sm90_wgmma.cuh"

constexpr int POSITIONS = 128, MI = POSITIONS / 64;
constexpr int THREADS = WARPGROUPS * 128 + 32;
constexpr int TAPS = FILTER_H * FILTER_W;
constexpr int ROW = 128;                    // bytes of a row: 64 channels
constexpr int WEIGHT_TILE = BN * ROW;       // of one tap and slab
constexpr int WEIGHT_BYTES = TAPS * SLABS * WEIGHT_TILE;
static_assert(EARLY < TAPS);
static_assert(DIRECT && sizeof(IN_T) == 2 && PATCHES % WARPGROUPS == 0, "a patch's place always belongs to the same warpgroup");
static_assert(WEIGHT_BYTES < (1 << 20), "a barrier counts to 2^20");

// Tiles of an image, and of a row of them.
struct Tiles {
  Divider image, row;
};

// A tile's image, and the row and column of its first output.
struct Place {
  int n, y, x;
};
// Stops the compiler from working it out later than here.
__device__ __forceinline__ void hold(Place& place) { asm volatile("" : "+r"(place.n), "+r"(place.y), "+r"(place.x)); }

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
convolution_window(const __grid_constant__ TensorMap image, const __grid_constant__ TensorMap weight, OUT_T* out, int batch, int height,
                   int width, int outputs, int tile_h, int tile_w, int pad_h, int pad_w, int patch_bytes, const Tiles by,
                   const EpilogueArgs epilogue_args) {
  extern __shared__ __align__(1024) char shared[];
  const u32 weights = shared_address(shared), patches = weights + WEIGHT_BYTES;
  const u32 full = patches + PATCHES * SLABS * patch_bytes, empty = full + PATCHES * 8, ready = empty + PATCHES * 8;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int tiles = by.image.divisor * batch, pitch = tile_w + FILTER_W - 1, o0 = blockIdx.y * BN;
  auto place_of = [&](int tile) {
    u32 n = tile, i = by.image.split(n);
    const u32 j = by.row.split(i);
    return Place{(int)n, (int)i * tile_h, (int)j * tile_w};
  };

  if (warp == WARPGROUPS * 4) {
    const bool chosen = elect_one();
    if (chosen) {
      tensormap_prefetch(&image);
      tensormap_prefetch(&weight);
      for (int i = 0; i < PATCHES; ++i) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 1);
      barrier_init(ready, 1);
      barrier_init_fence();
    }
    __syncwarp();
    named_arrive<1>(THREADS);
    if (chosen) {
      barrier_expect(ready, WEIGHT_BYTES);
#pragma unroll 1
      for (int i = 0; i < TAPS * SLABS; ++i) tma_load(weights + i * WEIGHT_TILE, &weight, ready, i % SLABS * 64, i / SLABS, o0);
      const int bytes = SLABS * ROW * pitch * (tile_h + FILTER_H - 1);
      int place = 0;
      u32 parity = 1;
      Place at = place_of(blockIdx.x);
      hold(at);
      dependency_wait();
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, at = place_of(tile)) {
        const int n = at.n, x = at.x - pad_w, y = at.y - pad_h;
        barrier_wait(empty + 8 * place, parity);
        barrier_expect(full + 8 * place, bytes);
#pragma unroll
        for (int slab = 0; slab < SLABS; ++slab)
          tma_load(patches + (place * SLABS + slab) * patch_bytes, &image, full + 8 * place, slab * 64, x, y, n);
        if (++place == PATCHES) place = 0, parity ^= 1;
        if (tile == (int)blockIdx.x) dependents_launch();
      }
    }
  } else {
    const int group = warp / 4;
    // Where the thread's rows lie in a tile, always the same.
    int y[MI][2], x[MI][2];
#pragma unroll
    for (int b = 0; b < MI; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int position = b * 64 + warp % 4 * 16 + lane / 4 + 8 * h;
        y[b][h] = position / pitch, x[b][h] = position - y[b][h] * pitch;
        if (x[b][h] >= tile_w || y[b][h] >= tile_h) y[b][h] = height;  // no output
      }
    const u64 constant = matrix_descriptor<128>(16, 8 * ROW), rows = constant | descriptor_start(weights);
    pdl_prefetch_constants(epilogue_args, outputs);
    pdl_prefetch_columns(epilogue_args, o0, min(BN, outputs - o0), threadIdx.x);
    named_sync<1>(THREADS);
    dependency_wait();
    barrier_wait(ready, 0);
    int place = group;
    u32 parity = 0;
    for (int tile = blockIdx.x + group * gridDim.x; tile < tiles; tile += WARPGROUPS * gridDim.x) {
      Place at = place_of(tile);
      hold(at);
      u64 pixels = constant | descriptor_start(patches + place * SLABS * patch_bytes);
      asm volatile("" : "+l"(pixels));
      if (tile != (int)blockIdx.x) group == 0 ? named_sync<2>(256) : named_sync<3>(256);
      barrier_wait(full + 8 * place, parity);
      float sum[MI][BN / 2];
      auto pass = [&] {
        if (tile + (int)gridDim.x < tiles) group == 0 ? named_arrive<3>(256) : named_arrive<2>(256);
      };
      wgmma_fence();
#pragma unroll
      for (int r = 0; r < FILTER_H; ++r)
#pragma unroll
        for (int s = 0; s < FILTER_W; ++s)
#pragma unroll
          for (int slab = 0; slab < SLABS; ++slab) {
            if (EARLY && slab == 0 && r * FILTER_W + s == TAPS - EARLY) pass();
            const u64 from = pixels + (u64)((slab * patch_bytes + (r * pitch + s) * ROW) >> 4);
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
              for (int b = 0; b < MI; ++b)
                Mma<IN_T>::step<0, 0>(sum[b], from + (u64)((b * 64 * ROW + k * 32) >> 4),
                                      rows + (u64)((((r * FILTER_W + s) * SLABS + slab) * WEIGHT_TILE + k * 32) >> 4), r + s + slab + k > 0);
          }
      wgmma_commit();
      if (!EARLY) pass();
      wgmma_wait<0>();
      if (warp % 4 == 0 && lane == 0) barrier_arrive(empty + 8 * place);
#pragma unroll
      for (int b = 0; b < MI; ++b)
#pragma unroll
        for (int k = 0; k < BN / 2; ++k) asm volatile("" : "+f"(sum[b][k])::"memory");

      int m[MI][2];
      bool there[MI][2];
#pragma unroll
      for (int b = 0; b < MI; ++b)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          there[b][h] = at.y + y[b][h] < height && at.x + x[b][h] < width;
          m[b][h] = there[b][h] ? (at.n * height + at.y + y[b][h]) * width + at.x + x[b][h] : 0;
        }
      write_rows(sum, out, epilogue_args, m, there, o0, outputs, RowMap{0});
      place += WARPGROUPS;
      if (place >= PATCHES) place -= PATCHES, parity ^= 1;
    }
  }
}
