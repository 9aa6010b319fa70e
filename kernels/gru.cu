// The pointwise parts of a GRU's step (gru.cuh) over rows and units, forward and backward; twin of gru.py.
//
// With reset_after, and in the original form, n = tanh(x's part + (r * h_prev) W_hn'), which takes two products.
//
// One thread for a row and a unit. `gates` [B, 3H] hold x's part and the biases, `sums` what a product with h gave. kept
// [B, kept_row] takes r, z, n, in backward the gradients on x's side; it may be the gates themselves. side: h's part of n
// with reset_after, r * h_prev in the original.

#include "device/gru.cuh"

// The end of a step: h and its form for products, carried on where a row has ended.
__device__ inline void give(i64 n, i64 b, i64 u, REAL value, bool ended, const REAL* h_prev, REAL* h, const WORD* op_prev,
                            WORD* op, i64 op_row) {
    h[n] = ended ? h_prev[n] : value;
    if (op) op[b * op_row + u] = ended ? op_prev[b * op_row + u] : word_of(value);
}

extern "C" __global__ void gru_forward(
    i64 batch, i64 hidden, i64 time, const REAL* gates, const REAL* sums, const REAL* bias, WORD* kept, i64 kept_row, WORD* side,
    i64 side_row, const REAL* h_prev, REAL* h, const WORD* op_prev, WORD* op, i64 op_row, const i64* lengths, const u8* clear) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    const REAL *x = gates + 3 * n, *s = sums + 3 * n;
    REAL hn = s[2] + bias[u], a[3];
    REAL made = gru_step(x, s, hn, unless_marked(clear, b, h_prev[n]), a);
    if (kept) {
        for (int gate = 0; gate < 3; ++gate) kept[b * kept_row + 3 * u + gate] = word_of(a[gate]);
        side[b * side_row + u] = word_of(hn);
    }
    give(n, b, u, made, has_ended(lengths, b, time), h_prev, h, op_prev, op, op_row);
}

// inner [B, kept_row] takes the gradients on h's side: of r, z and of h's part of n.
extern "C" __global__ void gru_backward(
    i64 batch, i64 hidden, i64 time, WORD* kept, WORD* inner, i64 kept_row, const WORD* side, i64 side_row,
    const REAL* h_prev, const REAL* dout, i64 dout_row, REAL* dh, const i64* lengths, const u8* clear, const u8* clear_after) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    REAL total = unless_marked(clear_after, b, dh[n]);
    WORD *k = kept + b * kept_row + 3 * u, *i = inner + b * kept_row + 3 * u;
    if (has_ended(lengths, b, time)) {
        dh[n] = total;
        k[0] = k[1] = k[2] = i[0] = i[1] = i[2] = word_of(0);
        return;
    }
    total += dout[b * dout_row + u];  // grad: out
    REAL a[3], d[3], d_hn;
    for (int gate = 0; gate < 3; ++gate) a[gate] = value_of(k[gate]);
    dh[n] = gru_step_back(a, value_of(side[b * side_row + u]), unless_marked(clear, b, h_prev[n]), total, d, d_hn);
    for (int gate = 0; gate < 3; ++gate) k[gate] = word_of(d[gate]);
    i[0] = k[0];
    i[1] = k[1];
    i[2] = word_of(d_hn);
}

// The original form, before its second product: r and z from sums [B, 2H], z back into the gates, side = r * h_prev.
extern "C" __global__ void gru_original_reset(
    i64 batch, i64 hidden, REAL* gates, const REAL* sums, WORD* kept, i64 kept_row, WORD* side, i64 side_row, const REAL* h_prev,
    const u8* clear) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    REAL r = sigmoid(gates[3 * n] + sums[2 * n]), z = sigmoid(gates[3 * n + 1] + sums[2 * n + 1]);
    gates[3 * n + 1] = z;
    if (kept) {
        kept[b * kept_row + 3 * u] = word_of(r);
        kept[b * kept_row + 3 * u + 1] = word_of(z);
    }
    side[b * side_row + u] = word_of(unless_marked(clear, b, r * h_prev[n]));
}

// After it: n from sums [B, H].
extern "C" __global__ void gru_original_forward(
    i64 batch, i64 hidden, i64 time, const REAL* gates, const REAL* sums, WORD* kept, i64 kept_row, const REAL* h_prev, REAL* h,
    const WORD* op_prev, WORD* op, i64 op_row, const i64* lengths, const u8* clear) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    REAL z = gates[3 * n + 1], made = tanh_of(gates[3 * n + 2] + sums[n]);
    REAL before = unless_marked(clear, b, h_prev[n]);
    if (kept) kept[b * kept_row + 3 * u + 2] = word_of(made);
    give(n, b, u, made + z * (before - made), has_ended(lengths, b, time), h_prev, h, op_prev, op, op_row);
}

// The original form back to its second product: gradients of z and n; that of n once more, apart, to inner_n.
extern "C" __global__ void gru_original_incoming(
    i64 batch, i64 hidden, i64 time, WORD* kept, i64 kept_row, WORD* inner_n, i64 side_row, const REAL* h_prev,
    const REAL* dout, i64 dout_row, REAL* dh, const i64* lengths, const u8* clear, const u8* clear_after) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    REAL total = unless_marked(clear_after, b, dh[n]);
    if (has_ended(lengths, b, time)) {
        dh[n] = total;
        inner_n[b * side_row + u] = word_of(0);
        return;
    }
    total += dout[b * dout_row + u];  // grad: out
    WORD* k = kept + b * kept_row + 3 * u;
    REAL z = value_of(k[1]), made = value_of(k[2]);
    REAL before = unless_marked(clear, b, h_prev[n]);
    REAL d_n = total * (1 - z) * (1 - made * made);                      // grad: n
    k[1] = word_of(total * (before - made) * (z * (1 - z)));             // grad: z
    k[2] = word_of(d_n);
    inner_n[b * side_row + u] = word_of(d_n);
    dh[n] = total * z;                                                   // grad: h_prev
}

// From there: d_rh [B, H], the gradient of r * h_prev, to those of r and h_prev; those of r and z once more to inner [B, .].
extern "C" __global__ void gru_original_backward(
    i64 batch, i64 hidden, i64 time, WORD* kept, i64 kept_row, WORD* inner, i64 inner_row, const REAL* h_prev, const REAL* d_rh,
    REAL* dh, const i64* lengths, const u8* clear) {
    i64 n = element();
    if (n >= batch * hidden) return;
    i64 b = n / hidden, u = n % hidden;
    WORD *k = kept + b * kept_row + 3 * u, *i = inner + b * inner_row + 2 * u;
    if (has_ended(lengths, b, time)) {
        k[0] = k[1] = k[2] = i[0] = i[1] = word_of(0);
        return;
    }
    REAL r = value_of(k[0]), before = unless_marked(clear, b, h_prev[n]);
    k[0] = i[0] = word_of(d_rh[n] * before * (r * (1 - r)));  // grad: r
    i[1] = k[1];
    dh[n] += d_rh[n] * r;                                     // grad: h_prev through r
}
