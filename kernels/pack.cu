// Weights into the form in which products read them, and gradients back out of it; twin of pack.py.
//
// A packed weight is [columns, depth] with the depth side by side, whichever way round the product wants it, the gates of a unit
// together: column u * gates + g stands for row g * hidden + u of the weight.

#include "device/common.cuh"

__device__ inline i64 source_row(i64 column, i64 gates, i64 hidden) { return column % gates * hidden + column / gates; }

// packed[column, k] = w[source_row(column), k], zeros from width up to depth: for x W'.
extern "C" __global__ void pack_columns(i64 hidden, i64 gates, i64 width, i64 depth, const REAL* w, i64 w_row, WORD* packed) {
    i64 n = element();
    if (n >= hidden * gates * depth) return;
    i64 column = n / depth, k = n % depth;
    packed[n] = word_of(k < width ? w[source_row(column, gates, hidden) * w_row + k] : REAL(0));
}

// packed[column, k] = w[source_row(k), column], zeros up to depth: for dy W, dy in the gates' order.
extern "C" __global__ void pack_rows(i64 hidden, i64 gates, i64 width, i64 depth, const REAL* w, i64 w_row, WORD* packed) {
    i64 n = element();
    if (n >= width * depth) return;
    i64 column = n / depth, k = n % depth;
    packed[n] = word_of(k < hidden * gates ? w[source_row(k, gates, hidden) * w_row + column] : REAL(0));
}

// out[column] = a + b of its row; of gates from `split` on only a.
extern "C" __global__ void pack_bias(i64 hidden, i64 gates, i64 split, const REAL* a, const REAL* b, REAL* out) {
    i64 n = element();
    if (n >= hidden * gates) return;
    i64 row = source_row(n, gates, hidden);
    out[n] = (a ? a[row] : REAL(0)) + (b && row < split * hidden ? b[row] : REAL(0));
}

// out[source_row(column), :width] += c[column, :width].
extern "C" __global__ void add_rows(i64 hidden, i64 gates, i64 width, const REAL* c, i64 c_row, REAL* out, i64 out_row) {
    i64 n = element();
    if (n >= hidden * gates * width) return;
    i64 column = n / width, k = n % width;
    out[source_row(column, gates, hidden) * out_row + k] += c[column * c_row + k];
}

// out[source_row(column), :width] += c[:width, column], bias[source_row(column)] += sums[column]; bias 0: none.
extern "C" __global__ void add_columns(
    i64 hidden, i64 gates, i64 width, const REAL* c, i64 c_row, REAL* out, i64 out_row, const REAL* sums, REAL* bias) {
    i64 n = element();
    if (n >= hidden * gates * (width + 1)) return;
    i64 column = n / (width + 1), k = n % (width + 1), row = source_row(column, gates, hidden);
    if (k < width)
        out[row * out_row + k] += c[k * c_row + column];
    else if (bias)
        bias[row] += sums[column];
}
