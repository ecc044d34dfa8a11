// How both kernels of long attention for sm_90a (attention_sm90.cu, attention_steady_sm90.cu) move: the walk over tiles of queries and their
// steps, the rings that a producer thread fills through TMA, the turns of the two consumer warpgroups, and the store of a finished tile.
// Defines: IN_T, HEAD (a multiple of 16 up to 256) for COLUMNS of them (a multiple of 8; all of them without the define), BLOCK_KV, STAGES,
// Q_STAGES, CAUSAL, WINDOW (w keeps key t > s + s_k - s_q - w; 0 all), TURNS; those of attention_mask.cuh; MASK_STAGES (0, or a power of two: the mask comes through TMA, in a ring of its own);
// BATCH_INSIDE (1: neighbouring sides are one head of neighbouring batches, which have its mask in common; 0: neighbouring heads of one batch).
#pragma once
#include "sm90.cuh"
#define WGMMA_N BLOCK_KV
#include "sm90_wgmma.cuh"
#include "sm90_attention.cuh"
#include "attention_mask.cuh"

#ifndef COLUMNS
#define COLUMNS HEAD
#endif
#ifndef MASK_STAGES
#define MASK_STAGES 0
#endif
#ifndef WINDOW
#define WINDOW 0
#endif
#ifndef BATCH_INSIDE
#define BATCH_INSIDE 0
#endif

constexpr int CONSUMERS = 2, BLOCK_Q = 64 * CONSUMERS, THREADS = 128 * (CONSUMERS + 1);
constexpr int CONSUMER_REGISTERS = 232, PRODUCER_REGISTERS = 40;
constexpr int PANELS = (HEAD + 63) / 64;  // of 64 columns, 128 bytes a row
constexpr int Q_BYTES = BLOCK_Q * PANELS * 128, KV_BYTES = BLOCK_KV * PANELS * 128;
// A stage of the mask: panels of 128 rows, MASK_WIDTH bytes each, swizzled over their width; or one row of keys.
constexpr int MASK_ROW = BLOCK_KV * (int)sizeof(Masked), MASK_WIDTH = MASK_ROW < 128 ? MASK_ROW : 128;
constexpr int MASK_LOADED = MASK_ROWS ? BLOCK_Q * MASK_ROW : MASK_ROW, MASK_BYTES = (MASK_LOADED + 127) / 128 * 128;
constexpr int SHARED_BYTES = Q_STAGES * Q_BYTES + 2 * STAGES * KV_BYTES + MASK_STAGES * MASK_BYTES + 8 * (2 * Q_STAGES + 4 * STAGES + 2 * MASK_STAGES);
static_assert(!MASK_STAGES || !MASK_ROWS || MASK_WIDTH == 64 || (MASK_WIDTH == 128 && MASK_ROW % 128 == 0), "whole panels of the mask");
static_assert(HEAD % 16 == 0 && COLUMNS % 8 == 0 && COLUMNS <= HEAD && BLOCK_KV % 16 == 0 && SHARED_BYTES <= 227 * 1024,
              "tiles that wgmma and shared memory take");

// One step: block j of the keys of tile `index`, which sees those from `begin` to `blocks`, and whose first query is q0.
struct Step {
  int index, blocks, j, begin, q0;
  __device__ __forceinline__ bool first() const { return j == (WINDOW ? begin : 0); }
  __device__ __forceinline__ bool last() const { return j + 1 == blocks; }
};

// The n-th use of a ring of COUNT stages (a power of two): its stage, and the parity of the barrier that says the stage is full.
template <int COUNT>
struct Place {
  u32 n;
  __device__ __forceinline__ u32 stage() const { return n % COUNT; }
  __device__ __forceinline__ u32 parity() const { return n / COUNT % 2; }
};

// Lane c of four has word c of four blocks in w; afterwards all four words of block c.
__device__ __forceinline__ void transpose_quad(u32 (&w)[4], int c) {
#pragma unroll
  for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const int low = bit == 1 ? 2 * p : p, high = low + bit;
      const u32 got = __shfl_xor_sync(~0u, c & bit ? w[low] : w[high], bit);
      if (c & bit) w[low] = got;
      else w[high] = got;
    }
}

