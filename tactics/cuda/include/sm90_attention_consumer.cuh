// What a consumer thread of both long kernels for sm_90a does (attention_sm90.cu, attention_steady_sm90.cu): the products of a step and their order,
// when rings move on, when results are scaled and stored. Softmax is the kernel's own. Defines: those of sm90_attention_stream.cuh.
#pragma once
#include "sm90_attention_stream.cuh"

constexpr float SLACK = 8.f;  // a largest score that is larger by less than this, in powers of 2, leaves results unscaled: float16 has room for it

// Four 8 x 8 matrices of 16-bit values: lane l has two neighbours of row l / 4 of each; lanes 8 * m .. 8 * m + 7 say where the rows of matrix m are.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

typedef u32 Weights[BLOCK_KV / 16][4];  // of a step: wgmma's register operand, 64 rows by BLOCK_KV keys

// score = q k^T, asynchronously. With HELD a tile's queries are in registers, else they are read from shared memory again by every product.
template <bool HELD, int COUNT>
__device__ __forceinline__ void multiply_keys(float (&score)[BLOCK_KV / 2], const u32 (&queries)[COUNT][4], u32 q_base, u32 k_base) {
  const u64 q = matrix_descriptor<128>(16, 1024) | descriptor_start(q_base), k = matrix_descriptor<128>(16, 1024) | descriptor_start(k_base);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < HEAD / 16; ++i)
    if constexpr (HELD) Mma<IN_T>::step_registers(score, queries[i], k + (u64)((i / 4 * BLOCK_KV * 128 + i % 4 * 32) >> 4), i > 0);
    else Mma<IN_T>::template step<0, 0>(score, q + (u64)((i / 4 * BLOCK_Q * 128 + i % 4 * 32) >> 4), k + (u64)((i / 4 * BLOCK_KV * 128 + i % 4 * 32) >> 4),
                                   i > 0);
  wgmma_commit();
}

// sum += weight v, asynchronously.
__device__ __forceinline__ void multiply_values(float (&sum)[HEAD / 2], const Weights& weight, u32 v_base, int accumulate) {
  const u64 v = matrix_descriptor<128>(BLOCK_KV * 128, 1024) | descriptor_start(v_base);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < BLOCK_KV / 16; ++i) weigh<IN_T>(sum, weight[i], v + (u64)((i * 16 * 128) >> 4), i > 0 || accumulate);
  wgmma_commit();
}

// The largest scores of a thread's two rows in a step.
__device__ __forceinline__ void largest(const float (&score)[BLOCK_KV / 2], float (&most)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) most[h] = fmaxf(score[2 * h], score[2 * h + 1]);
#pragma unroll
  for (int i = 1; i < BLOCK_KV / 8; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) most[h] = fmaxf(most[h], fmaxf(score[4 * i + 2 * h], score[4 * i + 2 * h + 1]));
#pragma unroll
  for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
    for (int h = 0; h < 2; ++h) most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], bit));
}

// A thread of warpgroup `group`.
struct Consumer {
  const Tiles& tiles;
  const Rings& rings;
  const Results& results;
  int warp, lane, group;

