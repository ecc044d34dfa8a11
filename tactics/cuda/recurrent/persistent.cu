// A recurrence by blocks that stay for all steps and keep their part of the recurrent weights.
//
// A group of blocks advances one direction of some rows of the batch; each block owns UNITS cells and so GATES * UNITS rows of the
// weights. A step: the state h comes into shared memory, every thread multiplies it with its weights, the parts are added, the cells
// are updated and their h goes out to the other blocks of the group, which then meet. After Diamos et al., "Persistent RNNs:
// Stashing Recurrent Weights On-Chip" (ICML 2016).
//
// PLACE of a thread's weights: 0 registers, 1 shared memory, 2 global memory (read at every step).
// SCOPE of a group: 0 one block, h never leaves shared memory; 1 a cluster: h goes straight into the shared memory of all its
// blocks, which meet at its hardware barrier; 2 any number of blocks that
// are all on the device at once (a cooperative launch), which meet at a counter that starts at zero; 3 one launch per step.
// TAGGED=1 (with scope 2 or 3): nobody meets, h goes out in 64-bit words that say which step they belong to (the upper half; zero at the start),
// and who needs them reads until they are there. Twice the bytes, but one way through memory instead of three: the LL protocol of NCCL.
// With scope 1 the shared memory that h goes to counts its bytes. A block sends h of a step when it has read all of the step before, so
// what is sent never meets what is still read.
// MMA=1 multiplies on tensor cores: weights are the 16 rows of their tiles, eight rows of the batch the columns (fp32 rounded to TF32).
// SINGLE=1: a group has at most CHUNK rows of the batch, else it takes them CHUNK at a time.
// Grid: (ceil(HIDDEN / UNITS), groups, directions). Weights are packed so that a thread's pieces (4 elements, or a 16-byte fragment) lie THREADS apart.
#if MMA
#include "mma.cuh"
#endif
#include "cluster.cuh"
#include "pdl.cuh"
#include "recurrent.cuh"

constexpr int WARPS = THREADS / 32, ROW_WARPS = WARPS / K_WARPS;
#if MMA
constexpr int PER = 4 / sizeof(IN_T), PIECE = 4 * PER, K_STEP = 8 * PER, ROW_STEP = 16;  // a fragment: 16 rows, K_STEP columns
constexpr int HELD_ROWS = (CHUNK + 7) / 8 * 8, PAD = 4 * PER;                            // rows of h; PAD spreads them over the banks
using Held = IN_T;
#else
constexpr int K_LANES = 8, ROW_LANES = 4, PIECE = 4, K_STEP = K_LANES * PIECE, ROW_STEP = ROW_LANES;
constexpr int HELD_ROWS = CHUNK, PAD = 0;
using Held = float;
#endif
// Rows (or tiles of rows) and steps along k of a thread.
constexpr int ROWS_EACH = (GATES * UNITS + ROW_WARPS * ROW_STEP - 1) / (ROW_WARPS * ROW_STEP), ROWS = ROWS_EACH * ROW_WARPS * ROW_STEP;
constexpr int PIECES = (HIDDEN + K_WARPS * K_STEP - 1) / (K_WARPS * K_STEP), WIDTH = PIECES * K_WARPS * K_STEP, PITCH = WIDTH + PAD;
constexpr int WEIGHTS = PIECES * ROWS_EACH;  // pieces of a thread
constexpr int BUFFERS = SCOPE == 1 ? 2 : 1;  // of h: a block of a cluster may still read one while others write the next
constexpr int CELLS_EACH = (UNITS * CHUNK + THREADS - 1) / THREADS;

using Piece = fx::Vec<IN_T, PIECE>;

extern __shared__ __align__(16) char memory[];

// --- meeting

// A block that waits for seconds waits for ever (a cooperative launch that was none): an error is better than a device that hangs.
__device__ __forceinline__ bool count_try(int& tries) {
    if (++tries < 1 << 23) return true;
#ifdef __CUDA_ARCH__
    __trap();
#else
    abort();
#endif
    return false;
}
__device__ __forceinline__ void arrive(unsigned* counter) {
#if SCOPE == 1 && !TAGGED
    cluster_arrive();
#elif SCOPE == 2 && !TAGGED
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
#ifdef __CUDA_ARCH__
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
#else
        atomicAdd(counter, 1u);
#endif
    }