// The tiles of all sides, which are a head of a batch each: which one is whose, and in which order a block walks them. Blocks that run at once
// read neighbouring tiles, so these should want the same of memory: the keys of a side, and so its tiles lie together; or, causal or with a mask,
// a band of `together` sides lies together, tile by tile (a mask that sides have in common is read once; causal tiles come with the most
// keys first, and the keys of a band fit L2).
struct Tiles {
  int s_q, s_k, heads, batches, reach, count, sides, together;
  __device__ __forceinline__ Tiles(int s_q, int s_k, int heads, int batches, int together)
      : s_q(s_q), s_k(s_k), heads(heads), batches(batches), reach(s_k - s_q), count((s_q + BLOCK_Q - 1) / BLOCK_Q), sides(heads * batches), together(together) {}
  static constexpr bool BANDS = CAUSAL || (MASK && MASK_ROWS);
  // Of the band of tile `index`: its first side, how many it has, and the tile's number in it.
  struct Band {
    int first, sides, rest;
  };
  __device__ __forceinline__ Band band(int index) const {
    const int number = index / (count * together);
    return {number * together, min(together, sides - number * together), index - number * together * count};
  }
  __device__ __forceinline__ int first_query(int index) const {  // of a tile
    if constexpr (!BANDS) return index % count * BLOCK_Q;
    const Band mine = band(index);
    const int tile = mine.rest / mine.sides;
    return (CAUSAL ? count - 1 - tile : tile) * BLOCK_Q;
  }
  __device__ __forceinline__ int side(int index) const {
    if constexpr (!BANDS) return index / count;
    const Band mine = band(index);
    return mine.first + mine.rest % mine.sides;
  }
  __device__ __forceinline__ int head(int side) const { return BATCH_INSIDE ? side / batches : side % heads; }
  __device__ __forceinline__ int batch(int side) const { return BATCH_INSIDE ? side % batches : side / heads; }
  // Moves on to the first step of this block's next tile that has keys; `without_keys` gets the tiles between. False after the last tile.
  // Every second round goes backwards, so that blocks get about the same work.
  template <class Visit>
  __device__ __forceinline__ bool next(Step& step, Visit without_keys) const {
    for (;;) {
      if (step.index < 0) step.index = blockIdx.x;
      else step.index += step.index / gridDim.x % 2 ? 2 * blockIdx.x + 1 : 2 * (gridDim.x - blockIdx.x) - 1;
      if (step.index >= count * sides) return false;
      step.q0 = first_query(step.index);
      const int keys = CAUSAL ? max(0, min(s_k, step.q0 + BLOCK_Q + reach)) : s_k;
      step.blocks = (keys + BLOCK_KV - 1) / BLOCK_KV;
      step.j = step.begin = WINDOW ? max(0, step.q0 + reach - WINDOW + 1) / BLOCK_KV : 0;
      if (step.blocks > step.j) return true;
      without_keys(step.index);
    }
  }
};

// Addresses in shared memory: stages of queries, keys, values and the mask, and a barrier for each that says it is full, one that it is empty.
struct Rings {
  u32 q, k, v, mask, q_full, q_empty, k_full, v_full, k_empty, v_empty, mask_full, mask_empty;
  __device__ __forceinline__ explicit Rings(const void* shared)
      : q(shared_address(shared)), k(q + Q_STAGES * Q_BYTES), v(k + STAGES * KV_BYTES), mask(v + STAGES * KV_BYTES), q_full(mask + MASK_STAGES * MASK_BYTES),
        q_empty(q_full + 8 * Q_STAGES), k_full(q_empty + 8 * Q_STAGES), v_full(k_full + 8 * STAGES), k_empty(v_full + 8 * STAGES),
        v_empty(k_empty + 8 * STAGES), mask_full(v_empty + 8 * STAGES), mask_empty(mask_full + 8 * MASK_STAGES) {}
  // By one thread, before the block's first __syncthreads.
  __device__ __forceinline__ void begin() const {
    for (int i = 0; i < Q_STAGES; ++i) barrier_init(q_full + 8 * i, 1), barrier_init(q_empty + 8 * i, CONSUMERS * 4);
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(k_full + 8 * i, 1), barrier_init(v_full + 8 * i, 1);
      barrier_init(k_empty + 8 * i, CONSUMERS * 4), barrier_init(v_empty + 8 * i, CONSUMERS * 4);
    }
    for (int i = 0; i < MASK_STAGES; ++i) barrier_init(mask_full + 8 * i, 1), barrier_init(mask_empty + 8 * i, CONSUMERS * 4);
    barrier_init_fence();
  }
};

