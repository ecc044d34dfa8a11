// The tensor-core tile loop shared by GEMM and implicit-GEMM convolution, and how a tile leaves it.
//
// Defines: IN_T (of A; B may be its signed twin), OUT_T; SUM_T (sums.cuh); BM x BN output tile, BK depth of
// one stage; WARPS_M x WARPS_N warps over the tile and WARPS_K warps over the depth of each stage; STAGES of the cp.async pipeline (>= 2); B_KN when B is stored [K][N] (default [N][K]);
// VEC_C columns per store; CLUSTER_K blocks of one cluster that share the depth (sm_90+) or PARTIAL when each block
// leaves fp32 partial sums for splitk_reduce. B_CONSTANT says that B is a weight, which programmatic dependent launch may
// read before the previous kernel ends.
// Shared memory: tile_shared_bytes() in tactics/cuda/gemm/mma_gemm.py states the size once for both languages.
#pragma once
#include "mma.cuh"
#include "prologue.cuh"
#ifdef PACKED_BITS
#include "packed.cuh"
#endif

#ifndef B_KN
#define B_KN 0
#endif
#ifndef WARPS_K
#define WARPS_K 1
#endif
#ifndef CLUSTER_K
#define CLUSTER_K 1
#endif

constexpr int ELEMENT = sizeof(IN_T);
constexpr int PER_CHUNK = 16 / ELEMENT;
constexpr int WARPS = WARPS_M * WARPS_N * WARPS_K;
constexpr int THREADS = 32 * WARPS;
constexpr int WARP_ROWS = BM / WARPS_M, WARP_COLUMNS = BN / WARPS_N;
constexpr int MI = WARP_ROWS / 16, NI = WARP_COLUMNS / 8;
constexpr int DEPTH = 32 / ELEMENT;  // of one mma: 32 bytes
constexpr int STEPS = BK / DEPTH;
constexpr int A_CHUNKS = BK / PER_CHUNK;
constexpr int B_ROWS = B_KN ? BK : BN;
constexpr int B_CHUNKS = (B_KN ? BN : BK) / PER_CHUNK;
constexpr int A_BYTES = BM * BK * ELEMENT;
#ifdef PACKED_BITS  // B stays packed (packed.cuh): [BN / 16][BK / 64] groups, then the scaling of each unit of the depth
constexpr int PACKED_GROUPS = BK / 64, PACKED_BYTES = BN * BK * PACKED_BITS / 8, SCALING_ROWS = BK / PACKED_UNIT;
constexpr int STAGE_BYTES = A_BYTES + PACKED_BYTES + SCALING_ROWS * BN * 4;
static_assert(BK % 64 == 0 && PACKED_GROUPS % WARPS_K == 0, "each warp of the depth multiplies whole groups");
#else
constexpr int STAGE_BYTES = (BM + BN) * BK * ELEMENT;
#endif
constexpr int PAD = 8;  // floats between rows of a staged fp32 tile: no bank conflict between the rows of a fragment

static_assert(BM % (16 * WARPS_M) == 0 && BN % (16 * WARPS_N) == 0, "a warp's tile is a multiple of 16 x 16");
static_assert(STEPS % WARPS_K == 0, "the warps over the depth share a stage evenly");
static_assert(THREADS % A_CHUNKS == 0 && THREADS % B_CHUNKS == 0, "every thread keeps one chunk column");

__device__ __forceinline__ int warp_index_k() { return WARPS_K == 1 ? 0 : threadIdx.x / 32 / (WARPS_M * WARPS_N); }
__device__ __forceinline__ int warp_index_m() { return threadIdx.x / 32 / WARPS_N % WARPS_M; }
__device__ __forceinline__ int warp_index_n() { return threadIdx.x / 32 % WARPS_N; }

