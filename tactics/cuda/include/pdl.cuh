// Programmatic dependent launch for kernels without inline PTX elsewhere: with PDL=1 (sm_90 and later) a kernel may start
// while its predecessor ends, so it waits before its first read of what a predecessor may have written. Empty otherwise.
// Source: PTX ISA, "griddepcontrol", "prefetch".
#pragma once

#if defined(PDL) && PDL && defined(__CUDA_ARCH__)  // not on the CPU harness
__device__ __forceinline__ void pdl_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void pdl_launch_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#else
__device__ __forceinline__ void pdl_wait() {}
__device__ __forceinline__ void pdl_launch_next() {}
#endif

// The start of most kernels: the next one may be set up at once. It waits for this one's end, which comes after the end of all before, since
// this one waits too.
__device__ __forceinline__ void pdl_start() {
    pdl_launch_next();
    pdl_wait();
}

// Brings `size` bytes that no kernel writes to L2, one line of 128 a thread.
__device__ __forceinline__ void pdl_prefetch(const void* from, int size, int thread, int threads) {
#if defined(PDL) && PDL
    for (int at = thread * 128; at < size; at += threads * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(from) + at) : "memory");
#endif
}

// What the epilogue reads for every row (a bias, a scale) on its way to L2 before the kernel waits: it is read at the end of a block, and
// would come from memory then. One block asks for all. `ld` is the row length of the output.
template <typename Args>
__device__ __forceinline__ void pdl_prefetch_constants(const Args& args, int ld) {
#ifdef EPILOGUE_CONSTANTS  // prefetch_constants is generated with the epilogue
    if (blockIdx.x + blockIdx.y + blockIdx.z == 0) prefetch_constants(args, ld, threadIdx.x, blockDim.x);
#endif
}

// `size` bytes of a constant from byte `first` on, on their way to the multiprocessor's own cache, one line a thread.
__device__ __forceinline__ void pdl_prefetch_near(const void* from, int first, int size, int thread) {
#if defined(PDL) && PDL
    if (size > 0 && thread * 128 < size + 127)
        asm volatile("prefetch.global.L1 [%0];" ::"l"(static_cast<const char*>(from) + first + min(thread * 128, size - 1)) : "memory");
#endif
}

// The same for what the epilogue reads of `count` columns from n on: those of a block's first tile, while it waits for its operands.
template <typename Args>
__device__ __forceinline__ void pdl_prefetch_columns(const Args& args, int n, int count, int thread) {
#ifdef EPILOGUE_CONSTANTS
    prefetch_columns(args, n, count, thread);
#endif
}

// Operands that the epilogue reads at the output's own place, `rows` of them from m on by `count` columns from n on, on their way to L2.
template <typename Args>
__device__ __forceinline__ void pdl_prefetch_tile(const Args& args, long long m, int rows, int n, int count, int ld, int thread, int threads) {
#ifdef EPILOGUE_ROWS  // prefetch_tile is generated with the epilogue
    prefetch_tile(args, m, rows, n, count, ld, thread, threads);
#endif
}

// Rows of `size` bytes that are `pitch` bytes apart, one line of 128 a thread.
__device__ __forceinline__ void pdl_prefetch_rows(const void* from, long long pitch, int rows, int size, int thread, int threads) {
#if defined(PDL) && PDL
    const int lines = size > 0 ? (size + 127) / 128 : 0;
    for (int at = thread; at < rows * lines; at += threads)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(from) + at / lines * pitch + at % lines * 128) : "memory");
#endif
}
