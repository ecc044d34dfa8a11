// One to sixteen rows times a constant weight of 4, 8 or 16 bits: bound by reading the weight once, so every warp keeps STAGES loads under way.
#include "mma.cuh"
#include "prologue.cuh"
#if PACKED_BITS < 16
#include "packed.cuh"
#else
constexpr int PACKED_VECTORS = 4;
#endif

// How many neighbours of the depth a lane holds: a fragment of mma takes its sixteen from four lanes, which share a block of weights.
#if PACKED_BITS < 16 && PACKED_BLOCK < 32
constexpr int RUN = 4;
#else
constexpr int RUN = 8;
#endif
constexpr int TILES = (ROWS + 7) / 8;  // fragments of eight rows
#if PACKED_BITS < 16
constexpr int SCALES = 64 / PACKED_UNIT;
#else
constexpr int SCALES = 0;
#endif
constexpr int WEIGHTS = PACKED_VECTORS * 512, SCALED = COLUMNS * WEIGHTS;  // bytes of a column group's weights; where scaling begins in a stage
constexpr int STAGE = SCALED + (COLUMNS * SCALES + 1) / 2 * 512;           // scaling: eight bytes of a lane's sixteen each
constexpr int WIDE = ACROSS * COLUMNS, THREADS = ACROSS * WARPS * 32;
constexpr int GROUPS = (DEPTH + 63) / 64, TURNS = (GROUPS + WARPS - 1) / WARPS;
constexpr bool WHOLE = STAGES >= TURNS, EVEN = GROUPS % WARPS == 0, TAIL = DEPTH % 64 != 0;  // the ring holds all; all warps have as much to do
constexpr int FRAGMENTS = COLUMNS * TILES * (SCALES > 2 ? 2 : 1);
constexpr int CHAINS = COLUMNS * TILES == 1 && SCALES == 1 ? 2 : 1;  // sums of a block of weights in two parts, where one mma would wait for the other
constexpr int UNROLL = FRAGMENTS == 1 ? WHOLE && TURNS <= 4 ? TURNS : 2 : 1;

// out[m][n] = epilogue(sum_k A[m][k] * W[n][k]) for `rows` <= ROWS <= 16 rows m, on tensor cores: the weights are the fragments of sixteen rows
// of an mma, the rows of A its eight columns, so that nothing is wasted on rows that are not there.
//   A block has ACROSS teams of WARPS warps. A team has COLUMNS groups of 16 columns n, its warps take turns over the groups of 64 of the
//   depth: warps of several teams read the same of A, which then comes from L1. Each lane copies, into its
//   own part of a ring of STAGES, what it will multiply, and reads it back: no thread waits for another before the sums are added.
//   A: [rows][k], k = DEPTH, DEPTH % 8 == 0; of every RUN * 4 of the depth lane (row, quad) holds the RUN from quad * RUN on. weights: [column group][depth group][vector][lane]
//   in that order (tactics/cuda/gemm/stream.py). scaling: [column group][block][row] words of columns (row, row + 8); packed.cuh says what
//   a word is. The ring begins to fill before the kernel waits for A. Sums: fp32, of exact q - zero within a block, then times its scale.
// A_SHARED: ROWS <= 8 known rows go through shared memory, too. BLOCKS: whose registers fit a multiprocessor. n > 16 * (WIDE - 1), where a block has
// WIDE = ACROSS * COLUMNS groups of columns. Grid: ceil(groups_n / WIDE). Dynamic shared memory: the ring (and A's rows) or WARPS * ROWS * WIDE * 64
// bytes of sums, whichever is more.
// Limits: sm_75 (fp16), sm_80+.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    stream(const IN_T* __restrict__ a, const uint4* __restrict__ weights, const uint2* __restrict__ scaling, OUT_T* __restrict__ out, int rows, int n,
           EpilogueArgs args PROLOGUE_PARAMETER) {
    extern __shared__ __align__(128) char memory[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % WARPS, team = threadIdx.x / 32 / WARPS, row = lane / 4, quad = lane % 4;
    const int first = min(static_cast<int>(blockIdx.x) * WIDE, (n + 15) / 16 - WIDE), group_n = first + team * COLUMNS;  // the last block begins early
    const unsigned ring = shared_address(memory) + threadIdx.x / 32 * (STAGES * STAGE) + lane * 16;

    const uint4* source = weights + (static_cast<long long>(group_n) * GROUPS + warp) * (PACKED_VECTORS * 32) + lane;
#if PACKED_BITS < 16
    constexpr int BLOCKS_K = (DEPTH + PACKED_BLOCK - 1) / PACKED_BLOCK;
    constexpr int STRIDE = WARPS * 64 % PACKED_BLOCK ? 0 : WARPS * 64 / PACKED_BLOCK * 8;  // of scaling from turn to turn, where it is one
    const uint2* scales = scaling + static_cast<long long>(group_n) * (BLOCKS_K * 8) + (STRIDE ? warp * 64 / PACKED_BLOCK * 8 : 0) + row;
#endif
    int next = warp;
    auto fetch = [&](unsigned stage) {  // of weights, always the turn after the last
        if (next < GROUPS) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
                for (int v = 0; v < PACKED_VECTORS; ++v)
                    copy_async<16>(stage + c * WEIGHTS + v * 512, source + (c * GROUPS * PACKED_VECTORS + v) * 32, true);
#if PACKED_BITS < 16
#pragma unroll
                for (int s = 0; s < SCALES; ++s) {
                    const int block = !STRIDE ? next * 64 / PACKED_BLOCK : s, at = c * SCALES + s;
                    copy_async<8>(stage + SCALED + at / 2 * 512 + at % 2 * 8, scales + (c * BLOCKS_K + block) * 8,
                                  SCALES == 1 || !TAIL || next * SCALES + s < BLOCKS_K);
                }
#endif
            }
            source += WARPS * PACKED_VECTORS * 32;
#if PACKED_BITS < 16
            scales += STRIDE;
#endif
        }
        next += WARPS;
        copy_async_commit();
    };
