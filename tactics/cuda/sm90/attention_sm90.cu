// Fused attention for sm_90a: out = softmax(scale * q k^T) v, fp16 or bf16, without a score matrix in memory.
//
// A tile is CONSUMERS x 64 query rows of one (batch, head): each consumer warpgroup owns 64, a producer warp streams BLOCK_KV keys
// and values at a time through TMA. Blocks stay for several tiles, and the steps of one tile follow those of the tile before without a
// gap: queries and keys come ahead, and the first products of a tile run beside the last softmax and the stores of the other.
//
// While the tensor cores multiply the last step's probabilities by its values, a warpgroup takes the exponentials of the next step's
// scores; the probabilities go from accumulators to wgmma's register operand without moving. Sums are scaled, and a finished tile is
// stored, while the next scores are multiplied. With TURNS the warpgroups hand their products on in a ring, so that one's exponentials run
// beside another's products.
//
// Defines: IN_T (half or __nv_bfloat16), HEAD (64 or 128), BLOCK_KV (a multiple of 16, at most 256), STAGES of keys and of values (2, 4, 8),
// Q_STAGES (1 or 2) of queries, CAUSAL (1 keeps key t <= s + s_k - s_q), CONSUMERS (2 or 3), TURNS (0 or 1), PDL.
// Arguments: q, k, v are 4-D tiled maps (head dimension, position, head, batch), box 64 x rows, swizzle 128 bytes; `out` has any strides
// of batch, head and position (elements, multiples of 8), its head dimension contiguous. heads_per_kv query heads share one key/value
// head; scale_log2 > 0 is the scale times log2(e). Rows without any key give zeros. Keys past s_k count for nothing.
// Grid: as many blocks as run at once, at most the tiles; block 128 * (CONSUMERS + 1); dynamic shared memory SHARED_BYTES.
// Sources: Dao, "FlashAttention-2", 2023, and Shah et al., "FlashAttention-3", 2024 (schedule); Milakov and Gimelshein, 2018 (online softmax).
#include "sm90.cuh"
#define WGMMA_N BLOCK_KV
#include "sm90_wgmma.cuh"
#include "sm90_attention.cuh"