  __device__ __forceinline__ int column() const { return lane % 4 * 2; }  // its columns of eight: this one and the next
  // Minus infinity where a key counts for nothing: past the last one (a causal row that is stored ends before), behind a causal row's, before its window.
  __device__ __forceinline__ void hide(float (&score)[BLOCK_KV / 2], const Step& step) const {
    const int first = step.j * BLOCK_KV, q0 = CAUSAL || WINDOW ? step.q0 : 0, row = q0 + results.first_row;
    if ((!CAUSAL && first + BLOCK_KV > tiles.s_k) || (CAUSAL && first + BLOCK_KV - 1 > q0 + group * 64 + tiles.reach) ||
        (WINDOW && first <= q0 + group * 64 + 63 + tiles.reach - WINDOW)) {
#pragma unroll
      for (int i = 0; i < BLOCK_KV / 2; ++i) {
        const int key = first + i / 4 * 8 + column() + i % 2, mine = row + i % 4 / 2 * 8;
        if ((!CAUSAL && key >= tiles.s_k) || (CAUSAL && key > mine + tiles.reach) || (WINDOW && key <= mine + tiles.reach - WINDOW)) score[i] = minus_infinity();
      }
    }
  }
  // A tile's queries from their stage.
  __device__ __forceinline__ void load_queries(u32 (&queries)[HEAD / 16][4], int stage) const {
    const int r = lane % 16;
#pragma unroll
    for (int i = 0; i < HEAD / 16; ++i)
      load_matrices(queries[i], rings.q + stage * Q_BYTES + i / 4 * BLOCK_Q * 128 + (group * 64 + warp % 4 * 16 + r) * 128 + ((i % 4 * 2 + lane / 16) ^ (r % 8)) * 16);
  }
  // All steps of the block. While the tensor cores multiply one step's weights by its values, `soften(step, weights)` takes the exponentials of the
  // next one's scores; `convert(weights)` may then overwrite the weights that were multiplied. `fetch(step)` asks for the mask. Weights of every
  // second step are `even`; with ONE_SET all are. Of a row: total, this thread's share of its sum; keeps, what results before a step shrink by.
  template <bool HELD, bool ONE_SET, class Fetch, class Soften, class Convert>
  __device__ __forceinline__ void walk(float (&sum)[HEAD / 2], float (&score)[BLOCK_KV / 2], Weights& even, Weights& odd, float (&total)[2], float (&keeps)[2],
                                       Fetch fetch, Soften soften, Convert convert) const {
    u32 queries[HELD ? HEAD / 16 : 1][4];
    auto without_keys = [&](int index) { results.store_zeros(tiles, index); };
    auto release = [&](u32 barrier) {
      if (lane == 0) barrier_arrive(barrier);
    };
    Step step{-1};
    if (!tiles.next(step, without_keys)) return;
    int done = -1;  // the tile whose results `sum` holds when `step` is the first one of the next
    Place<STAGES> keys{0};
    Place<Q_STAGES> query{0};
    float whole[2];
    // Issues the scores of the next step, whose keys are at `keys`.
    auto begin = [&](bool first) {
      if (first) {
        barrier_wait(rings.q_full + 8 * query.stage(), query.parity());
        if constexpr (HELD) {
          load_queries(queries, query.stage());
          release(rings.q_empty + 8 * query.stage());
        }
      }
      barrier_wait(rings.k_full + 8 * keys.stage(), keys.parity());
      await_turn(group);
      multiply_keys<HELD>(score, queries, rings.q + query.stage() * Q_BYTES + group * 64 * 128, rings.k + keys.stage() * KV_BYTES);
    };
    // The scores are there: what they were multiplied of may be overwritten.
    auto finish = [&](bool last) {
      settle(score);
      release(rings.k_empty + 8 * keys.stage());
      ++keys.n;
      if (last) {
        if constexpr (!HELD) release(rings.q_empty + 8 * query.stage());
        ++query.n;
      }
    };
    // Issues the products of a step's weights and values, after what earlier steps left in `sum` was scaled or stored.
    auto weigh_values = [&](const Weights& weight, bool first, const Place<STAGES>& values) {
      settle(sum);
      if (!first) {
        if (__any_sync(~0u, keeps[0] != 1.f || keeps[1] != 1.f)) rescale(sum, keeps);
      } else if (done >= 0) results.store(tiles, done, sum, whole);
      barrier_wait(rings.v_full + 8 * values.stage(), values.parity());
      multiply_values(sum, weight, rings.v + values.stage() * KV_BYTES, !first);
    };

#pragma unroll
    for (int i = 0; i < HEAD / 2; ++i) sum[i] = 0.f;
    if (group == CONSUMERS - 1) pass_turn(group);
    fetch(step);
    begin(true);
    pass_turn(group);
    wgmma_wait<0>();
    finish(step.last());
    soften(step, even);
    convert(even);
    auto advance = [&](Weights& now, Weights& next) {
      const bool first = step.first(), last = step.last();
      const int index = step.index;
      if (!last) ++step.j;
      else if (!tiles.next(step, without_keys)) {
        weigh_values(now, first, {keys.n - 1});
        wgmma_wait<0>();
        settle(sum);
        results.store(tiles, index, sum, total);
        return false;
      }
      begin(last);
      weigh_values(now, first, {keys.n - 1});
      pass_turn(group);
      fetch(step);
      wgmma_wait<1>();
      finish(step.last());
      if (last) done = index, whole[0] = total[0], whole[1] = total[1];
      soften(step, next);
      wgmma_wait<0>();
      release(rings.v_empty + 8 * Place<STAGES>{keys.n - 2}.stage());  // `finish` has moved on
      convert(next);
      return true;
    };
    while (advance(even, odd) && (ONE_SET || advance(odd, even))) {}
  }
};
