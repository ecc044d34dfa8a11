// Fused attention for sm_90a: out = softmax(scale * q k^T + mask) v, fp16 or bf16, without a score matrix in memory.
//
// A tile is 128 query rows of one (batch, head): each of two warpgroups owns 64, a producer warp streams BLOCK_KV keys and values at a
// time through TMA (sm90_attention_stream.cuh). Blocks stay for several tiles, and the steps of one tile follow those of the tile before without a gap: queries and
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
// 16), STAGES of keys and of values (2, 4, 8), Q_STAGES (1 or 2) of queries, CAUSAL (1 keeps key t <= s + s_k - s_q), WINDOW (w keeps t > s + s_k - s_q - w; 0 all), TURNS (0 or 1), PDL;
// MASK (0 none; 1 additive of type MASK_T; 2 boolean bytes, true keeps), strides in elements, 0 broadcasts; MASK_ROWS = 0: one row serves
// all queries of a head; MASK_PAIRS = 1: keys are contiguous and their number and all other strides even.
// Arguments: q, k, v are 4-D tiled maps (head dimension, position, head, batch), box 64 x rows, swizzle 128 bytes; `out` has any strides
// of batch, head and position (elements, multiples of 8), its head dimension contiguous. heads_per_kv query heads share one key/value
// head; together: of Tiles; scale_log2 > 0 is the scale times log2(e). Rows without any key give zeros. Keys past s_k count for nothing.
// Grid: as many blocks as run at once, at most the tiles; block 384; dynamic shared memory SHARED_BYTES.
// Sources: Dao, "FlashAttention-2", 2023, and Shah et al., "FlashAttention-3", 2024 (schedule); Milakov and Gimelshein, 2018 (online softmax).
#include "sm90_attention_consumer.cuh"

constexpr float LIMIT = 32768.f;             // half of what float16 holds; float32 sums have room for 2^100 of them
constexpr float LOG2E = 1.4426950408889634f, LOWEST = -3.402823466e38f;
// Scores become powers of 2 when exponentials are taken; with a mask of float's range they are powers of e until then, since log2(e) times the lowest is none.
constexpr float UNIT = MASK_OVERFLOWS ? LOG2E : 1.f;
constexpr bool Q_IN_REGISTERS = HEAD == 64;  // else every product reads them from shared memory again

// A small value at a shared address.
template <class T>
__device__ __forceinline__ T load_pair(u32 from) {
  u32 low, high = 0;
  if constexpr (sizeof(T) == 2) {
    unsigned short both;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(both) : "r"(from) : "memory");
    low = both;
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(low) : "r"(from) : "memory");
  } else {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(low), "=r"(high) : "r"(from) : "memory");
  }
  const u32 words[2] = {low, high};
  return *(const T*)words;
}

#if MASK_STAGES
#define MASK_PARAMETER const __grid_constant__ TensorMap mask_map
#else
#define MASK_PARAMETER const Masked* __restrict__ mask
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_steady_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
                      MASK_PARAMETER, OUT_T* __restrict__ out, int heads_per_kv, int s_q, int s_k, int heads, int batches, int together, const Strides out_stride,
                      const Strides mask_stride, int mask_k, float scale_log2) {
  extern __shared__ __align__(1024) char shared[];
  const Rings rings(shared);
  const Tiles tiles(s_q, s_k, heads, batches, together);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

  if (threadIdx.x == 0) rings.begin();
  __syncthreads();

  if (warp >= CONSUMERS * 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    if (warp > CONSUMERS * 4 || lane != 0) return;
#if MASK_STAGES
    tensormap_prefetch(&mask_map);
    Place<MASK_STAGES> masks{0};
    produce(tiles, rings, q_map, k_map, v_map, heads_per_kv, [&](int key, int query, int head, int batch) {
      const u32 target = rings.mask + masks.stage() * MASK_BYTES, full = rings.mask_full + 8 * masks.stage();
      barrier_wait(rings.mask_empty + 8 * masks.stage(), masks.parity() ^ 1);
      barrier_expect(full, MASK_LOADED);
      for (int i = 0; i < (MASK_ROWS ? MASK_ROW / MASK_WIDTH : 1); ++i)
        tma_load(target + i * BLOCK_Q * MASK_WIDTH, &mask_map, full, key + i * MASK_WIDTH / (int)sizeof(Masked), MASK_ROWS ? query : 0,
                 mask_stride.h ? head : 0, mask_stride.b ? batch : 0);
      ++masks.n;
    });
#else
    produce(tiles, rings, q_map, k_map, v_map, heads_per_kv, [](int, int, int, int) {});
#endif
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
  const Results results{out, out_stride, warp / 4 * 64 + warp % 4 * 16 + lane / 4, lane};
  const Consumer me{tiles, rings, results, warp, lane, warp / 4};

  float sum[HEAD / 2], score[BLOCK_KV / 2];
  Weights even, odd;
  float against[2] = {}, total[2] = {}, keeps[2];  // of a row: what exponentials are taken against; those of Consumer

  // What the mask holds for a step's scores: asked for while these are multiplied, so that none waits for it.
#if MASK_STAGES
  Place<MASK_STAGES> masks{0};
#elif MASK
  MaskPair masked[BLOCK_KV / 8][MASK_ROWS ? 2 : 1];
#endif
  auto fetch_mask = [&](const Step& step) {
#if MASK && !MASK_STAGES
    const int row = step.q0 + results.first_row, side = tiles.side(step.index), last = s_k - (MASK_PAIRS ? 2 : 1);
    const Masked* const from = mask + tiles.batch(side) * mask_stride.b + tiles.head(side) * mask_stride.h;
#pragma unroll
    for (int h = 0; h < (MASK_ROWS ? 2 : 1); ++h) {
      const Masked* const mine = from + (MASK_ROWS ? min(row + 8 * h, s_q - 1) * mask_stride.s : 0);
#pragma unroll
      for (int i = 0; i < BLOCK_KV / 8; ++i) {
        const int key = step.j * BLOCK_KV + 8 * i + me.column();
        if constexpr (MASK_PAIRS) masked[i][h] = *(const MaskPair*)(mine + min(key, last));
        else masked[i][h] = {mine[min(key, last) * (long long)mask_k], mine[min(key + 1, last) * (long long)mask_k]};
      }
    }
#endif
  };
#if MASK
  const float scale = scale_log2 / LOG2E, mask_factor = LOG2E / scale_log2;
  // Eight keys' scores of row `h` with the mask.
  auto add_mask = [&](int i, int h, const MaskPair& pair) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float& mine = score[4 * i + 2 * h + e];
      if constexpr (MASK == 2) mine = pair.of[e] ? mine : minus_infinity();
      else if constexpr (MASK_OVERFLOWS) mine = fmaf(mine, scale, (float)pair.of[e]);
      else mine = fmaf((float)pair.of[e], mask_factor, mine);
    }
  };
