// wgmma.mma_async (sm_90a) for one accumulator width a translation unit.
//
// One warpgroup (128 threads) multiplies a 64 x K tile of X by a K x WGMMA_N tile of Y, K = 32 bytes, both in shared memory
// behind matrix descriptors, and adds to WGMMA_N / 2 registers a thread. Layout of the result (PTX ISA, "Register fragments
// for wgmma.mma_async.m64nNk16"): thread t of the warpgroup holds, with g = t % 32 / 4 and c = t % 4, rows 16 * (t / 32) + g
// (even pairs) and + 8 (odd pairs), columns 8 * j + 2 * c and + 1, as d[4 * j + {0, 1}] and d[4 * j + {2, 3}].
//
// Inline assembly wants its operands spelled out, hence the tables below: WG_R_<n> is the register list of the first n
// accumulators, WG_O_<n> the operand list, WG_0_<n> .. WG_5_<n> the numbers of the operands that follow them.
#pragma once
#include "vector.cuh"

#define WG_R_8 "%0, %1, %2, %3"
#define WG_R_16 WG_R_8 ", %4, %5, %6, %7"
#define WG_R_24 WG_R_16 ", %8, %9, %10, %11"
#define WG_R_32 WG_R_24 ", %12, %13, %14, %15"
#define WG_R_40 WG_R_32 ", %16, %17, %18, %19"
#define WG_R_48 WG_R_40 ", %20, %21, %22, %23"
#define WG_R_56 WG_R_48 ", %24, %25, %26, %27"
#define WG_R_64 WG_R_56 ", %28, %29, %30, %31"
#define WG_R_72 WG_R_64 ", %32, %33, %34, %35"
#define WG_R_80 WG_R_72 ", %36, %37, %38, %39"
#define WG_R_88 WG_R_80 ", %40, %41, %42, %43"
#define WG_R_96 WG_R_88 ", %44, %45, %46, %47"
#define WG_R_104 WG_R_96 ", %48, %49, %50, %51"
#define WG_R_112 WG_R_104 ", %52, %53, %54, %55"
#define WG_R_120 WG_R_112 ", %56, %57, %58, %59"
#define WG_R_128 WG_R_120 ", %60, %61, %62, %63"
#define WG_R_136 WG_R_128 ", %64, %65, %66, %67"
#define WG_R_144 WG_R_136 ", %68, %69, %70, %71"
#define WG_R_152 WG_R_144 ", %72, %73, %74, %75"
#define WG_R_160 WG_R_152 ", %76, %77, %78, %79"
#define WG_R_168 WG_R_160 ", %80, %81, %82, %83"
#define WG_R_176 WG_R_168 ", %84, %85, %86, %87"
#define WG_R_184 WG_R_176 ", %88, %89, %90, %91"
#define WG_R_192 WG_R_184 ", %92, %93, %94, %95"
#define WG_R_200 WG_R_192 ", %96, %97, %98, %99"
#define WG_R_208 WG_R_200 ", %100, %101, %102, %103"
#define WG_R_216 WG_R_208 ", %104, %105, %106, %107"
#define WG_R_224 WG_R_216 ", %108, %109, %110, %111"
#define WG_R_232 WG_R_224 ", %112, %113, %114, %115"
#define WG_R_240 WG_R_232 ", %116, %117, %118, %119"
#define WG_R_248 WG_R_240 ", %120, %121, %122, %123"
#define WG_R_256 WG_R_248 ", %124, %125, %126, %127"
#define WG_O_8 WG_C(d[0]), WG_C(d[1]), WG_C(d[2]), WG_C(d[3])
#define WG_O_16 WG_O_8, WG_C(d[4]), WG_C(d[5]), WG_C(d[6]), WG_C(d[7])
#define WG_O_24 WG_O_16, WG_C(d[8]), WG_C(d[9]), WG_C(d[10]), WG_C(d[11])
#define WG_O_32 WG_O_24, WG_C(d[12]), WG_C(d[13]), WG_C(d[14]), WG_C(d[15])
#define WG_O_40 WG_O_32, WG_C(d[16]), WG_C(d[17]), WG_C(d[18]), WG_C(d[19])
#define WG_O_48 WG_O_40, WG_C(d[20]), WG_C(d[21]), WG_C(d[22]), WG_C(d[23])
#define WG_O_56 WG_O_48, WG_C(d[24]), WG_C(d[25]), WG_C(d[26]), WG_C(d[27])
#define WG_O_64 WG_O_56, WG_C(d[28]), WG_C(d[29]), WG_C(d[30]), WG_C(d[31])
#define WG_O_72 WG_O_64, WG_C(d[32]), WG_C(d[33]), WG_C(d[34]), WG_C(d[35])
#define WG_O_80 WG_O_72, WG_C(d[36]), WG_C(d[37]), WG_C(d[38]), WG_C(d[39])
#define WG_O_88 WG_O_80, WG_C(d[40]), WG_C(d[41]), WG_C(d[42]), WG_C(d[43])
#define WG_O_96 WG_O_88, WG_C(d[44]), WG_C(d[45]), WG_C(d[46]), WG_C(d[47])
#define WG_O_104 WG_O_96, WG_C(d[48]), WG_C(d[49]), WG_C(d[50]), WG_C(d[51])
#define WG_O_112 WG_O_104, WG_C(d[52]), WG_C(d[53]), WG_C(d[54]), WG_C(d[55])
#define WG_O_120 WG_O_112, WG_C(d[56]), WG_C(d[57]), WG_C(d[58]), WG_C(d[59])
#define WG_O_128 WG_O_120, WG_C(d[60]), WG_C(d[61]), WG_C(d[62]), WG_C(d[63])
#define WG_O_136 WG_O_128, WG_C(d[64]), WG_C(d[65]), WG_C(d[66]), WG_C(d[67])
#define WG_O_144 WG_O_136, WG_C(d[68]), WG_C(d[69]), WG_C(d[70]), WG_C(d[71])
#define WG_O_152 WG_O_144, WG_C(d[72]), WG_C(d[73]), WG_C(d[74]), WG_C(d[75])
#define WG_O_160 WG_O_152, WG_C(d[76]), WG_C(d[77]), WG_C(d[78]), WG_C(d[79])
#define WG_O_168 WG_O_160, WG_C(d[80]), WG_C(d[81]), WG_C(d[82]), WG_C(d[83])
#define WG_O_176 WG_O_168, WG_C(d[84]), WG_C(d[85]), WG_C(d[86]), WG_C(d[87])
#define WG_O_184 WG_O_176, WG_C(d[88]), WG_C(d[89]), WG_C(d[90]), WG_C(d[91])
#define WG_O_192 WG_O_184, WG_C(d[92]), WG_C(d[93]), WG_C(d[94]), WG_C(d[95])
#define WG_O_200 WG_O_192, WG_C(d[96]), WG_C(d[97]), WG_C(d[98]), WG_C(d[99])
#define WG_O_208 WG_O_200, WG_C(d[100]), WG_C(d[101]), WG_C(d[102]), WG_C(d[103])
#define WG_O_216 WG_O_208, WG_C(d[104]), WG_C(d[105]), WG_C(d[106]), WG_C(d[107])
#define WG_O_224 WG_O_216, WG_C(d[108]), WG_C(d[109]), WG_C(d[110]), WG_C(d[111])
#define WG_O_232 WG_O_224, WG_C(d[112]), WG_C(d[113]), WG_C(d[114]), WG_C(d[115])
#define WG_O_240 WG_O_232, WG_C(d[116]), WG_C(d[117]), WG_C(d[118]), WG_C(d[119])
#define WG_O_248 WG_O_240, WG_C(d[120]), WG_C(d[121]), WG_C(d[122]), WG_C(d[123])
#define WG_O_256 WG_O_248, WG_C(d[124]), WG_C(d[125]), WG_C(d[126]), WG_C(d[127])
#define WG_0_8 "%4"
#define WG_1_8 "%5"
#define WG_2_8 "%6"
#define WG_3_8 "%7"
#define WG_4_8 "%8"
#define WG_5_8 "%9"
#define WG_0_16 "%8"
#define WG_1_16 "%9"
#define WG_2_16 "%10"
#define WG_3_16 "%11"
#define WG_4_16 "%12"
#define WG_5_16 "%13"
#define WG_0_24 "%12"
#define WG_1_24 "%13"
#define WG_2_24 "%14"
#define WG_3_24 "%15"
#define WG_4_24 "%16"
#define WG_5_24 "%17"
#define WG_0_32 "%16"
#define WG_1_32 "%17"
#define WG_2_32 "%18"
#define WG_3_32 "%19"
#define WG_4_32 "%20"
#define WG_5_32 "%21"
#define WG_0_40 "%20"
#define WG_1_40 "%21"
#define WG_2_40 "%22"
#define WG_3_40 "%23"
#define WG_4_40 "%24"
#define WG_5_40 "%25"
#define WG_0_48 "%24"
#define WG_1_48 "%25"
#define WG_2_48 "%26"
#define WG_3_48 "%27"
#define WG_4_48 "%28"
#define WG_5_48 "%29"
#define WG_0_56 "%28"
#define WG_1_56 "%29"
#define WG_2_56 "%30"
#define WG_3_56 "%31"
#define WG_4_56 "%32"
#define WG_5_56 "%33"
#define WG_0_64 "%32"
#define WG_1_64 "%33"
#define WG_2_64 "%34"
#define WG_3_64 "%35"
#define WG_4_64 "%36"
#define WG_5_64 "%37"
#define WG_0_72 "%36"
#define WG_1_72 "%37"
#define WG_2_72 "%38"
#define WG_3_72 "%39"
#define WG_4_72 "%40"
#define WG_5_72 "%41"
#define WG_0_80 "%40"
#define WG_1_80 "%41"
#define WG_2_80 "%42"
#define WG_3_80 "%43"
#define WG_4_80 "%44"
#define WG_5_80 "%45"
#define WG_0_88 "%44"
#define WG_1_88 "%45"
#define WG_2_88 "%46"
#define WG_3_88 "%47"
#define WG_4_88 "%48"
#define WG_5_88 "%49"
#define WG_0_96 "%48"
#define WG_1_96 "%49"
#define WG_2_96 "%50"
#define WG_3_96 "%51"
#define WG_4_96 "%52"
#define WG_5_96 "%53"
#define WG_0_104 "%52"
#define WG_1_104 "%53"
#define WG_2_104 "%54"
#define WG_3_104 "%55"
#define WG_4_104 "%56"
#define WG_5_104 "%57"
#define WG_0_112 "%56"
#define WG_1_112 "%57"
#define WG_2_112 "%58"
#define WG_3_112 "%59"
#define WG_4_112 "%60"
#define WG_5_112 "%61"
#define WG_0_120 "%60"
#define WG_1_120 "%61"
#define WG_2_120 "%62"
#define WG_3_120 "%63"
#define WG_4_120 "%64"
#define WG_5_120 "%65"
#define WG_0_128 "%64"
#define WG_1_128 "%65"
#define WG_2_128 "%66"
#define WG_3_128 "%67"
#define WG_4_128 "%68"
#define WG_5_128 "%69"
#define WG_0_136 "%68"
#define WG_1_136 "%69"
#define WG_2_136 "%70"
#define WG_3_136 "%71"
#define WG_4_136 "%72"
#define WG_5_136 "%73"
#define WG_0_144 "%72"
#define WG_1_144 "%73"
#define WG_2_144 "%74"
#define WG_3_144 "%75"
#define WG_4_144 "%76"
#define WG_5_144 "%77"
#define WG_0_152 "%76"
#define WG_1_152 "%77"
#define WG_2_152 "%78"
#define WG_3_152 "%79"
#define WG_4_152 "%80"
#define WG_5_152 "%81"
#define WG_0_160 "%80"
#define WG_1_160 "%81"
#define WG_2_160 "%82"
#define WG_3_160 "%83"
#define WG_4_160 "%84"
#define WG_5_160 "%85"
#define WG_0_168 "%84"
#define WG_1_168 "%85"
#define WG_2_168 "%86"
#define WG_3_168 "%87"
#define WG_4_168 "%88"
#define WG_5_168 "%89"
#define WG_0_176 "%88"
#define WG_1_176 "%89"
#define WG_2_176 "%90"
#define WG_3_176 "%91"
#define WG_4_176 "%92"
#define WG_5_176 "%93"
#define WG_0_184 "%92"
#define WG_1_184 "%93"
#define WG_2_184 "%94"
#define WG_3_184 "%95"
#define WG_4_184 "%96"
#define WG_5_184 "%97"
#define WG_0_192 "%96"
#define WG_1_192 "%97"
#define WG_2_192 "%98"
#define WG_3_192 "%99"
#define WG_4_192 "%100"
#define WG_5_192 "%101"
#define WG_0_200 "%100"
#define WG_1_200 "%101"
#define WG_2_200 "%102"
#define WG_3_200 "%103"
#define WG_4_200 "%104"
#define WG_5_200 "%105"
#define WG_0_208 "%104"
#define WG_1_208 "%105"
#define WG_2_208 "%106"
#define WG_3_208 "%107"
#define WG_4_208 "%108"
#define WG_5_208 "%109"
#define WG_0_216 "%108"
#define WG_1_216 "%109"
#define WG_2_216 "%110"
#define WG_3_216 "%111"
#define WG_4_216 "%112"
#define WG_5_216 "%113"
#define WG_0_224 "%112"
#define WG_1_224 "%113"
#define WG_2_224 "%114"
#define WG_3_224 "%115"
#define WG_4_224 "%116"
#define WG_5_224 "%117"
#define WG_0_232 "%116"
#define WG_1_232 "%117"
#define WG_2_232 "%118"
#define WG_3_232 "%119"
#define WG_4_232 "%120"
#define WG_5_232 "%121"
#define WG_0_240 "%120"
#define WG_1_240 "%121"
#define WG_2_240 "%122"
#define WG_3_240 "%123"
#define WG_4_240 "%124"
#define WG_5_240 "%125"
#define WG_0_248 "%124"
#define WG_1_248 "%125"
#define WG_2_248 "%126"
#define WG_3_248 "%127"
#define WG_4_248 "%128"
#define WG_5_248 "%129"
#define WG_0_256 "%128"
#define WG_1_256 "%129"
#define WG_2_256 "%130"
#define WG_3_256 "%131"
#define WG_4_256 "%132"
#define WG_5_256 "%133"