// Where chunk `chunk` of row `row` of B lies in its stage.
__device__ __forceinline__ int b_place(int row, int chunk) {
    if constexpr (B_KN && ELEMENT == 4) return (row * B_CHUNKS + (chunk ^ ((row & 3) << 1 & (B_CHUNKS - 1)))) * 16;
    return swizzled<B_CHUNKS>(row, chunk);
}

#ifdef PACKED_BITS
// Multiplies one stage: A at shared address `a`, packed B and its scaling at `b`.
__device__ __forceinline__ void multiply_stage(unsigned a, unsigned b, SUM_T (&sum)[MI][NI][4]) {
    const int lane = threadIdx.x % 32;
    const int a_row = warp_index_m() * WARP_ROWS + lane % 16, a_half = lane / 16;
    const int column = warp_index_n() * WARP_COLUMNS;
    const unsigned scaling = b + PACKED_BYTES + (column + lane / 4) * 4;
#pragma unroll
    for (int base = 0; base < PACKED_GROUPS; base += WARPS_K) {
        const int group = base + warp_index_k();
        uint4 vectors[NI / 2][PACKED_VECTORS];
        unsigned scales[NI];
#pragma unroll
        for (int j = 0; j < NI / 2; ++j)
#pragma unroll
            for (int v = 0; v < PACKED_VECTORS; ++v)
                vectors[j][v] = load_shared_16(b + (((column / 16 + j) * PACKED_GROUPS + group) * PACKED_VECTORS + v) * 512 + lane * 16);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            if (step * 16 % PACKED_UNIT == 0) {
                const int row = (group * 64 + step * 16) / PACKED_UNIT;
#pragma unroll
                for (int j = 0; j < NI; ++j) scales[j] = load_shared_4(scaling + (row * BN + j * 8) * 4);
            }
            unsigned fragment_a[MI][4];
#pragma unroll
            for (int i = 0; i < MI; ++i) ldmatrix_x4(fragment_a[i], a + swizzled<A_CHUNKS>(a_row + i * 16, (group * 4 + step) * 2 + a_half));
#pragma unroll
            for (int j = 0; j < NI; ++j) {
                unsigned b0, b1;
                packed_fragment(vectors[j / 2], j % 2, step, scales[j], b0, b1);
#pragma unroll
                for (int i = 0; i < MI; ++i) mma_16x8<IN_T>(sum[i][j], fragment_a[i], b0, b1);
            }
        }
    }
}
#else
// Multiplies one stage: A at shared address `a`, B at `b`.
__device__ __forceinline__ void multiply_stage(unsigned a, unsigned b, SUM_T (&sum)[MI][NI][4]) {
    const int lane = threadIdx.x % 32;
    const int a_row = warp_index_m() * WARP_ROWS + lane % 16;
    const int a_half = lane / 16;
    const int column = warp_index_n() * WARP_COLUMNS;
#pragma unroll
    for (int base = 0; base < STEPS; base += WARPS_K) {
        const int step = base + warp_index_k();
        unsigned fragment_a[MI][4], fragment_b[NI / 2][4];
#pragma unroll
        for (int i = 0; i < MI; ++i) {
            ldmatrix_x4(fragment_a[i], a + swizzled<A_CHUNKS>(a_row + i * 16, step * 2 + a_half));
            if constexpr (ELEMENT == 4) {
#pragma unroll
                for (int r = 0; r < 4; ++r) fragment_a[i][r] = round_to_tf32(fragment_a[i][r]);
            }
        }
#pragma unroll
        for (int j = 0; j < NI / 2; ++j) {
            if constexpr (!B_KN) {
                const int row = column + j * 16 + lane % 8 + lane / 16 * 8;
                ldmatrix_x4(fragment_b[j], b + swizzled<B_CHUNKS>(row, step * 2 + lane / 8 % 2));
            } else if constexpr (ELEMENT == 2) {
                const int row = step * 16 + lane % 16;
                ldmatrix_x4_transposed(fragment_b[j], b + swizzled<B_CHUNKS>(row, (column + j * 16) / 8 + lane / 16));
            } else {
#pragma unroll
                for (int r = 0; r < 4; ++r) {  // r: (n tile, depth half); four rows of one load differ in their chunk's bank
                    const int row = step * 8 + lane % 4 + r % 2 * 4;
                    const int n = column + j * 16 + r / 2 * 8 + lane / 4;
                    fragment_b[j][r] = load_shared_4(b + b_place(row, n / 4) + n % 4 * 4);
                }
            }
            if constexpr (ELEMENT == 4) {
#pragma unroll
                for (int r = 0; r < 4; ++r) fragment_b[j][r] = round_to_tf32(fragment_b[j][r]);
            }
        }
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
            for (int j = 0; j < NI; ++j)
                mma_16x8<IN_T>(sum[i][j], fragment_a[i], fragment_b[j / 2][j % 2 * 2], fragment_b[j / 2][j % 2 * 2 + 1]);
    }
}

