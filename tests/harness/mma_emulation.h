// The functions of tactics/cuda/include/mma.cuh on the CPU, on top of fiber.h: tensor-core kernels run unchanged. Shared addresses
// are offsets into the block's dynamic shared memory; asynchronous copies happen at once.
#pragma once
#include <type_traits>

static inline unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(static_cast<const char*>(pointer) - fiber::shared());
}
static inline char* emulated_shared(unsigned address) { return fiber::shared() + address; }

static inline void store_shared_16(unsigned target, unsigned a, unsigned b, unsigned c, unsigned d) {
    const unsigned words[4] = {a, b, c, d};
    memcpy(emulated_shared(target), words, 16);
}
static inline void store_shared_4(unsigned target, unsigned value) { memcpy(emulated_shared(target), &value, 4); }
static inline unsigned load_shared_4(unsigned source) {
    unsigned value;
    memcpy(&value, emulated_shared(source), 4);
    return value;
}
static inline uint4 load_shared_16(unsigned source) {
    uint4 value;
    if (source % 16 != 0) abort();
    memcpy(&value, emulated_shared(source), 16);
    return value;
}
static inline uint2 load_shared_8(unsigned source) {
    uint2 value;
    if (source % 8 != 0) abort();
    memcpy(&value, emulated_shared(source), 8);
    return value;
}
static inline float exp2_fast(float x) { return exp2f(x); }

static inline void emulated_ldmatrix(unsigned (&r)[4], unsigned address, bool transposed) {
    const int lane = fiber::lane();
    if (address % 16 != 0) abort();
    unsigned rows[32];
    for (int i = 0; i < 32; ++i) rows[i] = fiber_shuffle(0xffffffffu, address, i);
    for (int matrix = 0; matrix < 4; ++matrix) {
        if (!transposed) {
            memcpy(&r[matrix], emulated_shared(rows[matrix * 8 + lane / 4]) + lane % 4 * 4, 4);
        } else {
            unsigned short pair[2];
            for (int e = 0; e < 2; ++e) memcpy(&pair[e], emulated_shared(rows[matrix * 8 + lane % 4 * 2 + e]) + lane / 4 * 2, 2);
            memcpy(&r[matrix], pair, 4);
        }
    }
}
static inline void ldmatrix_x4(unsigned (&r)[4], unsigned address) { emulated_ldmatrix(r, address, false); }
static inline void ldmatrix_x4_transposed(unsigned (&r)[4], unsigned address) { emulated_ldmatrix(r, address, true); }

template <int BYTES>
static inline void copy_async(unsigned target, const void* source, bool valid) {
    if (target % BYTES != 0 || (valid && reinterpret_cast<uintptr_t>(source) % BYTES != 0)) abort();
    if (valid)
        memcpy(emulated_shared(target), source, BYTES);
    else
        memset(emulated_shared(target), 0, BYTES);
}
static inline void copy_async_commit() {}
template <int PENDING>
static inline void copy_async_wait() {}

static inline unsigned round_to_tf32(unsigned bits) { return (bits + 0x1000u) & ~0x1fffu; }

// d[16 x 8] += a[16 x K] * b[K x 8]; the fragments lie as PTX's m16n8k16 (2-byte T), m16n8k8 (tf32) and m16n8k32 (8 bits) want them.
// 8-bit integers: T is the type of a, b is signed, and sums are int.
template <typename T, typename S>
static inline void mma_16x8(S (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    constexpr int PER = 4 / sizeof(T), K = 8 * PER;
    using B = std::conditional_t<std::is_same_v<T, fx::u8>, fx::i8, T>;
    static std::vector<unsigned> everyone;
    if (everyone.size() < fiber::fibers.size() * 6) everyone.resize(fiber::fibers.size() * 6);
    unsigned* mine = &everyone[fiber::current * 6];
    for (int i = 0; i < 4; ++i) mine[i] = a[i];
    mine[4] = b0, mine[5] = b1;
    fiber::wait_warp(0xffffffffu);
    const unsigned* warp = &everyone[fiber::current / 32 * 32 * 6];
    auto element = [](unsigned word, int e, auto type) {
        decltype(type) values[PER];
        memcpy(values, &word, 4);
        return static_cast<S>(fx::widen(values[e]));
    };
    const int lane = fiber::lane();
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < K; ++k) {
            const int half = k / (K / 2), place = k % (K / 2);  // half: a's registers 2, 3 and b's register 1
            const S left = element(warp[(row % 8 * 4 + place / PER) * 6 + row / 8 + half * 2], place % PER, T());
            const S right = element(warp[(column * 4 + place / PER) * 6 + 4 + half], place % PER, B());
            d[i] += left * right;
        }
    }
    fiber::wait_warp(0xffffffffu);
}
