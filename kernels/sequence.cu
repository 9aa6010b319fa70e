// Rows moved between callers' arrays and buffers, cleared, carried on and brought into the products' form; twin of sequence.py.
//
// One thread for an element, rows T * B of them or as many as there are.

#include "device/common.cuh"

// out[i, :width] = source[i, :width], or zeros after the row's length; i = t * batch + b.
extern "C" __global__ void emit_rows(
    i64 rows, i64 batch, i64 width, const REAL* source, i64 source_row, REAL* out, i64 out_row, const i64* lengths) {
    i64 n = element();
    if (n >= rows * width) return;
    i64 i = n / width, k = n % width;
    out[i * out_row + k] = has_ended(lengths, i % batch, i / batch) ? REAL(0) : source[i * source_row + k];
}

// out[i, :out_row] = source[i, :width], then zeros; without a source zeros.
extern "C" __global__ void absorb_rows(i64 rows, i64 width, const REAL* source, i64 source_row, REAL* out, i64 out_row) {
    i64 n = element();
    if (n >= rows * out_row) return;
    i64 i = n / out_row, k = n % out_row;
    out[n] = source && k < width ? source[i * source_row + k] : REAL(0);
}

// The same in the products' form.
extern "C" __global__ void operand_rows(i64 rows, i64 width, const REAL* source, i64 source_row, WORD* out, i64 out_row) {
    i64 n = element();
    if (n >= rows * out_row) return;
    i64 i = n / out_row, k = n % out_row;
    out[n] = word_of(source && k < width ? source[i * source_row + k] : REAL(0));
}

extern "C" __global__ void fill_zeros(i64 count, REAL* out) {
    i64 n = element();
    if (n < count) out[n] = 0;
}

// out[i] = source[i], zeros where row i is marked; source and out may be one. Any words of REAL's size.
extern "C" __global__ void clear_rows(i64 rows, i64 row, const u8* clear, const REAL* source, REAL* out) {
    i64 n = element();
    if (n >= rows * row) return;
    out[n] = clear[n / row] ? REAL(0) : source[n];
}

// After a projection: h [B, width] of rows that have ended is what it was, and op is h in the products' form.
extern "C" __global__ void carry_rows(
    i64 batch, i64 width, i64 time, const REAL* h_prev, REAL* h, WORD* op, i64 op_row, const i64* lengths) {
    i64 n = element();
    if (n >= batch * width) return;
    REAL value = has_ended(lengths, n / width, time) ? h_prev[n] : h[n];
    h[n] = value;
    if (op) op[n / width * op_row + n % width] = word_of(value);
}

// out[i, :columns] = source[:columns], or source[i] where its rows differ: what a product is added to.
extern "C" __global__ void spread_rows(i64 rows, i64 columns, const REAL* source, i64 source_row, REAL* out, i64 out_row) {
    i64 n = element();
    if (n >= rows * columns) return;
    i64 i = n / columns, k = n % columns;
    out[i * out_row + k] = source[i * source_row + k];
}

// sums[part, k] = sum over the part's rows of a[:, k]; one block of 32 x 8 threads for 32 columns of a part. The order of the
// additions depends on the shape alone.
extern "C" __global__ void __launch_bounds__(256) column_sums(
    i64 rows, i64 columns, i64 part_rows, const WORD* a, i64 a_row, REAL* sums) {
    __shared__ REAL partial[8][33];
    i64 k = (i64)blockIdx.x * 32 + threadIdx.x, begin = blockIdx.y * part_rows;
    i64 end = begin + part_rows < rows ? begin + part_rows : rows;
    REAL sum = 0;
    if (k < columns)
        for (i64 i = begin + threadIdx.y; i < end; i += 8) sum += value_of(a[i * a_row + k]);
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || k >= columns) return;
    for (int i = 1; i < 8; ++i) sum += partial[i][threadIdx.x];
    sums[blockIdx.y * columns + k] = sum;
}

// sums[k] += parts[0, k] + parts[1, k] + ..., or with `start` is set to it.
extern "C" __global__ void add_parts(i64 parts, i64 columns, i64 start, const REAL* source, REAL* sums) {
    i64 k = element();
    if (k >= columns) return;
    REAL sum = 0;
    for (i64 p = 0; p < parts; ++p) sum += source[p * columns + k];
    sums[k] = start ? sum : sums[k] + sum;
}
