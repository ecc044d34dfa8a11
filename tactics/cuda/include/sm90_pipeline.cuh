// The body shared by the sm_90a matrix kernels (gemm_sm90.cu, conv_sm90.cu): D = X x Y^T, tile by tile.
//
// One producer warp fills a ring of STAGES shared-memory stages through TMA; WARPGROUPS consumer warpgroups multiply with wgmma and
// write the result through the epilogue contract (docs/kernels.md). Persistent: a block walks tiles blockIdx.x, + gridDim.x, ...
//
// X is the operand on the 64-row side of wgmma, Y the one on its N side. SWAP = 0: X = A (output rows), Y = B (output columns).
// SWAP = 1: X = B, Y = A, for few output rows; the result is turned while it goes through shared memory.
//
// Defines
//   IN_T, OUT_T      half, __nv_bfloat16 or float (float inputs multiply as tf32); 8-bit types (of A: B is signed), integers with SUM_T
//                    (sums.cuh)
//   BM, BN           rows of X and of Y in a tile; BM % 64 == 0, BN % 8 == 0, BN <= 256
//   SWIZZLE          bytes of K in a stage: 128, 64 or 32
//   STAGES           stages of the ring
//   WARPGROUPS       consumer warpgroups: 1, 2 or 3
//   PINGPONG         0: the warpgroups share a tile's rows; 1: two warpgroups take turns at tiles, so that one writes while the other
//                    multiplies
//   X_MN, Y_MN       1: that operand's rows, not its K, are contiguous in memory (two-byte types)
//   CLUSTER_X / _Y   blocks of a cluster side by side along X (they share Y by multicast) and along Y (they share X)
//   SPLIT            such groups of a cluster that share one tile's K; partial sums meet in distributed shared memory, in a fixed order
//   CHUNK            columns a warp writes at a time (sm90_epilogue.cuh)
//   DIRECT           1: rows of B come in the order that lets a thread write its sums without a turn through shared memory
//                    (sm90_epilogue.cuh); not with SPLIT or SWAP
//   VEC              the largest of 8, 4, 2, 1 that divides the output's row length
//   GROUP            tiles along X that are walked before the next along Y (L2 reuse)
//   CONSTANT_B       1: B is a weight, loaded before the previous kernel has finished (PDL)
//   AHEAD            1: operands of the epilogue that have a row for each of the output's are asked for while the tile is multiplied
//   MIN_BLOCKS       blocks a multiprocessor should hold
//   PROMOTE          0, or the number of stages (a power of two) whose products of 8-bit floats are summed by the tensor cores, which keep some
//                    14 bits of such sums, before they are added to float32 sums
//
// Source of the technique: the CUDA programming guide (TMA, mbarrier, clusters) and the PTX ISA (wgmma); "CUTLASS 3" describes the same
// warp-specialised schedules.
#pragma once

#include "division.cuh"
#include "pdl.cuh"
#include "sm90.cuh"
#include "sm90_epilogue.cuh"
#include "sm90_wgmma.cuh"

#ifndef PINGPONG
#define PINGPONG 0
#endif
#ifndef X_MN
#define X_MN 0
#endif
#ifndef Y_MN
#define Y_MN 0
#endif
#ifndef CLUSTER_X
#define CLUSTER_X 1
#endif
#ifndef CLUSTER_Y
#define CLUSTER_Y 1
#endif
#ifndef SPLIT
#define SPLIT 1
#endif
#ifndef GROUP
#define GROUP 8
#endif
#ifndef CONSTANT_B
#define CONSTANT_B 0
#endif
#ifndef PROMOTE
#define PROMOTE 0
#endif
#ifndef AHEAD
#define AHEAD 0
#endif
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 1
#endif

#define EARLY_B (PDL && CONSTANT_B)  // weights are asked for before the kernel waits for the one that writes A

