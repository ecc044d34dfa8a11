// What the recurrent kernels share: one step of a cell, and where a sequence stands.
//
// Defines: CELL (0 RNN, 1 GRU, 2 LSTM), GATES, HIDDEN, WORK (float or double), IN_T, LENGTH_T, and flags RESET_AFTER, COUPLED, HAS_BIAS,
// HAS_H, HAS_C, HAS_PEEPHOLE, HAS_LENGTHS, REVERSE (bit d: direction d runs backwards). The prelude has the activations
// `WORK activation<i>(WORK x, int direction)`, clipping included. Gates in ONNX's order: z r h of a GRU, i o f c of an LSTM.
#pragma once
#include "functions.cuh"

struct Tensors {
    const IN_T* x;
    const IN_T* weights;
    const IN_T* bias;
    const IN_T* h0;
    const IN_T* c0;
    const IN_T* peephole;
    const LENGTH_T* lengths;
    IN_T* y;
    IN_T* last_h;
    IN_T* last_c;
};

// Elements between neighbours: of x along time and batch, of y along time, direction and batch, of states along direction and batch.
struct Strides {
    long long x_time, x_batch, y_time, y_direction, y_batch, state_direction, state_batch;
};

__device__ __forceinline__ int length_of(const Tensors& tensors, int row, int time) {
#if HAS_LENGTHS
    const long long length = static_cast<long long>(tensors.lengths[row]);
    return static_cast<int>(length < 0 ? 0 : length > time ? time : length);
#else
    return time;
#endif
}

// The place in time that step `step` of a sequence reads and writes; behind its end, the step itself.
__device__ __forceinline__ int place_of(int step, int length, int direction) {
    return (REVERSE >> direction & 1) && step < length ? length - 1 - step : step;
}

struct State {
    WORK h, c;
};

// One cell after one step: x and r are the gates' shares of input and of the state before, `unit` its number.
__device__ __forceinline__ State cell(const WORK (&x)[GATES], const WORK (&r)[GATES], WORK h, WORK c, const Tensors& tensors, int direction, int unit) {
#if CELL == 0
    return {activation0(x[0] + r[0], direction), c};
#elif CELL == 1
    WORK candidate = r[2];
    const WORK z = activation0(x[0] + r[0], direction);
#if RESET_AFTER
#if HAS_BIAS
    candidate += fx::widen(tensors.bias[direction * HIDDEN + unit]);
#endif
    candidate *= activation0(x[1] + r[1], direction);
#endif
    const WORK fresh = activation1(x[2] + candidate, direction);
    return {fresh + z * (h - fresh), c};
#else
    WORK to_i = x[0] + r[0], to_o = x[1] + r[1], to_f = x[2] + r[2];
#if HAS_PEEPHOLE
    const IN_T* peephole = tensors.peephole + direction * 3 * HIDDEN + unit;
    to_i += fx::widen(peephole[0]) * c;
    to_f += fx::widen(peephole[2 * HIDDEN]) * c;
#endif
    const WORK i = activation0(to_i, direction);
    const WORK f = COUPLED ? WORK(1) - i : activation0(to_f, direction);
    const WORK after = f * c + i * activation1(x[3] + r[3], direction);
#if HAS_PEEPHOLE
    to_o += fx::widen(peephole[HIDDEN]) * after;
#endif
    return {activation0(to_o, direction) * activation2(after, direction), after};
#endif
}
