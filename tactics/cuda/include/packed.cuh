// Weights of 4 or 8 bits that stay packed in memory and become IN_T (fp16 or bf16) in registers, as fragments of B for mma.m16n8k16.
//
// Defines: IN_T; PACKED_BITS (4, 8), numbers q without sign; PACKED_BLOCK, how much of the depth shares a scale: 16, 32, or a multiple of 64.
// In memory (tactics/cuda/packed/common.py packs them so): groups of 16 columns x 64 of the depth, [column group][depth group], each
// PACKED_VECTORS x 32 lanes x 16 bytes: what lane `lane` multiplies, four words for both tiles of 8 columns (4 bits) or for one (8 bits).
// A pair of neighbours in the depth lies in a word with its two numbers 16 bits apart, so that both become IN_T together.
// Scaling: [depth block][columns] words of two IN_T: the scale, and what is subtracted from MAGIC + q.
// fp16: 0x6400 | q is 1024 + q exactly; bf16: 0x4300 | q is 128 + q for 4 bits, and 8 bits go through fp32.
// Plain CUDA C++.
#pragma once
#include "sums.cuh"

#ifndef PACKED_BLOCK
#define PACKED_BLOCK 64
#endif

constexpr int PACKED_VECTORS = PACKED_BITS / 4;
constexpr int PACKED_UNIT = PACKED_BLOCK < 64 ? PACKED_BLOCK : 64;  // of the depth, has one word of scaling
static_assert(PACKED_BITS == 4 || PACKED_BITS == 8, "4 or 8 bits");
static_assert(PACKED_BLOCK == 16 || PACKED_BLOCK == 32 || PACKED_BLOCK % 64 == 0, "blocks are whole steps or whole groups");

template <typename To, typename From>
__device__ __forceinline__ To bits_as(const From& value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}

// (MAGIC + q - offset) * scale of two numbers q, which lie in bits 0.. and 16.. of `pair`; `scaling` is (scale, offset).
template <typename T>
__device__ __forceinline__ unsigned dequantized(unsigned pair, unsigned scaling);

template <>
__device__ __forceinline__ unsigned dequantized<__half>(unsigned pair, unsigned scaling) {
    const __half2 both = bits_as<__half2>(scaling);
    const __half2 value = __hsub2(bits_as<__half2>(pair | 0x64006400u), __half2half2(__high2half(both)));
    return bits_as<unsigned>(__hmul2(value, __half2half2(__low2half(both))));
}

template <>
__device__ __forceinline__ unsigned dequantized<__nv_bfloat16>(unsigned pair, unsigned scaling) {
    const float scale = __uint_as_float(scaling << 16), offset = __uint_as_float(scaling & 0xffff0000u);
    if constexpr (PACKED_BITS == 4) {
        const __nv_bfloat162 value = bits_as<__nv_bfloat162>(pair | 0x43004300u);
        const float low = (__low2float(value) - offset) * scale, high = (__high2float(value) - offset) * scale;
        return bits_as<unsigned>(__floats2bfloat162_rn(low, high));
    } else {
        const float low = (static_cast<float>(pair & 0xffffu) - offset) * scale, high = (static_cast<float>(pair >> 16) - offset) * scale;
        return bits_as<unsigned>(__floats2bfloat162_rn(low, high));
    }
}

// The fragment (b0, b1) of step `step` (0..3, 16 of the depth each) of tile `tile` (8 columns) of a lane's vectors.
__device__ __forceinline__ void packed_fragment(const uint4 (&vectors)[PACKED_VECTORS], int tile, int step, unsigned scaling, unsigned& b0,
                                                unsigned& b1) {
    if constexpr (PACKED_BITS == 4) {
        const unsigned words[4] = {vectors[0].x, vectors[0].y, vectors[0].z, vectors[0].w};
        const unsigned word = words[tile * 2 + step / 2] >> step % 2 * 8;
        b0 = dequantized<IN_T>(word & 0x000f000fu, scaling);
        b1 = dequantized<IN_T>(word >> 4 & 0x000f000fu, scaling);
    } else {
        const uint4& vector = vectors[tile % PACKED_VECTORS];
        const unsigned words[4] = {vector.x, vector.y, vector.z, vector.w};
        b0 = dequantized<IN_T>((words[step] & 0xffu) | (words[step] & 0xff00u) << 8, scaling);
        b1 = dequantized<IN_T>((words[step] >> 16 & 0xffu) | (words[step] >> 24) << 16, scaling);
    }
}