// What the producer thread does: loads all that the consumers of this block read, as far ahead as the rings reach. `load_mask` gets the first
// key, the first query, the head and the batch of every step, between its keys and its values.
template <class Load>
__device__ __forceinline__ void produce(const Tiles& tiles, const Rings& rings, const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map,
                                        int heads_per_kv, Load load_mask) {
  tensormap_prefetch(&q_map), tensormap_prefetch(&k_map), tensormap_prefetch(&v_map);
  dependency_wait();
  dependents_launch();
  Step step{-1};
  Place<STAGES> kv{0};
  Place<Q_STAGES> query{0};
  while (tiles.next(step, [](int) {})) {
    const int q0 = step.q0, side = tiles.side(step.index), head = tiles.head(side), batch = tiles.batch(side);
    const int kv_head = head / heads_per_kv;
    barrier_wait(rings.q_empty + 8 * query.stage(), query.parity() ^ 1);
    barrier_expect(rings.q_full + 8 * query.stage(), Q_BYTES);
    for (int i = 0; i < PANELS; ++i)
      tma_load(rings.q + query.stage() * Q_BYTES + i * BLOCK_Q * 128, &q_map, rings.q_full + 8 * query.stage(), i * 64, q0, head, batch);
    ++query.n;
    for (int j = step.j; j < step.blocks; ++j) {
      const u32 offset = kv.stage() * KV_BYTES;
      barrier_wait(rings.k_empty + 8 * kv.stage(), kv.parity() ^ 1);
      barrier_expect(rings.k_full + 8 * kv.stage(), KV_BYTES);
      for (int i = 0; i < PANELS; ++i)
        tma_load(rings.k + offset + i * BLOCK_KV * 128, &k_map, rings.k_full + 8 * kv.stage(), i * 64, j * BLOCK_KV, kv_head, batch);
      load_mask(j * BLOCK_KV, q0, head, batch);
      barrier_wait(rings.v_empty + 8 * kv.stage(), kv.parity() ^ 1);
      barrier_expect(rings.v_full + 8 * kv.stage(), KV_BYTES);
      for (int i = 0; i < PANELS; ++i)
        tma_load(rings.v + offset + i * BLOCK_KV * 128, &v_map, rings.v_full + 8 * kv.stage(), i * 64, j * BLOCK_KV, kv_head, batch);
      ++kv.n;
    }
  }
}

// No use of the accumulators moves before this.
template <int COUNT>
__device__ __forceinline__ void settle(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// A thread's results of its two rows shrink by keeps[0] and keeps[1].
__device__ __forceinline__ void rescale(float (&sum)[HEAD / 2], const float (&keeps)[2]) {
#pragma unroll
  for (int i = 0; i < HEAD / 2; ++i) sum[i] *= keeps[i % 4 / 2];
}
// Named barrier 2 + w lets warpgroup w issue its products; the one before it in the ring arrives there when it has issued its own.
__device__ __forceinline__ void await_turn(int group) {
  if constexpr (TURNS) asm volatile("bar.sync %0, 256;" ::"r"(2 + group) : "memory");
}
__device__ __forceinline__ void pass_turn(int group) {
  if constexpr (TURNS) asm volatile("bar.arrive %0, 256;" ::"r"(2 + (group + 1 == CONSUMERS ? 0 : group + 1)) : "memory");
}

// Where a thread's results go: those of rows first_row and first_row + 8 of a tile.
struct Results {
  OUT_T* out;
  Strides stride;
  int first_row, lane;
  // Of row first_row + 8 * h, 8 columns from 8 * (lane % 4) on; null past the last row.
  __device__ __forceinline__ OUT_T* place(const Tiles& tiles, int index, int h) const {
    const int row = tiles.first_query(index) + first_row + 8 * h, side = tiles.side(index);
    OUT_T* const found = out + tiles.batch(side) * stride.b + tiles.head(side) * stride.h + row * stride.s + lane % 4 * 8;
    return row < tiles.s_q ? found : nullptr;
  }
  // The tile's results: sums over the rows' totals, of which `whole` is this thread's share, eight neighbours at once.
  __device__ __forceinline__ void store(const Tiles& tiles, int index, const float (&sum)[HEAD / 2], const float (&whole)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float all = whole[h] + __shfl_xor_sync(~0u, whole[h], 1);
      all += __shfl_xor_sync(~0u, all, 2);
      const float share = all > 0.f ? 1.f / all : 0.f;
      OUT_T* target = place(tiles, index, h);
#pragma unroll
      for (int i = 0; i < HEAD / 8; i += 4) {
        u32 words[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) words[e] = i + e >= HEAD / 8 ? 0 : stored_pair(sum[4 * (i + e) + 2 * h] * share, sum[4 * (i + e) + 2 * h + 1] * share);
        transpose_quad(words, lane % 4);
        if (target && (COLUMNS % 32 == 0 || 8 * (i + lane % 4) < COLUMNS)) store_eight(target + 8 * i, words);
      }
    }
  }
  // Of a tile whose queries have no key.
  __device__ __forceinline__ void store_zeros(const Tiles& tiles, int index) const {
    dependency_wait();
    const u32 zeros = stored_pair(0.f, 0.f), words[4] = {zeros, zeros, zeros, zeros};
    for (int h = 0; h < 2; ++h)
      if (OUT_T* target = place(tiles, index, h))
        for (int i = 0; i + lane % 4 * 8 < COLUMNS; i += 32) store_eight(target + i, words);
  }
};
