// What a normalisation multiplies by.
#pragma once
#include "functions.cuh"

// 1 / sqrt(square), at most MOST where that is defined (the root has a floor); what is no number stays so.
template <class T>
__device__ __forceinline__ T inverse_root(T square) {
    const T scale = fx::rsqrt(square);
#ifdef MOST
    return scale > T(MOST) ? T(MOST) : scale;
#else
    return scale;
#endif
}