#endif

struct Nothing {
    __device__ __forceinline__ void operator()(unsigned) const {}
};

// Runs the pipeline over `blocks` slices of the depth. `load_a(address)` and `load_b(address)` each issue the copies of
// their operand's next slice; they are called in order of depth. `change_a(address)` may change, of a slice of A that has come, what the
// calling thread copied itself; in order of depth, too.
template <typename LoadA, typename LoadB, typename ChangeA = Nothing>
__device__ __forceinline__ void multiply_tile(unsigned shared, int blocks, LoadA& load_a, LoadB& load_b, SUM_T (&sum)[MI][NI][4],
                                              ChangeA change_a = ChangeA()) {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NI; ++j)
#pragma unroll
            for (int r = 0; r < 4; ++r) sum[i][j][r] = SUM_T(0);

#ifndef B_CONSTANT
    pdl_wait();
#endif
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s)
        if (s < blocks) load_b(shared + s * STAGE_BYTES + A_BYTES);
#ifdef B_CONSTANT
    pdl_wait();
#endif
    pdl_launch_next();
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < blocks) load_a(shared + s * STAGE_BYTES);
        copy_async_commit();
    }
    int read = 0, write = STAGES - 1;
    for (int block = 0; block < blocks; ++block) {
        copy_async_wait<STAGES - 2>();
        change_a(shared + read * STAGE_BYTES);
        __syncthreads();
        if (block + STAGES - 1 < blocks) {
            load_a(shared + write * STAGE_BYTES);
            load_b(shared + write * STAGE_BYTES + A_BYTES);
        }
        copy_async_commit();
        multiply_stage(shared + read * STAGE_BYTES, shared + read * STAGE_BYTES + A_BYTES, sum);
        read = read + 1 == STAGES ? 0 : read + 1;
        write = write + 1 == STAGES ? 0 : write + 1;
    }
    copy_async_wait<0>();
    __syncthreads();
}

#ifndef ROW_MAP  // a kernel that scatters its rows defines ROW_MAP and its own RowMap (and ROW_HOLES where it gives -1 for rows that are none)
struct RowMap {
    long long offset;
    __device__ __forceinline__ long long operator()(long long row) const { return offset + row; }
};
#endif

// Where a tile goes: rows [0, rows), which lie at rows `place(row)` of `out` (row length ld), and columns [0, columns) of
// the matrix at column `column0`. `partial` holds sums in the same shape.
struct Target {
    OUT_T* out;
    SUM_T* partial;
    RowMap place;
    long long rows;
    int columns;
    int column0;
    int ld;
#ifdef OUT_PLANES
    int plane;  // as store_planes takes it
#endif
};

