// One unit's step of an LSTM, forward and backward (Hochreiter & Schmidhuber 1997): arithmetic alone, whatever kernel it is in.
//
//     i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of the gates        c = f * c_prev + i * g        m = o * tanh(c)
#pragma once
#include "common.cuh"

// x[4], the sums of the gates, to a[4], the activations i, f, g, o, and c; m is returned.
__device__ inline REAL lstm_step(const REAL x[4], REAL c_prev, REAL a[4], REAL& c) {
    a[0] = sigmoid(x[0]);
    a[1] = sigmoid(x[1]);
    a[2] = tanh_of(x[2]);
    a[3] = sigmoid(x[3]);
    c = a[1] * c_prev + a[0] * a[2];
    return a[3] * tanh_of(c);
}

// d_m and d_c, the gradients that reach m and c, to d[4], those of the gates; that of c_prev is returned.
__device__ inline REAL lstm_step_back(const REAL a[4], REAL c_prev, REAL c, REAL d_m, REAL d_c, REAL d[4]) {
    REAL i = a[0], f = a[1], g = a[2], o = a[3], tc = tanh_of(c);
    d_c += d_m * o * (1 - tc * tc);          // grad: c
    d[0] = d_c * g * (i * (1 - i));          // grad: i
    d[1] = d_c * c_prev * (f * (1 - f));     // grad: f
    d[2] = d_c * i * (1 - g * g);            // grad: g
    d[3] = d_m * tc * (o * (1 - o));         // grad: o
    REAL d_c_prev = d_c * f;                 // grad: c_prev
    return d_c_prev;
}
