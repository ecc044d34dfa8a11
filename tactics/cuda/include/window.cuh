// Windows over RANK spatial axes, for kernels that take any: one thread per output element. Axes stand outermost first.
#pragma once
#include "division.cuh"

// The output's size, the input's, and how windows lie in it; `step`: elements between neighbours of the axis.
struct Axis {
    Divider out;
    int size, window, stride, padding, dilation, step;
};
struct Axes {
    Axis axis[RANK];
};