constexpr bool B_SHARED = (SWAP ? CLUSTER_Y : CLUSTER_X) > 1;
constexpr int SHARING = CLUSTER_X * CLUSTER_Y, CLUSTER = SHARING * SPLIT;
constexpr int BK = SWIZZLE / (int)sizeof(IN_T);           // values of K in a stage
constexpr int STEPS = SWIZZLE / 32;                       // wgmma instructions along K in a stage
constexpr int MI = BM / 64 / (PINGPONG ? 1 : WARPGROUPS);  // 64-row blocks a warpgroup owns
constexpr int SUMS = MI * BN / 2 * (PROMOTE ? 2 : 1);  // registers a thread holds for them
// Consumers need more than the even share of 168 registers (of 128, when they are three warpgroups).
constexpr bool REBALANCE = (WARPGROUPS == 2 && SUMS > 96) || (WARPGROUPS == 3 && SUMS > 64);
constexpr int THREADS = WARPGROUPS * 128 + (REBALANCE ? 128 : 32);  // setmaxnreg moves registers between whole warpgroups
constexpr int CONSUMER_REGISTERS = WARPGROUPS == 3 ? 152 : 232;
constexpr int PRODUCER_REGISTERS = WARPGROUPS == 3 ? 56 : 40;
// How many of a tile's last instructions along K are under way when a warpgroup lets the other multiply: the turn takes 100 cycles to pass, and
// tensor cores that have two warpgroups' instructions finish the first one's tile later.
constexpr int HANDOVER = PINGPONG ? (MI * BN < 180 ? 2 : 1) : STEPS;
constexpr int MOVERS = PINGPONG ? 128 : WARPGROUPS * 128;  // threads that write a tile
constexpr int PRODUCER = WARPGROUPS * 4;  // its warp
constexpr int X_BYTES = BM * SWIZZLE;
constexpr int Y_BYTES = BN * SWIZZLE;
constexpr int Y_SWIZZLE = !Y_MN ? SWIZZLE : BN % 64 == 0 ? 128 : BN % 32 == 0 ? 64 : 32;
constexpr int OWNED = BM / SPLIT;  // rows of X that one block of a split cluster finishes
constexpr int PARTIAL_ROW = SWAP ? OWNED + 4 : BN + 8;
constexpr int PARTIAL_BLOCK = (SWAP ? BN : OWNED) * PARTIAL_ROW;  // floats from one block of the cluster
constexpr int PARTIAL_BYTES = SPLIT > 1 ? 4 * SPLIT * PARTIAL_BLOCK : 0;
constexpr bool OVERLAY = PARTIAL_BYTES > 24 * 1024;  // large partial sums lie where the stages were
constexpr int STAGING_BYTES = SPLIT > 1 ? (OVERLAY ? 0 : PARTIAL_BYTES) : DIRECT ? 0 : 4 * WARPGROUPS * 4 * STAGING_WARP;
constexpr int STAGE_BYTES = STAGES * (X_BYTES + Y_BYTES) > PARTIAL_BYTES || !OVERLAY ? STAGES * (X_BYTES + Y_BYTES) : PARTIAL_BYTES;
constexpr int SHARED_BYTES = STAGE_BYTES + STAGING_BYTES + STAGES * 16 + (SPLIT > 1 ? 16 : 0);

static_assert(BM % 64 == 0 && MI >= 1 && (PINGPONG || MI * 64 * WARPGROUPS == BM), "BM is 64-row blocks, shared evenly");
static_assert(CLUSTER <= 8, "portable clusters");
static_assert(SPLIT == 1 || (!PINGPONG && OWNED % 8 == 0), "a split block owns whole groups of 8 rows");
static_assert(!PINGPONG || WARPGROUPS == 2, "two warpgroups take turns");
static_assert(!DIRECT || SPLIT == 1, "partial sums go through shared memory");
static_assert(SHARED_BYTES <= 227 * 1024, "too much shared memory");

// A place in the ring of stages: which one, and the parity that its barriers have this time round.
struct Slot {
  int index = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next() {
    if (++index == STAGES) index = 0, parity ^= 1;
  }
  __device__ __forceinline__ void skip(int n) {
    index += n;
    parity ^= (index / STAGES) & 1;
    index %= STAGES;
  }
};

// Which tile: its index along X and along Y, and its batch.
struct Tile {
  int x, y, batch;
};

// Stops the compiler from working a tile's place out later than here.
__device__ __forceinline__ void hold(Tile& tile) { asm volatile("" : "+r"(tile.x), "+r"(tile.y), "+r"(tile.batch)); }