template <int V>
__device__ __forceinline__ void put(const Target& to, const EpilogueArgs& args, SUM_T (&value)[V], long long row, int n) {
    const long long m = to.place(row);
#ifdef ROW_HOLES
    if (m < 0) return;
#endif
#ifdef PARTIAL
    fx::store<V>(to.partial + m * to.ld + to.column0 + n, value);
#elif defined(OUT_PLANES)
    store_planes(to.out, value, args, m, to.column0 + n, to.ld, to.plane);
#else
    store_sums(to.out + m * OUT_ROW(to.ld) + to.column0 + n, value, args, m, to.column0 + n, to.ld);
#endif
}

// Of `rows` x `pieces` pieces of rows, which one comes at `index`: neighbouring threads take those that lie beside each other in memory.
__device__ __forceinline__ void piece_of(int index, int rows, int pieces, int& row, int& piece) {
#ifdef OUT_PLANES
    row = index % rows, piece = index / rows;
#else
    row = index / pieces, piece = index % pieces;
#endif
}

// Stores the tile whose first row and column are (row0, n0). `memory` is the block's shared memory, free to use.
__device__ __forceinline__ void store_tile(SUM_T* memory, const Target& to, const EpilogueArgs& args, SUM_T (&sum)[MI][NI][4],
                                           long long row0, int n0) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_row = warp_index_m() * WARP_ROWS, warp_column = warp_index_n() * WARP_COLUMNS;
    const int group = warp_index_k();

    if constexpr (WARPS_K > 1) {  // sum over the warps of the depth: group g finishes the fragments i with i % WARPS_K == g
        const int place = warp % (WARPS_M * WARPS_N);
        auto slot = [&](int i, int source) {
            const int rank = source - (source > i % WARPS_K ? 1 : 0);
            return memory + ((place * MI + i) * (WARPS_K - 1) + rank) * (NI * 128) + lane * 4;
        };
#pragma unroll
        for (int i = 0; i < MI; ++i)
            if (i % WARPS_K != group)
#pragma unroll
                for (int j = 0; j < NI; ++j)
                    *reinterpret_cast<Sum4*>(slot(i, group) + j * 128) =
                        Sum4{sum[i][j][0], sum[i][j][1], sum[i][j][2], sum[i][j][3]};
        __syncthreads();
#pragma unroll
        for (int i = 0; i < MI; ++i)
            if (i % WARPS_K == group)
#pragma unroll
                for (int source = 0; source < WARPS_K; ++source)
                    if (source != group)
#pragma unroll
                        for (int j = 0; j < NI; ++j) {
                            const Sum4 other = *reinterpret_cast<const Sum4*>(slot(i, source) + j * 128);
                            sum[i][j][0] += other.x, sum[i][j][1] += other.y, sum[i][j][2] += other.z, sum[i][j][3] += other.w;
                        }
        __syncthreads();
    }

#if CLUSTER_K > 1 && SM_ARCH >= 900
    constexpr int LD = BN + PAD;
#pragma unroll
    for (int i = 0; i < MI; ++i)
        if (i % WARPS_K == group)
#pragma unroll
            for (int j = 0; j < NI; ++j) {
                SUM_T* at = memory + (warp_row + i * 16 + lane / 4) * LD + warp_column + j * 8 + lane % 4 * 2;
                *reinterpret_cast<Sum2*>(at) = Sum2{sum[i][j][0], sum[i][j][1]};
                *reinterpret_cast<Sum2*>(at + 8 * LD) = Sum2{sum[i][j][2], sum[i][j][3]};
            }
    cluster_barrier();
    const unsigned base = shared_address(memory);
    for (int index = blockIdx.y * THREADS + threadIdx.x; index < BM * BN / 4; index += THREADS * CLUSTER_K) {
        int row, piece;
        piece_of(index, BM, BN / 4, row, piece);
        const int n = piece * 4;
        if (row0 + row >= to.rows || n0 + n >= to.columns) continue;
        SUM_T value[4] = {};
#pragma unroll
        for (int rank = 0; rank < CLUSTER_K; ++rank) {
            const Sum4 part = load_cluster_shared(base + (row * LD + n) * 4, rank);
            value[0] += part.x, value[1] += part.y, value[2] += part.z, value[3] += part.w;
        }
        if constexpr (VEC_C >= 4) {
            put(to, args, value, row0 + row, n0 + n);
        } else {
#pragma unroll
            for (int v = 0; v < 4; ++v)
                if (n0 + n + v < to.columns) {
                    SUM_T one[1] = {value[v]};
                    put(to, args, one, row0 + row, n0 + n + v);
                }
        }
    }
    cluster_barrier();  // nobody leaves while another block may still read its shared memory