#endif
}
__device__ __forceinline__ void meet(unsigned* counter, unsigned arrivals) {
#if SCOPE == 1 && !TAGGED
    cluster_wait();
#elif SCOPE == 2 && !TAGGED
    if (threadIdx.x == 0) {
        unsigned seen;
        int tries = 0;
        do {
#ifdef __CUDA_ARCH__
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
#else
            __nanosleep(0);
            seen = *counter;
#endif
        } while (seen < arrivals && count_try(tries));
    }
    __syncthreads();
#else
    __syncthreads();
#endif
}

#if TAGGED && SCOPE != 1
constexpr int WORD = 4 / sizeof(IN_T), WORDS = HIDDEN / WORD;               // values in a word, words in a row
constexpr int GROUP = WORDS % 2 ? 1 : 2, LOADS = (CHUNK * WORDS / GROUP + THREADS - 1) / THREADS;
constexpr int FLIGHT = LOADS < 8 ? LOADS : 8;                                // words of a load, loads of a thread at once

__device__ __forceinline__ void load_words(fx::u64 (&words)[GROUP], const fx::u64* source) {
#ifdef __CUDA_ARCH__
    if constexpr (GROUP == 2) asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(words[0]), "=l"(words[GROUP - 1]) : "l"(source) : "memory");
    else asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(words[0]) : "l"(source) : "memory");
#else
    __nanosleep(0);
    for (int i = 0; i < GROUP; ++i) words[i] = source[i];
#endif
}
__device__ __forceinline__ void store_word(fx::u64* target, unsigned tag, unsigned bits) {
    const fx::u64 word = static_cast<fx::u64>(tag) << 32 | bits;
#ifdef __CUDA_ARCH__
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(target), "l"(word) : "memory");
#else
    *target = word;
#endif
}

// `count` rows of the state of step `tag`, from their words to shared memory.
__device__ __forceinline__ void receive(Held* h, const fx::u64* words, int count, unsigned tag) {
    constexpr int ROW = WORDS / GROUP;  // loads of a row
    for (int first = threadIdx.x; first < count * ROW; first += THREADS * FLIGHT) {
        fx::u64 word[FLIGHT][GROUP];
        bool all;
        int tries = 0;
        do {
            all = true;
#pragma unroll
            for (int f = 0; f < FLIGHT; ++f)
                if (first + f * THREADS < count * ROW) load_words(word[f], words + (first + f * THREADS) * GROUP);
#pragma unroll
            for (int f = 0; f < FLIGHT; ++f)
#pragma unroll
                for (int e = 0; e < GROUP; ++e)
                    all = all && (first + f * THREADS >= count * ROW || static_cast<unsigned>(word[f][e] >> 32) == tag);
        } while (!all && count_try(tries));
#pragma unroll
        for (int f = 0; f < FLIGHT; ++f) {
            const int index = first + f * THREADS;
            if (index >= count * ROW) continue;
            fx::Vec<unsigned, GROUP> bits;
#pragma unroll
            for (int e = 0; e < GROUP; ++e) bits.value[e] = static_cast<unsigned>(word[f][e]);
            const auto values = *reinterpret_cast<const fx::Vec<IN_T, GROUP * WORD>*>(&bits);
            fx::Vec<Held, GROUP * WORD> held;
#pragma unroll
            for (int e = 0; e < GROUP * WORD; ++e) held.value[e] = fx::narrow<Held>(fx::widen(values.value[e]));
            *reinterpret_cast<fx::Vec<Held, GROUP * WORD>*>(h + index / ROW * PITCH + index % ROW * GROUP * WORD) = held;
        }
    }
}
#endif

