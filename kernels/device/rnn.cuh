// One unit's step of a vanilla RNN, forward and backward (Elman 1990): h = act(x), act tanh or relu. Arithmetic alone.
#pragma once
#include "common.cuh"

__device__ inline REAL rnn_step(REAL x, bool relu) { return relu ? (REAL(0) > x ? REAL(0) : x) : tanh_of(x); }  // relu passes NaN

// From h and d_h, the gradient that reaches it, that of x.
__device__ inline REAL rnn_step_back(REAL h, REAL d_h, bool relu) {
    REAL d_x = d_h * (relu ? REAL(h > 0) : 1 - h * h);  // grad: preact
    return d_x;
}