#else
    constexpr int LD = WARP_COLUMNS + PAD;
    constexpr int PIECES = WARP_COLUMNS / VEC_C;
    SUM_T* mine = memory + warp * 16 * LD;
#pragma unroll
    for (int i = 0; i < MI; ++i) {
        if (i % WARPS_K != group) continue;
#pragma unroll
        for (int j = 0; j < NI; ++j) {
            SUM_T* at = mine + lane / 4 * LD + j * 8 + lane % 4 * 2;
            *reinterpret_cast<Sum2*>(at) = Sum2{sum[i][j][0], sum[i][j][1]};
            *reinterpret_cast<Sum2*>(at + 8 * LD) = Sum2{sum[i][j][2], sum[i][j][3]};
        }
        __syncwarp();
#pragma unroll
        for (int index = lane; index < 16 * PIECES; index += 32) {
            int row, piece;
            piece_of(index, 16, PIECES, row, piece);
            const int n = piece * VEC_C;
            const long long global_row = row0 + warp_row + i * 16 + row;
            if (global_row < to.rows && n0 + warp_column + n < to.columns) {
                SUM_T value[VEC_C];
                fx::load<VEC_C>(value, mine + row * LD + n);
                put(to, args, value, global_row, n0 + warp_column + n);
            }
        }
        __syncwarp();
    }
#endif
}

// Tile `index` of a grid of tiles_m x tiles_n, walked in bands of eight tile rows so that blocks that run together share
// operands in L2.
__device__ __forceinline__ void tile_of(int index, int tiles_m, int tiles_n, int& tile_m, int& tile_n) {
    const int band = index / (8 * tiles_n), rest = index - band * 8 * tiles_n;
    const int height = min(8, tiles_m - band * 8);
    tile_n = rest / height;
    tile_m = band * 8 + rest - tile_n * height;
}

// Copies of B for one tile: `b` is [N][K] or, with B_KN, [K][N], row length ld; slices start at depth k and end at k_end.
template <int VEC>
struct LoadB {
    static constexpr int STEP = THREADS / B_CHUNKS, LOADS = (B_ROWS + STEP - 1) / STEP;
    const IN_T* source;
    long long ld;
    int k, k_end, n_left;  // n_left: columns from this tile's first to the matrix's last

    __device__ __forceinline__ LoadB(const IN_T* b, long long ld, int n0, int n, int k, int k_end)
        : ld(ld), k(k), k_end(k_end), n_left(n - n0) {
        const int row = threadIdx.x / B_CHUNKS, chunk = threadIdx.x % B_CHUNKS * PER_CHUNK;
        source = B_KN ? b + (k + row) * ld + n0 + chunk : b + (n0 + row) * ld + k + chunk;
    }

    __device__ __forceinline__ void operator()(unsigned target) {
        const int row = threadIdx.x / B_CHUNKS, chunk = threadIdx.x % B_CHUNKS;
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const int r = row + i * STEP;
            if (B_ROWS % STEP != 0 && r >= B_ROWS) break;
            const int count = B_KN ? (k + r < k_end ? n_left - chunk * PER_CHUNK : 0) : (r < n_left ? k_end - k - chunk * PER_CHUNK : 0);
            copy_chunk<VEC>(target + b_place(r, chunk), source + i * STEP * ld, count);
        }
        source += B_KN ? BK * ld : BK;
        k += BK;
    }
};
