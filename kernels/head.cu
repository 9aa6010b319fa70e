// Rows by number and back, and softmax cross-entropy with its gradient; twin of head.py.

#include "device/common.cuh"

// out[i] = source[ids[i]], rows of `columns`.
extern "C" __global__ void gather_rows(
    i64 rows, i64 columns, const int* ids, const REAL* source, i64 source_row, REAL* out, i64 out_row) {
    i64 n = element();
    if (n >= rows * columns) return;
    i64 i = n / columns, k = n % columns;
    out[i * out_row + k] = source[ids[i] * source_row + k];
}

// out[ids[i]] += source[i], rows in order, so that the sums are the same in every run: the block of the first row with a number
// takes all rows that have it. A block has `blockDim.x` columns, blockIdx.y says which.
template <class Element>
__device__ inline void scatter(i64 rows, i64 columns, const int* ids, const Element* source, i64 source_row, REAL* out, i64 out_row) {
    i64 own = blockIdx.x, k = (i64)blockIdx.y * blockDim.x + threadIdx.x;
    int id = ids[own], before = 0;
    for (i64 i = threadIdx.x; i < own; i += blockDim.x) before |= ids[i] == id;
    if (__syncthreads_or(before)) return;
    if (k >= columns) return;
    REAL sum = out[id * out_row + k];
    for (i64 i = own; i < rows; ++i)
        if (ids[i] == id) sum += value_of(source[i * source_row + k]);  // grad: embedding
    out[id * out_row + k] = sum;
}

extern "C" __global__ void scatter_rows(
    i64 rows, i64 columns, const int* ids, const REAL* source, i64 source_row, REAL* out, i64 out_row) {
    scatter(rows, columns, ids, source, source_row, out, out_row);
}

extern "C" __global__ void scatter_operands(
    i64 rows, i64 columns, const int* ids, const WORD* source, i64 source_row, REAL* out, i64 out_row) {
    scatter(rows, columns, ids, source, source_row, out, out_row);
}

// The largest of, or the sum over, a block of 128 threads; every thread gets it.
__device__ inline REAL over_block(REAL x, bool largest, REAL* shared) {
    for (int d = 16; d; d >>= 1) {
        REAL other = __shfl_xor_sync(0xffffffffu, x, d);
        x = largest ? (other > x ? other : x) : x + other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[0];
    for (int w = 1; w < 4; ++w) x = largest ? (shared[w] > x ? shared[w] : x) : x + shared[w];
    return x;
}

// losses[i] = log(sum(exp(logits[i]))) - logits[i, targets[i]], and with `gradient` the logits become (softmax - onehot) * scale,
// zeros from `classes` up to `row`. A negative target: loss and gradient 0. correct: whether the first largest is the target's.
// One block of 128 threads for a row.
extern "C" __global__ void __launch_bounds__(128) softmax_cross_entropy(
    i64 rows, i64 classes, REAL* logits, i64 row, const int* targets, const REAL* scale, double* losses, i64 gradient,
    u8* correct) {
    __shared__ REAL shared[4];
    i64 i = blockIdx.x;
    REAL* x = logits + i * row;
    int target = targets[i];
    if (target < 0) {
        if (threadIdx.x == 0) losses[i] = 0;
        if (threadIdx.x == 0 && correct) correct[i] = 0;
        if (gradient)
            for (i64 k = threadIdx.x; k < row; k += 128) x[k] = 0;
        return;
    }
    REAL top = x[0], sum = 0, wanted = x[target];
    for (i64 k = threadIdx.x; k < classes; k += 128) top = x[k] > top ? x[k] : top;
    top = over_block(top, true, shared);
    int earlier = 0;
    for (i64 k = threadIdx.x; k < classes; k += 128) {
        sum += exp(x[k] - top);
        earlier |= k < target && !(x[k] < top);
    }
    sum = over_block(sum, false, shared);
    earlier = __syncthreads_or(earlier);
    if (threadIdx.x == 0) {
        losses[i] = log((double)sum) + ((double)top - (double)wanted);
        if (correct) correct[i] = wanted == top && !earlier;
    }
    if (!gradient) return;
    REAL factor = scale[0], share = factor / sum;
    __syncthreads();
    for (i64 k = threadIdx.x; k < row; k += 128) {
        REAL p = k < classes ? exp(x[k] - top) * share : REAL(0);  // grad: softmax
        x[k] = k == target ? p - factor : p;                        // grad: target
    }
}
