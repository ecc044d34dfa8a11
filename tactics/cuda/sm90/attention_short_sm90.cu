// Fused attention for sm_90a and short sequences: out = softmax(scale * q k^T + mask) v, fp16 or bf16, all keys of a head at once.
//
// A block computes 64 query rows of one (batch, head). All its keys and values lie in shared memory, so there is one product,
// one softmax over whole rows and one more product: no ring, no rescaling. Several blocks share a multiprocessor, and one's
// exponentials run beside another's products and copies.
//
// Defines: IN_T (half or __nv_bfloat16), HEAD (32, 64 or 128), KEYS (a multiple of 16, at most 256; s_k <= KEYS), MIN_BLOCKS (of a
// multiprocessor), CAUSAL (1 keeps key t <= s + s_k - s_q), PDL;
// MASK (0 none; 1 additive of type MASK_T; 2 boolean bytes, true keeps), strides in elements, 0 broadcasts; MASK_ROWS = 0: one row
// serves all queries of a head.
// Arguments: q, k, v are 4-D tiled maps (head dimension, position, head, batch), box PANEL columns x rows, swizzle 2 * PANEL bytes, where
// PANEL is min(HEAD, 64); `out` has any strides of batch, head and position that are multiples of 8 elements, its head dimension
// contiguous. heads_per_kv query heads share one key/value head; scale_log2 is the scale times log2(e), positive without a mask. Rows
// without any key give zeros.
// Grid: x = heads, y = ceil(s_q / 64), z = batch; block 128; dynamic shared memory SHARED_BYTES.
#include "sm90.cuh"
#define WGMMA_N KEYS
#include "sm90_wgmma.cuh"
#include "sm90_attention.cuh"
#include "attention_mask.cuh"

constexpr int ROWS = 64, THREADS = 128;
constexpr int PANEL = HEAD < 64 ? HEAD : 64, PANELS = HEAD / PANEL, WIDTH = 2 * PANEL;  // columns that lie together, bytes of their row
constexpr int Q_BYTES = ROWS * HEAD * 2, KV_BYTES = KEYS * HEAD * 2;
constexpr int BIAS_BYTES = MASK && !MASK_ROWS ? KEYS * 4 : 0;
constexpr int SHARED_BYTES = Q_BYTES + 2 * KV_BYTES + BIAS_BYTES + 16;
constexpr float LOG2E = 1.4426950408889634f;
static_assert(HEAD % 32 == 0 && (HEAD < 64 || HEAD % 64 == 0) && KEYS % 16 == 0 && KEYS <= 256 && SHARED_BYTES <= 227 * 1024,
              "tiles that wgmma and shared memory take");

// What a score in units of log2 gets added for the mask's element `at`.
__device__ __forceinline__ float mask_value(const void* mask, long long at) {
  const Masked found = ((const Masked*)mask)[at];
#if MASK == 1
  return scaled_mask(found, LOG2E);
#else
  return found ? 0.f : minus_infinity();
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
attention_short_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                     const __grid_constant__ TensorMap v_map, const void* __restrict__ mask, OUT_T* __restrict__ out, int heads_per_kv,
                     int s_q, int s_k, const Strides out_stride, const Strides mask_stride, int mask_k, float scale_log2) {
  extern __shared__ __align__(1024) char shared[];
  const u32 q_base = shared_address(shared), k_base = q_base + Q_BYTES, v_base = k_base + KV_BYTES;
  float* const bias = (float*)(shared + Q_BYTES + 2 * KV_BYTES);
  const u32 k_full = v_base + KV_BYTES + BIAS_BYTES, v_full = k_full + 8;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int head = blockIdx.x, q0 = blockIdx.y * ROWS, batch = blockIdx.z;
  const int reach = s_k - s_q;  // causal: key t is visible from row s when t <= s + reach

  if (threadIdx.x == 0) {
    barrier_init(k_full, 1), barrier_init(v_full, 1);
    barrier_init_fence();
    tensormap_prefetch(&q_map), tensormap_prefetch(&k_map), tensormap_prefetch(&v_map);
    dependency_wait();
    const int kv_head = head / heads_per_kv;
    barrier_expect(k_full, Q_BYTES + KV_BYTES);
#pragma unroll
    for (int i = 0; i < PANELS; ++i) {
      tma_load(q_base + i * ROWS * WIDTH, &q_map, k_full, i * PANEL, q0, head, batch);
      tma_load(k_base + i * KEYS * WIDTH, &k_map, k_full, i * PANEL, 0, kv_head, batch);
    }
    barrier_expect(v_full, KV_BYTES);
#pragma unroll
    for (int i = 0; i < PANELS; ++i) tma_load(v_base + i * KEYS * WIDTH, &v_map, v_full, i * PANEL, 0, kv_head, batch);
  }
  __syncwarp();
  dependency_wait();
  dependents_launch();
  const long long mask_base = batch * mask_stride.b + head * mask_stride.h;
  if constexpr (BIAS_BYTES > 0)
    for (int key = threadIdx.x; key < KEYS; key += THREADS)
      bias[key] = key < s_k ? mask_value(mask, mask_base + (long long)key * mask_k) : minus_infinity();
  __syncthreads();  // barriers are initialised, bias is there

  const int row = q0 + warp * 16 + lane / 4;  // this thread's rows: row and row + 8
  const int column = lane % 4 * 2;            // its columns of eight: column and column + 1
  const bool active = q0 + warp * 16 < s_q;   // else all rows of this warp lie past the end
  const u64 row_major = matrix_descriptor<WIDTH>(16, 8 * WIDTH), value_major = matrix_descriptor<WIDTH>(KEYS * WIDTH, 8 * WIDTH);
  const u64 q = row_major | descriptor_start(q_base), k = row_major | descriptor_start(k_base);
  const u64 v = value_major | descriptor_start(v_base);

  float score[KEYS / 2];
  barrier_wait(k_full, 0);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < HEAD / 16; ++i) {
    constexpr int IN_PANEL = PANEL / 16;
    Mma<IN_T>::template step<0, 0>(score, q + (u64)((i / IN_PANEL * ROWS * WIDTH + i % IN_PANEL * 32) >> 4),
                                   k + (u64)((i / IN_PANEL * KEYS * WIDTH + i % IN_PANEL * 32) >> 4), i > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < KEYS / 2; ++i) asm volatile("" : "+f"(score[i])::"memory");

  float share[2] = {0.f, 0.f};  // one over a row's sum
  if (active) {
    if constexpr (MASK && !MASK_ROWS) {
#pragma unroll
      for (int i = 0; i < KEYS / 8; ++i) {
        const float2 both = *(const float2*)(bias + 8 * i + column);
        score[4 * i] = fmaf(score[4 * i], scale_log2, both.x), score[4 * i + 1] = fmaf(score[4 * i + 1], scale_log2, both.y);
        score[4 * i + 2] = fmaf(score[4 * i + 2], scale_log2, both.x), score[4 * i + 3] = fmaf(score[4 * i + 3], scale_log2, both.y);
      }
    } else if constexpr (MASK) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const long long at = mask_base + min(row + 8 * h, s_q - 1) * mask_stride.s;
#pragma unroll
        for (int i = 0; i < KEYS / 8; ++i)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int key = 8 * i + column + e;
            float& s = score[4 * i + 2 * h + e];
            s = key < s_k ? fmaf(s, scale_log2, mask_value(mask, at + (long long)key * mask_k)) : minus_infinity();
          }
      }
    } else {  // only the last sixteen keys can lie past the end
#pragma unroll
      for (int i = KEYS / 2 - 8; i < KEYS / 2; ++i)
        if (i / 4 * 8 + column + i % 2 >= s_k) score[i] = minus_infinity();
    }
    if constexpr (CAUSAL) {
#pragma unroll
      for (int i = 0; i < KEYS / 2; ++i)
        if (i / 4 * 8 + column + i % 2 > row + i % 4 / 2 * 8 + reach) score[i] = minus_infinity();
    }
    const float factor = MASK ? 1.f : scale_log2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = score[2 * h], other = score[2 * h + 1];
