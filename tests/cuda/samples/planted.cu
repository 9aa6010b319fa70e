// Kernels with one mistake each, chosen by a macro, for the tests of the simulator. Without any macro all are right.
#include "device/ptx.cuh"

#ifdef INDEX  // the next row's element is taken for the last column
#define LAST_COLUMN(row, columns) ((row + 1) * (columns))
#else
#define LAST_COLUMN(row, columns) ((row + 1) * (columns)-1)
#endif
#ifdef NO_BARRIER
#define BARRIER()
#else
#define BARRIER() __syncthreads()
#endif

// last[row] = x[row, columns - 1]
extern "C" __global__ void last_column(const float* x, float* last, int rows, int columns) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) last[row] = x[LAST_COLUMN(row, columns)];
}

// Each block reverses its part of x through shared memory.
extern "C" __global__ void reverse(const float* x, float* out) {
    __shared__ float part[64];
    int first = blockIdx.x * 64;
    part[threadIdx.x] = x[first + threadIdx.x];
    BARRIER();
    out[first + threadIdx.x] = part[63 - threadIdx.x];
}

// The transpose of a 32 x 32 tile, with an overrun of the shared array's rows or of its end.
extern "C" __global__ void transpose(const float* x, float* out) {
    __shared__ float tile[32][33];
    __shared__ float behind[32];
    int i = threadIdx.y, j = threadIdx.x;
    if (i == 0) behind[j] = 0.0f;
#if defined(ROW_OVERRUN)
    tile[i][j + 2] = x[i * 32 + j];
#elif defined(SHARED_OVERRUN)
    (&tile[0][0])[i * 34 + j] = x[i * 32 + j];
#else
    tile[i][j] = x[i * 32 + j];
#endif
    __syncthreads();
    out[i * 32 + j] = tile[j][i];
}

// Fills out[0 .. n).
extern "C" __global__ void fill(float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef OVERRUN
    if (i <= n) out[i] = 1.0f;
#else
    if (i < n) out[i] = 1.0f;
#endif
}

// Threads beyond n leave before a barrier, or wait at another one.
extern "C" __global__ void early(const float* x, float* out, int n) {
    __shared__ float part[64];
    int i = threadIdx.x;
#ifdef RETURNS
    if (i >= n) return;
#endif
    part[i] = i < n ? x[i] : 0.0f;
#ifdef ELSEWHERE
    if (i < n) {
        __syncthreads();
    } else {
        __syncthreads();
    }
#else
    __syncthreads();
#endif
    if (i < n) out[i] = part[n - 1 - i];
}

// Each block gives the sum of its right neighbour's row; the last barrier keeps the row until the neighbour has read it.
extern "C" __global__ void CLUSTER(4) neighbour(const float* x, float* out) {
    __shared__ float row[32];
    row[threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
#ifndef NO_FIRST
    cluster_sync();
#endif
    float v = cluster_map(row, (cluster_rank() + 1) % cluster_size())[threadIdx.x];
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
    if (threadIdx.x == 0) out[blockIdx.x] = v;
#ifndef NO_LAST
    cluster_sync();
#endif
}
