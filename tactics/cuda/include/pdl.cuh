// Programmatic dependent launch for kernels without inline PTX elsewhere: with PDL=1 (sm_90 and later) a kernel may start
// while its predecessor ends, so it waits before its first read of global memory. Empty otherwise.
// Source: PTX ISA, "griddepcontrol".
#pragma once

#if defined(PDL) && PDL
__device__ __forceinline__ void pdl_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void pdl_launch_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#else
__device__ __forceinline__ void pdl_wait() {}
__device__ __forceinline__ void pdl_launch_next() {}
#endif