// Another block wrote this: past the first cache.
template <typename V>
__device__ __forceinline__ V load_shared_by_all(const V* source) {
    V result;
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(V) == 16) *reinterpret_cast<uint4*>(&result) = __ldcg(reinterpret_cast<const uint4*>(source));
    else if constexpr (sizeof(V) == 8) *reinterpret_cast<uint2*>(&result) = __ldcg(reinterpret_cast<const uint2*>(source));
    else if constexpr (sizeof(V) == 4) *reinterpret_cast<unsigned*>(&result) = __ldcg(reinterpret_cast<const unsigned*>(source));
    else *reinterpret_cast<unsigned short*>(&result) = __ldcg(reinterpret_cast<const unsigned short*>(source));
#else
    result = *source;
#endif
    return result;
}

#if MMA
__device__ __forceinline__ unsigned operand_bits(unsigned bits) { return sizeof(IN_T) == 4 ? round_to_tf32(bits) : bits; }
#else
constexpr int SUMS = ROWS_EACH * TILE, PADDED_SUMS = (SUMS + K_LANES - 1) / K_LANES * K_LANES;

// The sums of 8 neighbouring lanes: afterwards lane `lane` of them has PADDED_SUMS / 8 in the front of `sum`, see `sum_of`.
__device__ __forceinline__ void add_lanes(float (&sum)[PADDED_SUMS], int lane) {
    int half = PADDED_SUMS / 2;
#pragma unroll
    for (int bit = K_LANES / 2; bit > 0; bit /= 2, half /= 2) {
        const bool upper = lane & bit;
#pragma unroll
        for (int i = 0; i < PADDED_SUMS / 2; ++i)
            if (i < half) {
                const float given = upper ? sum[i] : sum[i + half], kept = upper ? sum[i + half] : sum[i];
                sum[i] = kept + __shfl_xor_sync(0xffffffffu, given, bit);
            }
    }
}
__device__ __forceinline__ int sum_of(int i, int lane) {
    return i + (lane & 4 ? PADDED_SUMS / 2 : 0) + (lane & 2 ? PADDED_SUMS / 4 : 0) + (lane & 1 ? PADDED_SUMS / 8 : 0);
}
#endif

struct CellPlace {
    bool exists;
    int row, unit, length;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    recurrence_persistent(const Tensors tensors, const Strides strides, IN_T* exchange, float* cells, unsigned* counters, int time, int batch,
                          int group_rows, int begin, int end) {
    const int direction = blockIdx.z, first_unit = blockIdx.x * UNITS, first_row = blockIdx.y * group_rows;
    const int rows = min(batch - first_row, group_rows);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int k_warp = warp % K_WARPS, row_warp = warp / K_WARPS;
    unsigned* counter = counters + (blockIdx.z * gridDim.y + blockIdx.y) * 32;

    const Piece* given = reinterpret_cast<const Piece*>(tensors.weights) + (static_cast<long long>(direction) * gridDim.x + blockIdx.x) * WEIGHTS * THREADS;
#if PLACE == 0
    Piece weights[WEIGHTS];
#pragma unroll
    for (int i = 0; i < WEIGHTS; ++i) weights[i] = given[i * THREADS + threadIdx.x];
    Held* states = reinterpret_cast<Held*>(memory);
#elif PLACE == 1
    Piece* weights = reinterpret_cast<Piece*>(memory);
    for (int i = threadIdx.x; i < WEIGHTS * THREADS; i += THREADS) weights[i] = given[i];
    Held* states = reinterpret_cast<Held*>(memory + sizeof(Piece) * WEIGHTS * THREADS);
#else
    const Piece* weights = given;
    Held* states = reinterpret_cast<Held*>(memory);
#endif
    float* parts = reinterpret_cast<float*>(states + BUFFERS * HELD_ROWS * PITCH);
#if SCOPE == 1 && TAGGED
    Inbox* inboxes = reinterpret_cast<Inbox*>(parts + K_WARPS * HELD_ROWS * ROWS);  // of each buffer
    constexpr int PAIR = 4 / sizeof(Held);                                          // values that are sent together
    const unsigned expected = max(0, rows) * ((HIDDEN + PAIR - 1) / PAIR * 4);
    if (threadIdx.x == 0)
        for (int i = 0; i < 2; ++i) {
            inbox_init(inboxes + i);
            inbox_expect(inboxes + i, expected);
        }
#endif
    for (int i = threadIdx.x; i < BUFFERS * HELD_ROWS * PITCH; i += THREADS) states[i] = fx::narrow<Held>(0.0f);
#if SCOPE == 1  // every block runs and has its zeros before another writes to it
    cluster_arrive();
    cluster_wait();
#endif
    pdl_wait();  // the weights are nobody's result
    if (SCOPE == 3) pdl_launch_next();

    const auto place = [&](int i, int chunk) {
        const int index = static_cast<int>(threadIdx.x) + i * THREADS, unit = index % UNITS, b = index / UNITS;
        CellPlace found{b < CHUNK && chunk + b < rows && first_unit + unit < HIDDEN, b, unit, 0};
        if (found.exists) found.length = length_of(tensors, first_row + chunk + b, time);
        return found;
    };
    const auto read_gates = [&](float (&gates)[CELLS_EACH][GATES], int step, int chunk) {
#pragma unroll
        for (int i = 0; i < CELLS_EACH; ++i) {
            const CellPlace at = place(i, chunk);
            const int when = at.exists ? place_of(step, at.length, direction) : 0;
            const IN_T* from = tensors.x + when * strides.x_time + (first_row + chunk + at.row) * strides.x_batch + direction * GATES * HIDDEN + first_unit + at.unit;
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate) gates[i][gate] = at.exists ? fx::widen(from[gate * HIDDEN]) : 0.0f;
        }
    };

