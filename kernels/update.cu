// What changes flat buffers element by element: optimizers in one pass, scaling and clipping, and the sums behind norms; twin of
// update.py, which has the formulas and the order of `hyper`.

#include "device/common.cuh"

extern "C" __global__ void sgd(i64 count, REAL* params, const REAL* grads, REAL* buffer, const REAL* hyper, i64 nesterov) {
    i64 n = element();
    if (n >= count || hyper[0] != hyper[0]) return;
    REAL p = params[n], g = hyper[0] * grads[n] + hyper[1] * p;
    if (buffer) {
        REAL b = hyper[2] * buffer[n] + g;
        buffer[n] = b;
        g = nesterov ? hyper[2] * b + g : b;
    }
    params[n] = hyper[3] * g + p;
}

extern "C" __global__ void rmsprop(i64 count, REAL* params, const REAL* grads, REAL* square, REAL* buffer, const REAL* hyper) {
    i64 n = element();
    if (n >= count || hyper[0] != hyper[0]) return;
    REAL p = params[n], g = hyper[0] * grads[n] + hyper[1] * p;
    REAL s = hyper[4] * square[n] + hyper[5] * g * g;
    square[n] = s;
    g = g / (sqrt(s) + hyper[6]);
    if (buffer) buffer[n] = g = hyper[2] * buffer[n] + g;
    params[n] = hyper[3] * g + p;
}

extern "C" __global__ void adam(i64 count, REAL* params, const REAL* grads, REAL* m, REAL* v, const REAL* hyper) {
    i64 n = element();
    if (n >= count || hyper[0] != hyper[0]) return;
    REAL p = params[n], g = hyper[0] * grads[n] + hyper[1] * p;
    REAL first = hyper[3] * m[n] + hyper[4] * g, second = hyper[5] * v[n] + hyper[6] * g * g;
    m[n] = first;
    v[n] = second;
    params[n] = hyper[7] * (first / (sqrt(second) * hyper[8] + hyper[9])) + hyper[2] * p;
}

extern "C" __global__ void scale(i64 count, REAL* values, const REAL* hyper) {
    i64 n = element();
    if (n < count) values[n] *= hyper[0];
}

// NaN stays NaN.
extern "C" __global__ void clip_value(i64 count, REAL* values, const REAL* hyper) {
    i64 n = element();
    if (n >= count) return;
    REAL x = values[n], high = hyper[0];
    values[n] = x > high ? high : x < -high ? -high : x;
}

// The sum over a block of 256 threads; every thread gets it.
__device__ inline double over_block(double x) {
    __shared__ double partial[256];
    __syncthreads();
    partial[threadIdx.x] = x;
    __syncthreads();
    for (int d = 128; d; d >>= 1) {
        if (threadIdx.x < d) partial[threadIdx.x] += partial[threadIdx.x + d];
        __syncthreads();
    }
    return partial[0];
}

// sums[j] = the sum of the squares, or of the magnitudes, of the j-th `chunk` elements: a block of 256 threads for each.
__device__ inline void chunk_sum(i64 count, i64 chunk, const REAL* values, double* sums, bool square) {
    i64 begin = blockIdx.x * chunk, end = begin + chunk < count ? begin + chunk : count;
    double sum = 0;
    for (i64 n = begin + threadIdx.x; n < end; n += 256) {
        double x = values[n];
        sum += square ? x * x : fabs(x);
    }
    sum = over_block(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) square_sums(i64 count, i64 chunk, const REAL* values, double* sums) {
    chunk_sum(count, chunk, values, sums, true);
}

extern "C" __global__ void __launch_bounds__(256) absolute_sums(i64 count, i64 chunk, const REAL* values, double* sums) {
    chunk_sum(count, chunk, values, sums, false);
}

// Whether an optimizer may take its step; update.py says what the numbers are. One block of 256 threads.
extern "C" __global__ void __launch_bounds__(256) judge(
    i64 rows, const double* losses, i64 chunks, const double* squares, const double* limits, double* journal, REAL* hyper) {
    double loss = 0, square = 0;
    for (i64 k = threadIdx.x; k < rows; k += 256) loss += losses[k];
    for (i64 k = threadIdx.x; k < chunks; k += 256) square += squares[k];
    loss = over_block(loss) / limits[1];
    double norm = sqrt(over_block(square));
    if (threadIdx.x != 0) return;
    double factor = 0;
    if (journal[4] == 0) {
        journal[1] = loss;
        journal[2] = norm;
        factor = fmin(1.0, limits[0] / (norm + 1e-6));
        if (isfinite(loss) && isfinite(norm)) {
            journal[0] += loss * limits[1];
            journal[3] += 1;
        } else {
            journal[4] = 1;
        }
    }
    hyper[0] = journal[4] == 0 ? REAL(factor) : REAL(nan(""));
}
