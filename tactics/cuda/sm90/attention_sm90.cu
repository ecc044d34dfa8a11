// Fused attention for sm_90a: out = softmax(scale * q k^T) v, fp16 or bf16, without a score matrix in memory.
//
// A block computes CONSUMERS x 64 query rows of one (batch, head): each consumer warpgroup owns 64, a producer warp streams BLOCK_KV keys
// and values at a time through TMA. While the tensor cores multiply the last block's probabilities by its values, a warpgroup takes
// the exponentials of the next block's scores; the probabilities go from accumulators to wgmma's register operand without moving.
//
// With TURNS the warpgroups hand their products on in a ring, so that one's exponentials run beside another's products.
//
// Defines: IN_T (half or __nv_bfloat16), HEAD (64 or 128), BLOCK_KV (a multiple of 16, at most 256), STAGES of keys and of values, CAUSAL
// (1 keeps key t <= s + s_k - s_q), CONSUMERS (2 or 3), TURNS (0 or 1), PDL.
// Arguments: q, k, v are 4-D tiled maps (head dimension, position, head, batch), box 64 x rows, swizzle 128 bytes; `out` has any strides
// of batch, head and position (elements), its head dimension contiguous. heads_per_kv query heads share one key/value head;
// scale_log2 > 0 is the scale times log2(e). Rows without any key give zeros. Keys past s_k count for nothing.
// Grid: x = ceil(s_q / (64 * CONSUMERS)), y = heads, z = batch; block 128 * (CONSUMERS + 1); dynamic shared memory SHARED_BYTES.
// Sources: Dao, "FlashAttention-2", 2023, and Shah et al., "FlashAttention-3", 2024 (schedule); Milakov and Gimelshein, 2018 (online softmax).
#include "sm90.cuh"
#define WGMMA_N BLOCK_KV
#include "sm90_wgmma.cuh"
#include "sm90_attention.cuh"
#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef TURNS
#define TURNS 0
#endif