    float gates[CELLS_EACH][GATES], next[CELLS_EACH][GATES], c[CELLS_EACH];
    if (SINGLE && begin < end) read_gates(next, begin, 0);
    for (int step = begin; step < end; ++step) {
        const IN_T* before = exchange + static_cast<long long>(step & 1) * DIRECTIONS * batch * HIDDEN;
        IN_T* after = exchange + static_cast<long long>((step + 1) & 1) * DIRECTIONS * batch * HIDDEN;
        Held* h = states + (BUFFERS == 2 ? (step & 1) * HELD_ROWS * PITCH : 0);
        for (int chunk = 0; chunk < rows; chunk += CHUNK) {
            const int count = min(CHUNK, rows - chunk);
            if (SINGLE) {
#pragma unroll
                for (int i = 0; i < CELLS_EACH; ++i)
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate) gates[i][gate] = next[i][gate];
                if (step + 1 < end) read_gates(next, step + 1, 0);
            } else {
                read_gates(gates, step, chunk);
            }
#pragma unroll
            for (int i = 0; i < CELLS_EACH; ++i) {
                const CellPlace at = place(i, chunk);
                if (CELL != 2 || !at.exists || (SINGLE && step > begin)) continue;
                const long long row = first_row + chunk + at.row;
                if (step > 0) c[i] = cells[(static_cast<long long>(direction) * batch + row) * HIDDEN + first_unit + at.unit];
                else c[i] = HAS_C ? fx::widen(tensors.c0[row * strides.state_batch + direction * strides.state_direction + first_unit + at.unit]) : 0.0f;
            }
#if SCOPE == 1 && TAGGED
            if (step > begin) {
                Inbox* inbox = inboxes + (step & 1);
                int tries = 0;
                while (!inbox_try(inbox, (step - begin - 1) / 2 & 1) && count_try(tries)) {
                }
                if (threadIdx.x == 0) inbox_expect(inbox, expected);
            }
            __syncthreads();
#else
            if (chunk == 0 && step > begin) meet(counter, gridDim.x * static_cast<unsigned>(step - begin));
            else __syncthreads();
#endif
            if (TAGGED && SCOPE != 1 && step > 0) {
#if TAGGED && SCOPE != 1
                const fx::u64* words = reinterpret_cast<const fx::u64*>(exchange) + (static_cast<long long>(step & 1) * DIRECTIONS + direction) * batch * WORDS;
                receive(h, words + static_cast<long long>(first_row + chunk) * WORDS, count, step);
#endif
                __syncthreads();
            } else if (SCOPE > 1 || step == begin) {
                using Pack = fx::Vec<IN_T, VECTOR>;
                for (int i = threadIdx.x; i < count * (HIDDEN / VECTOR); i += THREADS) {
                    const int b = i / (HIDDEN / VECTOR), k = i % (HIDDEN / VECTOR) * VECTOR;
                    const long long row = first_row + chunk + b;
                    Pack pack;
                    if (step > 0) {
                        pack = load_shared_by_all(reinterpret_cast<const Pack*>(before + (static_cast<long long>(direction) * batch + row) * HIDDEN + k));
                    } else {
#pragma unroll
                        for (int e = 0; e < VECTOR; ++e)
                            pack.value[e] = HAS_H ? tensors.h0[row * strides.state_batch + direction * strides.state_direction + k + e] : fx::narrow<IN_T>(0.0f);
                    }
#pragma unroll
                    for (int e = 0; e < VECTOR; ++e) h[b * PITCH + k + e] = fx::narrow<Held>(fx::widen(pack.value[e]));
                }
                __syncthreads();
            }

#if MMA
            // Rows 2 t and 2 t + 1 of k (and those 4 PER behind) of column g are thread 4 g + t's: PTX ISA, "Matrix Fragments".
            const int g = lane / 4, t = lane % 4;
            for (int b = 0; b < count; b += 8) {
                float sum[ROWS_EACH][4];
#pragma unroll
                for (int j = 0; j < ROWS_EACH; ++j)
#pragma unroll
                    for (int i = 0; i < 4; ++i) sum[j][i] = 0.0f;
#if PLACE == 0
#pragma unroll
#else
#pragma unroll 4
#endif
                for (int v = 0; v < PIECES; ++v) {
                    const Held* from = h + (b + g) * PITCH + (v * K_WARPS + k_warp) * K_STEP + t * PER;
                    const unsigned low = operand_bits(*reinterpret_cast<const unsigned*>(from));
                    const unsigned high = operand_bits(*reinterpret_cast<const unsigned*>(from + 4 * PER));
#pragma unroll
                    for (int j = 0; j < ROWS_EACH; ++j) {
#if PLACE == 0
                        const Piece piece = weights[v * ROWS_EACH + j];
#else
                        const Piece piece = weights[(v * ROWS_EACH + j) * THREADS + threadIdx.x];
#endif
                        const uint4 words = *reinterpret_cast<const uint4*>(&piece);
                        const unsigned fragment[4] = {operand_bits(words.x), operand_bits(words.y), operand_bits(words.z), operand_bits(words.w)};
                        mma_16x8<IN_T>(sum[j], fragment, low, high);
                    }
                }
#pragma unroll
                for (int j = 0; j < ROWS_EACH; ++j)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        parts[(k_warp * HELD_ROWS + b + 2 * t + i % 2) * ROWS + (row_warp * ROWS_EACH + j) * 16 + g + i / 2 * 8] = sum[j][i];
            }
#else
            const int k_lane = lane % K_LANES, row_lane = lane / K_LANES;
            for (int b = 0; b < count; b += TILE) {
                float sum[PADDED_SUMS];
#pragma unroll
                for (int i = 0; i < PADDED_SUMS; ++i) sum[i] = 0.0f;
#if PLACE == 0
#pragma unroll
#else
#pragma unroll 1
#endif
                for (int v = 0; v < PIECES; ++v) {
                    float state[TILE][PIECE];
#pragma unroll
                    for (int t = 0; t < TILE; ++t) fx::load(state[t], h + (b + t) * PITCH + ((v * K_WARPS + k_warp) * K_LANES + k_lane) * PIECE);
#pragma unroll
                    for (int j = 0; j < ROWS_EACH; ++j) {
#if PLACE == 0
                        const Piece piece = weights[v * ROWS_EACH + j];
#else
                        const Piece piece = weights[(v * ROWS_EACH + j) * THREADS + threadIdx.x];
#endif
#pragma unroll
                        for (int e = 0; e < PIECE; ++e) {
                            const float weight = fx::widen(piece.value[e]);
#pragma unroll
                            for (int t = 0; t < TILE; ++t) sum[j * TILE + t] += weight * state[t][e];
                        }
                    }
                }
                add_lanes(sum, k_lane);
#pragma unroll
                for (int i = 0; i < PADDED_SUMS / K_LANES; ++i) {
                    const int number = sum_of(i, k_lane), j = number / TILE, t = number % TILE;
                    if (number < SUMS) parts[(k_warp * HELD_ROWS + b + t) * ROWS + (row_warp * ROWS_EACH + j) * ROW_LANES + row_lane] = sum[i];
                }
            }
#endif
            __syncthreads();

#pragma unroll
            for (int i = 0; i < CELLS_EACH; ++i) {
                const CellPlace at = place(i, chunk);
                const int unit = first_unit + at.unit;
                const long long row = first_row + chunk + at.row;
                const bool alive = step < at.length;
                IN_T rounded = fx::narrow<IN_T>(0.0f);
                if (at.exists) {
                    float from_state[GATES];
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate) {
                        from_state[gate] = 0.0f;
#pragma unroll
                        for (int w = 0; w < K_WARPS; ++w) from_state[gate] += parts[(w * HELD_ROWS + at.row) * ROWS + gate * UNITS + at.unit];
                    }
                    const float held = fx::widen(h[at.row * PITCH + unit]);
                    const State fresh = cell(gates[i], from_state, held, c[i], tensors, direction, unit);
                    rounded = fx::narrow<IN_T>(alive ? fresh.h : held);
                    if (alive) c[i] = fresh.c;
                }
#if SCOPE == 1
                unsigned bits;
                if constexpr (sizeof(Held) == 2) {  // neighbouring lanes have neighbouring cells
                    bits = *reinterpret_cast<const unsigned short*>(&rounded);
                    bits |= __shfl_down_sync(0xffffffffu, bits, 1) << 16;
                } else {
                    bits = __float_as_uint(fx::widen(rounded));
                }
                const bool sends = at.exists && (sizeof(Held) == 4 || at.unit % 2 == 0) && step + 1 < end;
                Held* target = states + ((step + 1) & 1) * HELD_ROWS * PITCH + at.row * PITCH + unit;
#if TAGGED
                for (unsigned rank = 0; sends && rank < gridDim.x; ++rank) send_cluster_shared(target, rank, bits, inboxes + ((step + 1) & 1));
#else
                for (unsigned rank = 0; sends && rank < gridDim.x; ++rank) store_cluster_shared(target, rank, bits);
#endif
#elif TAGGED
                // Before anything else: others wait for it. Neighbouring lanes have neighbouring cells.
                unsigned bits;
                if constexpr (WORD == 2) {
                    bits = *reinterpret_cast<const unsigned short*>(&rounded);
                    bits |= __shfl_down_sync(0xffffffffu, bits, 1) << 16;
                } else {
                    bits = *reinterpret_cast<const unsigned*>(&rounded);
                }
                fx::u64* words = reinterpret_cast<fx::u64*>(exchange) + (static_cast<long long>((step + 1) & 1) * DIRECTIONS + direction) * batch * WORDS;
                if (at.exists && at.unit % WORD == 0 && step + 1 < time) store_word(words + row * WORDS + unit / WORD, step + 1, bits);
#endif
                if (!at.exists) continue;
                tensors.y[place_of(step, at.length, direction) * strides.y_time + direction * strides.y_direction + row * strides.y_batch + unit] =
                    alive ? rounded : fx::narrow<IN_T>(0.0f);
                if (SCOPE == 0) h[at.row * PITCH + unit] = fx::narrow<Held>(fx::widen(rounded));
                else if (SCOPE > 1 && !TAGGED) after[(static_cast<long long>(direction) * batch + row) * HIDDEN + unit] = rounded;
                const long long in_state = row * strides.state_batch + direction * strides.state_direction + unit;
                if (step + 1 == time) tensors.last_h[in_state] = rounded;
                if (CELL == 2 && step + 1 == time) tensors.last_c[in_state] = fx::narrow<IN_T>(c[i]);
                if (CELL == 2 && (!SINGLE || step + 1 == end)) cells[(static_cast<long long>(direction) * batch + row) * HIDDEN + unit] = c[i];
            }
        }
        if (step + 1 < end) arrive(counter);
    }
}
