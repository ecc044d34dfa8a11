// Convolution with fused epilogue for sm_90a, channels last, as an implicit matrix product:
//   out[n, p, q, o] = epilogue(sum over r, s, c of in[n, p * stride_h - pad_h + r * dilation_h, q * ..., c] * weight[o, r, s, c])
//
// Rows are output pixels, columns output channels, K runs over (r, s, c). Tile: BM x BN x SWIZZLE bytes of channels; the pixels come
// from TMA's im2col mode, which does stride, padding and dilation; see include/sm90_pipeline.cuh for the schedule and every define.
// Arguments: `image` is a 4-D im2col map (c, w, h, n) of the input, its box corner -pad and pad_end - dilation * (filter - 1), its
// traversal stride the convolution's, pixels per column the rows a block loads, channels per pixel SWIZZLE bytes; `weight` is a tiled
// 3-D map (c, r * s, o) whose box is SWIZZLE bytes by 1 by the columns a block loads.
// Limits: channels a multiple of 16 bytes, stride <= 8, pads and dilation * (filter - 1) within a signed byte, pixels < 2^31.
// Source: CUDA driver API, cuTensorMapEncodeIm2col; PTX ISA, "im2col mode".
#include "sm90_pipeline.cuh"
static_assert(!X_MN && !Y_MN && !SWAP, "channels are contiguous in both operands, pixels are the rows");

// Of the output, of the filter, and of K: taps with taps_inner, else stages of channels.
struct Divisors {
  Divider height, width, filter_w, inner;
};

struct Convolution {
  struct Cursor {
    int c, s, r;
  };
  // Where the image is larger than the weights (taps_inner), all taps of a stage's channels come before the next channels: of the image
  // the first stages want only a part from memory, the rest follows while they multiply. Else weights are read as they lie.
  const TensorMap *image, *weight;
  int rows, columns, batches, iterations;
  int taps_inner, taps, channels, filter_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  Divisors by;
  int pixel_w, pixel_h, pixel_n, column;
  Share share;

  __device__ __forceinline__ void prefetch() {
    tensormap_prefetch(image);
    tensormap_prefetch(weight);
  }
  __device__ __forceinline__ void start(Tile tile, Share own) {
    share = own;
    u32 n = tile.x * BM + share.part_x * (BM / CLUSTER_Y);
    pixel_w = by.width.split(n) * stride_w - pad_w, pixel_h = by.height.split(n) * stride_h - pad_h, pixel_n = n;
    column = tile.y * BN + (int)share.part_y * (BN / CLUSTER_X);
  }
  __device__ __forceinline__ Cursor at(int i) {
    u32 outer = i, inner = by.inner.split(outer), r = taps_inner ? inner : outer;
    const int block = taps_inner ? outer : inner, s = by.filter_w.split(r);
    return {block * BK, s, (int)r};
  }
  __device__ __forceinline__ void next(Cursor& cursor) {
    if (!taps_inner) {
      cursor.c += BK;
      if (cursor.c < channels) return;
      cursor.c = 0;
    }
    if (++cursor.s < filter_w) return;
    cursor.s = 0, ++cursor.r;
    if (taps_inner && cursor.r * filter_w == taps) cursor.r = 0, cursor.c += BK;
  }
  __device__ __forceinline__ void load_x(u32 target, u32 barrier, Cursor at) {
    const unsigned short offset_w = at.s * dilation_w, offset_h = at.r * dilation_h;
    if constexpr (CLUSTER_Y > 1)
      tma_load_im2col_multicast(target + share.part_x * (X_BYTES / CLUSTER_Y), image, barrier, at.c, pixel_w, pixel_h, pixel_n, offset_w,
                                offset_h, share.mask_x);
    else tma_load_im2col(target, image, barrier, at.c, pixel_w, pixel_h, pixel_n, offset_w, offset_h);
  }
  __device__ __forceinline__ void load_y(u32 target, u32 barrier, Cursor at) {
    const int tap = at.r * filter_w + at.s;
    if constexpr (CLUSTER_X > 1)
      tma_load_multicast(target + share.part_y * (Y_BYTES / CLUSTER_X), weight, barrier, at.c, tap, column, share.mask_y);
    else tma_load(target, weight, barrier, at.c, tap, column);
  }
};

extern "C" __global__ void
#if CLUSTER_X * CLUSTER_Y * SPLIT > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS, MIN_BLOCKS)
convolution(const __grid_constant__ TensorMap image, const __grid_constant__ TensorMap weight, OUT_T* out, int pixels, int outputs,
            int channels, int taps, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int taps_inner,
            const Divisors by, const TileOrder order, const EpilogueArgs epilogue_args) {
  Convolution problem;
  problem.image = &image, problem.weight = &weight;
  problem.rows = pixels, problem.columns = outputs, problem.batches = 1;
  problem.taps_inner = taps_inner, problem.taps = taps, problem.channels = channels, problem.filter_w = by.filter_w.divisor, problem.by = by;
  problem.iterations = problem.taps * ((channels + BK - 1) / BK);
  problem.stride_h = stride_h, problem.stride_w = stride_w, problem.pad_h = pad_h, problem.pad_w = pad_w;
  problem.dilation_h = dilation_h, problem.dilation_w = dilation_w;
  run(problem, order, out, epilogue_args);
}
