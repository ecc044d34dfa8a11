// Rows of the output: OUT_WIDTH elements that begin OUT_PITCH elements apart when it is some columns of a wider tensor, else next to
// each other (then nothing is defined, and nothing is computed). X_PITCH and X_WIDTH say the same of the input.
#pragma once

#ifdef OUT_PITCH
#define OUT_ROW(width) OUT_PITCH
#else
#define OUT_ROW(width) (width)
#endif
#ifdef X_PITCH
#define X_ROW(width) X_PITCH
#else
#define X_ROW(width) (width)
#endif

// Where element `index` of the output, counted without the gaps, lies.
template <typename I>
__device__ __forceinline__ I out_place(I index) {
#ifdef OUT_PITCH
    return index + index / OUT_WIDTH * (OUT_PITCH - OUT_WIDTH);
#else
    return index;
#endif
}

// Where element `index` of the input lies.
template <typename I>
__device__ __forceinline__ I x_place(I index) {
#ifdef X_PITCH
    return index + index / X_WIDTH * (X_PITCH - X_WIDTH);
#else
    return index;
#endif
}
