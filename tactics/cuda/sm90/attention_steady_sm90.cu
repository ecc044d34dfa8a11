// Fused attention for sm_90a: out = softmax(scale * q k^T + mask) v, fp16 or bf16, without a score matrix in memory.
//
// A tile is 128 query rows of one (batch, head): each of two warpgroups owns 64, a producer warp streams BLOCK_KV keys and values at a
// time through TMA. Blocks stay for several tiles, and the steps of one tile follow those of the tile before without a gap: queries and
// keys come ahead, and a tile's last values are multiplied beside the first softmax of the next.
//
// While the tensor cores multiply the last step's weights by its values, a warpgroup takes the exponentials of the next step's scores.
// Sums are scaled, and a finished tile is stored, while the next scores are multiplied. With TURNS the warpgroups hand their products on in
// a ring, so that one's exponentials run beside another's products.
//
// Exponentials are taken against the largest score of a row's first step, without a look at the largest of their own. Only if a thread's
// sum of them grows beyond LIMIT, which float16 has room for, its warp takes them again, against the largest one of now, and results so
// far are scaled. Scores outlive their exponentials for that: weights have registers of their own, two sets, since one is multiplied.
//
// Defines: IN_T (half or __nv_bfloat16), HEAD (a multiple of 16 up to 256) for COLUMNS of them (a multiple of 8), BLOCK_KV (a multiple of
// 16), STAGES of keys and of values (2, 4, 8), Q_STAGES (1 or 2) of queries, CAUSAL (1 keeps key t <= s + s_k - s_q), TURNS (0 or 1), PDL;
// MASK (0 none; 1 additive of type MASK_T; 2 boolean bytes, true keeps), strides in elements, 0 broadcasts; MASK_ROWS = 0: one row serves
// all queries of a head; MASK_PAIRS = 1: keys are contiguous and their number and all other strides even.
// Arguments: q, k, v are 4-D tiled maps (head dimension, position, head, batch), box 64 x rows, swizzle 128 bytes; `out` has any strides
// of batch, head and position (elements, multiples of 8), its head dimension contiguous. heads_per_kv query heads share one key/value
// head; scale_log2 > 0 is the scale times log2(e). Rows without any key give zeros. Keys past s_k count for nothing.
// Grid: as many blocks as run at once, at most the tiles; block 384; dynamic shared memory SHARED_BYTES.
// Sources: Dao, "FlashAttention-2", 2023, and Shah et al., "FlashAttention-3", 2024 (schedule); Milakov and Gimelshein, 2018 (online softmax).
#include "sm90.cuh"
#define WGMMA_N BLOCK_KV
#include "sm90_wgmma.cuh"
#include "sm90_attention.cuh"

#ifndef MASK
#define MASK 0
#endif
#ifndef MASK_ROWS
#define MASK_ROWS 1
#endif
#ifndef MASK_PAIRS
#define MASK_PAIRS 0
#endif
#if MASK == 1
typedef MASK_T Masked;
#else
typedef unsigned char Masked;
#endif
struct __align__(2 * sizeof(Masked)) MaskPair {  // of two neighbouring keys
  Masked of[2];
};

constexpr int CONSUMERS = 2, BLOCK_Q = 64 * CONSUMERS, THREADS = 128 * (CONSUMERS + 1);
constexpr int CONSUMER_REGISTERS = 232, PRODUCER_REGISTERS = 40;
constexpr float LIMIT = 32768.f;          // half of what float16 holds; float32 sums have room for 2^100 of them
constexpr float SLACK = 8.f;              // a largest score that is larger by less than this, in powers of 2, leaves results unscaled
constexpr int PANELS = (HEAD + 63) / 64;  // of 64 columns, 128 bytes a row
constexpr bool Q_IN_REGISTERS = HEAD == 64;  // else every product reads them from shared memory again
constexpr int Q_BYTES = BLOCK_Q * PANELS * 128, KV_BYTES = BLOCK_KV * PANELS * 128;
constexpr int SHARED_BYTES = Q_STAGES * Q_BYTES + 2 * STAGES * KV_BYTES + 8 * (2 * Q_STAGES + 4 * STAGES);
static_assert(HEAD % 16 == 0 && COLUMNS % 8 == 0 && COLUMNS <= HEAD && BLOCK_KV % 16 == 0 && SHARED_BYTES <= 227 * 1024, "tiles that wgmma and shared memory take");

