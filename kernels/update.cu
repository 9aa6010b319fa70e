// What changes flat buffers element by element: optimizers in one pass, scaling and clipping, and the sums behind norms; twin of
// update.py, which has the formulas and the order of `hyper`.

#include "common.cuh"

extern "C" __global__ void sgd(i64 count, REAL* params, const REAL* grads, REAL* buffer, const REAL* hyper, i64 nesterov) {
    i64 n = element();
    if (n >= count) return;
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
    if (n >= count) return;
    REAL p = params[n], g = hyper[0] * grads[n] + hyper[1] * p;
    REAL s = hyper[4] * square[n] + hyper[5] * g * g;
    square[n] = s;
    g = g / (sqrt(s) + hyper[6]);
    if (buffer) buffer[n] = g = hyper[2] * buffer[n] + g;
    params[n] = hyper[3] * g + p;
}

extern "C" __global__ void adam(i64 count, REAL* params, const REAL* grads, REAL* m, REAL* v, const REAL* hyper) {
    i64 n = element();
    if (n >= count) return;
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

// sums[j] = the sum of the squares, or of the magnitudes, of the j-th `chunk` elements: a block of 256 threads for each.
__device__ inline void chunk_sum(i64 count, i64 chunk, const REAL* values, double* sums, bool square) {
    __shared__ double partial[256];
    i64 begin = blockIdx.x * chunk, end = begin + chunk < count ? begin + chunk : count;
    double sum = 0;
    for (i64 n = begin + threadIdx.x; n < end; n += 256) {
        double x = values[n];
        sum += square ? x * x : fabs(x);
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (int d = 128; d; d >>= 1) {
        if (threadIdx.x < d) partial[threadIdx.x] += partial[threadIdx.x + d];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

extern "C" __global__ void __launch_bounds__(256) square_sums(i64 count, i64 chunk, const REAL* values, double* sums) {
    chunk_sum(count, chunk, values, sums, true);
}

extern "C" __global__ void __launch_bounds__(256) absolute_sums(i64 count, i64 chunk, const REAL* values, double* sums) {
    chunk_sum(count, chunk, values, sums, false);
}