// A block's share of the operands that its cluster multicasts: it loads part_x of CLUSTER_Y parts of X for the blocks of mask_x, and
// part_y of CLUSTER_X parts of Y for those of mask_y.
struct Share {
  u32 part_x, part_y;
  unsigned short mask_x, mask_y;
};

// The order of tiles, in groups of GROUP along X, so that the blocks running at one time share both operands in L2: tiles (of whole clusters)
// along X; tiles of a batch; tiles of a group; tiles along X of the last group. Divided by on the host: a division takes 200 cycles, and the
// first tile stands between a block's start and its first loads.
struct TileOrder {
  u32 along_x;
  Divider batch, group, last;
};

__device__ __forceinline__ Tile tile_at(u32 index, const TileOrder& order) {
  u32 batch = index, rest = order.batch.split(batch), group = rest;
  rest = order.group.split(group);
  const u32 first = group * GROUP;
  if (first + GROUP <= order.along_x) return {int(first + rest % GROUP), int(rest / GROUP), int(batch)};
  const u32 x = order.last.split(rest);
  return {int(first + x), int(rest), int(batch)};
}

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(int value) { return __int_as_float(value); }
// Stops the compiler from moving uses of a register before the wait for wgmma.
__device__ __forceinline__ void keep(float& value) { asm volatile("" : "+f"(value)::"memory"); }
__device__ __forceinline__ void keep(int& value) { asm volatile("" : "+r"(value)::"memory"); }

// Zero by an instruction of its own: a branch around many of them stays a branch, and is no selection for every sum.
__device__ __forceinline__ void clear(float& value) { asm volatile("mov.b32 %0, 0;" : "=f"(value)); }
__device__ __forceinline__ void clear(int& value) { asm volatile("mov.b32 %0, 0;" : "=r"(value)); }

// Hands a warpgroup's partial sums over slice `slice` of K to the blocks of the cluster that own their rows: stores for this block's own,
// messages for the others, which their barriers `received` count. `place` is the block's among those that share operands.
__device__ __forceinline__ void send_partial(const SUM_T (&sum)[BN / 2], SUM_T* partial, u32 received, int x, u32 slice, u32 place) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = x + 8 * h;  // of the tile; a multiple of 8, as OWNED is
    const int local = row % OWNED + g;
    const u32 owner = row / OWNED, rank = owner * SHARING + place;
    SUM_T* const own = partial + slice * PARTIAL_BLOCK + (SWAP ? c * PARTIAL_ROW + local : local * PARTIAL_ROW + c);
    constexpr int STEP = SWAP ? 8 * PARTIAL_ROW : 8;  // to the thread's next two columns
    if (owner == slice) {
#pragma unroll
      for (int j = 0; j < BN / 8; ++j) {
        const SUM_T a = sum[4 * j + 2 * h], b = sum[4 * j + 2 * h + 1];
        if constexpr (SWAP) own[j * STEP] = a, own[j * STEP + PARTIAL_ROW] = b;
        else *(Sum2*)(own + j * STEP) = Sum2{a, b};
      }
    } else {
      const u32 target = remote_address(shared_address(own), rank), barrier = remote_address(received, rank);
#pragma unroll
      for (int j = 0; j < BN / 8; ++j) {
        const float a = as_float(sum[4 * j + 2 * h]), b = as_float(sum[4 * j + 2 * h + 1]);  // bits, whatever they mean
        if constexpr (SWAP) {
          store_remote(target + 4 * j * STEP, a, barrier);
          store_remote(target + 4 * (j * STEP + PARTIAL_ROW), b, barrier);
        } else {
          store_remote(target + 4 * j * STEP, a, b, barrier);
        }
      }
    }
  }
}