constexpr int BLOCK_Q = 64 * CONSUMERS, THREADS = 128 * (CONSUMERS + 1);
constexpr int CONSUMER_REGISTERS = CONSUMERS == 2 ? 232 : 160, PRODUCER_REGISTERS = CONSUMERS == 2 ? 40 : 32;
constexpr float SLACK = 8.f;       // float16 has room for it, and for float32 sums of 2^24 of them
constexpr int PANELS = HEAD / 64;  // of 64 columns, 128 bytes a row
constexpr int Q_BYTES = BLOCK_Q * HEAD * 2, KV_BYTES = BLOCK_KV * HEAD * 2;
constexpr int SHARED_BYTES = Q_STAGES * Q_BYTES + 2 * STAGES * KV_BYTES + 8 * (2 * Q_STAGES + 4 * STAGES);
static_assert(HEAD % 64 == 0 && BLOCK_KV % 16 == 0 && SHARED_BYTES <= 227 * 1024, "tiles that wgmma and shared memory take");

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

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
               IN_T* __restrict__ out, int heads_per_kv, int s_q, int s_k, int heads, int batches, const Strides out_stride, float scale_log2) {
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
  u32 weight[BLOCK_KV / 16][4];
  float top[2] = {}, total[2] = {};  // of a row: the largest score so far, this thread's share of its sum

  auto multiply_keys = [&](int q_stage, int stage) {  // score = q k^T, asynchronously
    const u64 q = row_major | descriptor_start(q_base + q_stage * Q_BYTES + group * 64 * 128);
    const u64 k = row_major | descriptor_start(k_base + stage * KV_BYTES);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HEAD / 16; ++i)
      Mma<IN_T>::template step<0, 0>(score, q + (u64)((i / 4 * BLOCK_Q * 128 + i % 4 * 32) >> 4), k + (u64)((i / 4 * BLOCK_KV * 128 + i % 4 * 32) >> 4),
                                     i > 0);
    wgmma_commit();
  };
  auto multiply_values = [&](int stage, int accumulate) {  // sum += weight v, asynchronously
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
  // Scores to exponentials against (nearly) the largest ones; keeps[h] is what sums so far shrink by. A largest score that grows by less than
  // a factor of 2^SLACK in its exponential counts for no new one, so that sums are seldom scaled.
  auto soften = [&](const Step& step, float(&keeps)[2]) {
    const int first = step.j * BLOCK_KV, q0 = CAUSAL ? first_query(step.index) : 0, row = q0 + first_row;
    if (first + BLOCK_KV > s_k || (CAUSAL && first + BLOCK_KV - 1 > q0 + group * 64 + reach)) {
#pragma unroll
      for (int i = 0; i < BLOCK_KV / 2; ++i) {
        const int key = first + i / 4 * 8 + column + i % 2, mine = row + i % 4 / 2 * 8;
        if (key >= s_k || (CAUSAL && key > mine + reach)) score[i] = __int_as_float(0xff800000);  // minus infinity
      }
    }
    float most[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (step.j == 0) top[h] = -1e30f, total[h] = 0.f;
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
        for (int e = 0; e < 4; ++e) words[e] = pack(IN_T(), sum[4 * (i + e) + 2 * h] * share, sum[4 * (i + e) + 2 * h + 1] * share);
        transpose_quad(words, lane % 4);
        if (target) *(uint4*)(target + 8 * i) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  };
  auto without_keys = [&](int index) {
    dependency_wait();
    for (int h = 0; h < 2; ++h)
      if (IN_T* target = place_of(index, h))
        for (int i = 0; i < HEAD; i += 32) *(uint4*)(target + i) = make_uint4(0, 0, 0, 0);
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

  Step step{-1};
  if (!next_tile(step, without_keys)) return;
  int done = -1;  // the tile whose results `sum` holds when `step` is the first one of the next
  Place<STAGES> keys{0};
  Place<Q_STAGES> query{0};
  float keeps[2], whole[2];
  // Issues the scores of the next step, whose keys are at `keys`.
  auto begin = [&](bool first) {
    if (first) barrier_wait(q_full + 8 * query.stage(), query.parity());
    barrier_wait(k_full + 8 * keys.stage(), keys.parity());
    await_turn();
    multiply_keys(query.stage(), keys.stage());
  };
  // The scores are there: what they were multiplied of may be overwritten.
  auto finish = [&](bool last) {
    settle(score);
    release(k_empty + 8 * keys.stage());
    ++keys.n;
    if (last) release(q_empty + 8 * query.stage()), ++query.n;
  };
  // Issues the products of a step's weights and values, after what earlier steps left in `sum` was scaled or stored.
  auto weigh_values = [&](bool first, const Place<STAGES>& values) {
    settle(sum);
    if (!first) {
      if (__any_sync(~0u, keeps[0] != 1.f || keeps[1] != 1.f)) rescale(keeps);
    } else if (done >= 0) store(done, whole);
    barrier_wait(v_full + 8 * values.stage(), values.parity());
    multiply_values(values.stage(), !first);
  };

#pragma unroll
  for (int i = 0; i < HEAD / 2; ++i) sum[i] = 0.f;
  if (group == CONSUMERS - 1) pass_turn();
  begin(true);
  pass_turn();
  wgmma_wait<0>();
  finish(step.last());
  soften(step, keeps);
  to_weights();
  for (;;) {
    const bool first = step.j == 0, last = step.last();
    const int index = step.index;
    if (!last) ++step.j;
    else if (!next_tile(step, without_keys)) {
      weigh_values(first, {keys.n - 1});
      wgmma_wait<0>();
      settle(sum);
      store(index, total);
      return;
    }
    begin(last);
    weigh_values(first, {keys.n - 1});
    pass_turn();
    wgmma_wait<1>();
    finish(step.last());
    if (last) done = index, whole[0] = total[0], whole[1] = total[1];
    soften(step, keeps);
    wgmma_wait<0>();
    release(v_empty + 8 * Place<STAGES>{keys.n - 2}.stage());  // `finish` has moved on
    to_weights();
  }
}
