// The two ends of a model that reads numbers: normalised inputs, and squared errors with their gradient; twin of series.py, which
// says what the arrays are.

#include "device/common.cuh"

extern "C" __global__ void normalise(
    i64 steps, i64 batch, i64 width, const double* wide, const float* slim, const double* mean, const double* std,
    const i64* lengths, REAL* out) {
    i64 n = element();
    if (n >= steps * batch * width) return;
    i64 i = n / width, k = n % width;
    if (has_ended(lengths, i % batch, i / batch)) {
        out[n] = 0;
        return;
    }
    double x = wide ? wide[n] : slim[n];
    out[n] = mean ? REAL(x - mean[k]) / REAL(std[k]) : REAL(x);
}

// One warp for a row; a block has `blockDim.x / 32` rows.
extern "C" __global__ void squared_error(
    i64 rows, i64 width, i64 period, REAL* out, i64 row, const double* targets, const double* mean, const double* std,
    double* losses, double* absolute, i64 gradient) {
    i64 i = element() / 32, lane = threadIdx.x % 32;
    if (i >= rows) return;
    double squares = 0, distance = 0, factor = 2.0 / (double)(rows * width);
    for (i64 k = lane; k < row; k += 32) {
        double error = 0;
        if (k < width) {
            double wanted = targets[i * width + k], unit = mean ? std[k % period] : 1;
            if (mean) wanted = (wanted - mean[k % period]) / unit;
            error = (double)out[i * row + k] - (double)REAL(wanted);
            squares += error * error;
            distance += fabs(error) * unit;
        }
        if (gradient) out[i * row + k] = REAL(factor * error);  // grad: error
    }
    for (int d = 16; d; d >>= 1) {
        squares += __shfl_xor_sync(0xffffffffu, squares, d);
        distance += __shfl_xor_sync(0xffffffffu, distance, d);
    }
    if (lane == 0) {
        losses[i] = squares;
        absolute[i] = distance;
    }
}