// Adds the cluster's partial sums of this block's rows in the order of the blocks, and writes them.
__device__ __forceinline__ void write_owned(const SUM_T* partial, OUT_T* out, const EpilogueArgs& args, int x0, int y0, int rows,
                                            int columns, const RowMap& row_of) {
  constexpr int WIDE = (SWAP ? OWNED : BN) / 8, COUNT = (SWAP ? BN : OWNED) * WIDE;
  constexpr int EACH = (COUNT + MOVERS - 1) / MOVERS, BATCH = EACH < 4 ? EACH : 4;  // vectors whose loads all come before the first store
  for (int from = threadIdx.x; from < COUNT; from += BATCH * MOVERS) {
    Finished v[BATCH][8];
    int m[BATCH], n[BATCH];
    bool there[BATCH];
#pragma unroll
    for (int t = 0; t < BATCH; ++t) {  // no branches: what lies outside is computed as the tile's first vector, and not stored
      const int vector = from + t * MOVERS, row = vector / WIDE, column = vector % WIDE * 8;
      m[t] = SWAP ? y0 + row : x0 + row, n[t] = SWAP ? x0 + column : y0 + column;
      there[t] = m[t] < rows && n[t] < columns && (COUNT % (BATCH * MOVERS) == 0 || vector < COUNT);
      const SUM_T* at = partial + (there[t] ? row * PARTIAL_ROW + column : 0);
      SUM_T sum[8], part[8];
      read_eight(sum, at, threadIdx.x);
#pragma unroll
      for (int i = 1; i < SPLIT; ++i) {
        read_eight(part, at + i * PARTIAL_BLOCK, threadIdx.x);
#pragma unroll
        for (int k = 0; k < 8; ++k) sum[k] += part[k];
      }
      if constexpr (VEC == 8) finish_sums<8>(sum, v[t], args, row_of(there[t] ? m[t] : 0), there[t] ? n[t] : 0, columns);
      else if (there[t]) finish(sum, out, args, m[t], n[t], rows, columns, row_of);
    }
    if constexpr (VEC == 8) {
#pragma unroll
      for (int t = 0; t < BATCH; ++t)
        if (there[t]) store_finished<8>(out + row_of(m[t]) * OUT_ROW(columns) + n[t], v[t]);
    }
  }
}