#define WG_JOIN_(a, b) a##b
#define WG_JOIN(a, b) WG_JOIN_(a, b)
#define WG_TEXT_(a) #a
#define WG_TEXT(a) WG_TEXT_(a)

// X and Y behind descriptors
#define WG_EMIT(TYPES, TAIL)                                                                                              \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " WG_JOIN(WG_2_, WGMMA_N) ", 0; wgmma.mma_async.sync.aligned.m64n" WG_TEXT(  \
                   WGMMA_N) TYPES " {" WG_JOIN(WG_R_, WGMMA_N) "}, " WG_JOIN(WG_0_, WGMMA_N) ", " WG_JOIN(WG_1_, WGMMA_N)    \
               ", p" TAIL "; }"                                                                                            \
               : WG_JOIN(WG_O_, WGMMA_N)                                                                                   \
               : "l"(x), "l"(y), "r"(accumulate))
// X in four registers a thread
#define WG_EMIT_REGISTERS(TYPES, TAIL)                                                                                    \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " WG_JOIN(WG_5_, WGMMA_N) ", 0; wgmma.mma_async.sync.aligned.m64n" WG_TEXT(  \
                   WGMMA_N) TYPES " {" WG_JOIN(WG_R_, WGMMA_N) "}, {" WG_JOIN(WG_0_, WGMMA_N) ", " WG_JOIN(WG_1_, WGMMA_N)   \
               ", " WG_JOIN(WG_2_, WGMMA_N) ", " WG_JOIN(WG_3_, WGMMA_N) "}, " WG_JOIN(WG_4_, WGMMA_N) ", p" TAIL "; }"       \
               : WG_JOIN(WG_O_, WGMMA_N)                                                                                   \
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(y), "r"(accumulate))

