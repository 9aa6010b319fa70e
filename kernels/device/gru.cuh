// One unit's step of a GRU with reset_after, forward and backward (Cho et al. 2014): arithmetic alone, whatever kernel it is in.
//
//     r, z = sigmoid(x + s)        n = tanh(x_n + r * hn)        h = (1 - z) * n + z * h_prev
//
// x: the input's part with the biases; s: the product with h_prev; hn: h_prev's part of n with its bias.
#pragma once
#include "common.cuh"

// To a[3], the activations r, z, n; h is returned.
__device__ inline REAL gru_step(const REAL x[3], const REAL s[2], REAL hn, REAL h_prev, REAL a[3]) {
    a[0] = sigmoid(x[0] + s[0]);
    a[1] = sigmoid(x[1] + s[1]);
    a[2] = tanh_of(x[2] + a[0] * hn);
    return a[2] + a[1] * (h_prev - a[2]);
}

// d_h, the gradient that reaches h, to d[3], those of r, z, n on the input's side, and d_hn; that of h_prev but for its
// products is returned.
__device__ inline REAL gru_step_back(const REAL a[3], REAL hn, REAL h_prev, REAL d_h, REAL d[3], REAL& d_hn) {
    REAL r = a[0], z = a[1], made = a[2];
    d[2] = d_h * (1 - z) * (1 - made * made);             // grad: n
    d[0] = d[2] * hn * (r * (1 - r));                     // grad: r
    d[1] = d_h * (h_prev - made) * (z * (1 - z));         // grad: z
    d_hn = d[2] * r;                                      // grad: hn
    REAL d_h_prev = d_h * z;                              // grad: h_prev
    return d_h_prev;
}