#pragma unroll
    for (int s = 0; s < STAGES; ++s) fetch(ring + s * STAGE);
    pdl_prefetch_constants(args, n);
    pdl_launch_next();
    pdl_wait();

    // Rows of A that are not there are the last one again: columns of the mma that nobody reads.
#ifdef A_SHARED  // what this warp multiplies in all its turns, [turn][row][64]
    const unsigned rows_at = shared_address(memory) + ACROSS * WARPS * STAGES * STAGE + threadIdx.x / 32 * (TURNS * ROWS * 128);
    for (int i = lane; i < TURNS * ROWS * 8; i += 32) {
        const int depth = (warp + i / (ROWS * 8) * WARPS) * 64 + i % 8 * 8;
        copy_async<16>(rows_at + i * 16, a + static_cast<long long>(i / 8 % ROWS) * DEPTH + depth, depth < DEPTH);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    const unsigned own_row = rows_at + min(row, ROWS - 1) * 128 + quad * RUN * 2;
#else            // for the turn after this one
    Pack<unsigned, RUN / 2> ahead[TILES][16 / RUN];
    const IN_T* from[TILES];
#pragma unroll
    for (int t = 0; t < TILES; ++t) from[t] = a + static_cast<long long>(min(row + t * 8, rows - 1)) * DEPTH + warp * 64 + quad * RUN;
    auto load = [&](int turn) {
        if (turn < TURNS && (EVEN || warp + turn * WARPS < GROUPS)) {
            const int left = DEPTH - (warp + turn * WARPS) * 64 - quad * RUN;
#pragma unroll
            for (int t = 0; t < TILES; ++t)
#pragma unroll
                for (int i = 0; i < 16 / RUN; ++i) {
                    if (TAIL) ahead[t][i] = {};
                    if (!TAIL || left > i * RUN * 4)
                        ahead[t][i] = *reinterpret_cast<const Pack<unsigned, RUN / 2>*>(from[t] + i * RUN * 4);
                }
#pragma unroll
            for (int t = 0; t < TILES; ++t) from[t] += WARPS * 64;
        }
    };
    load(0);
#endif

    // Known only at run time, so that the assembler keeps it in a register: an instruction cannot hold a mask and MAGIC both.
    const unsigned mask = 0x000f000fu + (static_cast<unsigned>(rows) >> 16);
    float sum[COLUMNS][TILES][4] = {};
    unsigned stage = ring;
#pragma unroll(UNROLL)
    for (int turn = 0; turn < TURNS; ++turn) {
        if (!EVEN && warp + turn * WARPS >= GROUPS) break;
        unsigned x[TILES][8];
#ifdef A_SHARED
#pragma unroll
        for (int i = 0; i < 16 / RUN; ++i) {
            const unsigned at = own_row + turn * (ROWS * 128) + i * RUN * 8;
            if constexpr (RUN == 8) {
                const uint4 words = load_shared_16(at);
                x[0][i * 4] = words.x, x[0][i * 4 + 1] = words.y, x[0][i * 4 + 2] = words.z, x[0][i * 4 + 3] = words.w;
            } else {
                const uint2 words = load_shared_8(at);
                x[0][i * 2] = words.x, x[0][i * 2 + 1] = words.y;
            }
        }
#else
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int i = 0; i < 8; ++i) x[t][i] = ahead[t][i / (RUN / 2)].value[i % (RUN / 2)];
        load(turn + 1);
#endif
#ifdef HAS_PROLOGUE  // RUN is 8
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int depth = (warp + turn * WARPS) * 64 + i * 32 + quad * 8;
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                uint4 words = make_uint4(x[t][i * 4], x[t][i * 4 + 1], x[t][i * 4 + 2], x[t][i * 4 + 3]);
                prologue_chunk<IN_T, 8>(words, before_args, min(row + t * 8, rows - 1), depth, DEPTH - depth, DEPTH);
                x[t][i * 4] = words.x, x[t][i * 4 + 1] = words.y, x[t][i * 4 + 2] = words.z, x[t][i * 4 + 3] = words.w;
            }
        }
