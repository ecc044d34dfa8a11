// Fused attention for sm_90a: out = softmax(scale * q k^T) v, fp16 or bf16, without a score matrix in memory.
//
// A tile is 128 query rows of one (batch, head): each of two warpgroups owns 64, a producer warp streams BLOCK_KV keys and values at a
// time through TMA (sm90_attention_stream.cuh). Blocks stay for several tiles, and the steps of one tile follow those of the tile before without a
// gap: queries and keys come ahead, and the first products of a tile run beside the last softmax and the stores of the other.
//
// While the tensor cores multiply the last step's probabilities by its values, a warpgroup takes the exponentials of the next step's
// scores; the probabilities go from accumulators to wgmma's register operand without moving. Sums are scaled, and a finished tile is
// stored, while the next scores are multiplied. With TURNS the warpgroups hand their products on in a ring, so that one's exponentials run
// beside another's products.
//
// Defines: IN_T (half or __nv_bfloat16), HEAD (a multiple of 64), BLOCK_KV (a multiple of 16, at most 256), STAGES of keys and of values (2, 4, 8),
// Q_STAGES (1 or 2) of queries, CAUSAL (1 keeps key t <= s + s_k - s_q), TURNS (0 or 1), PDL.
// Arguments: q, k, v are 4-D tiled maps (head dimension, position, head, batch), box 64 x rows, swizzle 128 bytes; `out` has any strides
// of batch, head and position (elements, multiples of 8), its head dimension contiguous. heads_per_kv query heads share one key/value
// head; together: of Tiles; scale_log2 > 0 is the scale times log2(e). Rows without any key give zeros. Keys past s_k count for nothing.
// Grid: as many blocks as run at once, at most the tiles; block 384; dynamic shared memory SHARED_BYTES.
// Sources: Dao, "FlashAttention-2", 2023, and Shah et al., "FlashAttention-3", 2024 (schedule); Milakov and Gimelshein, 2018 (online softmax).
#include "sm90_attention_consumer.cuh"

static_assert(HEAD % 64 == 0 && !WINDOW, "whole panels, all keys");

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
               OUT_T* __restrict__ out, int heads_per_kv, int s_q, int s_k, int heads, int batches, int together, const Strides out_stride, float scale_log2) {
  extern __shared__ __align__(1024) char shared[];
  const Rings rings(shared);
  const Tiles tiles(s_q, s_k, heads, batches, together);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

  if (threadIdx.x == 0) rings.begin();
  __syncthreads();

  if (warp >= CONSUMERS * 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    if (warp > CONSUMERS * 4 || lane != 0) return;
    produce(tiles, rings, q_map, k_map, v_map, heads_per_kv, [](int, int, int, int) {});
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
  const Results results{out, out_stride, warp / 4 * 64 + warp % 4 * 16 + lane / 4, lane};
  const Consumer me{tiles, rings, results, warp, lane, warp / 4};

  float sum[HEAD / 2], score[BLOCK_KV / 2];
  Weights weight;
  float top[2] = {}, total[2] = {}, keeps[2];  // of a row: top, the largest score so far

  // Scores to exponentials against (nearly) the largest ones; keeps[h] is what sums so far shrink by. A largest score that grows by less than
  // a factor of 2^SLACK in its exponential counts for no new one, so that sums are seldom scaled.
  auto soften = [&](const Step& step, Weights&) {
    me.hide(score, step);
    float most[2];
    largest(score, most);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (step.first()) top[h] = -1e30f, total[h] = 0.f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if ((most[h] - top[h]) * scale_log2 <= SLACK) most[h] = top[h];
      keeps[h] = exponential((top[h] - most[h]) * scale_log2);
      top[h] = most[h];
      const float against = most[h] * scale_log2;
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
    // Never so. The assembler would move the exponentials behind the next wait; this branch wants their sum before it, while the
    // tensor cores multiply.
    if (__any_sync(~0u, total[0] + total[1] < 0.f)) __trap();
  };
  auto to_weights = [&](Weights& weight) {
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 16; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) weight[i][e] = pack(IN_T(), score[8 * i + 2 * e], score[8 * i + 2 * e + 1]);
  };
  me.walk<false, true>(sum, score, weight, weight, total, keeps, [](const Step&) {}, soften, to_weights);
}