#pragma unroll
      for (int i = 1; i < KEYS / 8; ++i) most = fmaxf(most, score[4 * i + 2 * h]), other = fmaxf(other, score[4 * i + 2 * h + 1]);
      most = fmaxf(most, other);
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float against = most == minus_infinity() ? 0.f : most * factor;
      float added[2] = {0.f, 0.f};
#pragma unroll
      for (int i = 0; i < KEYS / 8; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& s = score[4 * i + 2 * h + e];
          s = exponential(MASK ? s - against : fmaf(s, factor, -against));
          added[e] += s;
        }
      float all = added[0] + added[1];
      all += __shfl_xor_sync(~0u, all, 1);
      all += __shfl_xor_sync(~0u, all, 2);
      share[h] = all > 0.f ? 1.f / all : 0.f;
    }
  }
  u32 weight[KEYS / 16][4];
#pragma unroll
  for (int i = 0; i < KEYS / 16; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) weight[i][e] = pack(IN_T(), score[8 * i + 2 * e], score[8 * i + 2 * e + 1]);

  float sum[HEAD / 2];
  barrier_wait(v_full, 0);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < KEYS / 16; ++i) weigh<IN_T>(sum, weight[i], v + (u64)((i * 16 * WIDTH) >> 4), i > 0);
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < HEAD / 2; ++i) asm volatile("" : "+f"(sum[i])::"memory");
  // Every warp has read the queries (it waited for its product before its exponentials, but its neighbours may be late): results go
  // through their place, a warp's own rows, so that stores are whole lines.
  __syncthreads();
  if (!active) return;
  char* const mine = shared + warp * 16 * HEAD * 2;
  constexpr int CHUNKS = HEAD / 8;  // of 16 bytes in a row; results of 8 bits fill half of them
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int i = 0; i < HEAD / 8; ++i) {
      const int r = lane / 4 + 8 * h, swizzled = i ^ (r / (CHUNKS < 8 ? 8 / CHUNKS : 1) % (CHUNKS < 8 ? CHUNKS : 8));
      const u32 pair = stored_pair(sum[4 * i + 2 * h] * share[h], sum[4 * i + 2 * h + 1] * share[h]);
      char* const to = mine + r * HEAD * 2 + swizzled * 16 + column * (int)sizeof(OUT_T);
      if constexpr (sizeof(OUT_T) == 2) *(u32*)to = pair;
      else *(unsigned short*)to = (unsigned short)pair;
    }
  __syncwarp();
  using Eight = Pack<u32, 2 * sizeof(OUT_T)>;
  OUT_T* const target = out + batch * out_stride.b + head * out_stride.h + (long long)(q0 + warp * 16) * out_stride.s;
#pragma unroll
  for (int i = 0; i < 16 * CHUNKS / 32; ++i) {
    const int r = (i * 32 + lane) / CHUNKS, chunk = (i * 32 + lane) % CHUNKS;
    const int swizzled = chunk ^ (r / (CHUNKS < 8 ? 8 / CHUNKS : 1) % (CHUNKS < 8 ? CHUNKS : 8));
    if (q0 + warp * 16 + r < s_q)
      *(Eight*)(target + r * out_stride.s + chunk * 8) = *(const Eight*)(mine + r * HEAD * 2 + swizzled * 16);
  }
}