// One step: block j of the keys of tile `index`.
struct Step {
  int index, blocks, j;
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

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_steady_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
               const Masked* __restrict__ mask, IN_T* __restrict__ out, int heads_per_kv, int s_q, int s_k, int heads, int batches, const Strides out_stride, const Strides mask_stride, int mask_k, float scale_log2) {
  extern __shared__ __align__(1024) char shared[];
  const u32 q_base = shared_address(shared), k_base = q_base + Q_STAGES * Q_BYTES, v_base = k_base + STAGES * KV_BYTES;
  const u32 q_full = v_base + STAGES * KV_BYTES, q_empty = q_full + 8 * Q_STAGES, k_full = q_empty + 8 * Q_STAGES;
  const u32 v_full = k_full + 8 * STAGES, k_empty = v_full + 8 * STAGES, v_empty = k_empty + 8 * STAGES;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int reach = s_k - s_q;

  if (threadIdx.x == 0) {
    for (int i = 0; i < Q_STAGES; ++i) barrier_init(q_full + 8 * i, 1), barrier_init(q_empty + 8 * i, CONSUMERS * 4);
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(k_full + 8 * i, 1), barrier_init(v_full + 8 * i, 1);
      barrier_init(k_empty + 8 * i, CONSUMERS * 4), barrier_init(v_empty + 8 * i, CONSUMERS * 4);
    }
    barrier_init_fence();
  }
  __syncthreads();

  const int tiles = (s_q + BLOCK_Q - 1) / BLOCK_Q, sides = heads * batches;
  // The first query of a tile, and its (batch, head) as one number. Causal tiles come with the most keys first.
  auto first_query = [&](int index) { return (CAUSAL ? tiles - 1 - index / sides : index % tiles) * BLOCK_Q; };
  auto side_of = [&](int index) { return CAUSAL ? index % sides : index / tiles; };
  // Moves on to the first step of this block's next tile that has keys; `without_keys` gets the tiles between. False after the last tile.
  // Every second round goes backwards, so that blocks get about the same work.
  auto next_tile = [&](Step& step, auto without_keys) {
    for (;;) {
      if (step.index < 0) step.index = blockIdx.x;
      else step.index += step.index / gridDim.x % 2 ? 2 * blockIdx.x + 1 : 2 * (gridDim.x - blockIdx.x) - 1;
      if (step.index >= tiles * sides) return false;
      const int keys = CAUSAL ? max(0, min(s_k, first_query(step.index) + BLOCK_Q + reach)) : s_k;
      step.blocks = (keys + BLOCK_KV - 1) / BLOCK_KV, step.j = 0;
      if (step.blocks > 0) return true;
      without_keys(step.index);
    }
  };

  if (warp >= CONSUMERS * 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    if (warp > CONSUMERS * 4 || lane != 0) return;
    tensormap_prefetch(&q_map), tensormap_prefetch(&k_map), tensormap_prefetch(&v_map);
    dependency_wait();
    dependents_launch();
    Step step{-1};
    Place<STAGES> kv{0};
    Place<Q_STAGES> query{0};
    while (next_tile(step, [](int) {})) {
      const int q0 = first_query(step.index), side = side_of(step.index), head = side % heads, batch = side / heads, kv_head = head / heads_per_kv;
      barrier_wait(q_empty + 8 * query.stage(), query.parity() ^ 1);
      barrier_expect(q_full + 8 * query.stage(), Q_BYTES);
      for (int i = 0; i < PANELS; ++i)
        tma_load(q_base + query.stage() * Q_BYTES + i * BLOCK_Q * 128, &q_map, q_full + 8 * query.stage(), i * 64, q0, head, batch);
      ++query.n;
      for (int j = 0; j < step.blocks; ++j) {
        const u32 offset = kv.stage() * KV_BYTES;
        barrier_wait(k_empty + 8 * kv.stage(), kv.parity() ^ 1);
        barrier_expect(k_full + 8 * kv.stage(), KV_BYTES);
        for (int i = 0; i < PANELS; ++i)
          tma_load(k_base + offset + i * BLOCK_KV * 128, &k_map, k_full + 8 * kv.stage(), i * 64, j * BLOCK_KV, kv_head, batch);
        barrier_wait(v_empty + 8 * kv.stage(), kv.parity() ^ 1);
        barrier_expect(v_full + 8 * kv.stage(), KV_BYTES);
        for (int i = 0; i < PANELS; ++i)
          tma_load(v_base + offset + i * BLOCK_KV * 128, &v_map, v_full + 8 * kv.stage(), i * 64, j * BLOCK_KV, kv_head, batch);
        ++kv.n;
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
  const int group = warp / 4;
  const int first_row = group * 64 + warp % 4 * 16 + lane / 4;  // this thread's rows of a tile: this one and the eighth after it
  const int column = lane % 4 * 2;                              // its columns of eight: column and column + 1
  const u64 row_major = matrix_descriptor<128>(16, 1024), value_major = matrix_descriptor<128>(BLOCK_KV * 128, 1024);

  float sum[HEAD / 2], score[BLOCK_KV / 2];
  typedef u32 Weights[BLOCK_KV / 16][4];
  Weights even, odd;
  // Of a row: what exponentials are taken against, this thread's share of their sum, and what results before a step shrink by.
  float against[2] = {}, total[2] = {}, keeps[2];

  u32 queries[Q_IN_REGISTERS ? HEAD / 16 : 1][4];
  auto load_queries = [&](int q_stage) {
    const int r = lane % 16;
#pragma unroll
    for (int i = 0; i < HEAD / 16; ++i) {
      const u32 from = q_base + q_stage * Q_BYTES + i / 4 * BLOCK_Q * 128 + (group * 64 + warp % 4 * 16 + r) * 128 + ((i % 4 * 2 + lane / 16) ^ (r % 8)) * 16;
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(queries[i][0]), "=r"(queries[i][1]), "=r"(queries[i][2]), "=r"(queries[i][3]) : "r"(from) : "memory");
    }
  };
  auto multiply_keys = [&](int q_stage, int stage) {  // score = q k^T, asynchronously
    const u64 q = row_major | descriptor_start(q_base + q_stage * Q_BYTES + group * 64 * 128);
    const u64 k = row_major | descriptor_start(k_base + stage * KV_BYTES);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HEAD / 16; ++i)
      if constexpr (Q_IN_REGISTERS) Mma<IN_T>::step_registers(score, queries[i], k + (u64)((i / 4 * BLOCK_KV * 128 + i % 4 * 32) >> 4), i > 0);
      else Mma<IN_T>::template step<0, 0>(score, q + (u64)((i / 4 * BLOCK_Q * 128 + i % 4 * 32) >> 4), k + (u64)((i / 4 * BLOCK_KV * 128 + i % 4 * 32) >> 4),
                                     i > 0);
    wgmma_commit();
  };
  auto multiply_values = [&](const Weights& weight, int stage, int accumulate) {  // sum += weight v, asynchronously
    const u64 v = value_major | descriptor_start(v_base + stage * KV_BYTES);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 16; ++i) weigh<IN_T>(sum, weight[i], v + (u64)((i * 16 * 128) >> 4), i > 0 || accumulate);
    wgmma_commit();
  };
  auto settle = [&](auto& d) {  // no use of the registers moves before this
#pragma unroll
    for (int i = 0; i < (int)(sizeof(d) / sizeof(float)); ++i) asm volatile("" : "+f"(d[i])::"memory");
  };

  // What the mask holds for a step's scores: asked for while these are multiplied, so that none waits for it.
  MaskPair masked[MASK ? BLOCK_KV / 8 : 1][MASK_ROWS ? 2 : 1];
  auto fetch_mask = [&](const Step& step) {
    if constexpr (MASK) {
      const int row = first_query(step.index) + first_row, side = side_of(step.index), last = s_k - (MASK_PAIRS ? 2 : 1);
      const Masked* const from = mask + side / heads * mask_stride.b + side % heads * mask_stride.h;
#pragma unroll
      for (int h = 0; h < (MASK_ROWS ? 2 : 1); ++h) {
        const Masked* const mine = from + (MASK_ROWS ? min(row + 8 * h, s_q - 1) * mask_stride.s : 0);
#pragma unroll
        for (int i = 0; i < BLOCK_KV / 8; ++i) {
          const int key = step.j * BLOCK_KV + 8 * i + column;
          if constexpr (MASK_PAIRS) masked[i][h] = *(const MaskPair*)(mine + min(key, last));
          else masked[i][h] = {mine[min(key, last) * (long long)mask_k], mine[min(key + 1, last) * (long long)mask_k]};
        }
      }
    }
  };
  const float mask_factor = 1.4426950408889634f / scale_log2;
  // Scores with the mask, minus infinity where a key counts for nothing.
  auto mask_scores = [&](const Step& step) {
    const int first = step.j * BLOCK_KV, q0 = CAUSAL ? first_query(step.index) : 0, row = q0 + first_row;
    if constexpr (MASK)
#pragma unroll
      for (int i = 0; i < BLOCK_KV / 2; ++i) {
        const Masked m = masked[i / 4][MASK_ROWS ? i % 4 / 2 : 0].of[i % 2];
        if constexpr (MASK == 2) score[i] = m ? score[i] : minus_infinity();
        else score[i] = fmaf((float)m, mask_factor, score[i]);
      }
    if (first + BLOCK_KV > s_k || (CAUSAL && first + BLOCK_KV - 1 > q0 + group * 64 + reach)) {
#pragma unroll
      for (int i = 0; i < BLOCK_KV / 2; ++i) {
        const int key = first + i / 4 * 8 + column + i % 2, mine = row + i % 4 / 2 * 8;
        if (key >= s_k || (CAUSAL && key > mine + reach)) score[i] = minus_infinity();
      }
    }
  };
  // Weights of a step's scores, and this thread's shares of their sums.
  auto weights_against = [&](Weights& weight, float(&added)[2]) {
    float part[2][2] = {{0.f, 0.f}, {0.f, 0.f}};
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 16; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int h = e % 2;
        float pair[2];
#pragma unroll
        for (int f = 0; f < 2; ++f) {
          pair[f] = exponential(fmaf(score[8 * i + 2 * e + f], scale_log2, -against[h]));
          part[h][f] += pair[f];
        }
        weight[i][e] = pack(IN_T(), pair[0], pair[1]);
      }
    for (int h = 0; h < 2; ++h) added[h] = part[h][0] + part[h][1];
  };
  auto exact = [&](const Step& step, Weights& weight) {
    float most[2], added[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (step.j == 0) against[h] = -1e30f, total[h] = 0.f;
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
      most[h] *= scale_log2;
      if (most[h] - against[h] <= SLACK) most[h] = against[h];
      keeps[h] = exponential(against[h] - most[h]);
      against[h] = most[h];
    }
    weights_against(weight, added);
    for (int h = 0; h < 2; ++h) total[h] = total[h] * keeps[h] + added[h];
  };
  auto soften = [&](const Step& step, Weights& weight) {
    mask_scores(step);
    bool fits = __any_sync(~0u, step.j != 0);  // a vote, so that the assembler keeps descriptors in uniform registers
    if (fits) {
      float added[2];
      weights_against(weight, added);
      fits = !__any_sync(~0u, added[0] > LIMIT || added[1] > LIMIT);
      if (fits) keeps[0] = keeps[1] = 1.f, total[0] += added[0], total[1] += added[1];
    }
    if (!fits) exact(step, weight);
  };
  auto rescale = [&](const float(&keeps)[2]) {
#pragma unroll
    for (int i = 0; i < HEAD / 2; ++i) sum[i] *= keeps[i % 4 / 2];
  };
  // Where this thread's results of a tile go: those of its row `first_row + 8 * h`, 8 columns from 8 * (lane % 4) on; null past the last row.
  auto place_of = [&](int index, int h) {
    const int row = first_query(index) + first_row + 8 * h, side = side_of(index);
    IN_T* place = out + side / heads * out_stride.b + side % heads * out_stride.h + row * out_stride.s + lane % 4 * 8;
    return row < s_q ? place : nullptr;
  };
  // The tile's results: sums over the rows' totals, in 16-byte units.
  auto store = [&](int index, const float(&whole)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float all = whole[h] + __shfl_xor_sync(~0u, whole[h], 1);
      all += __shfl_xor_sync(~0u, all, 2);
      const float share = all > 0.f ? 1.f / all : 0.f;
      IN_T* target = place_of(index, h);
#pragma unroll
      for (int i = 0; i < HEAD / 8; i += 4) {
        u32 words[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) words[e] = i + e >= HEAD / 8 ? 0 : pack(IN_T(), sum[4 * (i + e) + 2 * h] * share, sum[4 * (i + e) + 2 * h + 1] * share);
        transpose_quad(words, lane % 4);
        if (target && (COLUMNS % 32 == 0 || 8 * (i + lane % 4) < COLUMNS)) *(uint4*)(target + 8 * i) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  };
  auto without_keys = [&](int index) {
    dependency_wait();
    for (int h = 0; h < 2; ++h)
      if (IN_T* target = place_of(index, h))
        for (int i = 0; i + lane % 4 * 8 < COLUMNS; i += 32) *(uint4*)(target + i) = make_uint4(0, 0, 0, 0);
  };
  // Named barrier 2 + w lets warpgroup w issue its products; the one before it in the ring arrives there when it has issued its own.
  auto await_turn = [&] {
    if constexpr (TURNS) asm volatile("bar.sync %0, 256;" ::"r"(2 + group) : "memory");
  };
  auto pass_turn = [&] {
    if constexpr (TURNS) asm volatile("bar.arrive %0, 256;" ::"r"(2 + (group + 1 == CONSUMERS ? 0 : group + 1)) : "memory");
  };
  auto release = [&](u32 barrier) {
    if (lane == 0) barrier_arrive(barrier);
  };

  if constexpr (MASK) dependency_wait();
  Step step{-1};
  if (!next_tile(step, without_keys)) return;
  int done = -1;  // the tile whose results `sum` holds when `step` is the first one of the next
  Place<STAGES> keys{0};
  Place<Q_STAGES> query{0};
  float whole[2];
  // Issues the scores of the next step, whose keys are at `keys`.
  auto begin = [&](bool first) {
    if (first) {
      barrier_wait(q_full + 8 * query.stage(), query.parity());
      if constexpr (Q_IN_REGISTERS) {
        load_queries(query.stage());
        release(q_empty + 8 * query.stage());
      }
    }
    barrier_wait(k_full + 8 * keys.stage(), keys.parity());
    await_turn();
    multiply_keys(query.stage(), keys.stage());
  };
  // The scores are there: what they were multiplied of may be overwritten.
  auto finish = [&](bool last) {
    settle(score);
    release(k_empty + 8 * keys.stage());
    ++keys.n;
    if (last) {
      if constexpr (!Q_IN_REGISTERS) release(q_empty + 8 * query.stage());
      ++query.n;
    }
  };
  // Issues the products of a step's weights and values, after what earlier steps left in `sum` was scaled or stored.
  auto weigh_values = [&](const Weights& weight, bool first, const Place<STAGES>& values) {
    settle(sum);
    if (!first) {
      if (__any_sync(~0u, keeps[0] != 1.f || keeps[1] != 1.f)) rescale(keeps);
    } else if (done >= 0) store(done, whole);
    barrier_wait(v_full + 8 * values.stage(), values.parity());
    multiply_values(weight, values.stage(), !first);
  };

#pragma unroll
  for (int i = 0; i < HEAD / 2; ++i) sum[i] = 0.f;
  if (group == CONSUMERS - 1) pass_turn();
  fetch_mask(step);
  begin(true);
  pass_turn();
  wgmma_wait<0>();
  finish(step.last());
  soften(step, even);
  auto advance = [&](Weights& now, Weights& next) {
    const bool first = step.j == 0, last = step.last();
    const int index = step.index;
    if (!last) ++step.j;
    else if (!next_tile(step, without_keys)) {
      weigh_values(now, first, {keys.n - 1});
      wgmma_wait<0>();
      settle(sum);
      store(index, total);
      return false;
    }
    begin(last);
    weigh_values(now, first, {keys.n - 1});
    pass_turn();
    fetch_mask(step);
    wgmma_wait<1>();
    finish(step.last());
    if (last) done = index, whole[0] = total[0], whole[1] = total[1];
    soften(step, next);
    wgmma_wait<0>();
    release(v_empty + 8 * Place<STAGES>{keys.n - 2}.stage());  // `finish` has moved on
    return true;
  };
  while (advance(even, odd) && advance(odd, even)) {}
}
