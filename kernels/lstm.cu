// The pointwise part of an LSTM's step, forward and backward (Hochreiter & Schmidhuber 1997); twin of lstm.py.
//
//     i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of the gates        c = f * c_prev + i * g        m = o * tanh(c)
//
// One thread for a row and a unit. The products around it are cuBLAS's (launches.py): `gates` [B, 4H] come with both of them
// summed. h is m, or, where m has a place of its own, that times W_hr, which is a product again.

#include "common.cuh"

// kept [B, kept_row]: activations i, f, g, o, for backward; it may be the gates themselves. op: h as products read it.
extern "C" __global__ void lstm_forward(
    i64 batch, i64 hidden, i64 time, const REAL* gates, const REAL* c_prev, REAL* c, WORD* kept, i64 kept_row, const REAL* h_prev,
    REAL* h, const WORD* op_prev, WORD* op, i64 op_row, WORD* m, i64 m_row, const i64* lengths, const u8* clear) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    if (has_ended(lengths, b, time)) {
        c[n] = c_prev[n];
        if (m) {
            m[b * m_row + u] = word_of(0);
        } else {
            h[n] = h_prev[n];
            if (op) op[b * op_row + u] = op_prev[b * op_row + u];
        }
        return;
    }
    const REAL* x = gates + 4 * n;
    REAL i = sigmoid(x[0]), f = sigmoid(x[1]), g = tanh(x[2]), o = sigmoid(x[3]);
    REAL before = unless_marked(clear, b, c_prev[n]);
    REAL after = f * before + i * g;
    REAL out = o * tanh(after);
    c[n] = after;
    if (kept) {
        WORD* k = kept + b * kept_row + 4 * u;
        k[0] = word_of(i);
        k[1] = word_of(f);
        k[2] = word_of(g);
        k[3] = word_of(o);
    }
    if (m) {
        m[b * m_row + u] = word_of(out);
    } else {
        h[n] = out;
        if (op) op[b * op_row + u] = word_of(out);
    }
}

// The gradient that reaches h [B, R] of a step, through its output and the step after (dh), to dp [B, dp_row] as products read
// it; what passes an ended row stays in dh. clear_after: of the step after, none where there is none.
extern "C" __global__ void lstm_incoming(
    i64 batch, i64 width, i64 time, WORD* dp, i64 dp_row, const REAL* dout, i64 dout_row, REAL* dh,
    const i64* lengths, const u8* clear_after) {
    i64 n = element();
    if (n >= batch * width) return;
    i64 b = n / width, r = n % width;
    REAL total = unless_marked(clear_after, b, dh[n]);
    bool ended = has_ended(lengths, b, time);
    if (!ended) total += dout[b * dout_row + r];  // grad: out
    dh[n] = ended ? total : REAL(0);
    dp[b * dp_row + r] = word_of(ended ? REAL(0) : total);
}

// kept: activations in, the gradients of the gates out. dc: gradient of c after the step in, before it out. dm: gradient of m,
// where h is a product of it; else it is what reaches h, as in lstm_incoming.
extern "C" __global__ void lstm_backward(
    i64 batch, i64 hidden, i64 time, WORD* kept, i64 kept_row, const REAL* c_prev, const REAL* c, const REAL* dout,
    i64 dout_row, REAL* dh, REAL* dc, const REAL* dm, const i64* lengths, const u8* clear, const u8* clear_after) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    bool ended = has_ended(lengths, b, time);
    REAL incoming = dm ? dm[n] : unless_marked(clear_after, b, dh[n]);
    if (!dm) {
        dh[n] = ended ? incoming : REAL(0);
        if (!ended) incoming += dout[b * dout_row + u];  // grad: out
    }
    REAL d_c = unless_marked(clear_after, b, dc[n]);
    WORD* k = kept + b * kept_row + 4 * u;
    if (ended) {
        dc[n] = d_c;
        k[0] = k[1] = k[2] = k[3] = word_of(0);
        return;
    }
    REAL i = value_of(k[0]), f = value_of(k[1]), g = value_of(k[2]), o = value_of(k[3]), tc = tanh(c[n]);
    REAL before = unless_marked(clear, b, c_prev[n]);
    d_c += incoming * o * (1 - tc * tc);             // grad: c
    k[0] = word_of(d_c * g * (i * (1 - i)));          // grad: i
    k[1] = word_of(d_c * before * (f * (1 - f)));     // grad: f
    k[2] = word_of(d_c * i * (1 - g * g));            // grad: g
    k[3] = word_of(incoming * tc * (o * (1 - o)));    // grad: o
    dc[n] = d_c * f;                                  // grad: c_prev
}