#endif
        copy_async_wait<STAGES - 1>();  // `stage` is the oldest
        uint4 vectors[COLUMNS][PACKED_VECTORS];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
            for (int v = 0; v < PACKED_VECTORS; ++v) vectors[c][v] = load_shared_16(stage + c * WEIGHTS + v * 512);
#if PACKED_BITS == 16
#pragma unroll
        for (int step = 0; step < 4; ++step)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const unsigned w[4] = {vectors[c][step].x, vectors[c][step].y, vectors[c][step].z, vectors[c][step].w};
#pragma unroll
                for (int t = 0; t < TILES; ++t) mma_16x8<IN_T>(sum[c][t], w, x[t][step * 2], x[t][step * 2 + 1]);
            }
#else
#pragma unroll
        for (int s = 0; s < SCALES; ++s) {
            uint2 words[COLUMNS];
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) words[c] = load_shared_8(stage + SCALED + (c * SCALES + s) / 2 * 512 + (c * SCALES + s) % 2 * 8);
            float part[CHAINS][COLUMNS][TILES][4] = {};
#pragma unroll
            for (int step = s * (4 / SCALES); step < (s + 1) * (4 / SCALES); ++step)
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    unsigned w[4];
                    packed_rows(vectors[c], step, Centre<IN_T>(words[c].x), Centre<IN_T>(words[c].y), mask, w);
#pragma unroll
                    for (int t = 0; t < TILES; ++t) mma_16x8<IN_T>(part[step % CHAINS][c][t], w, x[t][step * 2], x[t][step * 2 + 1]);
                }
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const float scale[2] = {scale_of<IN_T>(words[c].x), scale_of<IN_T>(words[c].y)};
#pragma unroll
                for (int t = 0; t < TILES; ++t)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        sum[c][t][e] += scale[e / 2] * (CHAINS == 1 ? part[0][c][t][e] : part[0][c][t][e] + part[CHAINS - 1][c][t][e]);
            }
        }
#endif
        if constexpr (WHOLE)
            copy_async_commit();  // counts as a turn's
        else
            fetch(stage);
        stage = WHOLE || stage != ring + (STAGES - 1) * STAGE ? stage + STAGE : ring;
    }

    copy_async_wait<0>();
    __syncthreads();  // the ring becomes the sums of all warps: [warp][row][column]
    float* part = reinterpret_cast<float*>(memory);
    constexpr int WIDTH = WIDE * 16;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int m = t * 8 + quad * 2 + e % 2;
                if (m < ROWS) part[(warp * ROWS + m) * WIDTH + (team * COLUMNS + c) * 16 + row + e / 2 * 8] = sum[c][t][e];
            }
    __syncthreads();
    for (int index = threadIdx.x; index < rows * WIDTH; index += THREADS) {
        float total[1] = {0.0f};
#pragma unroll
        for (int w = 0; w < WARPS; ++w) total[0] += part[w * ROWS * WIDTH + index];
        const int m = index / WIDTH, column = first * 16 + index % WIDTH;
        if (column >= static_cast<int>(blockIdx.x) * WIDTH && column < n) {  // the others are the block's before, which may have written over an operand
            store_sums(out + static_cast<long long>(m) * n + column, total, args, m, column, n);
        }
    }
}
