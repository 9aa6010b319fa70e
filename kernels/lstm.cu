// The pointwise part of an LSTM's step (lstm.cuh) over rows and units; twin of lstm.py.
//
// One thread for a row and a unit. The products around it are cuBLAS's (launches.py): `gates` [B, 4H] come with both of them
// summed. h is m, or, where m has a place of its own, that times W_hr, which is a product again.

#include "device/lstm.cuh"

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
    REAL a[4], after;
    REAL out = lstm_step(gates + 4 * n, unless_marked(clear, b, c_prev[n]), a, after);
    c[n] = after;
    if (kept) {
        WORD* k = kept + b * kept_row + 4 * u;
        for (int gate = 0; gate < 4; ++gate) k[gate] = word_of(a[gate]);
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
    REAL a[4], d[4];
    for (int gate = 0; gate < 4; ++gate) a[gate] = value_of(k[gate]);
    dc[n] = lstm_step_back(a, unless_marked(clear, b, c_prev[n]), c[n], incoming, d_c, d);
    for (int gate = 0; gate < 4; ++gate) k[gate] = word_of(d[gate]);
}