// --- weights as the sixteen rows of an mma (gemm/stream.cu): exact q - zero, without the scale -----------------------

template <typename T>
__device__ __forceinline__ float scale_of(unsigned scaling);
template <>
__device__ __forceinline__ float scale_of<__half>(unsigned scaling) {
    return __low2float(bits_as<__half2>(scaling));
}
template <>
__device__ __forceinline__ float scale_of<__nv_bfloat16>(unsigned scaling) {
    return __uint_as_float(scaling << 16);
}

// Pairs of numbers less their zero point: of 4 bits those at bits 0.. and 16.. (`first`) or 4.. and 20.. (`second`), of 8 bits two bytes.
// `mask` is 0x000f000f.
template <typename T>
struct Centre;

template <>
struct Centre<__half> {
    __half2 offset, sixteenth;
    __device__ __forceinline__ explicit Centre(unsigned scaling) : offset(__half2half2(__high2half(bits_as<__half2>(scaling)))) {
        sixteenth = __hsub2(offset, __float2half2_rn(960.0f));  // of 1024 + 16 q: 64 + q
    }
    __device__ __forceinline__ unsigned first(unsigned word, unsigned mask) const {
        return bits_as<unsigned>(__hsub2(bits_as<__half2>((word & mask) | 0x64006400u), offset));
    }
    __device__ __forceinline__ unsigned second(unsigned word, unsigned mask) const {
        const __half2 value = bits_as<__half2>((word & mask << 4) | 0x64006400u);
        return bits_as<unsigned>(__hfma2(value, __float2half2_rn(0.0625f), __hneg2(sixteenth)));
    }
    template <int BYTE>
    __device__ __forceinline__ unsigned bytes(unsigned word) const {
        return bits_as<unsigned>(__hsub2(bits_as<__half2>(__byte_perm(word, 0x64646464u, 0x4140 + 0x0101 * BYTE)), offset));
    }
};

template <>
struct Centre<__nv_bfloat16> {
    __nv_bfloat162 offset;
    float middle;  // of 2^23 + q
    __device__ __forceinline__ explicit Centre(unsigned scaling) : offset(__bfloat162bfloat162(__high2bfloat16(bits_as<__nv_bfloat162>(scaling)))) {
        middle = __low2float(offset) + 8388608.0f;
    }
    __device__ __forceinline__ unsigned first(unsigned word, unsigned mask) const {
        return bits_as<unsigned>(__hsub2(bits_as<__nv_bfloat162>((word & mask) | 0x43004300u), offset));
    }
    __device__ __forceinline__ unsigned second(unsigned word, unsigned mask) const { return first(word >> 4, mask); }
    template <int BYTE>
    __device__ __forceinline__ unsigned bytes(unsigned word) const {
        const float low = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 + BYTE)) - middle;
        const float high = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7541 + BYTE)) - middle;
        return bits_as<unsigned>(__floats2bfloat162_rn(low, high));
    }
};

// The rows (0..7 by `low`, 8..15 by `high`) of step `step`, which lie in a lane's vectors as the fragments of packed_fragment do.
template <typename T>
__device__ __forceinline__ void packed_rows(const uint4 (&vectors)[PACKED_VECTORS], int step, const Centre<T>& low, const Centre<T>& high,
                                            unsigned mask, unsigned (&w)[4]) {
    if constexpr (PACKED_BITS == 4) {
        const unsigned words[4] = {vectors[0].x, vectors[0].y, vectors[0].z, vectors[0].w};
        const unsigned upper = words[step / 2] >> step % 2 * 8, lower = words[2 + step / 2] >> step % 2 * 8;
        w[0] = low.first(upper, mask), w[2] = low.second(upper, mask);
        w[1] = high.first(lower, mask), w[3] = high.second(lower, mask);
    } else {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
            const uint4& vector = vectors[tile % PACKED_VECTORS];
            const unsigned words[4] = {vector.x, vector.y, vector.z, vector.w};
            const Centre<T>& centre = tile ? high : low;
            w[tile] = centre.template bytes<0>(words[step]), w[2 + tile] = centre.template bytes<2>(words[step]);
        }
    }
}