constexpr int BLOCK_Q = 64 * CONSUMERS, THREADS = 128 * (CONSUMERS + 1);
constexpr int CONSUMER_REGISTERS = CONSUMERS == 2 ? 232 : 160, PRODUCER_REGISTERS = CONSUMERS == 2 ? 40 : 32;
constexpr int PANELS = HEAD / 64;  // of 64 columns, 128 bytes a row
constexpr int Q_BYTES = BLOCK_Q * HEAD * 2, KV_BYTES = BLOCK_KV * HEAD * 2;
constexpr int SHARED_BYTES = Q_BYTES + 2 * STAGES * KV_BYTES + 8 * (1 + 4 * STAGES);
static_assert(HEAD % 64 == 0 && BLOCK_KV % 16 == 0 && SHARED_BYTES <= 227 * 1024, "tiles that wgmma and shared memory take");

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
               IN_T* __restrict__ out, int heads_per_kv, int s_q, int s_k, const Strides out_stride, float scale_log2) {
  extern __shared__ __align__(1024) char shared[];
  const u32 q_base = shared_address(shared), k_base = q_base + Q_BYTES, v_base = k_base + STAGES * KV_BYTES;
  const u32 q_full = v_base + STAGES * KV_BYTES, k_full = q_full + 8, v_full = k_full + 8 * STAGES;
  const u32 k_empty = v_full + 8 * STAGES, v_empty = k_empty + 8 * STAGES;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  // The blocks with the most keys first, so that the last ones to run are short.
  const int q0 = (CAUSAL ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * BLOCK_Q, head = blockIdx.y, batch = blockIdx.z;
  const int reach = s_k - s_q;
  const int keys = CAUSAL ? max(0, min(s_k, q0 + BLOCK_Q + reach)) : s_k;
  const int blocks = (keys + BLOCK_KV - 1) / BLOCK_KV;

  if (threadIdx.x == 0) {
    barrier_init(q_full, 1);
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(k_full + 8 * i, 1), barrier_init(v_full + 8 * i, 1);
      barrier_init(k_empty + 8 * i, CONSUMERS * 4), barrier_init(v_empty + 8 * i, CONSUMERS * 4);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (warp >= CONSUMERS * 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    if (warp > CONSUMERS * 4 || lane != 0) return;
    tensormap_prefetch(&q_map), tensormap_prefetch(&k_map), tensormap_prefetch(&v_map);
    dependency_wait();
    dependents_launch();
    if (blocks == 0) return;
    const int kv_head = head / heads_per_kv;
    barrier_expect(q_full, Q_BYTES);
    for (int i = 0; i < PANELS; ++i) tma_load(q_base + i * BLOCK_Q * 128, &q_map, q_full, i * 64, q0, head, batch);
    int stage = 0;
    u32 parity = 1;
    for (int j = 0; j < blocks; ++j) {
      barrier_wait(k_empty + 8 * stage, parity);
      barrier_expect(k_full + 8 * stage, KV_BYTES);
      for (int i = 0; i < PANELS; ++i)
        tma_load(k_base + stage * KV_BYTES + i * BLOCK_KV * 128, &k_map, k_full + 8 * stage, i * 64, j * BLOCK_KV, kv_head, batch);
      barrier_wait(v_empty + 8 * stage, parity);
      barrier_expect(v_full + 8 * stage, KV_BYTES);
      for (int i = 0; i < PANELS; ++i)
        tma_load(v_base + stage * KV_BYTES + i * BLOCK_KV * 128, &v_map, v_full + 8 * stage, i * 64, j * BLOCK_KV, kv_head, batch);
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
  const int group = warp / 4;
  const int row = q0 + group * 64 + warp % 4 * 16 + lane / 4;  // this thread's rows: row and row + 8
  const int column = lane % 4 * 2;                             // its columns of eight: column and column + 1
  const u64 row_major = matrix_descriptor<128>(16, 1024), value_major = matrix_descriptor<128>(BLOCK_KV * 128, 1024);
  const u64 q = row_major | descriptor_start(q_base + group * 64 * 128);

  float sum[HEAD / 2], score[BLOCK_KV / 2];
  u32 weight[BLOCK_KV / 16][4];
  float top[2] = {-1e30f, -1e30f}, total[2] = {0.f, 0.f};  // of a row: the largest score so far, this thread's share of its sum

  auto multiply_keys = [&](int stage) {  // score = q k^T, asynchronously
    const u64 k = row_major | descriptor_start(k_base + stage * KV_BYTES);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HEAD / 16; ++i)
      Mma<IN_T>::template step<0, 0>(score, q + (u64)((i / 4 * BLOCK_Q * 128 + i % 4 * 32) >> 4),
                                     k + (u64)((i / 4 * BLOCK_KV * 128 + i % 4 * 32) >> 4), i > 0);
    wgmma_commit();
  };
  auto multiply_values = [&](int stage, int accumulate) {  // sum += weight v, asynchronously
    const u64 v = value_major | descriptor_start(v_base + stage * KV_BYTES);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 16; ++i) weigh<IN_T>(sum, weight[i], v + (u64)((i * 16 * 128) >> 4), i > 0 || accumulate);
    wgmma_commit();
  };
  auto settle = [&](float(&d)[BLOCK_KV / 2]) {
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 2; ++i) asm volatile("" : "+f"(d[i])::"memory");
  };
  // Scores to exponentials against the new largest ones; keeps[h] is what sums so far shrink by.
  auto soften = [&](int j, float(&keeps)[2]) {
    const int first = j * BLOCK_KV;
    if (first + BLOCK_KV > s_k || (CAUSAL && first + BLOCK_KV - 1 > q0 + group * 64 + reach)) {
#pragma unroll
      for (int i = 0; i < BLOCK_KV / 2; ++i) {
        const int key = first + i / 4 * 8 + column + i % 2, mine = row + i % 4 / 2 * 8;
        if (key >= s_k || (CAUSAL && key > mine + reach)) score[i] = __int_as_float(0xff800000);  // minus infinity
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = top[h];
#pragma unroll
      for (int i = 0; i < BLOCK_KV / 8; ++i) most = fmaxf(most, fmaxf(score[4 * i + 2 * h], score[4 * i + 2 * h + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      keeps[h] = exponential((top[h] - most) * scale_log2);
      top[h] = most;
      const float against = most * scale_log2;
      float added[2] = {0.f, 0.f};
#pragma unroll
      for (int i = 0; i < BLOCK_KV / 8; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& s = score[4 * i + 2 * h + e];
          s = exponential(fmaf(s, scale_log2, -against));
          added[e] += s;
        }
      total[h] = total[h] * keeps[h] + (added[0] + added[1]);
    }
  };
  auto to_weights = [&] {
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 16; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) weight[i][e] = pack(IN_T(), score[8 * i + 2 * e], score[8 * i + 2 * e + 1]);
  };
  // Named barrier 2 + w lets warpgroup w issue its products; the one before it in the ring arrives there when it has issued its own.
  auto await_turn = [&] {
    if constexpr (TURNS) asm volatile("bar.sync %0, 256;" ::"r"(2 + group) : "memory");
  };
  auto pass_turn = [&](int from) {
    if constexpr (TURNS) asm volatile("bar.arrive %0, 256;" ::"r"(2 + (from + 1 == CONSUMERS ? 0 : from + 1)) : "memory");
  };
  auto release = [&](u32 barrier) {
    if (lane == 0) barrier_arrive(barrier);
  };

  if (blocks == 0) {
    dependency_wait();
#pragma unroll
    for (int i = 0; i < HEAD / 2; ++i) sum[i] = 0.f;
  } else {
    float keeps[2];
    int stage = 0, before = 0;
    u32 parity = 0, parity_before = 0;
    barrier_wait(q_full, 0);
    barrier_wait(k_full, 0);
    multiply_keys(0);
    wgmma_wait<0>();
    settle(score);
    release(k_empty);
    soften(0, keeps);
    to_weights();
    if (group == CONSUMERS - 1) pass_turn(group);
    for (int j = 1; j < blocks; ++j) {
      before = stage, parity_before = parity;
      if (++stage == STAGES) stage = 0, parity ^= 1;
      barrier_wait(k_full + 8 * stage, parity);
      await_turn();
      multiply_keys(stage);
      barrier_wait(v_full + 8 * before, parity_before);
      multiply_values(before, j > 1);
      pass_turn(group);
      wgmma_wait<1>();
      settle(score);
      release(k_empty + 8 * stage);
      soften(j, keeps);
      // Never so. The assembler would move the exponentials behind the wait below; this branch wants their sum before it, while the
      // tensor cores multiply.
      if (__any_sync(~0u, total[0] + total[1] < 0.f)) __trap();
      wgmma_wait<0>();
      release(v_empty + 8 * before);
#pragma unroll
      for (int i = 0; i < HEAD / 2; ++i) {
        asm volatile("" : "+f"(sum[i])::"memory");
        sum[i] *= keeps[i % 4 / 2];
      }
      to_weights();
    }
    barrier_wait(v_full + 8 * stage, parity);
    multiply_values(stage, blocks > 1);
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < HEAD / 2; ++i) asm volatile("" : "+f"(sum[i])::"memory");
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float all = total[h] + __shfl_xor_sync(~0u, total[h], 1);
    all += __shfl_xor_sync(~0u, all, 2);
    const float share = all > 0.f ? 1.f / all : 0.f;
    if (row + 8 * h < s_q) {
      IN_T* target = out + batch * out_stride.b + head * out_stride.h + (row + 8 * h) * out_stride.s + column;
#pragma unroll
      for (int i = 0; i < HEAD / 8; ++i) *(u32*)(target + 8 * i) = pack(IN_T(), sum[4 * i + 2 * h] * share, sum[4 * i + 2 * h + 1] * share);
    }
  }
}