#endif
  // Scores with the mask, minus infinity where a key counts for nothing.
  auto mask_scores = [&](const Step& step) {
#if MASK_STAGES
    const u32 full = rings.mask_full + 8 * masks.stage(), empty = rings.mask_empty + 8 * masks.stage();
    const u32 tile = rings.mask + masks.stage() * MASK_BYTES;
    barrier_wait(full, masks.parity());
    // Where a byte of a row lies: the copy engine exchanges 16-byte chunks within MASK_WIDTH, by bits of the row.
    auto place = [&](int row, int byte) {
      return tile + byte / MASK_WIDTH * BLOCK_Q * MASK_WIDTH + row * MASK_WIDTH + (byte % MASK_WIDTH ^ ((row * MASK_WIDTH >> 3) & (MASK_WIDTH - 16)));
    };
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 8; ++i)
      if constexpr (MASK_ROWS && sizeof(Masked) == 2) {
        if (i % 2) continue;
        u32 words[4];
        load_matrices(words, place(me.group * 64 + warp % 4 * 16 + lane % 16, i * 16 + lane / 16 * 16));
#pragma unroll
        for (int e = 0; e < 4; ++e) add_mask(i + e / 2, e % 2, *(const MaskPair*)&words[e]);
      } else {
        const int byte = (8 * i + me.column()) * sizeof(Masked);
        MaskPair pair;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (h == 0 || MASK_ROWS) pair = load_pair<MaskPair>(MASK_ROWS ? place(results.first_row, byte) + 8 * h * MASK_WIDTH : tile + byte);
          add_mask(i, h, pair);
        }
      }
    __syncwarp();
    if (lane == 0) barrier_arrive(empty);
    ++masks.n;
#elif MASK
#pragma unroll
    for (int i = 0; i < BLOCK_KV / 8; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) add_mask(i, h, masked[i][MASK_ROWS ? h : 0]);
#endif
    me.hide(score, step);
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
          const float found = score[8 * i + 2 * e + f];
          pair[f] = exponential(MASK_OVERFLOWS ? (found - against[h]) * LOG2E : fmaf(found, scale_log2, -against[h]));
          part[h][f] += pair[f];
        }
        weight[i][e] = pack(IN_T(), pair[0], pair[1]);
      }
    for (int h = 0; h < 2; ++h) added[h] = part[h][0] + part[h][1];
  };
  auto exact = [&](const Step& step, Weights& weight) {
    float most[2], added[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (step.first()) against[h] = MASK_OVERFLOWS ? LOWEST : -1e30f, total[h] = 0.f;
    largest(score, most);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      most[h] = MASK_OVERFLOWS ? fmaxf(most[h], LOWEST) : most[h] * scale_log2;
      if (most[h] - against[h] <= SLACK / UNIT) most[h] = against[h];
      keeps[h] = exponential((against[h] - most[h]) * UNIT);
      against[h] = most[h];
    }
    weights_against(weight, added);
    for (int h = 0; h < 2; ++h) total[h] = total[h] * keeps[h] + added[h];
  };
  auto soften = [&](const Step& step, Weights& weight) {
    mask_scores(step);
    bool fits = __any_sync(~0u, !step.first());  // a vote, so that the assembler keeps descriptors in uniform registers
    if (fits) {
      float added[2];
      weights_against(weight, added);
      fits = !__any_sync(~0u, added[0] > LIMIT || added[1] > LIMIT);
      if (fits) keeps[0] = keeps[1] = 1.f, total[0] += added[0], total[1] += added[1];
    }
    if (!fits) exact(step, weight);
  };
  if constexpr (MASK && !MASK_STAGES) dependency_wait();
  me.walk<Q_IN_REGISTERS, false>(sum, score, even, odd, total, keeps, fetch_mask, soften, [](Weights&) {});
}
