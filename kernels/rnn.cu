// The pointwise part of a vanilla RNN's step (rnn.cuh) over rows and units, forward and backward; twin of rnn.py.
//
// One thread for a row and a unit; `gates` [B, H] come with both products summed.

#include "device/rnn.cuh"

extern "C" __global__ void rnn_forward(
    i64 batch, i64 hidden, i64 time, i64 relu, const REAL* gates, const REAL* h_prev, REAL* h, const WORD* op_prev, WORD* op,
    i64 op_row, const i64* lengths) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    bool ended = has_ended(lengths, b, time);
    REAL y = rnn_step(gates[n], relu);
    h[n] = ended ? h_prev[n] : y;
    if (op) op[b * op_row + u] = ended ? op_prev[b * op_row + u] : word_of(y);
}

// kept [B, kept_row] takes the gradients of the gates; h: after the step, from which the derivative follows.
extern "C" __global__ void rnn_backward(
    i64 batch, i64 hidden, i64 time, i64 relu, WORD* kept, i64 kept_row, const REAL* h, const REAL* dout, i64 dout_row,
    REAL* dh, const i64* lengths, const u8* clear_after) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    REAL total = unless_marked(clear_after, b, dh[n]);
    if (has_ended(lengths, b, time)) {
        dh[n] = total;
        kept[b * kept_row + u] = word_of(0);
        return;
    }
    total += dout[b * dout_row + u];  // grad: out
    kept[b * kept_row + u] = word_of(rnn_step_back(h[n], total, relu));
    dh[n] = 0;
}
