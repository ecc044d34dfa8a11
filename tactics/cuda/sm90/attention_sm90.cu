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
// head; scale_log2 > 0 is the scale times log2(e). Rows without any key give zeros. Keys past s_k count for nothing.
// Grid: as many blocks as run at once, at most the tiles; block 384; dynamic shared memory SHARED_BYTES.
// Sources: Dao, "FlashAttention-2", 2023, and Shah et al., "FlashAttention-3", 2024 (schedule); Milakov and Gimelshein, 2018 (online softmax).
#include "sm90_attention_stream.cuh"

constexpr float SLACK = 8.f;  // float16 has room for it, and for float32 sums of 2^24 of them
static_assert(HEAD % 64 == 0 && !WINDOW, "whole panels, all keys");

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
               OUT_T* __restrict__ out, int heads_per_kv, int s_q, int s_k, int heads, int batches, const Strides out_stride, float scale_log2) {
  extern __shared__ __align__(1024) char shared[];
  const Rings rings(shared);
  const Tiles tiles(s_q, s_k, heads, batches);
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
  const int group = warp / 4;
  const int first_row = group * 64 + warp % 4 * 16 + lane / 4;  // this thread's rows of a tile: this one and the eighth after it
  const int column = lane % 4 * 2;                              // its columns of eight: column and column + 1
  const u64 row_major = matrix_descriptor<128>(16, 1024), value_major = matrix_descriptor<128>(BLOCK_KV * 128, 1024);

  float sum[HEAD / 2], score[BLOCK_KV / 2];
  u32 weight[BLOCK_KV / 16][4];
  float top[2] = {}, total[2] = {};  // of a row: the largest score so far, this thread's share of its sum

  auto multiply_keys = [&](int q_stage, int stage) {  // score = q k^T, asynchronously
    const u64 q = row_major | descriptor_start(rings.q + q_stage * Q_BYTES + group * 64 * 128);
    const u64 k = row_major | descriptor_start(rings.k + stage * KV_BYTES);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HEAD / 16; ++i)
      Mma<IN_T>::template step<0, 0>(score, q + (u64)((i / 4 * BLOCK_Q * 128 + i % 4 * 32) >> 4), k + (u64)((i / 4 * BLOCK_KV * 128 + i % 4 * 32) >> 4),
                                     i > 0);
    wgmma_commit();
  };
  auto multiply_values = [&](int stage, int accumulate) {  // sum += weight v, asynchronously
    const u64 v = value_major | descriptor_start(rings.v + stage * KV_BYTES);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 16; ++i) weigh<IN_T>(sum, weight[i], v + (u64)((i * 16 * 128) >> 4), i > 0 || accumulate);
    wgmma_commit();
  };
  // Scores to exponentials against (nearly) the largest ones; keeps[h] is what sums so far shrink by. A largest score that grows by less than
  // a factor of 2^SLACK in its exponential counts for no new one, so that sums are seldom scaled.
  auto soften = [&](const Step& step, float(&keeps)[2]) {
    const int first = step.j * BLOCK_KV, q0 = CAUSAL ? tiles.first_query(step.index) : 0, row = q0 + first_row;
    if (first + BLOCK_KV > s_k || (CAUSAL && first + BLOCK_KV - 1 > q0 + group * 64 + tiles.reach)) {
#pragma unroll
      for (int i = 0; i < BLOCK_KV / 2; ++i) {
        const int key = first + i / 4 * 8 + column + i % 2, mine = row + i % 4 / 2 * 8;
        if (key >= s_k || (CAUSAL && key > mine + tiles.reach)) score[i] = minus_infinity();
      }
    }
    float most[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (step.first()) top[h] = -1e30f, total[h] = 0.f;
      most[h] = fmaxf(score[2 * h], score[2 * h + 1]);
    }
#pragma unroll
    for (int i = 1; i < BLOCK_KV / 8; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) most[h] = fmaxf(most[h], fmaxf(score[4 * i + 2 * h], score[4 * i + 2 * h + 1]));
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
      for (int h = 0; h < 2; ++h) most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], bit));
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
  auto to_weights = [&] {
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 16; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) weight[i][e] = pack(IN_T(), score[8 * i + 2 * e], score[8 * i + 2 * e + 1]);
  };
  const Results results{out, out_stride, first_row, lane};
  auto without_keys = [&](int index) { results.store_zeros(tiles, index); };
  auto release = [&](u32 barrier) {
    if (lane == 0) barrier_arrive(barrier);
  };

  Step step{-1};
  if (!tiles.next(step, without_keys)) return;
  int done = -1;  // the tile whose results `sum` holds when `step` is the first one of the next
  Place<STAGES> keys{0};
  Place<Q_STAGES> query{0};
  float keeps[2], whole[2];
  // Issues the scores of the next step, whose keys are at `keys`.
  auto begin = [&](bool first) {
    if (first) barrier_wait(rings.q_full + 8 * query.stage(), query.parity());
    barrier_wait(rings.k_full + 8 * keys.stage(), keys.parity());
    await_turn(group);
    multiply_keys(query.stage(), keys.stage());
  };
  // The scores are there: what they were multiplied of may be overwritten.
  auto finish = [&](bool last) {
    settle(score);
    release(rings.k_empty + 8 * keys.stage());
    ++keys.n;
    if (last) release(rings.q_empty + 8 * query.stage()), ++query.n;
  };
  // Issues the products of a step's weights and values, after what earlier steps left in `sum` was scaled or stored.
  auto weigh_values = [&](bool first, const Place<STAGES>& values) {
    settle(sum);
    if (!first) {
      if (__any_sync(~0u, keeps[0] != 1.f || keeps[1] != 1.f)) rescale(sum, keeps);
    } else if (done >= 0) results.store(tiles, done, sum, whole);
    barrier_wait(rings.v_full + 8 * values.stage(), values.parity());
    multiply_values(values.stage(), !first);
  };

#pragma unroll
  for (int i = 0; i < HEAD / 2; ++i) sum[i] = 0.f;
  if (group == CONSUMERS - 1) pass_turn(group);
  begin(true);
  pass_turn(group);
  wgmma_wait<0>();
  finish(step.last());
  soften(step, keeps);
  to_weights();
  for (;;) {
    const bool first = step.first(), last = step.last();
    const int index = step.index;
    if (!last) ++step.j;
    else if (!tiles.next(step, without_keys)) {
      weigh_values(first, {keys.n - 1});
      wgmma_wait<0>();
      settle(sum);
      results.store(tiles, index, sum, total);
      return;
    }
    begin(last);
    weigh_values(first, {keys.n - 1});
    pass_turn(group);
    wgmma_wait<1>();
    finish(step.last());
    if (last) done = index, whole[0] = total[0], whole[1] = total[1];
    soften(step, keeps);
    wgmma_wait<0>();
    release(rings.v_empty + 8 * Place<STAGES>{keys.n - 2}.stage());  // `finish` has moved on
    to_weights();
  }
}