// The kernel's body. A Problem says how many tiles there are and how their operands are loaded:
//   rows, columns          of one batch of the output; columns is also its row length
//   batches, iterations    of the tile grid; stages along K in all
//   start(Tile, Share)     remembers a tile, and what this block loads of it
//   Cursor at(i), next()   the place of stage i along K
//   load_x / load_y(target, barrier, cursor)
//   row_map(batch), with ROWS_APART: where the rows of a batch lie in the output
//   prefetch_change(), with HAS_PROLOGUE: brings what it reads in every row near
//   change_x(stage, row, batch, i), with HAS_PROLOGUE: a warpgroup applies the prologue to its rows (from `row` on) of stage i along K of X
template <class Problem>
__device__ __forceinline__ void run(Problem& problem, const TileOrder& order, OUT_T* out, const EpilogueArgs& args) {
  extern __shared__ __align__(1024) char shared[];
  const u32 x_base = shared_address(shared), y_base = x_base + STAGES * X_BYTES;
  const u32 full = x_base + STAGE_BYTES + STAGING_BYTES, empty = full + STAGES * 8, received = empty + STAGES * 8;
  SUM_T* staging = (SUM_T*)(shared + (OVERLAY ? 0 : STAGE_BYTES));
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
  const u32 rank_x = rank % CLUSTER_X, rank_y = rank / CLUSTER_X % CLUSTER_Y, slice = rank / SHARING;

  const int tiles = order.batch.divisor * problem.batches, step = gridDim.x / CLUSTER;
  const int first = SPLIT > 1 ? problem.iterations * (int)slice / SPLIT : 0;
  const int last = SPLIT > 1 ? problem.iterations * (int)(slice + 1) / SPLIT : problem.iterations;
  const int ready = min(last, first + STAGES);  // of the first tile, whose stages are requested when the ring is empty
  Share share = {rank_y, rank_x, 0, (unsigned short)(((1 << CLUSTER_X) - 1) << (slice * SHARING + rank_y * CLUSTER_X))};
#pragma unroll
  for (int y = 0; y < CLUSTER_Y; ++y) share.mask_x |= 1 << (slice * SHARING + y * CLUSTER_X + rank_x);
  auto place = [&](int index) {  // this block's own tile
    Tile tile = tile_at(index, order);
    tile.x = tile.x * CLUSTER_X + rank_x, tile.y = tile.y * CLUSTER_Y + rank_y;
    return tile;
  };

  if (warp >= PRODUCER) {
    if constexpr (REBALANCE) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    if (warp > PRODUCER) return;
    if (elect_one()) {
      problem.prefetch();
      for (int i = 0; i < STAGES; ++i) {
        barrier_init(full + 8 * i, 1);
        barrier_init(empty + 8 * i, (PINGPONG ? 1 : WARPGROUPS) * (CLUSTER_X + CLUSTER_Y - 1));
      }
      if constexpr (SPLIT > 1) barrier_init(received, 1);
      barrier_init_fence<(CLUSTER > 1)>();
      if constexpr (SPLIT > 1) barrier_expect(received, (SPLIT - 1) * OWNED * BN * 4);
    }
    __syncwarp();
    named_arrive<1>(WARPGROUPS * 128 + 32);
    if constexpr (CLUSTER > 1) cluster_arrive_relaxed();
    int index = blockIdx.x / CLUSTER;
    Tile tile = place(index);
    if constexpr (SHARING > 1) hold(tile), cluster_wait();
    if constexpr (SHARING > 1 && SPLIT > 1) cluster_arrive_relaxed();
    if (elect_one()) {
      Slot slot;
      bool waited = false;
      for (; index < tiles; index += step) {
        if (waited) tile = place(index);
        problem.start(tile, share);
        typename Problem::Cursor cursor = problem.at(first);
        int i = first;
        if (!waited) {
          waited = true;
          dependency_wait();
#if EARLY_B
#pragma unroll 1
          for (; i < ready; ++i, problem.next(cursor), slot.next()) {
            if (SWAP) problem.load_y(y_base + slot.index * Y_BYTES, full + 8 * slot.index, cursor);
            else problem.load_x(x_base + slot.index * X_BYTES, full + 8 * slot.index, cursor);
          }
#endif
          dependents_launch();
        }
#pragma unroll 1
        for (; i < last; ++i, problem.next(cursor), slot.next()) {
          barrier_wait(empty + 8 * slot.index, slot.parity ^ 1);
          barrier_expect(full + 8 * slot.index, X_BYTES + Y_BYTES);
          problem.load_x(x_base + slot.index * X_BYTES, full + 8 * slot.index, cursor);
          problem.load_y(y_base + slot.index * Y_BYTES, full + 8 * slot.index, cursor);
        }
        if constexpr (SPLIT > 1) break;
      }
    }
    __syncwarp();
    if constexpr (SPLIT > 1) cluster_wait();
    if constexpr (SHARING > 1) cluster_arrive_relaxed(), cluster_wait();  // nobody writes to a block that has left
  } else {
    if constexpr (REBALANCE) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    int index = blockIdx.x / CLUSTER;
    Tile tile = place(index);
    hold(tile);
    named_sync<1>(WARPGROUPS * 128 + 32);
    if constexpr (SHARING > 1) cluster_arrive_relaxed();
    if constexpr (SHARING > 1 && B_SHARED) cluster_wait();
#if EARLY_B  // the ring is empty: one consumer fills it with weights, so that the producer waits for A only
    if (warp == 0) {
      if (elect_one() && index < tiles) {
        problem.start(tile, share);
        typename Problem::Cursor cursor = problem.at(first);
        u32 barrier = full, target = SWAP ? x_base : y_base;
#pragma unroll 1
        for (int k = first; k < ready; ++k, problem.next(cursor), barrier += 8, target += SWAP ? X_BYTES : Y_BYTES) {
          barrier_expect(barrier, X_BYTES + Y_BYTES);
          if (SWAP) problem.load_x(target, barrier, cursor);
          else problem.load_y(target, barrier, cursor);
        }
      }
      __syncwarp();
    }
#endif
    if constexpr (SHARING > 1 && !B_SHARED) cluster_wait();
    pdl_prefetch_constants(args, problem.columns);
    if (index < tiles) {
      const int n = SWAP ? tile.x * BM : tile.y * BN;
      pdl_prefetch_columns(args, n, min(problem.columns - n, SWAP ? BM : BN), threadIdx.x);
    }
#ifdef HAS_PROLOGUE
    problem.prefetch_change();
#endif
    if constexpr (SPLIT > 1 && !OVERLAY) cluster_arrive_relaxed();
    const int group = warp / 4;
    dependency_wait();  // for the epilogue's operands and the output: here, where a warp has nothing else to do
    Slot slot;
    const u64 x_constant = X_MN ? matrix_descriptor<128>(0, 1024) : matrix_descriptor<SWIZZLE>(16, 8 * SWIZZLE);
#ifdef MN_FLIP
    const u64 y_constant = Y_MN ? matrix_descriptor<Y_SWIZZLE>(8 * Y_SWIZZLE, BK * Y_SWIZZLE) : matrix_descriptor<SWIZZLE>(16, 8 * SWIZZLE);
#else
    const u64 y_constant = Y_MN ? matrix_descriptor<Y_SWIZZLE>(BK * Y_SWIZZLE, 8 * Y_SWIZZLE) : matrix_descriptor<SWIZZLE>(16, 8 * SWIZZLE);
#endif
    constexpr int X_BLOCK = X_MN ? BK * 128 : 64 * SWIZZLE;                // bytes from one 64-row block to the next
    constexpr int X_STEP = X_MN ? 16 * 128 : 32, Y_STEP = Y_MN ? 16 * Y_SWIZZLE : 32;  // bytes along K
    const int block = PINGPONG ? 0 : group * MI;
    // One warp speaks for its warpgroup: the four read a stage together (wgmma is the warpgroup's).
    auto release = [&](int index) {
      if (warp % 4 != 0) return;
      if constexpr (SHARING > 1) {  // to every block that loads part of this one's stages: its neighbours along X, then along Y
        const u32 y = lane - CLUSTER_X + (lane - CLUSTER_X >= rank_y);
        if (lane < CLUSTER_X + CLUSTER_Y - 1)
          barrier_arrive_remote(empty + 8 * index,
                                slice * SHARING + (lane < CLUSTER_X ? rank_y * CLUSTER_X + lane : y * CLUSTER_X + rank_x));
      } else {
        if (lane == 0) barrier_arrive(empty + 8 * index);
      }
    };
    int turn = 0;
    for (; index < tiles; index += step, ++turn) {
      if (PINGPONG && turn % WARPGROUPS != group) {
        slot.skip(last - first);
        continue;
      }
      if (index != (int)blockIdx.x / CLUSTER) tile = place(index);
      hold(tile);  // known here, not first where the tensor cores wait for the epilogue
      const int x0 = tile.x * BM, y0 = tile.y * BN, batch = tile.batch;
#if ROWS_APART
      const RowMap row_of = problem.row_map(batch);
#else
      const RowMap row_of{(long long)batch * problem.rows};
#endif
      if constexpr (AHEAD && !SWAP) {  // what the epilogue adds, on its way to L2 while the tile is multiplied
        const int m = x0 + (SPLIT > 1 ? slice * OWNED : 0), n = y0;
        pdl_prefetch_tile(args, (long long)tile.batch * problem.rows + m, min(SPLIT > 1 ? OWNED : BM, problem.rows - m), n, min(BN, problem.columns - n),
                          problem.columns, threadIdx.x % MOVERS, MOVERS);
      }
      SUM_T sum[MI][BN / 2];
      // Zeroed here, and added to from the first product on: products that ignored what the sums held would have the compiler keep the tile's before
      // alive all through its epilogue, which then has 40 registers to work with instead of all that it has written already.
      // (Not where a slice of K may be empty: ptxas would wait for each product.)
      if constexpr (SPLIT == 1)
#pragma unroll
        for (int b = 0; b < MI; ++b)
#pragma unroll
          for (int k = 0; k < BN / 2; ++k) sum[b][k] = SUM_T(0);
      int previous = 0;
      // Stages before this one have their place filled once more. Others are not released: what no producer waits for might come to a block of the
      // cluster after it has left. (Known to nobody: the compiler would make two loops of one, and ptxas wait for each product of either.)
      int refilled = CLUSTER > 1 && index + step >= tiles ? last - STAGES : last;
      if constexpr (CLUSTER > 1) asm volatile("" : "+r"(refilled));
#if PROMOTE
      float total[MI][BN / 2] = {};
      auto promote = [&] {  // once the tensor cores have written `sum`
#pragma unroll
        for (int b = 0; b < MI; ++b)
#pragma unroll
          for (int k = 0; k < BN / 2; ++k) keep(sum[b][k]), total[b][k] += sum[b][k];
      };
#endif
#ifdef HAS_PROLOGUE
      static_assert(!SWAP && !X_MN, "the prologue goes along rows of X, which are A's");
#endif
      // One warpgroup at a time multiplies. It is not only for speed: a barrier's parity tells a phase from the next one only, so
      // nobody may wait for a tile's stages before all stages of the tile before have been seen full.
      if (PINGPONG && turn > 0) group == 0 ? named_sync<2>(256) : named_sync<3>(256);
      for (int i = first; i < last; ++i) {
        barrier_wait(full + 8 * slot.index, slot.parity);
#ifdef HAS_PROLOGUE  // while the stage before this one is multiplied
        problem.change_x(shared + slot.index * X_BYTES + block * X_BLOCK, x0 + block * 64, batch, i);
        async_proxy_fence();
        if (group == 0) named_sync<4>(128);
        else if (group == 1) named_sync<5>(128);
        else named_sync<6>(128);
#endif
        const u64 x = x_constant | descriptor_start(x_base + slot.index * X_BYTES + block * X_BLOCK);
        const u64 y = y_constant | descriptor_start(y_base + slot.index * Y_BYTES);
#if PROMOTE
        const bool fresh = (i - first) % PROMOTE == 0;
        if (fresh && i > first) wgmma_wait<0>(), promote();
#else
        const bool fresh = SPLIT > 1 && i == first;
#endif
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
#pragma unroll
          for (int b = 0; b < MI; ++b)
            Mma<IN_T>::step<X_MN, Y_MN>(sum[b], x + (u64)((b * X_BLOCK + k * X_STEP) >> 4), y + (u64)((k * Y_STEP) >> 4), !fresh || k > 0);
          if (k == STEPS - 1 - HANDOVER) wgmma_commit();
        }
        wgmma_commit();
        wgmma_wait<(HANDOVER < STEPS ? 2 : 1)>();  // the stage before this one has been read
        if (i > first && i <= refilled) release(previous);
        previous = slot.index;
        slot.next();
      }
      if (PINGPONG && index + step < tiles) {
        if (HANDOVER < STEPS) wgmma_wait<1>();
        group == 0 ? named_arrive<3>(256) : named_arrive<2>(256);
      }
      wgmma_wait<0>();
      if (last > first && last <= refilled) release(previous);
#pragma unroll
      for (int b = 0; b < MI; ++b)
#pragma unroll
        for (int k = 0; k < BN / 2; ++k) keep(sum[b][k]);
      if (SPLIT > 1 && first == last) {  // more blocks than stages along K
#pragma unroll
        for (int b = 0; b < MI; ++b)
#pragma unroll
          for (int k = 0; k < BN / 2; ++k) clear(sum[b][k]);
      }
#if PROMOTE
      promote();
#pragma unroll
      for (int b = 0; b < MI; ++b)
#pragma unroll
        for (int k = 0; k < BN / 2; ++k) sum[b][k] = total[b][k];
#endif

      if constexpr (SPLIT > 1) {
        if constexpr (OVERLAY) cluster_arrive_relaxed();
        cluster_wait();  // every block of the cluster has started, and with OVERLAY has read its last stage
#pragma unroll
        for (int b = 0; b < MI; ++b) send_partial(sum[b], staging, received, (block + b) * 64 + warp % 4 * 16, slice, rank % SHARING);
        named_sync<2>(WARPGROUPS * 128);
        barrier_wait(received, 0);
        write_owned(staging, out, args, x0 + slice * OWNED, y0, problem.rows, problem.columns, row_of);
        break;
      } else {
        write_slices(sum, staging + (DIRECT ? 0 : warp * STAGING_WARP), out, args, x0 + block * 64 + warp % 4 * 16, y0, problem.rows, problem.columns,
                     row_of);
      }
    }
    if constexpr (SHARING > 1) cluster_arrive_relaxed(), cluster_wait();  // nobody writes to a block that has left
  }
}