// How one input type multiplies: its accumulator, and the instruction. XT / YT: the operand's rows, not its K, are
// contiguous in shared memory (two-byte types only).
template <class T>
struct Mma;

#define WG_C(v) "+f"(v)
template <>
struct Mma<half> {
  typedef float Sum;
  template <int XT, int YT>
  __device__ static void step(float (&d)[WGMMA_N / 2], unsigned long long x, unsigned long long y, int accumulate) {
    if constexpr (XT && YT) WG_EMIT("k16.f32.f16.f16", ", 1, 1, 1, 1");
    else if constexpr (XT) WG_EMIT("k16.f32.f16.f16", ", 1, 1, 1, 0");
    else if constexpr (YT) WG_EMIT("k16.f32.f16.f16", ", 1, 1, 0, 1");
    else WG_EMIT("k16.f32.f16.f16", ", 1, 1, 0, 0");
  }
  __device__ static void step_registers(float (&d)[WGMMA_N / 2], const unsigned (&x)[4], unsigned long long y, int accumulate) {
    WG_EMIT_REGISTERS("k16.f32.f16.f16", ", 1, 1, 0");
  }
};
template <>
struct Mma<__nv_bfloat16> {
  typedef float Sum;
  template <int XT, int YT>
  __device__ static void step(float (&d)[WGMMA_N / 2], unsigned long long x, unsigned long long y, int accumulate) {
    if constexpr (XT && YT) WG_EMIT("k16.f32.bf16.bf16", ", 1, 1, 1, 1");
    else if constexpr (XT) WG_EMIT("k16.f32.bf16.bf16", ", 1, 1, 1, 0");
    else if constexpr (YT) WG_EMIT("k16.f32.bf16.bf16", ", 1, 1, 0, 1");
    else WG_EMIT("k16.f32.bf16.bf16", ", 1, 1, 0, 0");
  }
  __device__ static void step_registers(float (&d)[WGMMA_N / 2], const unsigned (&x)[4], unsigned long long y, int accumulate) {
    WG_EMIT_REGISTERS("k16.f32.bf16.bf16", ", 1, 1, 0");
  }
};
template <>
struct Mma<float> {  // tf32: ten mantissa bits, float32 range
  typedef float Sum;
  template <int XT, int YT>
  __device__ static void step(float (&d)[WGMMA_N / 2], unsigned long long x, unsigned long long y, int accumulate) {
    static_assert(!XT && !YT, "tf32 operands must have K contiguous");
    WG_EMIT("k8.f32.tf32.tf32", ", 1, 1");
  }
};
// 8 bits: both operands have K contiguous.
template <>
struct Mma<fx::e4m3> {
  typedef float Sum;
  template <int XT, int YT>
  __device__ static void step(float (&d)[WGMMA_N / 2], unsigned long long x, unsigned long long y, int accumulate) {
    static_assert(!XT && !YT, "8-bit operands must have K contiguous");
    WG_EMIT("k32.f32.e4m3.e4m3", ", 1, 1");
  }
};
template <>
struct Mma<fx::e5m2> {
  typedef float Sum;
  template <int XT, int YT>
  __device__ static void step(float (&d)[WGMMA_N / 2], unsigned long long x, unsigned long long y, int accumulate) {
    static_assert(!XT && !YT, "8-bit operands must have K contiguous");
    WG_EMIT("k32.f32.e5m2.e5m2", ", 1, 1");
  }
};
#undef WG_C
#if WGMMA_N % 16 == 0 || WGMMA_N == 8 || WGMMA_N == 24  // the widths of integer products
#define WG_C(v) "+r"(v)
template <>
struct Mma<fx::i8> {
  typedef int Sum;
  template <int XT, int YT>
  __device__ static void step(int (&d)[WGMMA_N / 2], unsigned long long x, unsigned long long y, int accumulate) {
    static_assert(!XT && !YT, "8-bit operands must have K contiguous");
    WG_EMIT("k32.s32.s8.s8", "");
  }
};
template <>
struct Mma<fx::u8> {  // A is unsigned, B is not; A is Y with SWAP
  typedef int Sum;
  template <int XT, int YT>
  __device__ static void step(int (&d)[WGMMA_N / 2], unsigned long long x, unsigned long long y, int accumulate) {
    static_assert(!XT && !YT, "8-bit operands must have K contiguous");
#if defined(SWAP) && SWAP
    WG_EMIT("k32.s32.s8.u8", "");
#else
    WG_EMIT("k32.s32.u8.s8", "");
#endif
  }
};
#undef WG_C
#endif

